"""Motion primitives: the policy's segment pushed along an axis, stopped, or with the other grip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.priors.base import Actions
from vla_reasoner_ros.priors.centres import CentresPrior
from vla_reasoner_ros.priors.space import action_spec
from vla_reasoner_ros.types import ActionSpec


class PrimitivesPrior(CentresPrior):
    """One step both ways along every motion dimension, standing still, and the gripper's opposite.

    Args:
        spec: the action convention; None is the shipped policy's.
        step: displacement per action along each dimension, m or rad; None takes twice the Gaussian
            prior's standard deviation.
        spread: standard deviation around a primitive, as a share of the Gaussian prior's.

    Raises:
        ConfigurationError: an option is out of range.
    """

    def __init__(
        self,
        spec: ActionSpec | Mapping[str, Any] | None = None,
        step: Sequence[float] | None = None,
        spread: float = 0.1,
    ) -> None:
        super().__init__(action_spec(spec), spread, "primitives")
        size = self.space.size
        steps = 2.0 * self.space.deviations(None, self.name) if step is None else np.asarray(step)
        if steps.shape != (size,) or not (np.isfinite(steps) & (steps > 0.0)).all():
            raise ConfigurationError(
                f"primitives prior: step needs {size} positive numbers (m, rad), got {step}"
            )
        axes = np.diag(steps.astype(np.float64))
        self._moves = np.concatenate([axes, -axes])

    def centres(self, reference: Actions) -> Actions:
        """See :class:`CentresPrior`."""
        nodes, steps, _ = reference.shape
        shape = (nodes, len(self._moves), steps, self.space.size)
        moves = np.broadcast_to(self._moves[None, :, None], shape)
        kept = np.zeros(shape[:2], np.bool_)
        parts = [self.space.displace(reference, moves, kept), self._still(reference)[:, None]]
        if self.spec.gripper is not None:
            nowhere = np.zeros((nodes, 1, steps, self.space.size))
            parts.append(self.space.displace(reference, nowhere, np.ones((nodes, 1), np.bool_)))
        return np.concatenate(parts, axis=1)

    def _still(self, reference: Actions) -> Actions:
        motion = list(self.spec.motion_indices)
        still = reference.copy()
        still[..., motion] = 0.0 if self.spec.is_delta else reference[:, :1, motion]
        return still
