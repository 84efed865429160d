"""Point the CMake files of the ROS 2 wheels at this interpreter instead of the one that built them.

The wheels carry absolute paths of their build machine: the include folder of its Python and its
site-packages. Run once after the install, with the interpreter of the environment that the wheels
are in; running it again changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

SITE_PACKAGES = re.compile(r"(?:/opt/python|/tmp/build-env)[^;\"\s]*/site-packages")
INCLUDE = re.compile(r"/opt/python/[^/;\"\s]+/include/python3\.\d+")


def main() -> None:
    """Rewrite every CMake file below the environment's share folder."""
    include = sysconfig.get_path("include")
    site_packages = sysconfig.get_path("purelib")
    changed = 0
    for path in Path(sys.prefix, "share").rglob("*.cmake"):
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
        fixed = INCLUDE.sub(lambda _: include, text)
        fixed = SITE_PACKAGES.sub(lambda _: site_packages, fixed)
        if fixed != text:
            path.write_text(fixed, encoding="utf-8", errors="surrogateescape")
            changed += 1
    print(f"CMake files of the ROS 2 wheels: {changed} pointed at {sys.prefix}")


if __name__ == "__main__":
    main()
