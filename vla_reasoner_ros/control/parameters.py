"""Parameters of the arm controller."""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import group, parameter


@dataclass(frozen=True)
class ChunkParameters:
    """Which chunks are taken, and how they are decoded."""

    max_observation_age: float = parameter(
        2.0,
        "Oldest observation that a chunk may have been planned from.",
        unit="s",
        minimum=0.01,
        maximum=60.0,
    )
    max_clock_lead: float = parameter(
        0.05,
        "How far ahead of the node's clock an observation's stamp may be.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    max_steps: int = parameter(
        256, "Longest chunk that is taken, actions.", minimum=1, maximum=5000
    )
    min_dt: float = parameter(
        0.005, "Shortest time between actions.", unit="s", minimum=0.001, maximum=1.0
    )
    max_dt: float = parameter(
        2.0, "Longest time between actions.", unit="s", minimum=0.001, maximum=60.0
    )
    max_joint_step: float = parameter(
        0.6,
        "Largest change of any joint from one waypoint to the next; a larger one is a jump and "
        "refused.",
        unit="rad",
        minimum=0.01,
        maximum=3.2,
    )
    max_translation_step: float = parameter(
        0.15,
        "Largest displacement of the end effector by one action.",
        unit="m",
        minimum=0.001,
        maximum=1.0,
    )
    max_rotation_step: float = parameter(
        0.8,
        "Largest rotation of the end effector by one action.",
        unit="rad",
        minimum=0.01,
        maximum=3.2,
    )
    max_reference_error: float = parameter(
        0.1,
        "Displacements start from the commanded position at the observation's stamp while the "
        "measured one is this close to it, else from the measured one.",
        unit="rad",
        minimum=0.0,
        maximum=1.0,
    )
    min_remaining: float = parameter(
        0.5,
        "An action counts as past when less than this part of it remains as the new motion starts.",
        minimum=0.05,
        maximum=1.0,
    )
    ensemble: bool = parameter(
        False,
        "Temporal ensembling: where chunks overlap in time the arm goes through the weighted mean "
        "of their waypoints.",
    )
    ensemble_decay: float = parameter(
        0.01,
        "m of its weights exp(-m i), the oldest chunk first; 0 weighs all chunks alike.",
        minimum=0.0,
        maximum=10.0,
    )
    position_tolerance: float = parameter(
        0.002,
        "Largest position error of the inverse kinematics.",
        unit="m",
        minimum=1e-5,
        maximum=0.05,
    )
    rotation_tolerance: float = parameter(
        0.01,
        "Largest rotation error of the inverse kinematics.",
        unit="rad",
        minimum=1e-4,
        maximum=0.3,
    )
    posture_gain: float = parameter(
        0.02,
        "Part of the way home that a redundant arm moves in the null space with each action.",
        minimum=0.0,
        maximum=1.0,
    )

    def __post_init__(self) -> None:
        if self.min_dt > self.max_dt:
            raise ConfigurationError(
                f"parameter chunk.min_dt: expected at most chunk.max_dt = {self.max_dt} s, got "
                f"{self.min_dt} s"
            )


@dataclass(frozen=True)
class MotionParameters:
    """How the arm may move."""

    speed_factor: float = parameter(
        1.0,
        "Part of the robot's velocity and acceleration limits, joint and Cartesian, that motions "
        "may use. Stops always use all of them.",
        minimum=0.01,
        maximum=1.0,
    )
    first_motion_factor: float = parameter(
        0.2,
        "speed_factor of slow moves: to the first waypoint of an absolute chunk after a start or "
        "a stop, and back to the measured position after a tracking error.",
        minimum=0.01,
        maximum=1.0,
    )
    max_stretch: float = parameter(
        4.0,
        "Longest duration of a motion over the one that the chunk asks for; one that needs more "
        "to respect the limits is refused.",
        minimum=1.0,
        maximum=100.0,
    )
    blend: float = parameter(
        0.02,
        "How far from its first waypoint a chunk that takes over from a running motion may pass, "
        "where the arm is too fast for what that waypoint asks for; 0 always goes through it.",
        unit="rad",
        minimum=0.0,
        maximum=0.1,
    )
    position_margin: float = parameter(
        0.01,
        "Distance that chunks must keep from the joint position limits.",
        unit="rad",
        minimum=0.0,
        maximum=0.5,
    )
    max_tcp_speed: float = parameter(
        1.0,
        "Largest speed of the tool centre point; the robot's own limit holds as well.",
        unit="m/s",
        minimum=0.01,
        maximum=5.0,
    )
    workspace_min: tuple[float, ...] = parameter(
        (),
        "Lower corner (x, y, z) of the box that the TCP must stay in, in the robot's base frame; "
        "empty takes the robot file's.",
        unit="m",
        minimum=-5.0,
        maximum=5.0,
    )
    workspace_max: tuple[float, ...] = parameter(
        (),
        "Upper corner of that box; empty takes the robot file's.",
        unit="m",
        minimum=-5.0,
        maximum=5.0,
    )
    self_collision: bool = parameter(
        True,
        "Whether motions that bring two links of the arm too close are refused. The capsules "
        "around the links are in the robot file.",
    )
    collision_margin: float = parameter(
        0.01,
        "Smallest distance between the capsules of two links; a motion that starts closer may not "
        "come closer still.",
        unit="m",
        minimum=0.0,
        maximum=0.2,
    )
    lead_time: float = parameter(
        0.03,
        "Time from now to the moment at which a new motion leaves the running one: longer than "
        "planning and the way of a command to the arm take, so that the arm has not passed that "
        "moment yet. 0 suits a simulator whose time waits for the command.",
        unit="s",
        minimum=0.0,
        maximum=0.2,
    )
    max_lead_time: float = parameter(
        0.2,
        "How far lead_time may grow by itself on a machine that plans slowly: it follows twice the "
        "longest of the last planning times. A chunk that needs more is refused as late.",
        unit="s",
        minimum=0.0,
        maximum=1.0,
    )
    stop_lead_time: float = parameter(
        0.01,
        "The same for a stop, which is planned in a fraction of a millisecond.",
        unit="s",
        minimum=0.0,
        maximum=0.2,
    )
    settle_time: float = parameter(
        0.2,
        "Time that the first motion after a start or a reset leaves for the arm's controller to "
        "come to the measured position, from which the motion starts.",
        unit="s",
        minimum=0.0,
        maximum=2.0,
    )
    repeat_on_rejection: bool = parameter(
        False,
        "Whether a refused chunk is answered by sending what is left of the running motion once "
        "more, for a simulator whose time waits for the next trajectory.",
    )

    def __post_init__(self) -> None:
        for name in ("workspace_min", "workspace_max"):
            value = getattr(self, name)
            if len(value) not in (0, 3):
                raise ConfigurationError(
                    f"parameter motion.{name}: expected 3 numbers or none, got {list(value)}"
                )


@dataclass(frozen=True)
class WatchdogParameters:
    """What makes the arm stop."""

    period: float = parameter(
        0.01, "Time between two looks.", unit="s", minimum=0.001, maximum=0.1, read_only=True
    )
    max_joint_state_age: float = parameter(
        0.1,
        "Oldest joint state with which the arm may move.",
        unit="s",
        minimum=0.005,
        maximum=2.0,
    )
    max_tracking_error: float = parameter(
        0.2,
        "Largest difference of a commanded and a measured joint position; past it the arm holds "
        "and the command returns to the measured position.",
        unit="rad",
        minimum=0.005,
        maximum=1.0,
    )

    max_unseen_motion: float = parameter(
        0.05,
        "Largest way that the command may go while the measured positions do not change by a bit: "
        "joint states that are frozen, whatever their stamps say. 0 does not look at it.",
        unit="rad",
        minimum=0.0,
        maximum=1.0,
    )
    max_clock_standstill: float = parameter(
        2.0,
        "How long the node's clock may stand still, by a clock that nothing stops, while the arm "
        "moves. 0 does not look at it, as a simulated clock needs that waits for commands.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )


@dataclass(frozen=True)
class GripperParameters:
    """How the gripper's dimension of an action becomes a command."""

    threshold: float = parameter(
        0.5,
        "Opening fraction from which on a binary gripper opens.",
        minimum=0.0,
        maximum=1.0,
    )
    tolerance: float = parameter(
        0.1,
        "How far outside of 0 to 1 an opening may be and still mean the end of the range; beyond, "
        "the chunk is refused.",
        minimum=0.0,
        maximum=1.0,
    )
    due: str = parameter(
        "start",
        "When an action's gripper command is sent: as the motion of the action starts or as it "
        "ends.",
        choices=("start", "end"),
    )


@dataclass(frozen=True)
class RobotParameters:
    """Which arm it is, for all that read its limits."""

    robot: str = parameter(
        "fr3",
        "Name of a robot preset (fr3, panda, ur5e, ur10e) or path of a robot file.",
        read_only=True,
    )
    limits: str = parameter(
        "",
        "Which of the robot file's limit sets to use; empty takes the file's default.",
        read_only=True,
    )


@dataclass(frozen=True)
class ControllerParameters:
    """What nodes take that listen to the arm controller."""

    controller: str = parameter(
        "arm_controller_node",
        "Name of the arm controller's node, whose ~/status is heard.",
        read_only=True,
    )


@dataclass(frozen=True)
class ControlParameters(RobotParameters):
    """All parameters of the arm controller."""

    enable_control: bool = parameter(
        False,
        "Whether commands are sent. When false, everything is computed and checked and nothing "
        "leaves the node.",
    )
    robot_description: str = parameter(
        "",
        "Text of a URDF whose kinematics replace the robot file's; joints and TCP are found in it "
        "by the robot file's names. Empty takes the robot file's.",
        read_only=True,
    )
    chunk: ChunkParameters = group(ChunkParameters)
    motion: MotionParameters = group(MotionParameters)
    watchdog: WatchdogParameters = group(WatchdogParameters)
    gripper: GripperParameters = group(GripperParameters)
