"""Where objects are, from everything seen so far: what is hidden now was seen before.

The arm hides what it works on. A single image then leaves an object centimetres off, and the
encoder says so itself (``object_error``); the images before knew better. So each object's place is
carried from one observation to the next, with the hand when it is held, and the new sighting is
weighed against it by the variances of both: a Kalman filter with a random walk for each object.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vla_reasoner_ros.world_models.encoder import LatentLayout

FORGET_S = 1.5
"""Observations further apart are not of one stretch of watching, s."""
WALK = 0.002
"""Standard deviation of an untouched object's motion between two observations, m."""
WALK_AT_HAND = 0.02
"""The same for an object that the fingers hold or may touch, m."""
REACH = 0.06
"""Distance from the fingers within which an object may be touched, m."""
SURPRISE = 5.0
"""Standard deviations past which a clear sighting is believed at once: somebody moved it."""
CLEAR = 0.01
"""Expected error up to which a sighting counts as clear, m."""
SMALLEST_ERROR = 0.001
"""The least error that a sighting is granted, m."""


class ObjectTracker:
    """Carries the objects of single-image latents through time.

    Args:
        layout: of the latents.
    """

    def __init__(self, layout: LatentLayout) -> None:
        self._layout = layout
        self._last: Tensor | None = None
        self._stamp_ns = 0

    def update(self, latent: Tensor, stamp_ns: int) -> Tensor:
        """The (Z,) latent of an observation, its objects weighed against those seen before.

        The first observation, one not newer than the last and one more than :data:`FORGET_S`
        after it begin anew: they are returned as they are.

        Args:
            latent: (Z,) what the encoder makes of the observation alone.
            stamp_ns: when it was seen.
        """
        elapsed = (stamp_ns - self._stamp_ns) * 1e-9
        if self._last is not None and 0.0 < elapsed <= FORGET_S:
            latent = self._weighed(self._last, latent)
        self._last, self._stamp_ns = latent, stamp_ns
        return latent

    def _weighed(self, before: Tensor, now: Tensor) -> Tensor:
        layout = self._layout
        blocks, count = layout.blocks, len(layout.objects)
        hand_before, hand = (layout.get(x, "ee_position") for x in (before, now))
        place, seen = (layout.get(x, "object_position") for x in (before, now))
        held = torch.zeros(count)
        held[:blocks] = torch.minimum(
            layout.get(before, "block_held"), layout.get(now, "block_held")
        )
        carried = held > 0.5
        expected = place + carried[:, None] * (hand - hand_before)
        touched = carried | ((place - hand_before).norm(dim=-1) < REACH)
        walk = torch.where(touched, WALK_AT_HAND, WALK)
        variance = layout.get(before, "object_error").square() + walk.square()
        sighting = layout.get(now, "object_error").clamp_min(SMALLEST_ERROR)
        gain = variance / (variance + sighting.square())
        far = (seen - expected).norm(dim=-1) > SURPRISE * (variance + sighting.square()).sqrt()
        gain = torch.where(far & (sighting < CLEAR), 1.0, gain)
        error = torch.where(gain < 1.0, (variance * (1.0 - gain)).sqrt(), sighting)

        def mixed(name: str, share: Tensor) -> Tensor:
            old, new = layout.get(before, name), layout.get(now, name)
            return old + share * (new - old)

        parts = {name: layout.get(now, name) for name in layout.slices}
        return layout.join(
            parts
            | {
                "object_position": expected + gain[:, None] * (seen - expected),
                "object_error": error,
                "block_yaw": mixed("block_yaw", gain[:blocks, None]),
                "object_up": mixed("object_up", gain),
            }
        )
