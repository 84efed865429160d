"""One episode in which time does not wait: the arm and the world go on while the planner thinks.

It is the live loop in one process. The arm is driven by the same :class:`ChunkExecutor` as on a
robot, which takes the actions away that ran, in whatever chunk, since the observation was made. How
long a decision takes is measured; the transport of images and messages is not part of it. The
simulated arm's controller judges every trajectory.
"""

from __future__ import annotations

import dataclasses
import math
import time

from vla_reasoner_ros.control.commands import Commands
from vla_reasoner_ros.control.executor import ChunkExecutor, ChunkRejected
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.evaluation.records import CommandCounts, DecisionRecord, EpisodeRecord
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.sim.joint_trajectory_controller import (
    JointTrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
)
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.types import ActionChunk

TICK_S = 0.01
"""Joint states come and the executor's watch looks this often, s of simulated time."""


class LiveArm:
    """A simulated arm under the executor's commands; the clock is the world's.

    Args:
        world: at the start of an episode.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        parameters = ControlParameters(enable_control=True)
        self._executor = ChunkExecutor(parameters, action_spec=world.action_spec)
        self._before = _counted(world.controller)
        self._measure()

    @property
    def commands(self) -> CommandCounts:
        """What the arm's controller says of the trajectories of this episode."""
        now, before = _counted(self._world.controller), self._before
        return CommandCounts(
            now.sent - before.sent,
            now.rejected - before.rejected,
            now.violations - before.violations,
        )

    def submit(self, chunk: ActionChunk) -> bool:
        """Hand a chunk over; whether it was taken. A refused one leaves the running motion."""
        try:
            self._send(self._executor.submit(chunk, self._world.time_ns).commands)
        except ChunkRejected:
            return False
        return True

    def pass_time(self, duration_s: float) -> bool:
        """Let time pass, rounded up to whole ticks, or until the task is done; whether it is."""
        for _ in range(math.ceil(duration_s / TICK_S - 1e-9)):
            self._world.advance(TICK_S)
            if self._world.success():
                return True
            self._measure()
            self._send(self._executor.tick(self._world.time_ns))
        return False

    def _measure(self) -> None:
        data = self._world.data
        self._executor.measured(self._world.time_ns, data.qpos[:7].copy(), data.qvel[:7].copy())

    def _send(self, commands: Commands) -> None:
        if commands.gripper is not None:
            self._world.command_gripper(commands.gripper)
        if commands.trajectory is None:
            return
        told = commands.trajectory.told
        points = [
            TrajectoryPoint(round(1e9 * t), position, velocity, acceleration)
            for t, position, velocity, acceleration in zip(
                told.times.tolist(),
                told.positions,
                told.velocities,
                told.accelerations,
                strict=True,
            )
        ]
        # A stamp of zero means "now", which is right only when the motion begins now.
        stamp_ns = commands.trajectory.start_ns or 1
        message = TrajectoryMessage(told.joint_names, points, stamp_ns)
        self._world.controller.accept(message)  # which counts what it refuses


def _counted(controller: JointTrajectoryController) -> CommandCounts:
    rejected = sum(controller.rejections.values())
    return CommandCounts(
        controller.accepted + rejected, rejected, sum(controller.violations.values())
    )


def run_episode(
    world: World,
    reasoner: Reasoner,
    *,
    task: str,
    seed: int,
    arm: str,
    executed: int,
    limit: int,
    held_out: bool = False,
    counted: bool = True,
) -> EpisodeRecord:
    """Run one episode against the clock.

    A decision is due when ``executed`` actions have passed since the observation of the last one;
    a planner that takes longer than that decides at once on what it sees then. Until the first
    chunk comes the arm stands.

    Args:
        world: reset here, to the same start for every arm.
        reasoner: reset here.
        task: name of the task.
        seed: seed of the scene and of the decisions.
        arm: the reasoner's name in the record.
        executed: actions after which the next decision is due.
        limit: the episode is over after the time of so many actions.
        held_out: take an instruction that was kept out of training.
        counted: whether thinking takes time; an arm that is an upper bound thinks in none.
    """
    instruction = world.reset(task, seed, held_out)
    reasoner.reset(seed)
    record = EpisodeRecord(task, seed, arm, instruction, ending="time limit")
    live = LiveArm(world)
    dt = world.action_spec.dt
    while world.time < limit * dt - 1e-9 and not record.success:
        seen = world.observation()
        started, first = time.perf_counter(), not record.decisions

        def consumed(started: float = started, first: bool = first) -> int:
            return int((time.perf_counter() - started) / dt) if counted and not first else 0

        decision = reasoner.decide(seen, actions_consumed=consumed)
        thought = time.perf_counter() - started if counted else 0.0
        record.decisions.append(
            DecisionRecord(seen.stamp_ns * 1e-9, dataclasses.asdict(decision.statistics))
        )
        record.success = live.pass_time(min(thought, limit * dt - world.time))
        if record.success:
            break
        record.rejections += not live.submit(decision.chunk)
        due = seen.stamp_ns * 1e-9 + executed * dt
        record.success = live.pass_time(min(due, limit * dt) - world.time)
    if record.success:
        record.ending = "success"
    record.duration_s, record.progress = world.time, world.progress()
    record.commands = live.commands
    return record
