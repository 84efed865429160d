"""Files: written so that a reader never sees half of one, and told apart by what they contain."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from vla_reasoner_ros.errors import ConfigurationError


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write a file under a temporary name beside its own, flush it to disk, then rename it.

    Args:
        path: the file; its folder is made when missing. An existing file is replaced.
        content: all of it.

    Raises:
        OSError: it names ``path``, not the temporary file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        _write(path, content)
    except OSError as error:
        error.filename, error.filename2 = str(path), None
        raise


def _write(path: Path, content: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes the file private; give it the mode that open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def beside(path: Path, suffix: str) -> Path:
    """The file beside NAME.json that is called NAME with another suffix.

    Other dots belong to the name, so that neither files nor names that differ fall together.
    """
    return path.with_name((path.stem if path.suffix == ".json" else path.name) + suffix)


def digest(paths: Sequence[Path]) -> str:
    """A short hash of what files contain, in this order.

    Raises:
        ConfigurationError: one cannot be read.
    """
    content = hashlib.sha256()
    for path in paths:
        try:
            content.update(path.read_bytes())
        except OSError as error:
            raise ConfigurationError(f"file {path}: {error.strerror}") from error
    return content.hexdigest()[:16]


def models_fingerprint(folder: Path) -> str:
    """A hash that tells models apart, by their cards; wherever they lie, and whatever was judged.

    Raises:
        ConfigurationError: a card cannot be read.
    """
    return digest(sorted(set(folder.glob("*.json")) - {folder / "report_card.json"}))
