"""Hooks of mkdocs: pages link to files of the repository, which the site does not have."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Turn a link out of docs/ into its text and the file's path in the repository."""

    def replace(match: re.Match[str]) -> str:
        text, target = match[1], posixpath.normpath(match[2].partition("#")[0])
        path = target.removeprefix("../")
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)
