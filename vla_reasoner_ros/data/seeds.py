"""Which seeds serve what, so that no scene of an evaluation was ever trained or tuned on."""

from __future__ import annotations

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
