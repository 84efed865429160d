"""The simulated world: physics, cameras, tasks, and a servo for end-effector deltas. No ROS."""

from __future__ import annotations

import atexit
import contextlib
import weakref

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.sim import scene, tasks
from vla_reasoner_ros.sim.headless import explain, mujoco
from vla_reasoner_ros.sim.inverse_kinematics import rotate
from vla_reasoner_ros.sim.joint_trajectory_controller import JointTrajectoryController
from vla_reasoner_ros.sim.servo import Servo, ServoState
from vla_reasoner_ros.types import (
    ActionSpec,
    FloatArray,
    GripperSpec,
    Observation,
    Representation,
)

GRIPPER = GripperSpec(index=6, open=1.0, closed=0.0, binary=True)
ACTION_SPEC = ActionSpec(
    representation=Representation.EE_DELTA,
    names=("x", "y", "z", "rx", "ry", "rz", "gripper"),
    frame="base",
    dt=0.1,
    gripper=GRIPPER,
)
OBSERVED_CAMERAS = ("agent", "wrist")
IMAGE_SIZE = (96, 96)
_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION
_OWN_STATE = 27  # numbers of the servo, the gripper, the timer and the episode
_TASK_NAMES = tuple(tasks.TASKS)


class World:
    """One simulated episode after another.

    Args:
        scene_hook: ``"FILE.py:FUNCTION"`` or a callable that changes the MjSpec before compiling.
        time_step: physics step, s; must divide the action's dt.

    Raises:
        ConfigurationError: a bad hook, or a time step that does not divide dt.
    """

    def __init__(
        self, scene_hook: str | scene.SceneHook | None = None, time_step: float = 0.0025
    ) -> None:
        self.action_spec = ACTION_SPEC
        self.robot = load_robot(scene.ROBOT)
        self.model = scene.compile_scene(time_step, scene_hook)
        self.data = mujoco.MjData(self.model)
        self._servo = Servo(self.model, self.robot, ACTION_SPEC.dt, time_step)
        # Not those of ``control``: starts, and all results, depend on these to the last bit.
        self._kinematics = self._servo.kinematics
        self._renderers: dict[tuple[int, int], mujoco.Renderer] = {}
        self._index_model()
        self._physics_size = mujoco.mj_stateSize(self.model, _PHYSICS)
        self._told = self._servo.at(np.array(self.robot.home), np.zeros(7))
        self._gripper = 1.0
        self._held_s = 0.0
        self._seed = 0
        self._held_out = False
        self._task = tasks.TASKS[_TASK_NAMES[0]]
        self.unreachable_actions = 0
        """Actions since the reset whose target pose the arm could not reach within dt."""
        self._controller = JointTrajectoryController(
            self.robot.joint_names,
            load_robot(scene.ROBOT, limits="full").limits,
            self.robot.home,
        )
        self._controller_behind = False
        self.reset(_TASK_NAMES[0], 0)

    def _index_model(self) -> None:
        model = self.model
        self._tcp = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_SITE, "tcp")
        self._block_address = {name: model.joint(name).qposadr[0] for name in scene.BLOCKS}
        self._block_body = {name: model.body(name).id for name in scene.BLOCKS}
        owner = model.geom_bodyid.tolist()
        self._block_of_geom = {
            geom: name
            for name, body in self._block_body.items()
            for geom in range(model.ngeom)
            if owner[geom] == body
        }
        self._mocap = {name: model.body(name).mocapid[0] for name in ("plate", "tray")}
        self._pads = {model.geom("left_pad").id: 0, model.geom("right_pad").id: 1}
        hand = model.body("hand").id
        self._hand_geoms = {
            geom
            for geom in range(model.ngeom)
            if owner[geom] == hand or model.body_parentid[owner[geom]] == hand
        }
        self._finger_travel = model.joint("left_finger").range[1]

    # -- episodes ---------------------------------------------------------------------------

    def reset(self, task: str, seed: int, held_out: bool = False) -> str:
        """Start an episode.

        Args:
            task: a name of ``tasks.TASKS``.
            seed: fixes the initial scene and the paraphrase.
            held_out: take the paraphrase from those kept out of training.

        Returns:
            The instruction.

        Raises:
            ConfigurationError: unknown task, or a negative seed.
        """
        self._task = tasks.get_task(task)
        if seed < 0:
            raise ConfigurationError(f"seed: expected 0 or more, got {seed}")
        self._seed, self._held_out = int(seed), bool(held_out)
        start = tasks.sample_scene(
            self._task, np.random.default_rng([self._seed, _TASK_NAMES.index(task)])
        )
        model, data = self.model, self.data
        mujoco.mj_resetData(model, data)
        data.mocap_pos[self._mocap["plate"]] = (*start.plate, 0.0)
        data.mocap_pos[self._mocap["tray"]] = (*start.tray, 0.0)
        for name, (x, y, yaw) in start.blocks.items():
            address = self._block_address[name]
            half = yaw / 2
            data.qpos[address : address + 7] = (
                x, y, scene.BLOCK_HALF, np.cos(half), 0.0, 0.0, np.sin(half),
            )  # fmt: skip
        joints = np.array(self.robot.home)
        _, home = self._kinematics.forward(joints)
        pose = np.array(start.tcp), rotate(home, np.array([0.0, 0.0, start.tcp_yaw]))
        for _ in range(5):
            joints, _ = self._kinematics.solve(joints, *pose)
        data.qpos[:7] = joints
        data.qpos[7:9] = self._finger_travel
        self._told = self._servo.at(joints, np.zeros(7))
        self.command_gripper(1.0)
        data.ctrl[:7] = joints
        self._held_s = 0.0
        self.unreachable_actions = 0
        self.controller.hold(joints, 0)
        self._refresh()
        return self.instruction

    @property
    def task(self) -> str:
        """The name of the running task."""
        return self._task.name

    @property
    def seed(self) -> int:
        """The seed of the running episode."""
        return self._seed

    @property
    def instruction(self) -> str:
        """What the running episode asks for, in words."""
        texts = self._task.held_out if self._held_out else self._task.instructions
        return texts[int(np.random.default_rng([self._seed, 1]).integers(len(texts)))]

    @property
    def time(self) -> float:
        """Simulated seconds since the reset."""
        return float(self.data.time)

    @property
    def time_ns(self) -> int:
        """Simulated nanoseconds since the reset."""
        return round(self.time * 1e9)

    # -- acting -----------------------------------------------------------------------------

    def apply(self, action: NDArray[np.floating]) -> None:
        """Execute one action of ``dt``: displace the target pose, follow it, step the physics.

        See :class:`Servo`; a target out of reach is counted in ``unreachable_actions``.

        Args:
            action: (7,) of ``action_spec``, SI units.

        Raises:
            ActionChunkError: wrong shape or not finite.
        """
        motion = np.asarray(action, dtype=np.float64)
        if motion.shape != (7,) or not np.isfinite(motion).all():
            raise ActionChunkError(f"action: expected 7 finite numbers, got {action!r}")
        self._told, controls, reached = self._servo.follow(self._told, motion)
        self.unreachable_actions += not reached
        self.command_gripper(1.0 if GRIPPER.opening(motion[6]) >= 0.5 else 0.0)
        model, data = self.model, self.data
        for control in controls:
            data.ctrl[:7] = control
            mujoco.mj_step(model, data)
        self._controller_behind = True
        self._refresh()
        self._count_hold(ACTION_SPEC.dt)

    def advance(self, duration_s: float) -> None:
        """Let time pass while the arm follows :attr:`controller`.

        The servo's target follows the commanded joints, so that :meth:`apply`, and what a world
        model imagines, go on from there.

        Args:
            duration_s: a whole number of physics steps, s.

        Raises:
            ConfigurationError: not a whole number of physics steps.
        """
        model, data = self.model, self.data
        step = model.opt.timestep
        steps = round(duration_s / step)
        if steps < 0 or abs(steps * step - duration_s) > 1e-9:
            raise ConfigurationError(
                f"advance: expected a multiple of the physics step of {step} s, got {duration_s} s"
            )
        if steps == 0:
            return
        ends = np.round((data.time + step * np.arange(1, steps + 1)) * 1e9).astype(np.int64)
        before = self.controller.state
        ticks, positions, velocities = self.controller.advance(int(ends[-1]))
        positions = np.concatenate([before.position[None], positions])
        velocities = np.concatenate([before.velocity[None], velocities])
        latest = np.searchsorted(ticks, ends, side="right")
        for control in positions[latest] + self._servo.lead * velocities[latest]:
            data.ctrl[:7] = control
            mujoco.mj_step(model, data)
        after = self.controller.state
        self._told = self._servo.at(after.position, after.velocity)
        self._refresh()
        self._count_hold(duration_s)

    @property
    def controller(self) -> JointTrajectoryController:
        """Takes joint trajectories for :meth:`advance`; its clock is :attr:`time_ns`.

        After :meth:`apply` it stands at the joints that this has commanded.
        """
        if self._controller_behind:
            self._controller.hold(self._told.joints, self.time_ns)
            self._controller_behind = False
        return self._controller

    def command_gripper(self, opening: float) -> None:
        """Command the fingers.

        Args:
            opening: as a fraction, 0 closed to 1 open.

        Raises:
            ActionChunkError: outside of this range.
        """
        if not 0.0 <= opening <= 1.0:
            raise ActionChunkError(f"gripper: expected an opening in [0, 1], got {opening}")
        self._gripper = float(opening)
        self.data.ctrl[7:9] = opening * self._finger_travel

    def _refresh(self) -> None:
        """Bring what derives from positions up to date, without touching the physics' state."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)
        mujoco.mj_collision(self.model, self.data)

    def _count_hold(self, elapsed: float) -> None:
        holds = tasks.achieved(self._task, self.true_state())
        self._held_s = self._held_s + elapsed if holds else 0.0

    # -- the true state ---------------------------------------------------------------------

    def true_state(self) -> tasks.TrueState:
        """What tasks and experts read."""
        data = self.data
        touching: dict[str, set[int]] = {name: set() for name in scene.BLOCKS}
        touched = set()
        for first, second in data.contact.geom[: data.ncon].tolist():
            for own, other in ((first, second), (second, first)):
                name = self._block_of_geom.get(own)
                if name is not None and other in self._hand_geoms:
                    touched.add(name)
                    if other in self._pads:
                        touching[name].add(self._pads[other])
        blocks, yaws = {}, {}
        for name, body in self._block_body.items():
            blocks[name] = data.xpos[body].copy()
            rotation = data.xmat[body]
            yaws[name] = float(np.arctan2(rotation[3], rotation[0]))
        return tasks.TrueState(
            tcp=data.site_xpos[self._tcp].copy(),
            opening=self.gripper_opening,
            blocks=blocks,
            yaws=yaws,
            plate=data.mocap_pos[self._mocap["plate"]].copy(),
            tray=data.mocap_pos[self._mocap["tray"]].copy(),
            pinched=frozenset(name for name, pads in touching.items() if len(pads) == 2),
            touched=frozenset(touched),
            held_s=self._held_s,
        )

    @property
    def gripper_opening(self) -> float:
        """Measured opening as a fraction, 0 closed to 1 open."""
        return float(self.data.qpos[7:9].sum() / (2.0 * self._finger_travel))

    @property
    def target_pose(self) -> tuple[FloatArray, FloatArray]:
        """The commanded TCP pose: position (3,) m, quaternion (4,) w x y z."""
        return self._told.position.copy(), self._told.quaternion.copy()

    @property
    def commanded_joints(self) -> FloatArray:
        """(7,) rad, where the servo was told to be at the end of the last action."""
        return self._told.joints.copy()

    def progress(self) -> float:
        """True progress of the task in [0, 1]; see ``tasks.progress``."""
        return tasks.progress(self._task, self.true_state())

    def success(self) -> bool:
        """Whether the goal has held for ``tasks.HOLD_S``."""
        return self._held_s >= tasks.HOLD_S - 1e-9

    # -- saving and restoring ---------------------------------------------------------------

    def get_state(self) -> FloatArray:
        """Everything that the future depends on.

        Returns:
            (S,) MuJoCo's mjSTATE_INTEGRATION, then servo, gripper, hold timer and episode; while a
            joint trajectory runs, the state of ``controller`` follows.
        """
        physics = np.empty(self._physics_size)
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        own = (
            self._told.joints,
            self._told.rate,
            self._told.position,
            self._told.quaternion,
            (
                self._gripper,
                self._held_s,
                self.unreachable_actions,
                _TASK_NAMES.index(self.task),
                self._seed,
                self._held_out,
            ),
        )
        moving = not self._controller_behind and self._controller.active
        running = self._controller.get_state() if moving else ()
        return np.concatenate([physics, *own, running])

    def set_state(self, state: FloatArray) -> None:
        """Return to a state of :meth:`get_state`; what follows repeats bit by bit.

        Raises:
            ConfigurationError: a state of another size, as another scene has.
        """
        state = np.asarray(state, dtype=np.float64)
        size = self._physics_size + _OWN_STATE
        if state.ndim != 1 or len(state) < size:
            raise ConfigurationError(
                f"simulator state: expected {size} or more numbers of this scene, got shape "
                f"{state.shape}"
            )
        running = state[size:]
        if len(running):
            self.controller.set_state(running)
        mujoco.mj_setState(self.model, self.data, state[: self._physics_size], _PHYSICS)
        own = state[self._physics_size : size].copy()
        self._told = ServoState(own[:7], own[7:14], own[14:17], own[17:21])
        self._gripper, self._held_s = float(own[21]), float(own[22])
        self.unreachable_actions = int(own[23])
        self._task = tasks.TASKS[_TASK_NAMES[int(own[24])]]
        self._seed, self._held_out = int(own[25]), bool(own[26])
        self._controller_behind = not len(running)
        self._refresh()

    # -- seeing -----------------------------------------------------------------------------

    def render(self, camera: str, height: int = 96, width: int = 96) -> NDArray[np.uint8]:
        """An image of a camera: ``agent``, ``wrist`` or ``overview``.

        Returns:
            (height, width, 3) uint8, RGB.

        Raises:
            ConfigurationError: no such camera, no headless OpenGL, or a renderer whose images are
                not images.
        """
        if mujoco.mj_name2id(self.model, mujoco.mjtObj.mjOBJ_CAMERA, camera) < 0:
            raise ConfigurationError(
                f"camera {camera!r} is unknown; known are {', '.join(scene.CAMERAS)}"
            )
        renderer = self._renderers.get((height, width))
        if renderer is None:
            renderer = self._make_renderer(height, width, camera)
        renderer.update_scene(self.data, camera)
        return renderer.render()

    def _make_renderer(self, height: int, width: int, camera: str) -> mujoco.Renderer:
        try:
            renderer = mujoco.Renderer(self.model, height, width)
        except Exception as error:  # the type depends on the OpenGL backend
            raise explain(error) from error
        renderer.update_scene(self.data, camera)
        first, second = renderer.render(), renderer.render()
        # A broken context renders noise or nothing, and fast: look before trusting it.
        if not np.array_equal(first, second) or first.std() < 2.0:
            _free(renderer)
            raise ConfigurationError(
                f"rendering: camera {camera!r} gave "
                + ("two images of one scene that differ" if first.std() >= 2.0 else "a flat image")
                + "; the OpenGL context is broken"
            )
        self._renderers[height, width] = renderer
        _free_at_exit(self)
        return renderer

    def observation(self, stamp_ns: int | None = None) -> Observation:
        """What the robot sees and feels now, ``simulator_state`` included.

        Args:
            stamp_ns: the moment; None takes the simulated time.
        """
        data = self.data
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, data.site_xmat[self._tcp])
        return Observation(
            stamp_ns=self.time_ns if stamp_ns is None else stamp_ns,
            images={camera: self.render(camera, *IMAGE_SIZE) for camera in OBSERVED_CAMERAS},
            joint_names=self.robot.joint_names,
            joint_positions=data.qpos[:7].copy(),
            joint_velocities=data.qvel[:7].copy(),
            ee_position=data.site_xpos[self._tcp].copy(),
            ee_quaternion=quaternion[[1, 2, 3, 0]],
            gripper=self.gripper_opening,
            instruction=self.instruction,
            ee_frame=ACTION_SPEC.frame,
            simulator_state=self.get_state(),
        )

    def close(self) -> None:
        """Free the renderers; rendering again makes new ones."""
        while self._renderers:
            _free(self._renderers.popitem()[1])

    def __del__(self) -> None:
        # One that was forgotten must not free what it has in another's OpenGL context.
        if "_renderers" in self.__dict__:
            self.close()


def _free(renderer: mujoco.Renderer) -> None:
    """Close a renderer in its own OpenGL context.

    MuJoCo's ``close`` deletes textures and buffers by their numbers in whatever context is current:
    another world's, whose next images are noise.
    """
    if renderer._gl_context is not None:
        # It fails where another thread still has it, and the error's type depends on the backend.
        with contextlib.suppress(Exception):
            renderer._gl_context.make_current()
    renderer.close()


_rendering: weakref.WeakSet[World] = weakref.WeakSet()


def _free_at_exit(world: World) -> None:
    """Close a world that was left open, at exit but before MuJoCo ends OpenGL.

    MuJoCo registers its own end with the first renderer, and what is registered later runs earlier.
    """
    if not _rendering:
        atexit.register(_close_all)
    _rendering.add(world)


def _close_all() -> None:
    for world in list(_rendering):
        world.close()
