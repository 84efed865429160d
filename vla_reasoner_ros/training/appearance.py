"""Other colours and other light for rendered frames, so that a network does not learn one table."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.sim.headless import mujoco


@dataclass(frozen=True)
class Looks:
    """How far rendered scenes look other than the simulator's; uniform where nothing else is said.

    What a thing *is* stays readable: blocks keep their hue, near enough, and the plate stays pale.
    """

    share: float = parameter(
        0.6, "Share of frames that look other than the simulator.", minimum=0.0, maximum=1.0
    )
    any_table: float = parameter(
        0.5, "Share of those whose table has any colour at all.", minimum=0.0, maximum=1.0
    )
    other_light: float = parameter(
        0.7, "Share of those whose light is other.", minimum=0.0, maximum=1.0
    )
    hue: float = parameter(
        0.035, "Change of a hue either way, turns of the colour circle.", minimum=0.0, maximum=0.5
    )
    pale: float = parameter(0.6, "Least factor of a saturation.", minimum=0.0, maximum=1.0)
    darker: float = parameter(0.65, "Least factor of a colour's brightness.", minimum=0.0)
    brighter: float = parameter(1.2, "Greatest factor of it.", minimum=0.0)
    tint: float = parameter(
        0.12, "Change of each channel of a lamp either way, share of its light.", minimum=0.0
    )
    ambient_low: float = parameter(0.2, "Least light from everywhere; 0.4 as it is.", minimum=0.0)
    ambient_high: float = parameter(0.6, "Greatest light from everywhere.", minimum=0.0)
    lamp_low: float = parameter(0.15, "Least light of the lamp; 0.45 as it is.", minimum=0.0)
    lamp_high: float = parameter(0.9, "Greatest light of the lamp.", minimum=0.0)
    lean: float = parameter(
        0.7, "Displacement of the lamp's direction either way, of its height.", minimum=0.0
    )


class Appearance:
    """Draws the looks of a compiled scene; geometry and physics stay.

    Args:
        model: changed in place.
        looks: how far.
    """

    def __init__(self, model: mujoco.MjModel, looks: Looks) -> None:
        self._model, self._looks = model, looks
        self._colours = model.geom_rgba[:, :3].copy()
        self._ambient = np.array(model.vis.headlight.ambient)
        self._lamp, self._direction = model.light_diffuse.copy(), model.light_dir.copy()
        self._table = model.geom("table").id

    def draw(self, rng: np.random.Generator) -> None:
        """Dress the scene anew: as the simulator has it, or otherwise."""
        model, looks = self._model, self._looks
        model.geom_rgba[:, :3] = self._colours
        model.vis.headlight.ambient[:] = self._ambient
        model.light_diffuse[:], model.light_dir[:] = self._lamp, self._direction
        if rng.random() >= looks.share:
            return
        # Parts of one colour keep one colour: the arm's links, the tray's rims.
        kinds, part = np.unique(self._colours, axis=0, return_inverse=True)
        dressed = np.stack([self._shade(colour, rng) for colour in kinds])
        model.geom_rgba[:, :3] = dressed[part.ravel()]
        if rng.random() < looks.any_table:
            model.geom_rgba[self._table, :3] = rng.uniform(0.05, 0.95, 3)
        if rng.random() < looks.other_light:
            self._light(rng)

    def _light(self, rng: np.random.Generator) -> None:
        model, looks = self._model, self._looks
        tint = 1.0 + rng.uniform(-looks.tint, looks.tint, 3)
        model.vis.headlight.ambient[:] = tint * rng.uniform(looks.ambient_low, looks.ambient_high)
        model.light_diffuse[:] = tint * rng.uniform(looks.lamp_low, looks.lamp_high)
        lean = rng.uniform(-looks.lean, looks.lean, (len(self._direction), 2))
        model.light_dir[:, :2] = self._direction[:, :2] + lean
        model.light_dir[:] /= np.linalg.norm(model.light_dir, axis=1, keepdims=True)

    def _shade(self, colour: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float64]:
        """(3,) another shade of an (R, G, B), 0..1."""
        looks = self._looks
        hue, saturation, value = colorsys.rgb_to_hsv(*(float(c) for c in colour))
        hue += rng.uniform(-looks.hue, looks.hue)
        saturation *= rng.uniform(looks.pale, 1.0)
        value *= rng.uniform(looks.darker, looks.brighter)
        return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, min(value, 1.0)))
