"""Where objects are, from everything seen so far: what is hidden now was seen before.

The arm hides what it works on. A single image then leaves an object centimetres off, and the
encoder says so itself (``object_error``); the images before knew better. So each object's place is
carried from one observation to the next, with the hand when it is held, and the new sighting is
weighed against it by the variances of both: a Kalman filter with a random walk for each object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vla_reasoner_ros.parameters import build, parameter
from vla_reasoner_ros.world_models.encoder import LatentLayout


@dataclass(frozen=True)
class TrackerParameters:
    """How much is believed of what is seen now against what was seen before.

    The defaults were chosen on 300 recorded episodes of the simulated arm.
    """

    forget: float = parameter(
        1.5, "Observations further apart are not of one stretch of watching.", unit="s", minimum=0.0
    )
    walk: float = parameter(
        0.002,
        "Standard deviation of an untouched object's motion between two observations.",
        unit="m",
        minimum=0.0,
    )
    walk_at_hand: float = parameter(
        0.02,
        "The same for an object that the fingers hold or may touch.",
        unit="m",
        minimum=0.0,
    )
    reach: float = parameter(
        0.06,
        "Distance from the fingers within which an object may be touched.",
        unit="m",
        minimum=0.0,
    )
    surprise: float = parameter(
        5.0,
        "Standard deviations past which a clear sighting is believed at once: somebody moved it.",
        minimum=0.0,
    )
    clear: float = parameter(
        0.01, "Expected error up to which a sighting counts as clear.", unit="m", minimum=0.0
    )
    smallest_error: float = parameter(
        0.001, "The least error that a sighting is granted.", unit="m", minimum=1e-6
    )


class ObjectTracker:
    """Carries the objects of single-image latents through time.

    Args:
        layout: of the latents.
        parameters: how; or values of them by name, as a file of options has them.

    Raises:
        ConfigurationError: an unknown name or a bad value.
    """

    def __init__(
        self, layout: LatentLayout, parameters: TrackerParameters | Mapping[str, Any] | None = None
    ) -> None:
        if not isinstance(parameters, TrackerParameters):
            parameters = build(TrackerParameters, parameters or {})
        self._layout = layout
        self._parameters = parameters
        self._last: Tensor | None = None
        self._stamp_ns = 0

    def forget(self) -> None:
        """Begin anew with the next observation."""
        self._last = None

    def update(self, latent: Tensor, stamp_ns: int) -> Tensor:
        """The (Z,) latent of an observation, its objects weighed against those seen before.

        The first observation, one not newer than the last and one more than ``forget``
        seconds after it begin anew: they are returned as they are.

        Args:
            latent: (Z,) what the encoder makes of the observation alone.
            stamp_ns: when it was seen.
        """
        elapsed = (stamp_ns - self._stamp_ns) * 1e-9
        if self._last is not None and 0.0 < elapsed <= self._parameters.forget:
            latent = self._weighed(self._last, latent)
        self._last, self._stamp_ns = latent, stamp_ns
        return latent

    def _weighed(self, before: Tensor, now: Tensor) -> Tensor:
        layout, chosen = self._layout, self._parameters
        blocks, count = layout.blocks, len(layout.objects)
        hand_before, hand = (layout.get(x, "ee_position") for x in (before, now))
        place, seen = (layout.get(x, "object_position") for x in (before, now))
        held = torch.zeros(count)
        held[:blocks] = torch.minimum(
            layout.get(before, "block_held"), layout.get(now, "block_held")
        )
        carried = held > 0.5
        expected = place + carried[:, None] * (hand - hand_before)
        touched = carried | ((place - hand_before).norm(dim=-1) < chosen.reach)
        walk = torch.where(touched, chosen.walk_at_hand, chosen.walk)
        variance = layout.get(before, "object_error").square() + walk.square()
        sighting = layout.get(now, "object_error").clamp_min(chosen.smallest_error)
        gain = variance / (variance + sighting.square())
        far = (seen - expected).norm(dim=-1) > chosen.surprise * (
            variance + sighting.square()
        ).sqrt()
        gain = torch.where(far & (sighting < chosen.clear), 1.0, gain)
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
