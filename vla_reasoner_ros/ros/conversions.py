"""Messages to the dataclasses of the core and back.

Whatever a message says wrongly becomes a named error here; the dataclasses check the rest. What
bags need too is in :mod:`vla_reasoner_ros.data.messages`, without ROS.
"""

from __future__ import annotations

import array
import math
import struct
from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, Pose, Quaternion
from numpy.typing import NDArray
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image, JointState
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory as JointTrajectoryMessage
from trajectory_msgs.msg import JointTrajectoryPoint

from vla_reasoner_ros.control.executor import ControllerState, ExecutorStatus
from vla_reasoner_ros.control.trajectory import LARGEST_NUMBER, JointTrajectory
from vla_reasoner_ros.data.images import DECODERS, ENCODINGS, encode_jpeg
from vla_reasoner_ros.data.joints import JointLayout
from vla_reasoner_ros.data.message_types import deserialize, prepare
from vla_reasoner_ros.data.messages import SOURCES
from vla_reasoner_ros.data.messages import chunk_from_message as chunk_from_message
from vla_reasoner_ros.data.messages import observation_from_message as observation_from_message
from vla_reasoner_ros.errors import ObservationError, StatusError, TrajectoryError
from vla_reasoner_ros.msg import ActionChunk as ActionChunkMessage
from vla_reasoner_ros.msg import ControllerStatus as ControllerStatusMessage
from vla_reasoner_ros.msg import Observation as ObservationMessage
from vla_reasoner_ros.ros.clock import NANOSECONDS, to_nanoseconds, to_stamp
from vla_reasoner_ros.ros.fields import fill, read
from vla_reasoner_ros.types import (
    ActionChunk,
    FloatArray,
    Observation,
)

_CDR_LITTLE_ENDIAN = 1
_IMAGE_TYPES = {"image": Image, "compressed": CompressedImage}
_IMAGE_TYPE_NAMES = {word: f"sensor_msgs/msg/{t.__name__}" for word, t in _IMAGE_TYPES.items()}


def header(stamp_ns: int, frame: str = "") -> Header:
    """A header from nanoseconds and a frame."""
    return Header(stamp=to_stamp(stamp_ns), frame_id=frame)


# Images.


def image_type(word: str) -> type:
    """The message type that a contract's word, ``image`` or ``compressed``, means."""
    return _IMAGE_TYPES[word]


def prepare_images() -> None:
    """Make the code that reads pictures now, and not at the first one."""
    prepare(_IMAGE_TYPE_NAMES.values())


def image_from_bytes(data: bytes, word: str, topic: str) -> NDArray[np.uint8]:
    """RGB pixels of a serialized image message.

    Encodings that are not in :data:`vla_reasoner_ros.data.images.ENCODINGS` are left to cv_bridge
    where ROS 2's is installed. rosbags reads the message, as a view of the bytes: rclpy copies a
    picture twice, which takes as long as to shrink it.

    Args:
        data: the serialized message (CDR), as a raw subscription gives it.
        word: ``image`` or ``compressed``.
        topic: for the error text.

    Returns:
        (H, W, 3) uint8, RGB; it may be a view of ``data``, which cannot be written.

    Raises:
        ObservationError: it cannot be decoded; see the decoders in ``data/images.py``.
    """
    type_name = _IMAGE_TYPE_NAMES[word]
    try:
        message = deserialize(type_name, data)
    except Exception as error:  # whatever rosbags says of wrong bytes
        raise ObservationError(
            f"{topic}: message of {len(data)} bytes is no {type_name}: {error or repr(error)}"
        ) from error
    if word == "image" and message.encoding not in ENCODINGS and message.height and message.width:
        image = _by_cv_bridge(data, message, topic)
        if image is not None:
            return image
    return DECODERS[word](message, topic)


def _by_cv_bridge(data: bytes, message: Any, topic: str) -> NDArray[np.uint8] | None:
    try:
        from cv_bridge import CvBridge
    except ImportError:
        return None
    try:
        own = deserialize_message(data, Image)  # cv_bridge is made for messages of ROS 2
        image = np.asarray(CvBridge().imgmsg_to_cv2(own, "rgb8"), dtype=np.uint8)
    except Exception as error:  # what it raises of a bad message depends on it, OpenCV and NumPy
        raise ObservationError(
            f"{topic}: encoding {message.encoding!r} cannot be converted: {error}"
        ) from error
    expected = (message.height, message.width, 3)
    if image.shape != expected:  # it cuts a row that step says is short
        raise ObservationError(
            f"{topic}: step is {message.step} bytes for {message.width} pixels of "
            f"{message.encoding}: expected an image of {expected}, got {image.shape}"
        )
    return image


def stamp_from_bytes(data: bytes, topic: str) -> int:
    """The header's stamp, ns, of a serialized message that begins with a header.

    The rest of the message stays as it is: an image that nobody will use costs nothing more.

    Raises:
        ObservationError: too short to be such a message.
    """
    if len(data) < 12:  # four bytes of encapsulation, sec, nanosec
        raise ObservationError(f"{topic}: message of {len(data)} bytes has no header")
    order = "<" if data[1] & _CDR_LITTLE_ENDIAN else ">"
    seconds, nanoseconds = struct.unpack_from(order + "iI", data, 4)
    return int(seconds) * NANOSECONDS + int(nanoseconds)


def image_to_message(image: NDArray[np.uint8], stamp_ns: int, frame: str = "") -> Image:
    """An ``rgb8`` message of an (H, W, 3) uint8 RGB image."""
    height, width, channels = _require_rgb(image)
    message = Image(
        header=header(stamp_ns, frame),
        height=height,
        width=width,
        encoding="rgb8",
        is_bigendian=0,
        step=width * channels,
    )
    message.data = _byte_array(np.ascontiguousarray(image).tobytes())
    return message


def compressed_to_message(
    image: NDArray[np.uint8], stamp_ns: int, frame: str = "", quality: int = 90
) -> CompressedImage:
    """A JPEG message of an (H, W, 3) uint8 RGB image; ``quality`` is 1 to 100."""
    _require_rgb(image)
    message = CompressedImage(header=header(stamp_ns, frame), format="rgb8; jpeg compressed bgr8")
    message.data = _byte_array(encode_jpeg(image, quality))
    return message


def _require_rgb(image: NDArray[np.uint8]) -> tuple[int, int, int]:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise ObservationError(f"image: expected (H, W, 3) uint8, got {image.shape} {image.dtype}")
    height, width, channels = image.shape
    return height, width, channels


def _byte_array(data: bytes) -> array.array:
    """What rclpy takes for ``uint8[]`` without looking at every element."""
    return array.array("B", data)


# Observations.


def observation_to_message(observation: Observation) -> ObservationMessage:
    """The message of an observation; a simulator's state travels on a topic of its own."""
    stamp_ns = observation.stamp_ns
    names = list(observation.images)
    streams = list(observation.ages)
    return ObservationMessage(
        header=header(stamp_ns, observation.ee_frame),
        image_names=names,
        images=[image_to_message(observation.images[name], stamp_ns, name) for name in names],
        joint_state=JointState(
            header=header(stamp_ns),
            name=list(observation.joint_names),
            position=observation.joint_positions.tolist(),
            velocity=observation.joint_velocities.tolist(),
        ),
        ee_pose=pose_to_message(observation.ee_position, observation.ee_quaternion),
        gripper=float(observation.gripper),
        instruction=observation.instruction,
        stream_names=streams,
        stream_ages=[float(observation.ages[name]) for name in streams],
    )


def pose_to_message(position: FloatArray, quaternion: FloatArray) -> Pose:
    """A pose from a position (3,), m, and a quaternion (4,), x y z w."""
    x, y, z = (float(value) for value in position)
    qx, qy, qz, qw = (float(value) for value in quaternion)
    return Pose(position=Point(x=x, y=y, z=z), orientation=Quaternion(x=qx, y=qy, z=qz, w=qw))


def pose_from_message(pose: Pose) -> tuple[FloatArray, FloatArray]:
    """Position (3,), m, and quaternion (4,), x y z w."""
    p, q = pose.position, pose.orientation
    return np.array([p.x, p.y, p.z]), np.array([q.x, q.y, q.z, q.w])


# Action chunks.


def chunk_to_message(chunk: ActionChunk, stamp_ns: int) -> ActionChunkMessage:
    """The message of a chunk published at ``stamp_ns``."""
    spec, gripper = chunk.spec, chunk.spec.gripper
    message = ActionChunkMessage(
        header=header(stamp_ns, spec.frame),
        observation_stamp=to_stamp(chunk.observation_stamp_ns),
        sequence=chunk.sequence,
        representation=spec.representation.value,
        names=list(spec.names),
        dt=spec.dt,
        steps=chunk.steps,
        dimensions=spec.dimensions,
        actions=chunk.actions.ravel().tolist(),
        gripper_index=-1,
        consumed=chunk.consumed,
        source=SOURCES[chunk.source],
        confidence=float(chunk.confidence),
    )
    if gripper is not None:
        message.gripper_index = gripper.index
        message.gripper_open = float(gripper.open)
        message.gripper_closed = float(gripper.closed)
        message.gripper_binary = gripper.binary
    return message


# Joint trajectories.


def trajectory_to_message(trajectory: JointTrajectory, stamp_ns: int) -> JointTrajectoryMessage:
    """The message of a joint trajectory.

    Args:
        trajectory: its knots, with their times from the stamp.
        stamp_ns: what those times count from; 0 means from arrival.
    """
    return JointTrajectoryMessage(
        header=header(stamp_ns),
        joint_names=list(trajectory.joint_names),
        points=[
            JointTrajectoryPoint(
                positions=trajectory.positions[knot].tolist(),
                velocities=trajectory.velocities[knot].tolist(),
                accelerations=trajectory.accelerations[knot].tolist(),
                time_from_start=_duration(trajectory.times[knot]),
            )
            for knot in range(len(trajectory.times))
        ],
    )


def trajectory_from_message(message: JointTrajectoryMessage) -> JointTrajectory:
    """The knots of a message, as they are: the first one at its own ``time_from_start``.

    Raises:
        TrajectoryError: no point, or a point lacks a number of some joint, or has one that is not
            finite or that no joint can have.
    """
    joints = len(message.joint_names)
    if not message.points or not joints:
        raise TrajectoryError(
            f"joint trajectory: {len(message.points)} points for {joints} joints, expected some"
        )
    columns: dict[str, list[Any]] = {"positions": [], "velocities": [], "accelerations": []}
    for index, point in enumerate(message.points):
        for name, rows in columns.items():
            row = getattr(point, name)
            if len(row) != joints or not (np.abs(row) < LARGEST_NUMBER).all():
                raise TrajectoryError(
                    f"joint trajectory: point {index} has {name} {list(row)}, expected "
                    f"{joints} numbers below {LARGEST_NUMBER:g}"
                )
            rows.append(row)
    return JointTrajectory(
        joint_names=tuple(message.joint_names),
        times=np.array([to_nanoseconds(p.time_from_start) / NANOSECONDS for p in message.points]),
        **{name: np.array(rows, dtype=np.float64) for name, rows in columns.items()},
    )


def is_playable(message: JointTrajectoryMessage, joint_names: tuple[str, ...]) -> bool:
    """Whether a joint trajectory controller of these joints may play it, by positions at least."""
    joints = len(joint_names)
    return (
        sorted(message.joint_names) == sorted(joint_names)
        and len(message.points) > 0
        and all(len(point.positions) == joints for point in message.points)
    )


def _duration(seconds: float) -> Duration:
    whole, rest = divmod(round(float(seconds) * NANOSECONDS), NANOSECONDS)
    return Duration(sec=whole, nanosec=rest)


# The controller.


def joints_from_message(
    message: JointState, names: tuple[str, ...]
) -> tuple[int, FloatArray, FloatArray] | None:
    """The arm's part of a message on ``joint_states``, which may hold other joints as well.

    Args:
        message: it.
        names: the arm's J joints.

    Returns:
        Stamp in ns, positions (J,) rad and velocities (J,) rad/s, in the order of ``names``; None
        for a message of other joints only, as a gripper's own driver sends.

    Raises:
        ObservationError: some of the joints are missing or named twice, or their numbers are.
    """
    others = tuple(name for name in message.name if name not in names)
    if len(others) == len(message.name):
        return None
    positions, velocities = JointLayout(names, others).read(message, "joint_states")
    return to_nanoseconds(message.header.stamp), positions, velocities


def status_to_message(status: ExecutorStatus, stamp_ns: int) -> ControllerStatusMessage:
    """The message of what the arm controller is doing, published at ``stamp_ns``."""
    return fill(ControllerStatusMessage, status, header=header(stamp_ns))


def status_from_message(message: ControllerStatusMessage) -> ExecutorStatus:
    """What the arm controller says it is doing.

    Raises:
        StatusError: it names a state that there is not, or its tracking error is not finite.
    """
    if message.state > max(ControllerState) or not math.isfinite(message.tracking_error):
        raise StatusError(
            f"controller status: expected a state of 0 to {max(ControllerState)} and a finite "
            f"tracking error, got {message.state} and {message.tracking_error}"
        )
    return read(ExecutorStatus, message, state=ControllerState(message.state))
