"""A digital twin as world model: objects located from the images, dynamics by MuJoCo.

What a lab with a CAD model of its cell would use: the scene is known, its state is not. The learned
encoder says where the objects are, proprioception where the arm is; the true state of a simulator
is never read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.sim import scene
from vla_reasoner_ros.sim.headless import mujoco, rollout
from vla_reasoner_ros.sim.servo import Servo, ServoState
from vla_reasoner_ros.sim.world import ACTION_SPEC, GRIPPER
from vla_reasoner_ros.types import FloatArray, Observation
from vla_reasoner_ros.world_models.base import Slots
from vla_reasoner_ros.world_models.encoder import SYMMETRY, Encoder
from vla_reasoner_ros.world_models.tracking import ObjectTracker
from vla_reasoner_ros.world_models.views import ViewCorrector

HELD = 0.5
"""Probability above which the encoder's word that a block is held is taken."""
SNAP = 0.015
"""A block that is not held and seen this close above or below a support rests on it, m."""
SQUEEZE = 0.0003
"""How far the fingers press into a held block, m: contact needs some depth."""
_PHYSICS = mujoco.mjtState.mjSTATE_FULLPHYSICS


@dataclass(frozen=True)
class _Slot:
    """One state: the physics', what the arm was told, and the latent that a value reads."""

    physics: FloatArray
    servo: ServoState
    latent: Tensor


class TwinWorldModel:
    """Implements :class:`vla_reasoner_ros.world_models.base.WorldModel`.

    Args:
        models_dir: folder of the encoder's weights; empty takes the shipped ones.
        macro_steps: actions per :meth:`step`, M.
        substeps: physics steps per action; fewer than the simulated robot's 40, since time counts
            and the ranking of candidates does not suffer down to about 12.
        scene_hook: ``FILE.py:FUNCTION`` or a callable that changes the known scene.
        friction, mass, size: factors on the blocks' sliding friction, mass and edge, to see what
            a wrong model costs.
        tracking: values of :class:`~vla_reasoner_ros.world_models.tracking.TrackerParameters`.
        views: as in :class:`~vla_reasoner_ros.world_models.latent.LatentWorldModel`.

    Raises:
        ConfigurationError: weights are missing or of another layout, fewer than one macro step, a
            bad number of substeps, hook or factor.
    """

    name = "twin"
    spec = ACTION_SPEC
    needs_simulator_state = False

    def __init__(
        self,
        models_dir: str | Path = "",
        macro_steps: int = 4,
        substeps: int = 15,
        scene_hook: str | scene.SceneHook | None = None,
        friction: float = 1.0,
        mass: float = 1.0,
        size: float = 1.0,
        tracking: Mapping[str, Any] | None = None,
        views: bool = True,
    ) -> None:
        if macro_steps < 1:
            raise ConfigurationError(f"macro_steps: expected at least 1, got {macro_steps}")
        for name, factor in (("friction", friction), ("mass", mass), ("size", size)):
            if not 0.1 <= factor <= 10.0:
                raise ConfigurationError(f"twin: {name} must be 0.1 to 10, got {factor}")
        self.macro_steps = macro_steps
        self.encoder = Encoder.load(models_dir or None)
        self._layout = self.encoder.layout
        self._tracker = ObjectTracker(self._layout, tracking)
        folder = Path(models_dir) if models_dir else models_directory()
        self.views = ViewCorrector.load(folder) if views else None
        self.joints = self._layout.joints
        self.latent_source = self.encoder.fingerprint
        if substeps < 1:
            raise ConfigurationError(f"substeps: expected at least 1, got {substeps}")
        time_step = ACTION_SPEC.dt / substeps
        robot = load_robot(scene.ROBOT)
        self._model = scene.compile_scene(time_step, scene_hook)
        self._change_blocks(friction, mass, size)
        # Blocks that nothing touches sleep: half of the time of a step.
        self._model.opt.enableflags |= int(mujoco.mjtEnableBit.mjENBL_SLEEP)
        self._data = mujoco.MjData(self._model)
        self._servo = Servo(self._model, robot, ACTION_SPEC.dt, time_step)
        self._rollout = rollout.Rollout(nthread=0)
        self._rolled = [mujoco.MjData(self._model)]
        self._index()
        self._slots: list[_Slot | None] = []

    def allocate(self, capacity: int) -> None:
        """Make room for ``capacity`` states; forgets those there were."""
        if capacity < 1:
            raise ConfigurationError(f"twin: capacity must be positive, got {capacity}")
        self._slots = [None] * capacity

    def forget(self) -> None:
        """An episode begins: what was seen before is no longer there."""
        self._tracker.forget()

    def encode(self, observation: Observation) -> None:
        """Put the arm where it feels itself and the objects where they are seen, in slot 0.

        What the arm hides is where it was seen before.
        """
        if self.views is not None:
            observation = self.views.restore(observation)
        seen = self.encoder.encode([observation])[0]
        latent = self._tracker.update(seen, observation.stamp_ns)
        model, data = self._model, self._data
        mujoco.mj_resetData(model, data)
        places = self._layout.get(latent, "object_position").double().numpy()
        for name, place in zip(self._layout.objects, places, strict=True):
            if name in self._fixed:
                model.body_pos[self._fixed[name]] = (place[0], place[1], 0.0)
                data.mocap_pos[model.body(name).mocapid[0]] = (place[0], place[1], 0.0)
        data.qpos[:7] = observation.joint_positions
        data.qvel[:7] = observation.joint_velocities
        fingers = float(np.clip(observation.gripper, 0.0, 1.0)) * self._travel
        data.qpos[7:9] = fingers
        mujoco.mj_kinematics(model, data)
        tcp, hand = data.site_xpos[self._tcp].copy(), data.site_xmat[self._tcp].reshape(3, 3).copy()
        held = self._layout.get(latent, "block_held").numpy() > HELD
        yaws = self._layout.get(latent, "block_yaw").double().numpy()
        for index, name in enumerate(self._layout.objects[: self._layout.blocks]):
            if held[index]:
                # The fingers mirror one another: what they hold is in their middle.
                along = hand.T @ (places[index] - tcp)
                place = tcp + hand @ (along * (1.0, 0.0, 1.0))
                turn = hand
                fingers = min(fingers, self._half - SQUEEZE)
            else:
                place = self._rested(index, places)
                turn = _about_z(np.arctan2(yaws[index, 1], yaws[index, 0]) / SYMMETRY)
            address = self._addresses[name]
            data.qpos[address : address + 3] = place
            quaternion = np.empty(4)
            mujoco.mju_mat2Quat(quaternion, turn.ravel())
            data.qpos[address + 3 : address + 7] = quaternion
        data.qpos[7:9] = fingers
        physics = np.empty(self._physics_size)
        mujoco.mj_getState(model, data, physics, _PHYSICS)
        servo = self._servo.at(data.qpos[:7].copy(), data.qvel[:7].copy())
        self._slots[0] = _Slot(physics, servo, latent)

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """Simulate (B, M, 7) actions from ``parents`` into ``children``.

        Raises:
            ModelError: the actions have another shape than M and D say, or the physics diverged.
        """
        expected = (len(parents), self.macro_steps, self.spec.dimensions)
        if actions.shape != expected:
            raise ModelError(f"twin: expected actions {expected}, got {actions.shape}")
        if not len(parents):
            return
        each = self._servo.substeps
        commands = np.zeros((len(parents), self.macro_steps * each, self._model.nu))
        servos: list[ServoState] = []
        for row, (parent, macro) in enumerate(zip(parents, actions, strict=True)):
            servo = self._slot(parent).servo
            for index, action in enumerate(macro.astype(np.float64)):
                span = slice(index * each, (index + 1) * each)
                servo, commands[row, span, :7], _ = self._servo.follow(servo, action[:6])
                opening = 1.0 if GRIPPER.opening(action[6]) >= 0.5 else 0.0
                commands[row, span, 7:9] = opening * self._travel
            servos.append(servo)
        starts = np.stack([self._slot(parent).physics for parent in parents])
        states, _ = self._rollout.rollout(self._model, self._rolled, starts, commands)
        if not np.isfinite(states[:, -1]).all():
            raise ModelError("twin: the imagined physics diverged")
        for row, child in enumerate(children):
            physics = states[row, -1].copy()
            latent = self._read(physics, self._slot(parents[row]).latent)
            self._slots[child] = _Slot(physics, servos[row], latent)

    def copy(self, source: Slots, target: Slots) -> None:
        """Copy states between slots, as if all were read before any is written."""
        states = [self._slot(slot) for slot in source]
        for slot, state in zip(target, states, strict=True):
            self._slots[slot] = state

    def latents(self, slots: Slots) -> Tensor:
        """(B, Z) float32 latents, laid out as the encoder's."""
        if not len(slots):
            return torch.zeros((0, self._layout.width))
        return torch.stack([self._slot(slot).latent for slot in slots])

    def uncertainty(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) zeros: there is one twin."""
        return np.zeros(len(slots))

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) the farthest that the end effector or an object is from where it was seen, m."""
        seen = self._landmarks(self.latents(np.zeros(1, dtype=np.int64)))
        found = self._landmarks(self.latents(slots))
        return (found - seen).norm(dim=-1).amax(dim=-1).double().numpy()

    def ee_positions(self, slots: Slots) -> NDArray[np.float64]:
        """(B, 3) imagined end-effector positions, m, base frame."""
        return self._layout.get(self.latents(slots), "ee_position").double().numpy()

    def _landmarks(self, latents: Tensor) -> Tensor:
        hand = self._layout.get(latents, "ee_position")[..., None, :]
        return torch.cat([hand, self._layout.get(latents, "object_position")], dim=-2)

    def _slot(self, index: int) -> _Slot:
        slot = self._slots[index]
        if slot is None:
            raise ModelError(f"twin: slot {index} holds no state yet")
        return slot

    def _change_blocks(self, friction: float, mass: float, size: float) -> None:
        self._half = scene.BLOCK_HALF * size
        for name in scene.BLOCKS:
            body, geom = self._model.body(name), self._model.geom(name)
            self._model.geom_friction[geom.id, 0] *= friction
            self._model.geom_size[geom.id] *= size
            self._model.geom_rbound[geom.id] *= size
            self._model.geom_aabb[geom.id, 3:] *= size
            self._model.body_mass[body.id] *= mass
            self._model.body_inertia[body.id] *= mass * size**2
        mujoco.mj_setConst(self._model, mujoco.MjData(self._model))

    def _index(self) -> None:
        model, layout = self._model, self._layout
        blocks = layout.objects[: layout.blocks]
        if set(blocks) != set(scene.BLOCKS):
            raise ConfigurationError(
                f"twin: the encoder knows {', '.join(blocks)}, the scene has "
                f"{', '.join(scene.BLOCKS)}"
            )
        self._tcp = model.site("tcp").id
        self._travel = float(model.joint("left_finger").range[1])
        self._addresses = {name: int(model.joint(name).qposadr[0]) for name in blocks}
        self._fixed = {name: model.body(name).id for name in layout.objects[layout.blocks :]}
        self._bodies = [model.body(name).id for name in layout.objects]
        self._block_geoms = {model.geom(name).id: i for i, name in enumerate(blocks)}
        self._pads = {model.geom("left_pad").id: 0, model.geom("right_pad").id: 1}
        self._physics_size = mujoco.mj_stateSize(model, _PHYSICS)

    def _rested(self, index: int, places: FloatArray) -> FloatArray:
        """(3,) where a block that is not held is: on the support that it is seen near, if any."""
        x, y, z = places[index]
        bottoms = [0.0]
        for other, name in enumerate(self._layout.objects):
            aside = np.abs(places[other, :2] - (x, y)).max()
            if name == "plate" and aside < scene.PLATE_RADIUS:
                bottoms.append(scene.PLATE_TOP)
            elif name == "tray" and aside < scene.TRAY_HALF:
                bottoms.append(scene.TRAY_FLOOR)
            elif other < self._layout.blocks and other != index and aside < 1.5 * self._half:
                bottoms.append(places[other, 2] + self._half)
        heights = np.array(bottoms) + self._half
        nearest = float(heights[np.abs(heights - z).argmin()])
        return np.array([x, y, nearest if abs(nearest - z) < SNAP else max(z, self._half)])

    def _read(self, physics: FloatArray, before: Tensor) -> Tensor:
        """(Z,) the latent of a state; what physics does not tell is as before."""
        model, data, layout = self._model, self._data, self._layout
        mujoco.mj_setState(model, data, physics, _PHYSICS)
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        mujoco.mj_collision(model, data)
        hand = data.site_xmat[self._tcp].reshape(3, 3)
        rotations = data.xmat[self._bodies[: layout.blocks]].reshape(-1, 3, 3)
        yaw, up = _lie(rotations)
        parts = {
            "ee_position": data.site_xpos[self._tcp],
            "ee_rotation": np.concatenate([hand[:, 0], hand[:, 1]]),
            "gripper": np.array([data.qpos[7:9].sum() / (2.0 * self._travel)]),
            "joint_velocity": data.qvel[:7],
            "object_position": data.xpos[self._bodies].ravel(),
            "block_yaw": yaw.ravel(),
            "block_held": self._pinched(),
        }
        latent = before.clone()
        for name, values in parts.items():
            latent[layout.slices[name]] = torch.from_numpy(np.array(values)).float()
        latent[layout.slices["object_up"]][: layout.blocks] = torch.from_numpy(up).float()
        return latent

    def _pinched(self) -> FloatArray:
        """(N,) 1 for each block that touches both pads."""
        touching: list[set[int]] = [set() for _ in range(self._layout.blocks)]
        for pair in self._data.contact.geom[: self._data.ncon].tolist():
            for own, other in (pair, pair[::-1]):
                if own in self._block_geoms and other in self._pads:
                    touching[self._block_geoms[own]].add(self._pads[other])
        return np.array([float(len(pads) == 2) for pads in touching])


def _about_z(angle: float) -> FloatArray:
    """(3, 3) rotation about the vertical."""
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0.0], [s, c, 0.0], [0.0, 0.0, 1.0]])


def _lie(rotations: FloatArray) -> tuple[FloatArray, FloatArray]:
    """How cubes lie: (N, 2) cosine and sine of four times the yaw, (N,) the most upright axis."""
    vertical = np.abs(rotations[:, 2, :])
    side = (vertical.argmax(axis=1) + 1) % 3
    axes = np.take_along_axis(rotations, side[:, None, None], axis=2)[..., 0]
    angle = SYMMETRY * np.arctan2(axes[:, 1], axes[:, 0])
    return np.stack([np.cos(angle), np.sin(angle)], axis=1), vertical.max(axis=1)
