"""Statistics of a checkpoint's training data, in the formats that people have them in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.policies.checkpoint import read_json, read_safetensors

LEROBOT_EPSILON, OPENPI_EPSILON = 1e-8, 1e-6
"""What each adds to a deviation before it divides by it."""


@dataclass(frozen=True)
class MeanScale:
    """Mean and standard deviation of each dimension.

    Attributes:
        mean: (D,) in SI units.
        std: (D,) in the same.
        epsilon: what is added to a deviation.

    Raises:
        ConfigurationError: different widths, or numbers that are not finite, or a negative
            deviation.
    """

    mean: NDArray[np.float64]
    std: NDArray[np.float64]
    epsilon: float = LEROBOT_EPSILON

    def __post_init__(self) -> None:
        for name in ("mean", "std"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64).reshape(-1))
        if self.mean.shape != self.std.shape or not len(self.mean):
            raise ConfigurationError(
                f"statistics: {len(self.mean)} means and {len(self.std)} deviations"
            )
        if not np.isfinite([self.mean, self.std]).all() or (self.std < 0.0).any():
            raise ConfigurationError("statistics: expected finite means and deviations >= 0")

    def normalise(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., D) in SI units to zero mean and unit deviation."""
        return (values - self.mean) / (self.std + self.epsilon)

    def undo(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """The inverse of :meth:`normalise`."""
        return values * (self.std + self.epsilon) + self.mean

    def without_padding(self, width: int) -> MeanScale:
        """The first ``width`` dimensions, where the others are padding: no mean, no deviation."""
        if self.mean[width:].any() or self.std[width:].any():
            return self
        return MeanScale(self.mean[:width], self.std[:width], self.epsilon)


@dataclass(frozen=True)
class Statistics:
    """Of states and actions."""

    state: MeanScale
    actions: MeanScale


def read_statistics(folder: Path, path: str, owner: str) -> Statistics:
    """Find and read them.

    Args:
        folder: the checkpoint's.
        path: a file named by the user: openpi's ``norm_stats.json``. Empty looks in the folder: for
            transformers' ``processor_config.json`` (or ``preprocessor_config.json``), then for
            LeRobot's ``policy_preprocessor.json`` with its normaliser.
        owner: what messages call the policy.

    Raises:
        ConfigurationError: nothing is there, or it does not say mean and deviation.
    """
    if path:
        content = read_json(Path(path).expanduser(), owner)
        return _from_openpi(content.get("norm_stats", content), path, owner)
    for name in ("processor_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            content = read_json(folder / name, owner)
            if content.get("actions_mean") is not None:
                return _statistics(
                    *(content.get(key) for key in
                      ("state_mean", "state_std", "actions_mean", "actions_std")),
                    where=str(folder / name),
                    owner=owner,
                )  # fmt: skip
    if (folder / "policy_preprocessor.json").is_file():
        return _from_lerobot(folder, owner)
    raise ConfigurationError(
        f"{owner}: {folder} has no normalisation statistics (processor_config.json with "
        "actions_mean, or policy_preprocessor.json); name openpi's norm_stats.json by the option "
        "statistics. Without them the actions mean nothing"
    )


def _from_openpi(content: dict[str, Any], where: str, owner: str) -> Statistics:
    try:
        state, actions = content["state"], content["actions"]
        values = (state["mean"], state["std"], actions["mean"], actions["std"])
    except (KeyError, TypeError) as error:
        raise ConfigurationError(
            f"{owner}: {where}: expected state and actions with mean and std, missing {error}"
        ) from error
    return _statistics(*values, where=where, owner=owner, epsilon=OPENPI_EPSILON)


def _from_lerobot(folder: Path, owner: str) -> Statistics:
    steps = read_json(folder / "policy_preprocessor.json", owner).get("steps", [])
    for step in steps:
        if step.get("registry_name") != "normalizer_processor" or "state_file" not in step:
            continue
        modes = step.get("config", {}).get("norm_map", {})
        for kind in ("STATE", "ACTION"):
            if modes.get(kind, "MEAN_STD") != "MEAN_STD":
                raise ConfigurationError(
                    f"{owner}: {folder}: {kind} is normalised by {modes[kind]}, expected MEAN_STD"
                )
        file = folder / Path(step["state_file"]).name
        found = {k: v.double().numpy() for k, v in read_safetensors(file, owner).items()}
        keys = ("observation.state.mean", "observation.state.std", "action.mean", "action.std")
        return _statistics(*(found.get(key) for key in keys), where=str(file), owner=owner)
    raise ConfigurationError(
        f"{owner}: {folder}/policy_preprocessor.json has no normalizer_processor with statistics"
    )


def _statistics(
    *values: Any, where: str, owner: str, epsilon: float = LEROBOT_EPSILON
) -> Statistics:
    if any(value is None for value in values):
        raise ConfigurationError(
            f"{owner}: {where}: mean and deviation of state and actions are not all there"
        )
    try:
        return Statistics(MeanScale(*values[:2], epsilon), MeanScale(*values[2:], epsilon))
    except (ConfigurationError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{owner}: {where}: {error}") from error
