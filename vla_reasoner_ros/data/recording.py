"""Writing what comes in to a bag, and knowing how large that gets before the disk is full."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

from vla_reasoner_ros.data.bags import BagWriter
from vla_reasoner_ros.data.contract import Contract
from vla_reasoner_ros.data.messages import (
    ACTION_CHUNK,
    OBSERVATION,
    SEARCH_STATISTICS,
    SEARCH_TREE,
    SIMULATOR_STATE,
)
from vla_reasoner_ros.errors import BagError

PARAMETERS_TOPIC = "parameters_snapshot"
"""``std_msgs/String`` with the parameters of the nodes that ran, as a ROS parameter file."""
STRING = "std_msgs/msg/String"
IMAGES = {"image": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
CHECKED_EVERY_S = 0.5
MEGABYTE = 1_000_000


def recorded_topics(contract: Contract) -> dict[str, str]:
    """Topic, relative to the namespace, to type of what replay, training and reports need."""
    streams = {contract.joint_states.topic: "sensor_msgs/msg/JointState"}
    streams |= {camera.topic: IMAGES[camera.type] for camera in contract.cameras.values()}
    return {
        contract.moments.instruction: STRING,
        **streams,
        "/clock": "rosgraph_msgs/msg/Clock",
        "observation": OBSERVATION,
        "action_chunk": ACTION_CHUNK,
        "search_statistics": SEARCH_STATISTICS,
        "search_tree": SEARCH_TREE,
        "joint_trajectory": "trajectory_msgs/msg/JointTrajectory",
        "gripper_command": "std_msgs/msg/Float64",
        "arm_controller_node/status": "vla_reasoner_ros/msg/ControllerStatus",
        "simulator_state": SIMULATOR_STATE,
    }


class Traffic:
    """How much comes in on each topic."""

    def __init__(self) -> None:
        self._bytes: Counter[str] = Counter()
        self._messages: Counter[str] = Counter()
        self._begun = time.monotonic()

    def take(self, topic: str, size: int) -> None:
        """A message came."""
        self._bytes[topic] += size
        self._messages[topic] += 1

    def estimate(self, free: int, seconds: float | None = None) -> list[str]:
        """What a recording will take, in words.

        Args:
            free: bytes of room on the disk.
            seconds: that were measured; None is since the beginning.
        """
        seconds = max(seconds or time.monotonic() - self._begun, 1e-6)
        lines = []
        for topic, size in self._bytes.most_common():
            rate = self._messages[topic] / seconds
            lines.append(
                f"{topic}: {rate:.1f} messages/s, {60 * size / seconds / MEGABYTE:.1f} MB/min"
            )
        total = sum(self._bytes.values()) / seconds
        room = f"room for {free / total / 60:.0f} min" if total else "nothing comes in yet"
        lines.append(f"together {60 * total / MEGABYTE:.1f} MB/min before compression: {room}")
        return lines


class Recording:
    """A bag that ends cleanly when the disk is nearly full.

    Args:
        path: the bag's folder; must not be there.
        compress: compress by chunks.
        split_mb: begin another file after so many MB; what a crash can take is the last file's
            index.
        reserve_mb: room to leave on the disk.

    Attributes:
        messages: written so far.
        full: why it ended by itself; empty while it goes on.

    Raises:
        BagError: the folder is there already, cannot be made, or the disk has no room now.
    """

    def __init__(
        self, path: Path, *, compress: bool = False, split_mb: int = 1000, reserve_mb: int = 500
    ) -> None:
        self.path = path
        self.messages = 0
        self.full = ""
        self._reserve = reserve_mb * MEGABYTE
        parent = next(folder for folder in path.resolve().parents if folder.is_dir())
        if shutil.disk_usage(parent).free <= self._reserve:
            raise BagError(f"bag {path}: less than {reserve_mb} MB are free on the disk")
        self._writer = BagWriter(path, compress=compress, split_bytes=split_mb * MEGABYTE)
        self._topics: set[str] = set()
        self._check_at = 0.0

    @property
    def free(self) -> int:
        """Bytes that may still be written."""
        return max(0, shutil.disk_usage(self.path).free - self._reserve)

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(file.stat().st_size for file in self.path.rglob("*") if file.is_file())

    def take(self, topic: str, type_name: str, data: bytes, time_ns: int) -> None:
        """Write a message, unless the recording has ended; a new topic is declared by itself.

        Args:
            topic: its name, with a leading slash.
            type_name: as in ``sensor_msgs/msg/Image``.
            data: it, serialized.
            time_ns: now.
        """
        if self.full:
            return
        now = time.monotonic()
        if now >= self._check_at:
            self._check_at = now + CHECKED_EVERY_S
            if not self.free:
                self.full = f"only {self._reserve // MEGABYTE} MB are left on the disk"
                return
        try:
            if topic not in self._topics:
                latched = type_name == STRING
                self._writer.add_topic(topic, type_name, latched=latched)
                self._topics.add(topic)
            self._writer.write(topic, time_ns, data)
        except BagError as error:
            self.full = str(error)
            return
        self.messages += 1

    def told(self) -> str:
        """How far it is, in words."""
        return f"{self.messages} messages, {self.size / MEGABYTE:.1f} MB on the disk"

    def close(self) -> None:
        """Finish the bag."""
        try:
            self._writer.close()
        except BagError as error:
            self.full = self.full or str(error)
