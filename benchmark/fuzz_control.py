"""Hostile chunks against the arm controller, with a model of the arm's own controller as judge.

``python benchmark/fuzz_control.py 1000000`` throws that many chunks at ChunkExecutor and exits with
1 when one limit was broken at 1 kHz, one command would have been rejected, or anything crashed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections import Counter, deque
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import numpy as np

from vla_reasoner_ros.control.executor import ChunkExecutor, Commands, ResetRefused, TimedTrajectory
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    FloatArray,
    GripperSpec,
    Representation,
)

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
ROBOTS = ("fr3", "panda", "ur5e", "ur10e")
EE_NAMES = {
    Representation.EE_DELTA: ("x", "y", "z", "rx", "ry", "rz"),
    Representation.EE_POSE: ("x", "y", "z", "qx", "qy", "qz", "qw"),
}


class Judge:
    """The desired positions of joint_trajectory_controller (Jazzy) at 1 kHz, against the limits.

    A message is taken when it arrives. Until its first point the controller interpolates from what
    it desired at that moment (``interpolate_from_desired_state``), then between the points, by
    quintic polynomials through position, velocity and acceleration; after the last it stays there.
    """

    def __init__(self, robot: Robot, now_ns: int) -> None:
        limits = robot.limits
        self._robot = robot
        self._tick = now_ns // MILLISECOND
        rest = np.zeros((3, robot.joints))
        rest[0] = robot.home
        self._knots: list[tuple[int, FloatArray]] = [(now_ns, rest)]
        self._tail = np.repeat(robot.home[None], 3, axis=0)
        self._bounds = (
            ("velocity", 1, limits.velocity, 1e-6),
            ("acceleration", 2, limits.acceleration, 1e-3),
            ("jerk", 3, limits.jerk, 1.0),
        )
        self.problems: list[str] = []

    def receive(self, message: TimedTrajectory, now_ns: int) -> None:
        """A message arrives now."""
        trajectory = message.trajectory
        self.advance(now_ns)
        points = [
            (message.start_ns + round(t * SECOND), np.stack([p, v, a]))
            for t, p, v, a in zip(
                trajectory.times[1:].tolist(),
                trajectory.positions[1:],
                trajectory.velocities[1:],
                trajectory.accelerations[1:],
                strict=True,
            )
        ]
        times = [when for when, _ in points]
        if not points or points[-1][1][1].any():
            self.problems.append("rejected: does not end at rest")
        if any(b <= a for a, b in zip([message.start_ns, *times], times, strict=False)):
            self.problems.append("rejected: times do not ascend")
        if times[-1] < now_ns:
            self.problems.append("rejected: ends in the past")
        before = self._state(now_ns)
        self._knots = [(now_ns, before), *points]
        if times[0] <= now_ns:
            self._knots = points

    def advance(self, now_ns: int) -> None:
        """Play until now."""
        last = now_ns // MILLISECOND
        if last <= self._tick:
            return
        ticks = np.arange(self._tick + 1, last + 1) * MILLISECOND
        played = np.concatenate([self._tail, self._positions(ticks)])
        self._tick = last
        self._tail = played[-3:]
        limits = self._robot.limits
        now = played[3:]
        for bound, sign in ((limits.position_min, -1.0), (limits.position_max, 1.0)):
            over = sign * (now - bound)
            if over.max() > 1e-6:
                self._report("position", over, now)
        for name, order, bound, slack in self._bounds:
            values = np.diff(played, n=order, axis=0)[3 - order :] * 1000.0**order
            over = np.abs(values) - bound * (1.0 + 1e-5) - slack
            if over.max() > 0.0:
                self._report(name, over, values)

    def _report(self, name: str, over: FloatArray, values: FloatArray) -> None:
        tick, joint = np.unravel_index(int(np.argmax(over)), over.shape)
        self.problems.append(
            f"{self._robot.joint_names[joint]} breaks its {name} limit: "
            f"{values[tick, joint]:.6g}, {over[tick, joint]:.3g} too much"
        )

    def _positions(self, ticks: FloatArray) -> FloatArray:
        times = np.array([when for when, _ in self._knots])
        positions = np.empty((len(ticks), self._robot.joints))
        index = np.searchsorted(times, ticks, side="right") - 1
        for segment in np.unique(index):
            here = index == segment
            at = min(max(segment, 0), len(self._knots) - 1)
            if at == len(self._knots) - 1 or segment < 0:
                positions[here] = self._knots[at][1][0]
                continue
            coefficients = _hermite(self._knots[at], self._knots[at + 1])
            x = (ticks[here] - times[at]) / SECOND
            positions[here] = np.polynomial.polynomial.polyval(x, coefficients).T
        return positions

    def _state(self, now_ns: int) -> FloatArray:
        """Position, velocity, acceleration (3, J) desired now."""
        times = [when for when, _ in self._knots]
        at = int(np.searchsorted(times, now_ns, side="right")) - 1
        if at < 0 or at >= len(times) - 1:
            state = self._knots[max(at, 0)][1].copy()
            state[1:] = 0.0
            return state
        coefficients = _hermite(self._knots[at], self._knots[at + 1])
        x = (now_ns - times[at]) / SECOND
        polynomial = np.polynomial.polynomial
        return np.stack(
            [polynomial.polyval(x, polynomial.polyder(coefficients, m)) for m in range(3)]
        )


def _hermite(left: tuple[int, FloatArray], right: tuple[int, FloatArray]) -> FloatArray:
    """Coefficients (6, J) of the quintic between two knots, by solving its six conditions."""
    h = (right[0] - left[0]) / SECOND
    unit = np.array(
        [
            [1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 1.0, 0.0, 0.0, 0.0, 0.0],
            [0.0, 0.0, 2.0, 0.0, 0.0, 0.0],
            [1.0, 1.0, 1.0, 1.0, 1.0, 1.0],
            [0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
            [0.0, 0.0, 2.0, 6.0, 12.0, 20.0],
        ]
    )
    scale = np.array([1.0, h, h * h])[:, None]
    conditions = np.concatenate([left[1] * scale, right[1] * scale])
    conditions[3] -= left[1][0]
    conditions[0] = 0.0
    coefficients = np.linalg.solve(unit, conditions) / h ** np.arange(6.0)[:, None]
    coefficients[0] = left[1][0]
    return coefficients


@dataclass
class Report:
    """What a run did.

    Attributes:
        chunks: chunks made, those included that their own constructor refused.
        outcomes: how many were accepted, refused by which reason, or refused when made.
        problems: broken limits, rejected commands and exceptions; must stay empty.
    """

    chunks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


class Episode:
    """One arm, one stream of chunks, one judge; everything random comes from one seed."""

    def __init__(self, seed: int) -> None:
        rng = self._rng = np.random.default_rng(seed)
        self._seed = seed
        lead = float(rng.choice([0.0, 0.01, 0.02, 0.05]))
        values = {
            "enable_control": True,
            "robot": str(rng.choice(ROBOTS)),
            "motion.lead_time": lead,
            "motion.stop_lead_time": lead,
            "motion.settle_time": float(rng.choice([0.0, 0.2])),
            "motion.speed_factor": float(rng.choice([0.2, 0.7, 1.0])),
            "motion.max_stretch": float(rng.choice([2.0, 10.0])),
        }
        if values["robot"] == "fr3" and rng.random() < 0.5:
            values["limits"] = "full"
        self._now = int(rng.integers(1, 2**40))
        self._lead_ns = round(lead * SECOND)
        self._executor = ChunkExecutor(build(ControlParameters, values))
        self._robot = self._executor.robot
        self._judge = Judge(self._robot, self._now)
        self._inbox: deque[tuple[int, TimedTrajectory]] = deque()
        self._sequence = 0
        self._last: ActionChunk | None = None
        self._representation = Representation(rng.choice([r.value for r in Representation]))
        self._dt = float(rng.choice([0.02, 0.05, 0.1, 0.2]))
        self._drift = rng.normal(size=7)
        self._measure()

    def run(self, chunks: int, report: Report) -> None:
        """Submit chunks; what goes wrong is reported with the seed that repeats it."""
        for _ in range(chunks):
            report.chunks += 1
            try:
                self._submit(report.outcomes)
                self._live()
            except Exception as error:
                report.problems.append(f"seed {self._seed}: {type(error).__name__}: {error}")
                return
            self._deliver(self._now)
            if not self._inbox:
                self._judge.advance(self._now)
            if self._judge.problems:
                report.problems.append(f"seed {self._seed}: {self._judge.problems[0]}")
                return

    def _submit(self, outcomes: Counter[str]) -> None:
        try:
            chunk = self._make_chunk()
        except (ActionChunkError, ConfigurationError):
            outcomes["refused when made"] += 1
            return
        if self._rng.random() < 0.9:
            self._last = chunk
        try:
            accepted = self._executor.submit(chunk, self._now)
        except ChunkRejected as rejection:
            outcomes[rejection.reason.value] += 1
            self._publish(self._executor.repeat(self._now))
        else:
            outcomes["accepted"] += 1
            self._publish(accepted.commands)

    def _make_chunk(self) -> ActionChunk:
        rng = self._rng
        if self._last is not None and rng.random() < 0.03:
            return self._last
        steps = int(rng.choice([1, 2, 8, 16, 50], p=[0.1, 0.1, 0.4, 0.3, 0.1]))
        self._sequence += int(rng.choice([1, 0, -3, 7], p=[0.94, 0.02, 0.02, 0.02]))
        age = float(
            rng.choice([0.0, 0.05, 0.3, -0.02, 5.0, -1.0], p=[0.4, 0.3, 0.24, 0.02, 0.02, 0.02])
        )
        self._drift = 0.7 * self._drift + 0.7 * rng.normal(size=7)
        motion = self._motion(steps)
        gripper, actions = None, motion
        if self._robot.gripper_opening is not None:
            opening = rng.choice([0.0, 1.0, 0.5, 1.05, -3.0], p=[0.45, 0.45, 0.05, 0.04, 0.01])
            gripper = GripperSpec(motion.shape[1])
            actions = np.concatenate([motion, np.full((steps, 1), opening)], axis=1)
        actions = self._spoil(actions)
        names = EE_NAMES.get(self._representation, self._robot.joint_names)
        frame = "base" if self._representation in EE_NAMES else ""
        dt = self._dt
        if rng.random() < 0.02:
            dt = float(rng.choice([0.0, -0.1, np.nan, 5e-324, 1e-9, 1e300, 0.1000001, np.inf]))
        spec = ActionSpec(
            self._representation,
            (*names, "gripper") if gripper else names,
            "camera" if frame and rng.random() < 0.01 else frame,
            dt,
            gripper,
        )
        return ActionChunk(spec, actions, self._now - round(age * SECOND), max(self._sequence, 0))

    def _motion(self, steps: int) -> FloatArray:
        rng = self._rng
        speed = float(rng.choice([0.05, 0.3, 1.0, 3.0], p=[0.3, 0.4, 0.2, 0.1])) * self._dt
        joints = self._robot.joints
        start = self._executor.commanded(self._now)
        position = self._robot.home if start is None else start.position
        noise = rng.normal(size=(steps, 7)) * rng.choice([0.0, 0.1, 1.0])
        deltas = speed * (self._drift + noise)
        if self._representation is Representation.JOINT_DELTA:
            return 0.5 * deltas[:, :joints]
        if self._representation is Representation.JOINT_POSITION:
            return position + np.cumsum(0.5 * deltas[:, :joints], axis=0)
        if self._representation is Representation.EE_DELTA:
            return 0.2 * deltas[:, :6]
        place, quaternion = self._executor.kinematics.forward(position)
        path = place + np.cumsum(0.2 * deltas[:, :3], axis=0)
        return np.concatenate([path, np.repeat(quaternion[None], steps, axis=0)], axis=1)

    def _spoil(self, actions: FloatArray) -> FloatArray:
        rng = self._rng
        if rng.random() < 0.7:
            return actions
        actions = actions.copy()
        row = int(rng.choice([0, len(actions) - 1, rng.integers(len(actions))]))
        column = int(rng.integers(actions.shape[1]))
        kind = rng.integers(8)
        if kind == 0:
            actions[row, column] = rng.choice([np.nan, np.inf, -np.inf])
        elif kind == 1:
            actions[row, column] = rng.choice([5e-324, -5e-324, 1e308, -1e308, 1e17])
        elif kind == 2:
            actions[row, column] += rng.choice([-1.0, 1.0]) * rng.choice([0.05, 0.3, 1.0, 10.0])
        elif kind == 3:
            actions[-1] += rng.normal(size=actions.shape[1])
        elif kind == 4:
            actions[1:] = actions[0]
        elif kind == 5:
            actions[::2] *= -1.0
        elif kind == 6:
            actions = actions[:, :-1] if rng.random() < 0.5 else np.repeat(actions, 400, axis=0)
        else:
            actions *= 10.0
        return actions

    def _live(self) -> None:
        """Let time pass, with a rare accident."""
        rng = self._rng
        end = self._now + int(rng.choice([0.0, 0.013, 0.1, 0.4, 0.9]) * SECOND)
        blind = rng.random() < 0.02
        event = rng.random()
        if event < 0.01:
            self._publish(self._executor.hold(self._now))
        elif event < 0.03:
            self._publish(self._executor.emergency_stop(True, self._now))
        elif event < 0.04:
            self._publish(self._executor.stop(self._now))
        while self._now < end:
            self._now = min(end, self._now + int(rng.integers(2, 40)) * MILLISECOND)
            if not blind:
                self._measure()
            self._publish(self._executor.tick(self._now))
            self._deliver(self._now)
        if rng.random() < 0.3:
            self._executor.emergency_stop(False, self._now)
            self._executor.release(self._now)
            with contextlib.suppress(ResetRefused):
                self._executor.reset(self._now)

    def _measure(self) -> None:
        state = self._executor.commanded(self._now)
        if state is None:
            self._executor.measured(self._now, self._robot.home, np.zeros(self._robot.joints))
        else:
            self._executor.measured(self._now, state.position, state.velocity)

    def _publish(self, commands: Commands) -> None:
        """Send a message; it is on its way for no longer than the lead time allows."""
        if commands.trajectory is None:
            return
        arrival = self._now + int(self._rng.integers(0, self._lead_ns + 1))
        if self._inbox:
            arrival = max(arrival, self._inbox[-1][0])
        self._inbox.append((arrival, commands.trajectory))
        self._deliver(self._now)

    def _deliver(self, now_ns: int) -> None:
        while self._inbox and self._inbox[0][0] <= now_ns:
            arrival, message = self._inbox.popleft()
            self._judge.receive(message, arrival)


def fuzz(chunks: int, seed: int, episode: int = 100) -> Report:
    """Run episodes of ``episode`` chunks until ``chunks`` have been made."""
    report = Report()
    for number in range(-(-chunks // episode)):
        Episode(seed + number).run(min(episode, chunks - number * episode), report)
    return report


def fuzz_in_parallel(chunks: int, seed: int, jobs: int, share: int = 5_000) -> Iterator[Report]:
    """Fuzz in several processes; yields what has come together so far."""
    sizes = [min(share, chunks - start) for start in range(0, chunks, share)]
    seeds = [seed + start for start in range(0, chunks, share)]  # more than there are episodes
    total = Report()
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        for report in pool.map(fuzz, sizes, seeds):
            total.chunks += report.chunks
            total.outcomes += report.outcomes
            total.problems += report.problems
            yield total


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chunks", type=int, nargs="?", default=1_000_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    arguments = parser.parse_args()
    total = Report()
    for total in fuzz_in_parallel(arguments.chunks, arguments.seed, arguments.jobs):
        print(f"{total.chunks} chunks, {len(total.problems)} problems", file=sys.stderr)
    print(json.dumps({"chunks": total.chunks, **dict(total.outcomes.most_common())}))
    for problem in total.problems:
        print(problem)
    return 1 if total.problems else 0


if __name__ == "__main__":
    sys.exit(main())
