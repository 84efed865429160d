"""Recordings for the tests: what a robot with two small cameras would have published."""

import dataclasses

import numpy as np
import yaml

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.bags import BagWriter
from vla_reasoner_ros.data.contract import contract_from
from vla_reasoner_ros.data.messages import image_fields

KINEMATICS = Kinematics(load_robot("fr3"))
JOINTS = [*KINEMATICS.robot.joint_names, "fr3_finger_joint1", "fr3_finger_joint2"]
SECOND = 10**9
START = 1_700_000_000 * SECOND
JOINT_STATE, IMAGE, STRING = (
    "sensor_msgs/msg/JointState",
    "sensor_msgs/msg/Image",
    "std_msgs/msg/String",
)
TOPICS = {
    "/joint_states": JOINT_STATE,
    "/agent/image_raw": IMAGE,
    "/wrist/image_raw": IMAGE,
    "/instruction": STRING,
}
CONTRACT = """
robot: fr3
reference: agent
rate: 10.0
future_tolerance: 0.1
max_age: 2.0
joint_states: {topic: joint_states, tolerance: 0.05}
gripper: {joints: [fr3_finger_joint1, fr3_finger_joint2], open: 0.04, closed: 0.0}
cameras:
  agent: {topic: agent/image_raw, height: 24, width: 32}
  wrist: {topic: wrist/image_raw, height: 24, width: 32}
"""


def contract(text=CONTRACT):
    return contract_from(yaml.safe_load(text))


def joints(stamp_ns, shift=0.0, name=None, gripper=0.02, **fields):
    position = [*(np.array(KINEMATICS.robot.home) + shift), gripper, gripper]
    values = {"name": name or JOINTS, "position": position, "velocity": [0.1] * len(JOINTS)}
    return {"header": {"stamp": stamp_ns}, **values, **fields}


def picture(stamp_ns, shade, height=24, width=32):
    image = np.full((height, width, 3), shade % 251, dtype=np.uint8)
    return image_fields(image, stamp_ns, "camera")


def events(seconds=1.0, start_ns=START, instruction="lift the green block"):
    """Topic, time of recording and fields of everything, in the order of recording."""
    happened = [("/instruction", start_ns, {"data": instruction})] if instruction else []
    for tick in range(round(seconds * 50)):
        stamp_ns = start_ns + tick * SECOND // 50
        happened.append(("/joint_states", stamp_ns + 1_000_000, joints(stamp_ns, 0.001 * tick)))
        if tick % 5 == 0:
            for offset, camera in enumerate(("wrist", "agent")):
                topic = f"/{camera}/image_raw"
                shown = picture(stamp_ns, 3 * tick + 100 * offset)
                happened.append((topic, stamp_ns + 2_000_000 + offset, shown))
    return happened


def record(path, happened=None, topics=TOPICS, **options):
    """A bag of such events."""
    with BagWriter(path, **options) as bag:
        for topic, kind in topics.items():
            bag.add_topic(topic, kind, latched=topic == "/instruction")
        for topic, time_ns, message in events() if happened is None else happened:
            bag.write(topic, time_ns, message)
    return path


def assert_same(first, second):
    """Two observations are the same, bit for bit."""
    for field in dataclasses.fields(first):
        one, other = getattr(first, field.name), getattr(second, field.name)
        if field.name == "images":
            assert list(one) == list(other)
            for name in one:
                np.testing.assert_array_equal(one[name], other[name])
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other, field.name
