#!/usr/bin/env bash
# Builds docs/ and the docstrings as a site in out/site, in an environment of its own. What follows
# goes to `mkdocs build`, as --strict.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ENVIRONMENT=out/environments/docs
mapfile -t packages < <(python3 -c '
import configparser
cfg = configparser.ConfigParser()
cfg.read("setup.cfg", encoding="utf-8")
print(cfg["options.extras_require"]["docs"].strip())')

[ -x "$ENVIRONMENT/bin/python" ] || python3 -m venv "$ENVIRONMENT"
"$ENVIRONMENT/bin/python" -m pip install -qq --disable-pip-version-check "${packages[@]}"
exec "$ENVIRONMENT/bin/mkdocs" build --quiet --site-dir out/site "$@"
