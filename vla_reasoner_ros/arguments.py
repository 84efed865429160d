"""What command lines share: numbers that know their range, help that tells every default."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


@dataclass(frozen=True)
class Number:
    """A type for ``add_argument`` that refuses what is out of range, infinite or no number.

    Attributes:
        kind: ``int`` or ``float``.
        low: smallest that is taken.
        high: largest that is taken.
        above: whether ``low`` itself is refused.
    """

    kind: type[int] | type[float]
    low: float
    high: float = math.inf
    above: bool = False

    def __call__(self, text: str) -> float:
        """The number that a word of the command line is.

        Raises:
            argparse.ArgumentTypeError: it is none, or out of range.
        """
        try:
            value = self.kind(text)
        except ValueError:
            value = math.nan
        inside = math.isfinite(value) and self.low <= value <= self.high
        if not inside or (self.above and value == self.low):
            raise argparse.ArgumentTypeError(f"expected {self}, got {text!r}")
        return value

    def __str__(self) -> str:
        """The range as the message says it."""
        name = "a whole number" if self.kind is int else "a number"
        if self.above:
            return f"{name} above {self.low:g}"
        if math.isinf(self.high):
            return f"{name} of {self.low:g} or more"
        return f"{name} from {self.low:g} to {self.high:g}"


COUNT = Number(int, 1)
WHOLE = Number(int, 0)
POSITIVE = Number(float, 0.0, above=True)
AMOUNT = Number(float, 0.0)
SHARE = Number(float, 0.0, 1.0)


class Parser(argparse.ArgumentParser):
    """A parser whose help tells every default and kind of word, and whose errors are one line."""

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """As of ``argparse``; default and kind are added to what the caller says."""
        action = super().add_argument(*names, **options)
        default = _shown(action.default)
        if default and "default" not in (action.help or ""):
            action.help = f"{action.help or ''} (default: {default})".strip()
        if action.option_strings and action.nargs != 0 and not action.choices:
            action.metavar = action.metavar or _metavar(action.type)
        return action

    def error(self, message: str) -> NoReturn:
        """End with exit code 2 and one line; the usage is what ``--help`` is for."""
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help tells more)\n")


def _shown(default: Any) -> str:
    """A default as it would be typed; empty where there is nothing to say."""
    if default is None or default is False or default == argparse.SUPPRESS:
        return ""
    if isinstance(default, Sequence) and not isinstance(default, str):
        return " ".join(str(part) for part in default)
    return str(default).replace("%", "%%")


def _metavar(kind: Any) -> str | None:
    if isinstance(kind, Number):
        return "N" if kind.kind is int else "X"
    return "PATH" if kind is Path else None
