"""The page from its sources in ``resource/report/``: template, style, scripts, chart library.

The scripts are plain modules of the browser. An import map with data URIs lets them import one
another by name inside a single file, so nothing has to be bundled. The chart library is fetched by
npm at set-up, as ``package-lock.json`` there says, and is not part of the repository.
"""

from __future__ import annotations

import base64
import json
import string
from html import escape
from pathlib import Path

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import share_directory

LIBRARY = "uplot"
PREFIX = "page/"
"""Of the names that the scripts import one another by."""


class MissingLibraryError(ConfigurationError):
    """The chart library was not fetched by the set-up."""


def sources() -> Path:
    """The folder of the page's sources."""
    return share_directory() / "resource" / "report"


def page(title: str, body: str, explorer: str = "") -> bytes:
    """The whole file.

    Args:
        title: plain text.
        body: HTML inside ``main``.
        explorer: the ``script`` elements of :func:`packing.pack`; empty for a page without one.

    Raises:
        MissingLibraryError: an explorer is wanted and the chart library is not there.
    """
    folder = sources()
    styles = (folder / "page.css").read_text(encoding="utf-8")
    head = start = ""
    if explorer:
        script, style, licence = chart_library()
        styles = f"{style}\n{styles}"
        head = f"<script>/*!\n{licence}*/\n{script}</script>\n{_import_map(folder / 'scripts')}"
        # Asynchronous, it begins while the browser still reads the data after it.
        start = f'<script type="module" async>import "{PREFIX}main";</script>\n{explorer}'
    template = string.Template((folder / "page.html").read_text(encoding="utf-8"))
    text = template.substitute(
        title=escape(title), styles=styles, scripts=head, body=body, start=start
    )
    return text.encode()


def explorer_section() -> str:
    """The explorer's place in the body of the page."""
    return (sources() / "explorer.html").read_text(encoding="utf-8")


def chart_library() -> tuple[str, str, str]:
    """Script, style sheet and licence of the chart library.

    Raises:
        MissingLibraryError: it is not there, or not the version that the lock file asks for.
    """
    folder = sources()
    wanted = json.loads((folder / "package.json").read_text(encoding="utf-8"))["dependencies"]
    library = folder / "node_modules" / LIBRARY
    try:
        found = json.loads((library / "package.json").read_text(encoding="utf-8"))["version"]
        parts = ("dist/uPlot.iife.min.js", "dist/uPlot.min.css", "LICENSE")
        script, style, licence = ((library / p).read_text(encoding="utf-8") for p in parts)
    except (OSError, ValueError, KeyError) as error:
        raise MissingLibraryError(_missing(folder, wanted[LIBRARY], "is not there")) from error
    if found != wanted[LIBRARY]:
        raise MissingLibraryError(_missing(folder, wanted[LIBRARY], f"is {found} there"))
    return script, style, licence


def _missing(folder: Path, version: str, found: str) -> str:
    return (
        f"the report's chart library {LIBRARY} {version} {found}: run `make setup` in the source "
        f"tree, or `npm ci --prefix {folder}`, with npm and a network"
    )


def _import_map(folder: Path) -> str:
    modules = {
        PREFIX + path.stem: "data:text/javascript;base64,"
        + base64.b64encode(path.read_bytes() + f"\n//# sourceURL={path.name}\n".encode()).decode()
        for path in sorted(folder.glob("*.js"))
    }
    return f'<script type="importmap">{json.dumps({"imports": modules})}</script>'
