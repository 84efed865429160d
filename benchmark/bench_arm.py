"""How long the arm controller takes: ``python benchmark/bench_arm.py`` prints JSON lines."""

from __future__ import annotations

import json
import time
from collections.abc import Callable

import numpy as np

from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.parameters import ControlParameters, MotionParameters
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.types import ActionChunk, ActionSpec, FloatArray, GripperSpec, Representation

REPEATS = 500
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


def validate() -> None:
    """A joint chunk made into a trajectory and validated, from a moving arm."""
    robot = load_robot("fr3")
    planner = MotionPlanner(robot, Kinematics(robot), MotionParameters())
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
    report("arm.validate_ms", seconds, f"{STEPS} waypoints of 7 joints, spline, joints and TCP")


def submit() -> None:
    """End-effector chunks from reception to the trajectory, in closed loop."""
    executor = ChunkExecutor(build(ControlParameters, {"enable_control": True}))
    names = ("x", "y", "z", "rx", "ry", "rz", "gripper")
    spec = ActionSpec(Representation.EE_DELTA, names, "base", 0.1, GripperSpec(6))
    now = SECOND
    executor.measured(now, executor.robot.home, np.zeros(7))

    def step(index: int) -> None:
        actions = np.zeros((8, 7))
        phase = 0.3 * index
        actions[:, :3] = 0.005 * np.array([np.cos(phase), np.sin(phase), 0.5 * np.cos(phase)])
        executor.submit(ActionChunk(spec, actions, now, index + 21), now)

    seconds = np.empty(REPEATS)
    for index in range(-20, REPEATS):
        begin = time.perf_counter()
        step(index)
        if index >= 0:
            seconds[index] = time.perf_counter() - begin
        now += 400_000_000
        state = executor.commanded(now)
        assert state is not None
        executor.measured(now, state.position, state.velocity)
    report("arm.submit_ms", seconds, "8 end-effector displacements, from chunk to trajectory")


def main() -> None:
    """Run the benchmarks of the arm controller."""
    validate()
    submit()


if __name__ == "__main__":
    main()
