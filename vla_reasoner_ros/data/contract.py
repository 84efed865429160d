"""The contract: which streams make an observation, and what happens when one is late.

A contract is a YAML file (``config/contract/``). Its entries are declared below as parameters, so
that types, ranges and defaults are checked and documented in one place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import build, dotted, parameter
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.types import Representation

T = TypeVar("T")

HOLD, ASOF, DROP = "hold", "asof", "drop"
JOINT_STATES = "joint_states"
INSTRUCTION = "instruction"


@dataclass(frozen=True)
class Stream:
    """What all streams have."""

    topic: str = parameter("", "Topic, relative to the node's namespace.")
    policy: str = parameter(
        ASOF,
        "What a moment takes from this stream. hold: the newest sample up to it, however old. "
        "asof: the newest sample up to it if no older than tolerance, else the moment is dropped. "
        "drop: the newest sample up to it that no moment has used before, else the moment is "
        "dropped.",
        choices=(HOLD, ASOF, DROP),
    )
    tolerance: float = parameter(
        0.05,
        "asof: the greatest age of a sample. asof and drop: how long, in wall-clock time, a moment "
        "waits for a sample that has not arrived yet.",
        unit="s",
        minimum=0.0,
        maximum=10.0,
    )
    waited_for: bool = parameter(
        True,
        "Whether a moment waits until no better sample can come. false takes the best that has "
        "arrived: sooner by up to one period of the stream, for streams that arrive in order and "
        "faster than the reference camera; which sample that is, a replay cannot know for sure.",
    )
    latency: float = parameter(
        0.0,
        "Time from the event to its stamp, as calibrated; taken off every stamp.",
        unit="s",
        minimum=-1.0,
        maximum=5.0,
    )
    reliability: str = parameter(
        "best_effort",
        "QoS of the subscription. best_effort matches every publisher; reliable loses nothing and "
        "needs a reliable publisher.",
        choices=("best_effort", "reliable"),
    )
    depth: int = parameter(
        10, "Messages that wait while the node is busy.", minimum=1, maximum=1000
    )


@dataclass(frozen=True)
class CameraStream(Stream):
    """A camera."""

    type: str = parameter(
        "image",
        "Message type: sensor_msgs/Image or sensor_msgs/CompressedImage.",
        choices=("image", "compressed"),
    )
    height: int = parameter(
        96, "Height of the image in the observation.", unit="pixels", minimum=1, maximum=4096
    )
    width: int = parameter(
        96, "Width of the image in the observation.", unit="pixels", minimum=1, maximum=4096
    )
    fit: str = parameter(
        "stretch",
        "stretch: the whole image, whatever its aspect ratio. crop: the middle, undistorted.",
        choices=("stretch", "crop"),
    )
    frozen_after: float = parameter(
        0.0,
        "A camera whose picture has not changed by a bit for this long counts as frozen, and no "
        "observation is made of it. 0: never, as for a simulator, whose pictures have no noise.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )


@dataclass(frozen=True)
class JointStream(Stream):
    """The joint states of arm and gripper."""

    ignored_joints: tuple[str, ...] = parameter(
        (), "Joints that may be in the message and are not used."
    )
    velocity: str = parameter(
        "measured",
        "measured: from the message, which must have it. differentiated: from two positions.",
        choices=("measured", "differentiated"),
    )


@dataclass(frozen=True)
class Gripper:
    """How the opening of the gripper is read from joint states."""

    joints: tuple[str, ...] = parameter(
        (), "The gripper's joints; their mean is taken. None: the gripper counts as open."
    )
    open: float = parameter(0.04, "Joint position of the open gripper.", unit="m or rad")
    closed: float = parameter(0.0, "Joint position of the closed gripper.", unit="m or rad")

    def __post_init__(self) -> None:
        if self.open == self.closed:
            raise ConfigurationError(
                f"gripper.open and gripper.closed: expected two positions, got {self.open} twice"
            )


@dataclass(frozen=True)
class Actions:
    """Which actions a recording holds, for training on it; live nodes do not read them."""

    source: str = parameter(
        "auto",
        "chunks: the action chunks that were published. motion: the measured motion from one "
        "observation to the next. auto: chunks where the recording has them.",
        choices=("auto", "chunks", "motion"),
    )
    topic: str = parameter("action_chunk", "Topic of the action chunks.")
    representation: str = parameter(
        "end_effector_delta",
        "What the actions of a motion shall be: a word of the message ActionChunk. Those of chunks "
        "are as they are.",
        choices=tuple(r.value for r in Representation),
    )
    gripper_open: float = parameter(1.0, "The value that means fully open, of a motion's actions.")
    gripper_closed: float = parameter(0.0, "The value that means fully closed, likewise.")
    gripper_binary: bool = parameter(True, "Whether only these two values are meant, likewise.")


@dataclass(frozen=True)
class Moments:
    """When observations are made, and which stamps are believed."""

    robot: str = parameter("fr3", "Robot: a name in config/robots/, or the path of such a file.")
    reference: str = parameter("", "The camera whose pictures are the moments.")
    rate: float = parameter(
        10.0,
        "Observations a second; the reference camera's pictures are thinned out to it.",
        unit="Hz",
        minimum=0.1,
        maximum=1000.0,
    )
    instruction: str = parameter("instruction", "Topic of the instruction, std_msgs/String.")
    future_tolerance: float = parameter(
        0.1,
        "How far a stamp may be ahead of the node's clock. With simulated time the clock's "
        "message may arrive after the pictures.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )
    max_age: float = parameter(
        2.0,
        "A sample that is older on arrival is dropped: its clock, or its header, is not ours.",
        unit="s",
        minimum=0.01,
        maximum=3600.0,
    )
    patience: float = parameter(
        0.0,
        "Least wall-clock time that a moment waits for samples on their way, where the tolerance "
        "of their stream is shorter: a simulator whose time waits for the arm sends no other.",
        unit="s",
        minimum=0.0,
        maximum=60.0,
    )


@dataclass(frozen=True)
class Contract:
    """Everything that an observation is made of.

    Attributes:
        moments: when.
        joint_states: the joint states.
        gripper: how the gripper is read from them.
        cameras: the cameras by the name that models know them by.
        actions: which actions a recording holds.
    """

    moments: Moments
    joint_states: JointStream
    gripper: Gripper
    cameras: Mapping[str, CameraStream]
    actions: Actions = field(default_factory=Actions)

    def __post_init__(self) -> None:
        if not self.cameras:
            raise ConfigurationError("cameras: expected at least one, got none")
        if self.moments.reference not in self.cameras:
            raise ConfigurationError(
                f"reference: expected one of the cameras {', '.join(self.cameras)}, got "
                f"{self.moments.reference!r}"
            )
        taken: dict[str, str] = {}
        for name, stream in self.streams.items():
            if not stream.topic:
                raise ConfigurationError(f"{name}.topic: expected a topic, got an empty name")
            if stream.topic in taken:
                raise ConfigurationError(
                    f"{name}.topic: {stream.topic} is the topic of {taken[stream.topic]} already"
                )
            taken[stream.topic] = name

    @property
    def streams(self) -> dict[str, Stream]:
        """Every stamped stream by name."""
        return {JOINT_STATES: self.joint_states, **self.cameras}


def load_contract(name_or_path: str | Path) -> Contract:
    """Read a contract.

    Args:
        name_or_path: a name in ``config/contract/``, or the path of a YAML file.

    Raises:
        ConfigurationError: there is no such file, it is not YAML, a name is unknown or a value
            wrong; the message has the file and the entry.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        folder = share_directory() / "config" / "contract"
        path = folder / f"{name_or_path}.yaml"
        if not path.is_file():
            known = ", ".join(sorted(file.stem for file in folder.glob("*.yaml")))
            raise ConfigurationError(
                f"contract {str(name_or_path)!r} is unknown; known are {known}, or give the "
                "path of a .yaml file"
            )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"contract {path}: cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(f"contract {path}: not valid YAML: {error}") from error
    try:
        return contract_from(content)
    except ConfigurationError as error:
        raise ConfigurationError(f"contract {path}: {error}") from error


def contract_from(content: Any) -> Contract:
    """A contract from what its YAML says.

    Raises:
        ConfigurationError: a name is unknown or a value wrong.
    """
    rest = dict(_mapping(content, "the file"))
    joint_states = _read(JointStream, rest.pop(JOINT_STATES, {}), JOINT_STATES)
    gripper = _read(Gripper, rest.pop("gripper", {}), "gripper")
    actions = _read(Actions, rest.pop("actions", {}), "actions")
    cameras = {
        str(name): _read(CameraStream, entry, f"cameras.{name}")
        for name, entry in _mapping(rest.pop("cameras", {}), "cameras").items()
    }
    return Contract(build(Moments, dotted(rest)), joint_states, gripper, cameras, actions)


def _read(cls: type[T], content: Any, name: str) -> T:
    entries = dotted(_mapping(content, name), f"{name}.")
    return build(cls, entries, f"{name}.")


def _mapping(content: Any, name: str) -> Mapping[str, Any]:
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{name}: expected a mapping, got {content!r}")
    return content
