"""Kernel density estimate over demonstrated actions: the prior of arXiv 2509.22643."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.base import Actions, Candidates, Prior
from vla_reasoner_ros.priors.demonstrations import Demonstrations
from vla_reasoner_ros.rotations import with_unit_quaternions
from vla_reasoner_ros.types import ActionChunk

Floats = NDArray[np.float64]
BLOCK = 2**21
"""Kernel evaluations held in memory at once."""
GRIPPER_FLOOR = 1e-3
"""Smallest probability of a gripper command, which keeps densities positive."""


class KdePrior(Prior):
    """Gaussian kernels on whitened demonstrated actions; a candidate holds one drawn action.

    The density is that of ``scipy.stats.gaussian_kde`` over the motion dimensions, at the mean
    action of the macro-action, times the probability of its gripper command.

    Args:
        model: path stem of the weights; empty is the shipped prior.
        neighbours: condition on the reference by keeping only the kernels of this many
            demonstrated actions nearest to it, in whitened units; 0 keeps all.
        bandwidth: factor on the stored bandwidth.
        demonstrations: data that are already in memory, instead of ``model``.

    Raises:
        ConfigurationError: no data, a singular whitening, or an option out of range.
    """

    name = "kde"
    proposals = 1

    def __init__(
        self,
        model: str | Path = "",
        neighbours: int = 0,
        bandwidth: float = 1.0,
        demonstrations: Demonstrations | None = None,
    ) -> None:
        data = demonstrations or Demonstrations.load(model)
        if not 0 <= neighbours <= len(data.actions):
            raise ConfigurationError(
                f"kde prior: neighbours must be 0 to {len(data.actions)}, the demonstrated "
                f"actions; got {neighbours}"
            )
        if not (math.isfinite(bandwidth) and bandwidth > 0.0):
            raise ConfigurationError(f"kde prior: bandwidth must be positive, got {bandwidth}")
        self.spec = data.spec
        self._data = data
        self._points = data.whitened(data.actions)
        self._squares = (self._points**2).sum(1)
        self._inverse = np.linalg.inv(data.matrix)
        self._width = bandwidth * data.bandwidth
        size = self._points.shape[1]
        self._constant = float(
            np.linalg.slogdet(data.matrix)[1]
            - size * (math.log(self._width) + 0.5 * math.log(2.0 * math.pi))
        )
        self._neighbours = neighbours
        self._last_near = (b"", np.zeros((0, 0), np.int64))
        gripper = self.spec.gripper
        command = data.actions[:, gripper.index] if gripper else np.ones(len(data.actions))
        self._open = self._is_open(command)

    def begin(self, proposals: Sequence[ActionChunk]) -> None:
        """Needs nothing of the policy but the references."""

    def sample(self, reference: Actions, count: int, rng: np.random.Generator) -> Candidates:
        """See :class:`Prior`."""
        nodes, steps, _ = reference.shape
        near = self._near(reference)
        if near is None:
            kernels = rng.integers(len(self._points), size=(nodes, count))
            is_open = rng.random((nodes, count)) < self._data.open_fraction
        else:
            places = rng.integers(near.shape[1], size=(nodes, count))
            kernels = np.take_along_axis(near, places, axis=1)
            is_open = self._open[kernels]
        points = self._points[kernels]
        points = points + self._width * rng.standard_normal(points.shape)
        actions = np.empty((nodes, count, steps, self.spec.dimensions))
        motion = points @ self._inverse.T + self._data.mean
        actions[..., list(self.spec.motion_indices)] = motion[:, :, None]
        gripper = self.spec.gripper
        if gripper is not None:
            command = np.where(is_open, gripper.open, gripper.closed)
            actions[..., gripper.index] = command[:, :, None]
        actions = with_unit_quaternions(self.spec, actions)
        return Candidates(actions, self._log_density(actions, near), (self.name,) * count)

    def log_density(self, actions: Actions, reference: Actions) -> NDArray[np.float64]:
        """See :class:`Prior`."""
        return self._log_density(actions, self._near(reference))

    def motion_log_density(self, actions: Floats) -> Floats:
        """(P,) log density of the motion of (P, D) single actions, all kernels kept."""
        points = self._data.whitened(actions)
        block = max(1, BLOCK // len(self._points))
        parts = [
            self._mixture(points[i : i + block], self._points, self._squares)
            for i in range(0, len(points), block)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _log_density(self, actions: Actions, near: NDArray[np.int64] | None) -> Floats:
        mean = actions.mean(axis=2)
        if near is None:
            density = self.motion_log_density(mean.reshape(-1, mean.shape[-1]))
            density = density.reshape(mean.shape[:2])
            fraction = np.full((len(actions), 1), self._data.open_fraction)
        else:
            points = self._data.whitened(mean)
            density = self._mixture(points, self._points[near], self._squares[near])
            fraction = self._open[near].mean(axis=1, keepdims=True)
        gripper = self.spec.gripper
        if gripper is None:
            return density
        chance = np.where(self._is_open(mean[..., gripper.index]), fraction, 1.0 - fraction)
        return density + np.log(np.maximum(chance, GRIPPER_FLOOR))

    def _mixture(self, points: Floats, kernels: Floats, squares: Floats) -> Floats:
        """Log of the mean kernel: points (..., P, T), kernels (..., C, T), squares (..., C)."""
        distance = (points**2).sum(-1)[..., None] + squares[..., None, :]
        distance = distance - 2.0 * (points @ np.swapaxes(kernels, -1, -2))
        exponent = np.maximum(distance, 0.0) * (-0.5 / self._width**2)
        top = exponent.max(axis=-1, keepdims=True)
        total = np.exp(exponent - top).sum(axis=-1)
        return np.log(total) + top[..., 0] - math.log(kernels.shape[-2]) + self._constant

    def _near(self, reference: Actions) -> NDArray[np.int64] | None:
        """(B, neighbours) kernels nearest to each reference, in no order; None for all kernels.

        Drawing and valuing ask for the same references in turn, so the last answer is kept.
        """
        if not self._neighbours:
            return None
        key = reference.tobytes()
        if self._last_near[0] != key:
            points = self._data.whitened(reference.mean(axis=1))
            distance = self._squares - 2.0 * (points @ self._points.T)
            near = np.argpartition(distance, self._neighbours - 1, axis=1)[:, : self._neighbours]
            self._last_near = (key, near)
        return self._last_near[1]

    def _is_open(self, command: Floats) -> NDArray[np.bool_]:
        gripper = self.spec.gripper
        if gripper is None:
            return np.ones(command.shape, np.bool_)
        return np.abs(command - gripper.open) < np.abs(command - gripper.closed)
