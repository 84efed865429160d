"""Hooks of mkdocs: pages link to files of the repository, which the site does not have."""

import posixpath
import re
from typing import Any

_LINK = re.compile(r"\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Turn a link out of docs/ into its text and the file's path in the repository."""
    folder = posixpath.dirname(page.file.src_uri)

    def replace(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[2].partition("#")[0]))
        if not path.startswith("../"):
            return match[0]
        text, path = match[1], path.removeprefix("../")
        return text if text.strip("`") == path else f"{text} (`{path}`)"

    return _LINK.sub(replace, markdown)
