"""Which seeds serve what: nothing was ever trained or tuned on scenes for evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from vla_reasoner_ros.errors import ConfigurationError

RANGES: dict[str, range] = {
    "evaluation": range(0, 50_000),
    "tuning": range(50_000, 100_000),
    "training": range(100_000, 2**31),
}


def require_seed(seed: int, purpose: str) -> int:
    """Return the seed if it may serve the purpose.

    Args:
        seed: of scene and disturbances.
        purpose: ``evaluation``, ``tuning`` or ``training``.

    Raises:
        ConfigurationError: the seed is another purpose's.
    """
    allowed = RANGES[purpose]
    if seed not in allowed:
        raise ConfigurationError(
            f"seed {seed}: expected {allowed.start} to {allowed.stop - 1} for {purpose}"
        )
    return seed


def said_of_seeds(seeds: range, purposes: Sequence[str]) -> str:
    """What must be said of measuring on scenes of other purposes; empty where there is none.

    Args:
        seeds: of the scenes, in steps of one.
        purposes: whose scenes something may have been made on.
    """
    parts: list[str] = []
    for purpose in purposes:
        known = RANGES[purpose]
        first, last = max(seeds.start, known.start), min(seeds.stop, known.stop) - 1
        if first <= last:
            parts.append(f"seeds {first} to {last} are of the range for {purpose}")
    if not parts:
        return ""
    return f"{'; '.join(parts)}: what was made on such scenes may do better on them than on others"
