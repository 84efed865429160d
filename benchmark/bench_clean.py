"""How many of the experts' chunks the arm controller takes as they are: prints JSON lines.

Each expert drives the simulated arm; its actions, eight at a time and four executed, then go
through the arm controller, whose arm follows exactly. A chunk passes unchanged when it is taken and
its motion ends when it was asked to. What is refused is printed with its task, seed and reason.
The scenes are those of evaluation seeds, which no model was trained on.
"""

from __future__ import annotations

import argparse
import json
import time

import numpy as np

from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.data.seeds import require_seed
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.types import ActionChunk, FloatArray

HORIZON, EXECUTED, LIMIT = 8, 4, 100
ON_TIME = 1e-6  # of the duration: rounding to nanoseconds
STEP_NS = 10_000_000


def demonstrate(world: World, task: str, seed: int) -> tuple[FloatArray, FloatArray]:
    """An expert's actions (N, 7) and the joints (7,) rad that they start from."""
    world.reset(task, seed)
    joints = world.data.qpos[:7].copy()
    expert, actions = Expert(world), []
    while len(actions) < LIMIT and not world.success():
        actions.append(expert.act())
        world.apply(actions[-1])
    return np.array(actions), joints


def pass_through(
    world: World, actions: FloatArray, joints: FloatArray
) -> tuple[list[float], list[str], list[float]]:
    """Stretch of every chunk that is taken, reason of every one that is refused, time of all, s."""
    values = {"enable_control": True, "motion.settle_time": 0.0}
    executor = ChunkExecutor(build(ControlParameters, values))
    now = 1_000_000_000
    stretches: list[float] = []
    refusals: list[str] = []
    seconds: list[float] = []
    executor.measured(now, joints, np.zeros(7))
    for first in range(0, len(actions), EXECUTED):
        rows = actions[first : first + HORIZON]
        if len(rows) < HORIZON:
            still = np.concatenate([np.zeros(6), rows[-1, 6:]])
            rows = np.concatenate([rows, np.tile(still, (HORIZON - len(rows), 1))])
        chunk = ActionChunk(world.action_spec, rows, now, first + 1)
        begin = time.perf_counter()
        try:
            stretches.append(executor.submit(chunk, now).stretch)
        except ChunkRejected as rejection:
            refusals.append(str(rejection))
        seconds.append(time.perf_counter() - begin)
        for _ in range(round(EXECUTED * world.action_spec.dt * 1e9) // STEP_NS):
            now += STEP_NS
            state = executor.commanded(now)
            assert state is not None
            executor.measured(now, state.position, state.velocity)
            executor.tick(now)
    return stretches, refusals, seconds


def main() -> None:
    """Run every task's expert on some seeds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=6, help="seeds per task")
    parser.add_argument("--seed-start", type=int, default=0, help="first seed, of evaluation")
    arguments = parser.parse_args()
    first = require_seed(arguments.seed_start, "evaluation")
    world = World()
    stretches: list[float] = []
    seconds: list[float] = []
    refused = 0
    for task in TASKS:
        for seed in range(first, first + arguments.seeds):
            taken, refusals, took = pass_through(world, *demonstrate(world, task, seed))
            for reason in refusals:
                print(json.dumps({"task": task, "seed": seed, "refused": reason}), flush=True)
            stretches, refused = stretches + taken, refused + len(refusals)
            seconds += took
    made = len(stretches) + refused
    detail = f"experts' chunks, {len(TASKS)} tasks, {arguments.seeds} seeds from {first}"
    unchanged = sum(stretch <= 1.0 + ON_TIME for stretch in stretches)
    for name, count in (
        ("arm.clean_chunks_taken", len(stretches)),
        ("arm.clean_chunks_unchanged", unchanged),
    ):
        line = {"name": name, "value": round(count / made, 4), "unit": "share", "n": made}
        print(json.dumps({**line, "detail": detail + f", largest stretch {max(stretches):.6f}"}))
    for suffix, percent in (("", 50), ("_p99", 99)):
        value = round(1e3 * float(np.percentile(seconds, percent)), 3)
        line = {"name": f"arm.clean_submit_ms{suffix}", "value": value, "unit": "ms", "n": made}
        print(json.dumps({**line, "detail": f"chunk received to motion made; {detail}"}))
    world.close()


if __name__ == "__main__":
    main()
