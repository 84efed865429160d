"""Demonstrated actions as priors use them: whitened, with the bandwidth of their density."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.priors.space import action_spec
from vla_reasoner_ros.types import ActionSpec
from vla_reasoner_ros.weights import load_arrays

KIND = "kde_prior"
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Demonstrations:
    """N demonstrated actions; T of their D dimensions move the arm.

    Attributes:
        spec: their convention.
        actions: (N, D), SI units.
        mean: (T,) of the motion dimensions.
        matrix: (T, T) whitening: ``z = matrix @ (motion - mean)`` has unit covariance.
        bandwidth: standard deviation of the density's kernels in whitened units: Scott's factor
            ``N ** (-1 / (T + 4))`` times whatever cross-validation found.
        open_fraction: share of the actions that command the gripper open.

    Raises:
        ConfigurationError: no data, wrong shapes, non-finite numbers or a singular whitening.
    """

    spec: ActionSpec
    actions: Floats
    mean: Floats
    matrix: Floats
    bandwidth: float
    open_fraction: float

    def __post_init__(self) -> None:
        size = len(self.spec.motion_indices)
        if self.actions.ndim != 2 or self.actions.shape[1] != self.spec.dimensions:
            raise ConfigurationError(
                f"demonstrated actions: expected (N, {self.spec.dimensions}), got "
                f"{self.actions.shape}"
            )
        if len(self.actions) == 0:
            raise ConfigurationError("demonstrated actions: there are none")
        if self.mean.shape != (size,) or self.matrix.shape != (size, size):
            raise ConfigurationError(
                f"demonstrated actions: expected whitening ({size},) and ({size}, {size}), got "
                f"{self.mean.shape} and {self.matrix.shape}"
            )
        for name in ("actions", "mean", "matrix", "bandwidth", "open_fraction"):
            if not np.isfinite(getattr(self, name)).all():
                raise ConfigurationError(f"demonstrated actions: {name} is not finite")
        if np.linalg.matrix_rank(self.matrix) < size:
            raise ConfigurationError("demonstrated actions: the whitening matrix is singular")
        if self.bandwidth <= 0.0 or not 0.0 <= self.open_fraction <= 1.0:
            raise ConfigurationError(
                "demonstrated actions: expected a positive bandwidth and an open fraction in "
                f"[0, 1], got {self.bandwidth} and {self.open_fraction}"
            )

    @classmethod
    def from_actions(
        cls, spec: ActionSpec, actions: Floats, bandwidth_factor: float = 1.0
    ) -> Demonstrations:
        """Whiten by the sample covariance, with Scott's bandwidth times a factor.

        Raises:
            ConfigurationError: fewer actions than dimensions, or a dimension that never varies or
                follows from others.
        """
        actions = np.asarray(actions, dtype=np.float64)
        motion = actions[:, list(spec.motion_indices)]
        count, size = motion.shape
        covariance = np.atleast_2d(np.cov(motion.T)) if count > size else np.zeros((size, size))
        scale = np.sqrt(np.diag(covariance))
        correlation = covariance / np.maximum(np.outer(scale, scale), 1e-300)
        if (scale == 0.0).any() or np.linalg.matrix_rank(correlation, tol=1e-9) < size:
            raise ConfigurationError(
                f"demonstrated actions: the covariance of {count} actions in {size} motion "
                "dimensions is singular; more of them are needed, or more varied ones"
            )
        gripper = spec.gripper
        is_open = 1.0
        if gripper is not None:
            middle = (gripper.open + gripper.closed) / 2.0
            command = actions[:, gripper.index]
            is_open = float(((command > middle) == (gripper.open > gripper.closed)).mean())
        return cls(
            spec=spec,
            actions=actions,
            mean=motion.mean(0),
            matrix=np.linalg.inv(np.linalg.cholesky(covariance)).astype(np.float64),
            bandwidth=bandwidth_factor * count ** (-1.0 / (size + 4)),
            open_fraction=is_open,
        )

    @classmethod
    def load(cls, model: str | Path = "") -> Demonstrations:
        """Read them; an empty path is the shipped file.

        Raises:
            ConfigurationError: no file, a corrupt one, or unusable data.
        """
        stem = Path(model) if str(model) else models_directory() / KIND
        tensors, card = load_arrays(stem, KIND)
        try:
            actions = np.asarray(tensors["actions"], dtype=np.float64)
            mean = np.asarray(tensors["whitening_mean"], dtype=np.float64)
            matrix = np.asarray(tensors["whitening_matrix"], dtype=np.float64)
            factor = float(np.asarray(tensors["bandwidth_factor"]).reshape(()))
            is_open = float(np.asarray(tensors["gripper_open_fraction"]).reshape(()))
        except (KeyError, ValueError) as error:
            raise ConfigurationError(f"prior {stem}: unusable tensor {error}") from error
        spec = action_spec(card["architecture"].get("action_spec"))
        scott = max(1, len(actions)) ** (-1.0 / (len(mean) + 4))
        return cls(spec, actions, mean, matrix, factor * scott, is_open)

    def tensors(self) -> dict[str, NDArray[np.float64]]:
        """What :meth:`load` reads, to be saved with a card."""
        scott = len(self.actions) ** (-1.0 / (len(self.mean) + 4))
        return {
            "actions": self.actions,
            "whitening_mean": self.mean,
            "whitening_matrix": self.matrix,
            "bandwidth_factor": np.array([self.bandwidth / scott]),
            "gripper_open_fraction": np.array([self.open_fraction]),
        }

    def whitened(self, actions: Floats) -> Floats:
        """(..., T) whitened motion of (..., D) actions."""
        return (actions[..., list(self.spec.motion_indices)] - self.mean) @ self.matrix.T
