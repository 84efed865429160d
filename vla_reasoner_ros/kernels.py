"""How compiled functions are declared, and that none is older than the code that it stands for."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numba

from vla_reasoner_ros.files import write_atomically

kernel = numba.njit(cache=True)
"""Declares a compiled function whose machine code is kept beside its module."""

STAMP = "kernels.sha256"
_COMPILED = ("*.nbi", "*.nbc")
_MARKS = (b"vla_reasoner_ros.kernels import", b"numba")


def compiled(package: Path) -> list[Path]:
    """What Numba has kept of the modules below a folder, the stamp of their sources last."""
    kept = [path for pattern in _COMPILED for path in package.rglob(pattern)]
    return [*kept, *package.glob(f"__pycache__/{STAMP}")]


def forget_stale(package: Path) -> bool:
    """Remove what was compiled from other sources than those that are there now.

    Numba compares a kernel with its own file alone, but a kernel holds the machine code of those
    that it calls from other files.

    Args:
        package: folder of the modules. Where it may not be written nothing is removed: what is
            compiled there came with the sources.

    Returns:
        Whether the sources were others than at the last time.
    """
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        if not path.is_file():  # a symlinked build keeps the links of modules that are gone
            continue
        source = path.read_bytes()
        if any(mark in source for mark in _MARKS):
            digest.update(path.relative_to(package).as_posix().encode() + source)
    stamp = package / "__pycache__" / STAMP
    # A symlinked build links the stamp of the source tree, which says nothing of what is kept here.
    if stamp.exists() and not stamp.is_symlink() and stamp.read_text() == digest.hexdigest():
        return False
    try:
        for path in compiled(package):
            path.unlink(missing_ok=True)
        write_atomically(stamp, digest.hexdigest().encode())
    except OSError:
        return False
    return True


forget_stale(Path(__file__).parent)
