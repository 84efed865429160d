"""The scene: a Franka FR3 of primitive shapes at a table with blocks, a plate and a tray.

Kinematics, home and gripper opening come from ``config/robots/fr3.yaml``. The shapes and masses are
plausible, not identified: the joints are stiff position servos with gravity compensation, so the
motion hardly depends on them. Frame ``base`` is the world frame: x forward, z up, the table top at
z = 0.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.types import FloatArray

SceneHook = Callable[[mujoco.MjSpec], None]

ROBOT = "fr3"
BLOCK_HALF = 0.0225
"""Half the edge of a block, m."""
BLOCKS = {
    "red_block": (0.85, 0.10, 0.10, 1.0),
    "green_block": (0.10, 0.65, 0.15, 1.0),
    "blue_block": (0.10, 0.25, 0.90, 1.0),
}
PLATE_RADIUS = 0.058
PLATE_TOP = 0.010
TRAY_HALF = 0.062
TRAY_FLOOR = 0.006
"""Height of the tray's floor above the table, m."""
TRAY_RIM = 0.018
LINE_X = 0.665
"""The marked line of the push task: its middle, m from the base."""
FINGER_TRAVEL = 0.5
"""Share of the gripper's opening that each finger moves."""
CAMERAS = ("agent", "wrist", "overview")

_ARM, _OBJECTS = 1, 2  # collision bits: the arm meets objects and table, never itself
_WHITE, _GREY, _DARK = (0.92, 0.92, 0.90, 1.0), (0.55, 0.57, 0.60, 1.0), (0.22, 0.23, 0.25, 1.0)
_SERVO_STIFFNESS = (4500.0, 4500.0, 3500.0, 3500.0, 2000.0, 2000.0, 2000.0)  # N m / rad
# MuJoCo takes the larger friction of two geoms. Pads that grip much better than blocks slide would
# jam a pushed block: with mu_pad mu_table > 1 pressing down locks it.
_SLIDING, _GRIPPING = (0.5, 0.005, 0.0001), (1.0, 0.005, 0.0001)
_FINGER_FORCE = 25.0  # N a finger; the Franka Hand holds 70 N for long


def load_hook(hook: str | SceneHook | None) -> SceneHook | None:
    """Resolve a scene hook: ``"FILE.py:FUNCTION"``, a callable, or nothing.

    Raises:
        ConfigurationError: not of this form, no such file, its code fails, or no such function.
    """
    if hook is None or hook == "":
        return None
    if callable(hook):
        return hook
    path, separator, name = str(hook).rpartition(":")
    if not separator or not path or not name:
        raise ConfigurationError(f"scene_hook: expected FILE.py:FUNCTION, got {hook!r}")
    file = Path(path).expanduser()
    if not file.is_file():
        raise ConfigurationError(f"scene_hook: there is no file {file}")
    specification = importlib.util.spec_from_file_location(f"scene_hook_{file.stem}", file)
    if specification is None or specification.loader is None:
        raise ConfigurationError(f"scene_hook: {file} is not a Python file")
    module = importlib.util.module_from_spec(specification)
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        raise ConfigurationError(
            f"scene_hook: {file} failed: {type(error).__name__}: {error}"
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ConfigurationError(f"scene_hook: {file} has no function {name!r}")
    return function


def compile_scene(time_step: float = 0.0025, hook: str | SceneHook | None = None) -> mujoco.MjModel:
    """Build the scene, let the hook change it, and compile it.

    Args:
        time_step: physics step, s.
        hook: changes the MjSpec before it is compiled; see :func:`load_hook`.

    Raises:
        ConfigurationError: the hook cannot be loaded, fails, or leaves a scene that does not
            compile or lacks what the tasks need.
    """
    function = load_hook(hook)
    spec = build_scene(load_robot(ROBOT, limits="full"), time_step)
    if function is not None:
        name = getattr(function, "__name__", repr(function))
        try:
            function(spec)
        except Exception as error:
            raise ConfigurationError(
                f"scene_hook: {name} failed: {type(error).__name__}: {error}"
            ) from error
        try:
            model = spec.compile()
        except (ValueError, mujoco.FatalError) as error:
            raise ConfigurationError(
                f"scene_hook: the scene that {name} left does not compile: {error}"
            ) from error
        _require_names(model, name)
        return model
    return spec.compile()


def _require_names(model: mujoco.MjModel, hook: str) -> None:
    needed = {
        mujoco.mjtObj.mjOBJ_BODY: (*BLOCKS, "plate", "tray"),
        mujoco.mjtObj.mjOBJ_SITE: ("tcp",),
        mujoco.mjtObj.mjOBJ_CAMERA: CAMERAS,
    }
    for kind, names in needed.items():
        for name in names:
            if mujoco.mj_name2id(model, kind, name) < 0:
                raise ConfigurationError(
                    f"scene_hook: {hook} removed or renamed {name!r}, which the tasks need"
                )


def build_scene(robot: Robot, time_step: float) -> mujoco.MjSpec:
    """The scene as an MjSpec, not yet compiled."""
    spec = mujoco.MjSpec()
    spec.modelname = "table"
    spec.compiler.degree = False
    spec.option.timestep = time_step
    spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0  # less creep of a held block
    spec.visual.global_.offwidth = 1280
    spec.visual.global_.offheight = 960
    # Rendering cost follows faces and samples; images of 96 pixels need few.
    spec.visual.quality.numslices = 20
    spec.visual.quality.numstacks = 8
    spec.visual.quality.numquads = 1
    spec.visual.quality.offsamples = 4
    spec.visual.headlight.ambient = [0.40, 0.40, 0.40]
    spec.visual.headlight.diffuse = [0.35, 0.35, 0.35]
    spec.visual.headlight.specular = [0.0, 0.0, 0.0]
    world = spec.worldbody
    light = world.add_light(pos=[0.6, 0.4, 2.0], dir=[-0.1, -0.2, -1.0], castshadow=False)
    light.type = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    light.diffuse = [0.45, 0.45, 0.45]
    light.specular = [0.1, 0.1, 0.1]
    _add_table(spec)
    _add_arm(spec, robot)
    for name, rgba in BLOCKS.items():
        _add_block(spec, name, rgba)
    _add_camera(world, "agent", (1.13, 0.0, 0.66), (0.50, 0.0, 0.015), 40.0)
    _add_camera(world, "overview", (1.25, -0.85, 0.95), (0.38, 0.0, 0.22), 45.0)
    return spec


def _add_table(spec: mujoco.MjSpec) -> None:
    world = spec.worldbody
    box = mujoco.mjtGeom.mjGEOM_BOX
    solid = {"contype": _OBJECTS, "conaffinity": _ARM | _OBJECTS, "friction": _SLIDING}
    ghost = {"contype": 0, "conaffinity": 0}
    world.add_geom(
        name="table",
        type=box,
        pos=[0.45, 0, -0.02],
        size=[0.65, 0.60, 0.02],
        rgba=[0.72, 0.66, 0.56, 1.0],
        **solid,
    )
    world.add_geom(
        name="line",
        type=box,
        pos=[LINE_X, 0, 0.0],
        size=[0.004, 0.16, 0.0006],
        rgba=[0.05, 0.05, 0.05, 1.0],
        **ghost,
    )
    # The plate and the tray are put elsewhere at each reset: mocap bodies cost no dynamics.
    plate = world.add_body(name="plate", mocap=True, pos=[0.5, -0.21, 0.0])
    plate.add_geom(
        name="plate",
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, PLATE_TOP / 2],
        size=[PLATE_RADIUS, PLATE_TOP / 2, 0],
        rgba=[0.97, 0.97, 1.0, 1.0],
        **solid,
    )
    plate.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CYLINDER,
        pos=[0, 0, PLATE_TOP],
        size=[0.040, 0.0004, 0],
        rgba=[0.80, 0.84, 0.92, 1.0],
        **ghost,
    )
    tray = world.add_body(name="tray", mocap=True, pos=[0.5, 0.21, 0.0])
    wood = [0.42, 0.27, 0.13, 1.0]
    tray.add_geom(
        name="tray",
        type=box,
        pos=[0, 0, TRAY_FLOOR / 2],
        size=[TRAY_HALF, TRAY_HALF, TRAY_FLOOR / 2],
        rgba=[0.60, 0.42, 0.24, 1.0],
        **solid,
    )
    for x, y in ((1, 0), (-1, 0), (0, 1), (0, -1)):
        tray.add_geom(
            type=box, pos=[x * TRAY_HALF, y * TRAY_HALF, TRAY_RIM / 2],
            size=[0.004 if x else TRAY_HALF + 0.004, 0.004 if y else TRAY_HALF + 0.004,
                  TRAY_RIM / 2],
            rgba=wood, **solid,
        )  # fmt: skip


def _add_block(spec: mujoco.MjSpec, name: str, rgba: tuple[float, ...]) -> None:
    body = spec.worldbody.add_body(name=name, pos=[0.5, 0.0, BLOCK_HALF])
    body.add_freejoint(name=name)
    body.add_geom(
        name=name, type=mujoco.mjtGeom.mjGEOM_BOX, size=[BLOCK_HALF] * 3, rgba=rgba, mass=0.08,
        friction=_SLIDING, contype=_OBJECTS, conaffinity=_ARM | _OBJECTS,
    )  # fmt: skip


def _add_arm(spec: mujoco.MjSpec, robot: Robot) -> None:
    """The serial chain by the modified Denavit-Hartenberg rows: Rx(alpha) Tx(a) Rz(q) Tz(d)."""
    limits = robot.limits
    parent = spec.worldbody
    _add_capsule(parent, (0, 0, 0.03), (0, 0, 0.14), 0.075, _GREY, collides=False)
    for i, (a, d, alpha) in enumerate(robot.dh):
        sine, cosine = np.sin(alpha), np.cos(alpha)
        body = parent.add_body(
            name=f"{robot.name}_link{i + 1}",
            pos=[a, -d * sine, d * cosine],
            quat=[np.cos(alpha / 2), np.sin(alpha / 2), 0, 0],
            gravcomp=1,
        )
        body.add_joint(
            name=robot.joint_names[i], type=mujoco.mjtJoint.mjJNT_HINGE, axis=[0, 0, 1],
            range=[limits.position_min[i], limits.position_max[i]], armature=0.1, damping=1.0,
        )  # fmt: skip
        actuator = spec.add_actuator(
            name=robot.joint_names[i], target=robot.joint_names[i],
            trntype=mujoco.mjtTrn.mjTRN_JOINT,
        )  # fmt: skip
        actuator.set_to_position(kp=_SERVO_STIFFNESS[i], dampratio=1.0)
        actuator.forcerange = [-limits.torque[i], limits.torque[i]]
        next_a = robot.dh[i + 1, 0] if i + 1 < robot.joints else 0.0
        _add_link_shapes(body, i, d, next_a)
        parent = body
    _add_hand(spec, parent, robot)


def _add_link_shapes(body: mujoco.MjsBody, index: int, d: float, next_a: float) -> None:
    """A capsule back along the link's own axis, and one sideways to the next joint."""
    collides = index >= 4  # what reaches the table
    radius = 0.062 if index < 4 else 0.05
    colour = _GREY if index % 2 else _WHITE
    if d > 0:
        _add_capsule(body, (0, 0, -0.62 * d), (0, 0, -0.02), radius, colour, collides)
    else:
        _add_capsule(body, (0, 0, -0.05), (0, 0, 0.05), radius, colour, collides)
    if next_a:
        _add_capsule(body, (0, 0, 0), (next_a, 0, 0), 0.9 * radius, colour, collides)


def _add_hand(spec: mujoco.MjSpec, link: mujoco.MjsBody, robot: Robot) -> None:
    flange, hand_frame, tcp_frame = robot.tool_frames
    _add_capsule(link, (0, 0, 0.0), (0, 0, flange.translation[2] - 0.03), 0.042, _WHITE, True)
    hand = link.add_body(
        name="hand",
        pos=np.add(flange.translation, hand_frame.translation),
        quat=_quaternion_from_rpy(hand_frame.rpy),
        gravcomp=1,
    )
    arm = {"contype": _ARM, "conaffinity": _OBJECTS}
    box = mujoco.mjtGeom.mjGEOM_BOX
    hand.add_geom(
        name="hand", type=box, pos=[0, 0, 0.03], size=[0.026, 0.095, 0.032], rgba=_WHITE, mass=0.7,
        **arm,
    )  # fmt: skip
    tcp_z = tcp_frame.translation[2]
    hand.add_site(name="tcp", pos=tcp_frame.translation, size=[0.004] * 3, rgba=[0, 0, 0, 0])
    if robot.gripper_opening is None:
        raise ConfigurationError(f"scene: robot {robot.name!r} has no gripper, and needs one")
    travel = robot.gripper_opening * FINGER_TRAVEL
    for side, sign in (("left", 1.0), ("right", -1.0)):
        finger = hand.add_body(name=f"{side}_finger", pos=[0, 0, 0], gravcomp=1)
        finger.add_joint(
            name=f"{side}_finger", type=mujoco.mjtJoint.mjJNT_SLIDE, axis=[0, sign, 0],
            range=[0, travel], armature=0.1, damping=60.0,
        )  # fmt: skip
        finger.add_geom(
            type=box, pos=[0, sign * 0.013, tcp_z - 0.0325], size=[0.009, 0.007, 0.0135],
            rgba=_DARK, mass=0.02, **arm,
        )  # fmt: skip
        finger.add_geom(
            name=f"{side}_pad", type=box, pos=[0, sign * 0.006, tcp_z - 0.0045],
            size=[0.010, 0.006, 0.0145], rgba=_DARK, mass=0.02, friction=_GRIPPING,
            solref=[0.006, 1.0], **arm,
        )  # fmt: skip
        actuator = spec.add_actuator(
            name=f"{side}_finger", target=f"{side}_finger", trntype=mujoco.mjtTrn.mjTRN_JOINT
        )
        actuator.set_to_position(kp=2000.0, kv=60.0)
        actuator.forcerange = [-_FINGER_FORCE, _FINGER_FORCE]
    # The fingers mirror one another, as the hand's rack and pinion make them.
    equality = spec.add_equality(
        name="fingers", type=mujoco.mjtEq.mjEQ_JOINT, objtype=mujoco.mjtObj.mjOBJ_JOINT,
        name1="left_finger", name2="right_finger", solref=[0.005, 1.0],
    )  # fmt: skip
    equality.data[:5] = [0, 1, 0, 0, 0]
    _add_camera(hand, "wrist", (0.075, 0.0, 0.005), (0.012, 0.0, tcp_z + 0.03), 75.0, up=(1, 0, 0))


def _add_capsule(
    body: mujoco.MjsBody,
    start: tuple[float, float, float],
    end: tuple[float, float, float],
    radius: float,
    rgba: tuple[float, ...],
    collides: bool,
) -> None:
    body.add_geom(
        type=mujoco.mjtGeom.mjGEOM_CAPSULE,
        fromto=[*start, *end],
        size=[radius, 0, 0],
        rgba=rgba,
        density=700.0,
        contype=_ARM if collides else 0,
        conaffinity=_OBJECTS if collides else 0,
    )


def _add_camera(
    body: mujoco.MjsBody,
    name: str,
    position: tuple[float, float, float],
    target: tuple[float, float, float],
    fovy: float,
    up: tuple[float, float, float] = (0, 0, 1),
) -> None:
    """A camera at ``position`` that looks at ``target``, both in the body's frame."""
    backward = np.subtract(position, target)
    backward /= np.linalg.norm(backward)
    right = np.cross(up, backward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(backward, right), backward], axis=1)
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, rotation.ravel())
    body.add_camera(name=name, pos=position, quat=quaternion, fovy=fovy)


def _quaternion_from_rpy(rpy: FloatArray) -> FloatArray:
    """(4,) w x y z of fixed-axis roll, pitch, yaw."""
    quaternion = np.empty(4)
    mujoco.mju_euler2Quat(quaternion, rpy, "XYZ")
    return quaternion
