"""What drivers of an arm and its gripper take, as the robot file declares it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from vla_reasoner_ros.control.sections import Section
from vla_reasoner_ros.errors import ConfigurationError

Output = TypeVar("Output")


class Tracking(Enum):
    """What the arm's own controller follows, and therefore what may be told from the command."""

    JOINTS = "the positions of all joints"
    POSE = "the pose of a link; a redundant arm chooses its posture itself"
    TWIST = "the velocity of a link; positions that were missed are not made up for"


ARM_OUTPUTS = {
    "joint_trajectory": Tracking.JOINTS,
    "follow_joint_trajectory": Tracking.JOINTS,
    "twist": Tracking.TWIST,
    "pose": Tracking.POSE,
}
"""Name of each kind of arm command to what is followed then."""
GRIPPER_OUTPUTS = ("opening", "gripper_command", "parallel_gripper_command")
"""Names of the kinds of gripper command."""


@dataclass(frozen=True)
class ArmOutput:
    """A kind of command that drivers of the arm take.

    Attributes:
        tracking: what they follow.
        link: the link whose pose or velocity it is; empty for joint commands.
        source: where this is written.
    """

    tracking: Tracking
    link: str
    source: str


@dataclass(frozen=True)
class GripperOutput:
    """A kind of command that drivers of the gripper take.

    Attributes:
        joint: the joint whose position it is; empty where the driver knows.
        closed: position when closed, in the driver's unit.
        open: position when open.
        max_effort: how strongly it may grasp, N; 0 leaves it to the driver.
        source: where this is written.
    """

    joint: str
    closed: float
    open: float
    max_effort: float
    source: str

    def position(self, opening: float) -> float:
        """The position of an opening fraction, 0 closed to 1 open."""
        return self.closed + opening * (self.open - self.closed)


@dataclass(frozen=True)
class Outputs:
    """The kinds of command by name, for the arm and for its gripper.

    Attributes:
        arm: at least one; names of :data:`ARM_OUTPUTS`.
        gripper: none without a gripper; names of :data:`GRIPPER_OUTPUTS`.
    """

    arm: Mapping[str, ArmOutput]
    gripper: Mapping[str, GripperOutput]

    def for_arm(self, name: str, robot: str) -> ArmOutput:
        """The arm's output of a name.

        Raises:
            ConfigurationError: the robot file does not declare it; with those that it does.
        """
        return _declared(self.arm, "output", name, robot)

    def for_gripper(self, name: str, robot: str) -> GripperOutput:
        """The gripper's output of a name; errors as in :meth:`for_arm`."""
        return _declared(self.gripper, "gripper_output", name, robot)


def _declared(declared: Mapping[str, Output], parameter: str, name: str, robot: str) -> Output:
    if name not in declared:
        raise ConfigurationError(
            f"parameter {parameter}: the robot file of {robot} does not declare {name!r}; it "
            f"declares {', '.join(declared) or 'none'}"
        )
    return declared[name]


def read_outputs(section: Section, frames: Sequence[str]) -> Outputs:
    """The part ``outputs`` of a robot file.

    Args:
        section: it.
        frames: the arm's tool frames, one of which a Cartesian command may be for.

    Raises:
        ConfigurationError: an unknown name, a missing key, or a link that is no tool frame.
    """
    section.keys("arm", "gripper")
    arm = section.section("arm")
    if not arm.content:
        raise section.error("arm", f"some of {', '.join(ARM_OUTPUTS)}", arm.content)
    gripper = section.section("gripper")
    _require_known(arm, tuple(ARM_OUTPUTS))
    _require_known(gripper, GRIPPER_OUTPUTS)
    return Outputs(
        {name: _arm_output(arm.section(name), name, frames) for name in arm.content},
        {name: _gripper_output(gripper.section(name), name) for name in gripper.content},
    )


def _require_known(section: Section, known: tuple[str, ...]) -> None:
    for name in section.content:
        if name not in known:
            raise section.error("", f"some of {', '.join(known)}", name)


def _arm_output(section: Section, name: str, frames: Sequence[str]) -> ArmOutput:
    tracking = ARM_OUTPUTS[name]
    if tracking is Tracking.JOINTS:
        section.keys("source")
        return ArmOutput(tracking, "", section.text("source"))
    section.keys("link", "source")
    link = section.text("link")
    if link not in frames:
        raise section.error("link", f"one of {', '.join(frames)}", link)
    return ArmOutput(tracking, link, section.text("source"))


def _gripper_output(section: Section, name: str) -> GripperOutput:
    if name == "opening":
        section.keys("source")
        return GripperOutput("", 0.0, 1.0, 0.0, section.text("source"))
    named = name == "parallel_gripper_command"
    section.keys(*(["joint"] if named else []), "closed", "open", "max_effort", "source")
    closed, opened = section.number("closed"), section.number("open")
    if closed == opened:
        raise section.error("open", "another position than when closed", opened)
    effort = section.number("max_effort")
    if effort < 0.0:
        raise section.error("max_effort", "0 or more", effort)
    joint = section.text("joint") if named else ""
    return GripperOutput(joint, closed, opened, effort, section.text("source"))
