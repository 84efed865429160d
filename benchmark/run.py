"""Run every benchmark of this folder: one JSON object a line.

``python benchmark/run.py [NAME ...]`` runs ``bench_NAME.py`` in a process of its own each, all of
them when none is named. The exit code is 1 when one failed; the others are run all the same.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main(names: list[str]) -> int:
    """Run the named benchmarks, or all."""
    known = {path.stem.removeprefix("bench_"): path for path in sorted(FOLDER.glob("bench_*.py"))}
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    failed = [
        name
        for name in names or known
        if subprocess.run(
            [sys.executable, "-m", f"benchmark.bench_{name}"], cwd=FOLDER.parent, check=False
        ).returncode
    ]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
