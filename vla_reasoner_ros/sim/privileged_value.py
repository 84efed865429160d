"""The simulated task's own progress as a value: the ceiling that learned values are held against.

On the true simulator's states it is exact. On what a learned world model imagined it is the same
formula applied to where the model says that the arm and the objects are, so that what is lost is
the world model's fault alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vla_reasoner_ros.errors import ConfigurationError, InstructionError
from vla_reasoner_ros.sim.tasks import TASKS, Task, TrueState, progress
from vla_reasoner_ros.sim.world_model import SimulatorWorldModel
from vla_reasoner_ros.types import Observation
from vla_reasoner_ros.world_models.base import Slots, WorldModel
from vla_reasoner_ros.world_models.encoder import SYMMETRY, LatentLayout

HELD = 0.5
"""Probability above which an imagined block counts as pinched."""
TOUCHED = 0.032
"""A block so near to the fingers is touched unless they are open wider than it, m."""
OPEN = 0.62
"""Opening from which the fingers have let go of a block."""


class PrivilegedValue:
    """Implements :class:`vla_reasoner_ros.values.base.Value`; reads no image.

    The task comes with the simulator's state, or is found by its instruction.
    """

    name = "privileged"
    privileged = True

    def __init__(self) -> None:
        self._world_model: WorldModel | None = None
        self._layout = LatentLayout()
        self._task: Task | None = None

    def bind(self, world_model: WorldModel) -> None:
        """Keep the world model whose states are read.

        Raises:
            ConfigurationError: its latents do not say where the objects are.
        """
        if not isinstance(world_model, SimulatorWorldModel):
            width = world_model.latents(np.zeros(0, dtype=np.int64)).shape[-1]
            if width != self._layout.width:
                raise ConfigurationError(
                    f"value 'privileged' reads true states or latents of {self._layout.width} "
                    f"numbers, world model {world_model.name!r} has {width}"
                )
        self._world_model = world_model

    def begin(self, observation: Observation) -> None:
        """Find the task.

        Raises:
            InstructionError: no task has this instruction.
        """
        if isinstance(self._world_model, SimulatorWorldModel):
            return  # its states say which task is on
        for task in TASKS.values():
            if observation.instruction in (*task.instructions, *task.held_out):
                self._task = task
                return
        raise InstructionError(
            f"value 'privileged': no simulated task is called {observation.instruction!r}"
        )

    def evaluate(self, slots: Slots) -> NDArray[np.float64]:
        """(1, B) progress in [0, 1].

        Raises:
            ConfigurationError: no world model was bound, or no decision was begun.
        """
        model = self._world_model
        if isinstance(model, SimulatorWorldModel):
            return model.progress(slots)[None]
        if model is None or self._task is None:
            raise ConfigurationError("value 'privileged': bind and begin come before evaluate")
        task, latents = self._task, model.latents(slots)
        return np.array(
            [[progress(task, imagined_state(self._layout, latent)) for latent in latents]]
        )


def imagined_state(layout: LatentLayout, latent: Tensor) -> TrueState:
    """What the tasks read, from one (Z,) latent; how long a goal has been held is not in it."""
    places = layout.get(latent, "object_position").double().numpy()
    yaws = layout.get(latent, "block_yaw").double().numpy()
    held = layout.get(latent, "block_held").numpy() > HELD
    hand = layout.get(latent, "ee_position").double().numpy()
    opening = float(layout.get(latent, "gripper")[0])
    named = dict(zip(layout.objects, places, strict=True))
    blocks = layout.objects[: layout.blocks]
    pinched = {name for name, is_held in zip(blocks, held, strict=True) if is_held}
    near = {name for name in blocks if np.linalg.norm(named[name] - hand) < TOUCHED}
    return TrueState(
        tcp=hand,
        opening=opening,
        blocks={name: named[name] for name in blocks},
        yaws={
            name: float(np.arctan2(sine, cosine)) / SYMMETRY
            for name, (cosine, sine) in zip(blocks, yaws, strict=True)
        },
        plate=_underside(named["plate"]),
        tray=_underside(named["tray"]),
        pinched=frozenset(pinched),
        touched=frozenset(pinched | (near if opening < OPEN else set())),
        held_s=0.0,
    )


def _underside(place: NDArray[np.float64]) -> NDArray[np.float64]:
    """Plate and tray stand on the table, whatever height they are seen at."""
    return np.array([place[0], place[1], 0.0])
