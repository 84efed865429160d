"""One episode in process: decide, execute the first actions of the chunk, look again."""

from __future__ import annotations

import dataclasses

from vla_reasoner_ros.evaluation.records import EPISODE_ACTIONS, DecisionRecord, EpisodeRecord
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.sim.world import World


def run_episode(
    world: World,
    reasoner: Reasoner,
    *,
    task: str,
    seed: int,
    arm: str,
    executed: int,
    limit: int = EPISODE_ACTIONS,
    held_out: bool = False,
) -> EpisodeRecord:
    """Run one episode; the world stands still while the reasoner thinks.

    Args:
        world: reset here, to the same start for every arm.
        reasoner: reset here.
        task: name of the task.
        seed: seed of the scene and of the decisions.
        arm: the reasoner's name in the record.
        executed: actions executed of each chunk.
        limit: actions after which the episode is over.
        held_out: take an instruction that was kept out of training.
    """
    instruction = world.reset(task, seed, held_out)
    reasoner.reset(seed)
    record = EpisodeRecord(task, seed, arm, instruction, ending="time limit")
    actions = 0
    while actions < limit and not record.success:
        decision = reasoner.decide(world.observation())
        record.decisions.append(DecisionRecord(world.time, dataclasses.asdict(decision.statistics)))
        for action in decision.chunk.actions[: min(executed, limit - actions)]:
            world.apply(action)
            actions += 1
            if world.success():
                record.success, record.ending = True, "success"
                break
    record.duration_s, record.progress = world.time, world.progress()
    return record
