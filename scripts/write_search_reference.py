#!/usr/bin/env python3
"""Write config/search/default.yaml and the parameter table of docs/search.md from declarations."""

from pathlib import Path

from vla_reasoner_ros.parameter_text import to_markdown, to_yaml
from vla_reasoner_ros.search.parameters import SearchParameters

ROOT = Path(__file__).resolve().parent.parent
BEGIN, END = "<!-- parameters -->\n", "<!-- end of parameters -->\n"
HEADER = (
    "# The search as our measurements have it, see docs/search.md. Written from the declarations\n"
    "# in vla_reasoner_ros/search/parameters.py by scripts/write_search_reference.py.\n"
)


def main() -> None:
    """Rewrite both files."""
    default = ROOT / "config" / "search" / "default.yaml"
    default.write_text(HEADER + to_yaml(SearchParameters(), "search"), encoding="utf-8")
    page = ROOT / "docs" / "search.md"
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    table = to_markdown(SearchParameters, "search.")
    page.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
