"""The true simulator as world model: privileged, exact, and what learned models are held against.

Slots are saved states of a world of its own; imagining is simulating.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ConfigurationError, ModelError, ObservationError
from vla_reasoner_ros.sim.scene import BLOCKS, SceneHook
from vla_reasoner_ros.sim.tasks import get_task, progress
from vla_reasoner_ros.sim.world import ACTION_SPEC, World
from vla_reasoner_ros.types import FloatArray, Observation
from vla_reasoner_ros.world_models.base import Slots

if TYPE_CHECKING:
    import torch

    from vla_reasoner_ros.world_models.encoder import Encoder


@dataclass(frozen=True)
class _Slot:
    """One state, and what is read of it often."""

    state: FloatArray
    progress: float
    landmarks: FloatArray
    """(1 + blocks, 3) positions of the end effector and the blocks, m."""


class SimulatorWorldModel:
    """Implements :class:`vla_reasoner_ros.world_models.base.WorldModel` on :class:`World`.

    Args:
        macro_steps: actions per :meth:`step`, M.
        time_step: physics step of the imagination, s; a coarser one than the world's is faster and
            less exact.
        scene_hook: the same as the simulated robot's, if it has one.

    Raises:
        ConfigurationError: fewer than one macro step, a bad time step or hook.
    """

    name = "simulator"
    spec = ACTION_SPEC
    needs_simulator_state = True
    joints = 0

    def __init__(
        self,
        macro_steps: int = 4,
        time_step: float = 0.0025,
        scene_hook: str | SceneHook | None = None,
    ) -> None:
        if macro_steps < 1:
            raise ConfigurationError(f"macro_steps: expected at least 1, got {macro_steps}")
        self.macro_steps = macro_steps
        self._world = World(scene_hook, time_step)
        self._slots: list[_Slot | None] = []
        self._encoder: Encoder | None = None

    @property
    def latent_source(self) -> str:
        """Fingerprint of the encoder that :meth:`latents` come from.

        Raises:
            ConfigurationError: the encoder's weights are missing.
        """
        return self._loaded_encoder().fingerprint

    def allocate(self, capacity: int) -> None:
        """Make room for ``capacity`` states; forgets those there were."""
        self._slots = [None] * capacity

    def encode(self, observation: Observation) -> None:
        """Write the observation's simulator state to slot 0.

        Raises:
            ObservationError: the observation carries no simulator state, or that of another scene.
        """
        if observation.simulator_state is None:
            raise ObservationError(
                "observation: the simulator as world model needs simulator_state, got none"
            )
        try:
            self._world.set_state(observation.simulator_state)
        except ConfigurationError as error:
            raise ObservationError(f"observation: {error}") from error
        self._slots[0] = self._saved()

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """Simulate (B, M, 7) actions from ``parents`` into ``children``."""
        for parent, macro, child in zip(parents, actions, children, strict=True):
            self._world.set_state(self._slot(parent).state)
            for action in macro:
                self._world.apply(action)
            self._slots[child] = self._saved()

    def copy(self, source: Slots, target: Slots) -> None:
        """Copy states between slots, as if all were read before any is written."""
        states = [self._slot(slot) for slot in source]
        for slot, state in zip(target, states, strict=True):
            self._slots[slot] = state

    def latents(self, slots: Slots) -> torch.Tensor:
        """(B, Z) float32: what the encoder makes of images rendered from each state.

        Raises:
            ConfigurationError: the encoder's weights are missing, or nothing can be rendered.
        """
        return self._loaded_encoder().encode([self.observation(int(slot)) for slot in slots])

    def observation(self, slot: int) -> Observation:
        """What the cameras would see in a state."""
        self._world.set_state(self._slot(slot).state)
        return self._world.observation()

    def example(self) -> Observation:
        """What the cameras would see at the start of an episode; to warm up with."""
        self._world.reset(self._world.task, 0)
        return self._world.observation()

    def uncertainty(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) zeros: there is one simulator."""
        return np.zeros(len(slots))

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) how far the end effector or any block is from where it is in slot 0, m."""
        seen = self._slot(0).landmarks
        return np.array(
            [np.linalg.norm(self._slot(s).landmarks - seen, axis=1).max() for s in slots],
            dtype=np.float64,
        )

    def ee_positions(self, slots: Slots) -> NDArray[np.float64]:
        """(B, 3) end-effector positions, m."""
        return np.array([self._slot(s).landmarks[0] for s in slots]).reshape(-1, 3)

    def progress(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) true progress in [0, 1]: privileged."""
        return np.array([self._slot(s).progress for s in slots], dtype=np.float64)

    def _saved(self) -> _Slot:
        state = self._world.true_state()
        return _Slot(
            state=self._world.get_state(),
            progress=progress(get_task(self._world.task), state),
            landmarks=np.stack([state.tcp, *(state.blocks[name] for name in BLOCKS)]),
        )

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        if slot is None:
            raise ModelError(f"simulator world model: slot {index} holds no state yet")
        return slot

    def _loaded_encoder(self) -> Encoder:
        if self._encoder is None:
            from vla_reasoner_ros.world_models.encoder import Encoder

            self._encoder = Encoder.load()
        return self._encoder
