"""Robots as data: kinematics, limits and workspace, read strictly from ``config/robots/*.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vla_reasoner_ros.control.outputs import Outputs, read_outputs
from vla_reasoner_ros.control.sections import Section, read_sections
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.types import FloatArray

CONVENTIONS = ("modified", "standard")


@dataclass(frozen=True)
class FixedFrame:
    """A frame fixed to the one before it.

    Attributes:
        name: the frame's name.
        translation: (3,) m.
        rpy: (3,) roll, pitch, yaw about the fixed axes, rad.
    """

    name: str
    translation: FloatArray
    rpy: FloatArray


@dataclass(frozen=True)
class VelocityEnvelope:
    """A velocity limit that shrinks toward the ends of travel, as the FR3 has it.

    ``dq <= max(0, -offset + sqrt(gain (position_max - q)))`` and, mirrored,
    ``dq >= -max(0, -offset + sqrt(gain (q - position_min)))`` (libfranka, ``rate_limiting.h``).

    Attributes:
        offset: (J,) rad/s.
        gain: (J,) rad/s^2.
        position_min, position_max: (J,) rad, where the square root reaches zero.
    """

    offset: FloatArray
    gain: FloatArray
    position_min: FloatArray
    position_max: FloatArray

    def bounds(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The lowest (negative) and highest velocity at positions (..., J), each (..., J) rad/s."""
        above = np.sqrt(self.gain * np.maximum(self.position_max - positions, 0.0))
        below = np.sqrt(self.gain * np.maximum(positions - self.position_min, 0.0))
        return (
            -np.maximum(below - self.offset, 0.0),
            np.maximum(above - self.offset, 0.0),
        )


@dataclass(frozen=True)
class JointLimits:
    """What the joints can do; every array is (J,).

    Attributes:
        position_min, position_max: rad.
        velocity: largest speed, rad/s.
        acceleration: rad/s^2.
        jerk: rad/s^3.
        torque: N m.
        velocity_envelope: the position-dependent velocity limit on top; None when there is none.
    """

    position_min: FloatArray
    position_max: FloatArray
    velocity: FloatArray
    acceleration: FloatArray
    jerk: FloatArray
    torque: FloatArray
    velocity_envelope: VelocityEnvelope | None = None

    def velocity_bounds(self, positions: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The lowest (negative) and highest velocity at positions (..., J), each (..., J) rad/s."""
        highest = np.broadcast_to(self.velocity, positions.shape)
        if self.velocity_envelope is None:
            return -highest, highest
        lower, upper = self.velocity_envelope.bounds(positions)
        return np.maximum(lower, -highest), np.minimum(upper, highest)


@dataclass(frozen=True)
class CartesianLimits:
    """What the end effector may do; SI units, radians."""

    linear_velocity: float
    linear_acceleration: float
    linear_jerk: float
    angular_velocity: float
    angular_acceleration: float
    angular_jerk: float


@dataclass(frozen=True)
class Workspace:
    """The box that the TCP must stay in: corners (3,) in the robot's base frame, m."""

    min: FloatArray
    max: FloatArray


@dataclass(frozen=True)
class Capsule:
    """What a link takes up: all points closer than a radius to a line between two points.

    Attributes:
        link: the link's name; several capsules may be of one link.
        joint: number of the joint that the link turns with, from 1; 0 for the base.
        start, end: (3,) m, in the frame that turns with the joint (z is its axis), or in the base.
        radius: m.
    """

    link: str
    joint: int
    start: FloatArray
    end: FloatArray
    radius: float


@dataclass(frozen=True)
class Robot:
    """One arm of J revolute joints.

    Attributes:
        name: the preset's name.
        joint_names: the J joints from base to flange.
        base_frame: the frame that poses and the workspace are expressed in.
        convention: ``modified`` (Craig) or ``standard`` (distal) Denavit-Hartenberg parameters.
        dh: (J, 3): a (m), d (m), alpha (rad) of each joint; theta is the joint position.
        tool_frames: the fixed frames behind the last joint; the last one is the TCP.
        home: (J,) rad.
        limits: the joint limits in force.
        cartesian: the limits of the TCP.
        workspace: the box that the TCP must stay in.
        gripper_opening: distance between the fully open fingers, m; None without a gripper.
        outputs: what drivers of this arm and its gripper take.
        capsules: what the links take up; empty when the file says nothing.
        collision_ignored: pairs of links that cannot meet, or always touch, each in sorted order.
    """

    name: str
    joint_names: tuple[str, ...]
    base_frame: str
    convention: str
    dh: FloatArray
    tool_frames: tuple[FixedFrame, ...]
    home: FloatArray
    limits: JointLimits
    cartesian: CartesianLimits
    workspace: Workspace
    gripper_opening: float | None
    outputs: Outputs
    capsules: tuple[Capsule, ...] = ()
    collision_ignored: frozenset[tuple[str, str]] = frozenset()

    def ignores(self, first: str, second: str) -> bool:
        """Whether two links need no look for collision."""
        return (min(first, second), max(first, second)) in self.collision_ignored

    @property
    def joints(self) -> int:
        """The number J of joints."""
        return len(self.joint_names)

    @property
    def tcp_frame(self) -> str:
        """The name of the tool centre point's frame."""
        return self.tool_frames[-1].name


def available_robots() -> tuple[str, ...]:
    """The names of the shipped presets."""
    return tuple(sorted(path.stem for path in _directory().glob("*.yaml")))


def load_robot(name_or_path: str | Path, limits: str = "") -> Robot:
    """Read a robot file.

    Args:
        name_or_path: the name of a shipped preset (``fr3``, ``panda``, ``ur5e``, ``ur10e``) or the
            path of a YAML file of the same form.
        limits: which of the file's limit sets to use; empty means the file's default.

    Raises:
        ConfigurationError: no such file; or a key is unknown or missing, a list has the wrong
            length, a number is not finite, a limit is not positive, a minimum exceeds its maximum,
            home is out of range. The message names file and field.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = _directory() / f"{name_or_path}.yaml"
        if not path.is_file():
            raise ConfigurationError(
                f"robot {str(name_or_path)!r} is unknown; known are {', '.join(available_robots())}"
                ", or give the path of a .yaml file"
            )
    return _robot(read_sections(path), limits)


def _directory() -> Path:
    return share_directory() / "config" / "robots"


def _robot(root: Section, limit_set: str) -> Robot:
    root.keys(
        "name",
        "base_frame",
        "joint_names",
        "kinematics",
        "tool_frames",
        "home",
        "default_limits",
        "limits",
        "cartesian",
        "workspace",
        "gripper",
        "outputs",
        "self_collision",
    )
    joint_names = root.texts("joint_names")
    joints = len(joint_names)
    convention, dh = _kinematics(root.section("kinematics"), joints)
    sets = root.section("limits")
    chosen = limit_set or root.text("default_limits")
    known = {name: _joint_limits(sets.section(name), joints) for name in sets.content}
    if chosen not in known:
        raise root.error(
            "limits" if limit_set else "default_limits", f"one of {', '.join(known)}", chosen
        )
    limits = known[chosen]
    home = root.numbers("home", joints)
    if np.any(home < limits.position_min) or np.any(home > limits.position_max):
        raise root.error("home", f"positions within limits.{chosen}", home.tolist())
    capsules, ignored = _self_collision(root, joints)
    frames = _tool_frames(root)
    return Robot(
        name=root.text("name"),
        joint_names=joint_names,
        base_frame=root.text("base_frame"),
        convention=convention,
        dh=dh,
        tool_frames=frames,
        home=home,
        limits=limits,
        cartesian=_cartesian(root.section("cartesian")),
        workspace=_workspace(root.section("workspace")),
        gripper_opening=_gripper(root),
        outputs=read_outputs(root.section("outputs"), [frame.name for frame in frames]),
        capsules=capsules,
        collision_ignored=ignored,
    )


def _kinematics(section: Section, joints: int) -> tuple[str, FloatArray]:
    section.keys("convention", "a", "d", "alpha")
    convention = section.text("convention")
    if convention not in CONVENTIONS:
        raise section.error("convention", f"one of {', '.join(CONVENTIONS)}", convention)
    dh = np.stack([section.numbers(key, joints) for key in ("a", "d", "alpha")], axis=1)
    dh.setflags(write=False)
    return convention, dh


def _tool_frames(root: Section) -> tuple[FixedFrame, ...]:
    frames = []
    for section in root.sections("tool_frames", "a list of at least one frame"):
        section.keys("name", "translation", "rpy")
        frames.append(
            FixedFrame(
                section.text("name"), section.numbers("translation", 3), section.numbers("rpy", 3)
            )
        )
    return tuple(frames)


def _joint_limits(section: Section, joints: int) -> JointLimits:
    section.keys(
        "position_min",
        "position_max",
        "velocity",
        "acceleration",
        "jerk",
        "torque",
        "velocity_envelope",
    )
    minimum, maximum = _range(section, "position_min", "position_max", joints)
    envelope = None
    if section.content["velocity_envelope"] is not None:
        envelope = _envelope(section.section("velocity_envelope"), joints)
    return JointLimits(
        position_min=minimum,
        position_max=maximum,
        velocity=section.numbers("velocity", joints, positive=True),
        acceleration=section.numbers("acceleration", joints, positive=True),
        jerk=section.numbers("jerk", joints, positive=True),
        torque=section.numbers("torque", joints, positive=True),
        velocity_envelope=envelope,
    )


def _envelope(section: Section, joints: int) -> VelocityEnvelope:
    section.keys("offset", "gain", "position_min", "position_max")
    minimum, maximum = _range(section, "position_min", "position_max", joints)
    return VelocityEnvelope(
        section.numbers("offset", joints, positive=True),
        section.numbers("gain", joints, positive=True),
        minimum,
        maximum,
    )


def _range(section: Section, low: str, high: str, length: int) -> tuple[FloatArray, FloatArray]:
    minimum, maximum = section.numbers(low, length), section.numbers(high, length)
    if np.any(minimum >= maximum):
        index = int(np.argmax(minimum >= maximum))
        raise section.error(
            f"{low}[{index}]", f"less than {high}[{index}] = {maximum[index]}", minimum[index]
        )
    return minimum, maximum


def _cartesian(section: Section) -> CartesianLimits:
    names = tuple(CartesianLimits.__dataclass_fields__)
    section.keys(*names)
    return CartesianLimits(*(section.number(name, positive=True) for name in names))


def _workspace(section: Section) -> Workspace:
    section.keys("min", "max")
    return Workspace(*_range(section, "min", "max", 3))


def _gripper(root: Section) -> float | None:
    if root.content["gripper"] is None:
        return None
    section = root.section("gripper")
    section.keys("opening")
    return section.number("opening", positive=True)


def _self_collision(
    root: Section, joints: int
) -> tuple[tuple[Capsule, ...], frozenset[tuple[str, str]]]:
    if root.content["self_collision"] is None:
        return (), frozenset()
    section = root.section("self_collision")
    section.keys("capsules", "ignored")
    capsules = tuple(
        _capsule(entry, joints) for entry in section.sections("capsules", "a list of capsules")
    )
    links = {capsule.link for capsule in capsules}
    pairs = section.entries("ignored", "a list of pairs of links")
    for pair in pairs:
        if not isinstance(pair, list) or len(pair) != 2 or not set(pair) <= links:
            raise section.error("ignored", f"pairs of {', '.join(sorted(links))}", pair)
    return capsules, frozenset((min(pair), max(pair)) for pair in pairs)


def _capsule(section: Section, joints: int) -> Capsule:
    section.keys("link", "joint", "from", "to", "radius")
    joint = section.number("joint")
    if joint not in range(joints + 1):
        raise section.error("joint", f"a whole number, 0 to {joints}", section.content["joint"])
    return Capsule(
        section.text("link"),
        int(joint),
        section.numbers("from", 3),
        section.numbers("to", 3),
        section.number("radius", positive=True),
    )
