"""What one observation of two 640x480 cameras costs: prints JSON lines."""

from __future__ import annotations

import array
import json
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from rclpy.serialization import serialize_message
from sensor_msgs.msg import JointState

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.ros.conversions import (
    compressed_to_message,
    image_from_bytes,
    image_to_message,
    observation_from_message,
    observation_to_message,
)
from vla_reasoner_ros.types import Observation

REPEATS = 300
SECOND = 1_000_000_000


def report(name: str, action: Callable[[int], object], detail: str) -> None:
    """Print median and 99th percentile of an action in milliseconds."""
    milliseconds = np.empty(REPEATS)
    for index in range(-10, REPEATS):
        begin = time.perf_counter()
        action(index + 10)
        if index >= 0:
            milliseconds[index] = 1000.0 * (time.perf_counter() - begin)
    for suffix, percentile in (("", 50), ("_p99", 99)):
        value = round(float(np.percentile(milliseconds, percentile)), 4)
        line = {"name": f"ingest.{name}{suffix}", "value": value, "unit": "ms", "n": REPEATS}
        print(json.dumps({**line, "detail": detail}))


def main() -> None:
    """Run all."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    picture = np.repeat(np.repeat(coarse, 16, axis=0), 16, axis=1)
    serialized = {
        "image": serialize_message(image_to_message(picture, 0)),
        "compressed": serialize_message(compressed_to_message(picture, 0)),
    }
    for kind, data in serialized.items():
        report(
            f"decode_{kind}_ms",
            lambda _, kind=kind, data=data: image_from_bytes(data, kind, "camera"),
            "640x480 from the serialized message to RGB",
        )

    robot = load_robot("fr3")
    ingest = Ingest(load_contract("sim"), Kinematics(robot))
    ingest.set_instruction("push the red block", 0)
    state = JointState(
        name=[*robot.joint_names, "fr3_finger_joint1", "fr3_finger_joint2"],
        position=array.array("d", [*robot.home, 0.04, 0.04]),
        velocity=array.array("d", [0.0] * 9),
    )

    def observe(index: int) -> Observation:
        stamp_ns, arrival = index * SECOND // 10, index / 10
        ingest.push_joints(state, stamp_ns, stamp_ns, arrival)
        for camera in ("wrist", "agent"):
            ingest.push_picture(
                camera,
                partial(image_from_bytes, serialized["image"], "image", camera),
                stamp_ns,
                stamp_ns,
                arrival,
            )
        (observation,) = ingest.poll(arrival)
        return observation

    report("observe_ms", observe, "two 640x480 images and joint states to one observation")
    observation = observe(REPEATS + 20)
    message = observation_to_message(observation)
    report("to_message_ms", lambda _: observation_to_message(observation), "two 96x96 images")
    report("from_message_ms", lambda _: observation_from_message(message), "two 96x96 images")


if __name__ == "__main__":
    main()
