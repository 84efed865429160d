"""Write one executable per console script of setup.cfg and print their names, CMake list style.

Called by CMakeLists.txt as ``console_scripts.py SETUP_CFG FOLDER`` with the interpreter that the
executables shall run on.
"""

import configparser
import sys
from pathlib import Path

TEMPLATE = """#!{interpreter}
import sys

try:
    from {module} import {function}
except KeyboardInterrupt:
    print("{name}: interrupted", file=sys.stderr)
    sys.exit(130)
except ModuleNotFoundError as error:
    sys.exit(
        f"{name}: {{error}}; the Python packages of vla_reasoner_ros are not all here "
        "(docs/install.md)"
    )

if __name__ == "__main__":  # worker processes import this file under another name
    sys.exit({function}())
"""


def main(setup_cfg: str, folder: str) -> None:
    """Write the scripts of ``setup_cfg`` into ``folder``."""
    config = configparser.ConfigParser()
    config.read(setup_cfg, encoding="utf-8")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    names = []
    for line in config["options.entry_points"]["console_scripts"].strip().splitlines():
        name, _, reference = (part.strip() for part in line.partition("="))
        module, _, function = reference.partition(":")
        script = target / name
        text = TEMPLATE.format(
            name=name, interpreter=sys.executable, module=module, function=function
        )
        if not script.exists() or script.read_text(encoding="utf-8") != text:
            script.write_text(text, encoding="utf-8")
        script.chmod(0o755)
        names.append(name)
    print(";".join(names), end="")


if __name__ == "__main__":
    main(*sys.argv[1:])
