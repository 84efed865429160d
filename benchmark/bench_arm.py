"""How long the arm controller takes: ``python benchmark/bench_arm.py`` prints JSON lines."""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.parameters import ControlParameters, MotionParameters
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.msg import ActionChunk as ActionChunkMessage
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.conversions import (
    chunk_from_message,
    chunk_to_message,
    trajectory_to_message,
)
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, GripperSpec, Representation

REPEATS = 500
HOUR = 36_000  # chunks of 0.1 s
STEPS = 16
SECOND = 1_000_000_000


def report(name: str, seconds: FloatArray, detail: str) -> None:
    """Print median and 99th percentile in milliseconds."""
    for suffix, percentile in (("", 50), ("_p99", 99)):
        value = float(np.percentile(seconds, percentile)) * 1000.0
        line = {"name": f"{name}{suffix}", "value": round(value, 4), "unit": "ms"}
        print(json.dumps({**line, "n": len(seconds), "detail": detail}))


def timed(action: Callable[[int], object]) -> FloatArray:
    """Wall-clock seconds of every repetition, after a few for warming up."""
    seconds = np.empty(REPEATS)
    for index in range(-20, REPEATS):
        begin = time.perf_counter()
        action(index)
        if index >= 0:
            seconds[index] = time.perf_counter() - begin
    return seconds


def validate(name: str, self_collision: bool) -> None:
    """A joint chunk made into a trajectory and validated, from a moving arm."""
    robot = load_robot("fr3")
    parameters = MotionParameters(self_collision=self_collision)
    planner = MotionPlanner(robot, Kinematics(robot), parameters)
    rng = np.random.default_rng(0)
    chunks = []
    for _ in range(50):
        velocity = 0.15 * robot.limits.velocity * rng.uniform(-1.0, 1.0, robot.joints)
        ways = 0.1 * velocity * np.arange(1.0, STEPS + 1.0)[:, None]
        noise = 1e-3 * rng.normal(size=(STEPS, robot.joints)).cumsum(axis=0)
        start = MotionState(robot.home, velocity, np.zeros(robot.joints))
        chunks.append((start, robot.home + ways + noise))
    intervals = np.full(STEPS, 0.1)
    seconds = timed(lambda i: planner.through(*chunks[i % len(chunks)], intervals))
    detail = f"{STEPS} waypoints of 7 joints, spline, joints and TCP"
    report(name, seconds, detail + (", self-collision" if self_collision else ""))


def command(name: str, repeats: int, pause: float) -> None:
    """End-effector chunks from the message received to the message published, in closed loop.

    Args:
        name: of the figure.
        repeats: chunks.
        pause: s between two, in which the processor forgets: chunks do not come one upon another.
    """
    rclpy.init()
    node = rclpy.create_node("bench_arm")
    publisher = node.create_publisher(JointTrajectory, "joint_trajectory", qos.COMMAND)
    executor = ChunkExecutor(build(ControlParameters, {"enable_control": True}))
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    spec = ActionSpec(Representation.EE_DELTA, names, "base", 0.1, GripperSpec(6))
    now = SECOND
    executor.measured(now, executor.robot.home, np.zeros(7))

    def message(index: int) -> ActionChunkMessage:
        actions = np.zeros((8, 7))
        phase = 0.3 * index
        actions[:, :3] = 0.005 * np.array([np.cos(phase), np.sin(phase), 0.5 * np.cos(phase)])
        return chunk_to_message(ActionChunk(spec, actions, now, index + 21), now)

    seconds = np.empty(repeats)
    for index in range(-20, repeats):
        received = message(index)
        time.sleep(pause)
        begin = time.perf_counter()
        motion = executor.submit(chunk_from_message(received), now).commands.trajectory
        assert motion is not None
        publisher.publish(trajectory_to_message(motion.told, motion.start_ns))
        if index >= 0:
            seconds[index] = time.perf_counter() - begin
        now += 400_000_000
        state = executor.commanded(now)
        assert state is not None
        executor.measured(now, state.position, state.velocity)
    rclpy.shutdown()
    detail = "8 end-effector displacements, from the message received to the message published"
    report(name, seconds, detail + (f", {pause:g} s apart" if pause else ""))


def memory() -> None:
    """What an hour's worth of chunks of 0.1 s leaves behind in the controller."""
    executor = ChunkExecutor(build(ControlParameters, {"enable_control": True}))
    spec = ActionSpec(Representation.JOINT_DELTA, executor.robot.joint_names, "", 0.1)
    now = SECOND
    executor.measured(now, executor.robot.home, np.zeros(7))
    sizes = []
    for index in range(HOUR):
        actions = np.full((8, 7), 0.002 * np.cos(0.05 * index))
        executor.submit(ActionChunk(spec, actions, now, index + 1), now)
        now += SECOND // 10
        state = executor.commanded(now)
        assert state is not None
        executor.measured(now, state.position, state.velocity)
        if index % (HOUR // 10) == HOUR // 10 - 1:
            gc.collect()
            sizes.append(_resident())
    grown = (sizes[-1] - sizes[1]) / 2**20
    line = {"name": "arm.memory_growth_mib", "value": round(grown, 3), "unit": "MiB", "n": HOUR}
    detail = f"resident memory after {HOUR} chunks less that after {HOUR // 5}"
    print(json.dumps({**line, "detail": detail}))


def _resident() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Run the benchmarks of the arm controller."""
    validate("arm.validate_ms", self_collision=False)
    validate("arm.validate_collision_ms", self_collision=True)
    command("arm.chunk_to_command_ms", REPEATS, 0.0)
    command("arm.chunk_to_command_paced_ms", REPEATS // 5, 0.1)
    memory()


if __name__ == "__main__":
    main()
