"""Record episodes in the simulator: the scripted expert, the disturbed expert, and a policy.

The disturbed expert is DART's recipe (Laskey et al., arXiv 1703.09327): noise moves the arm off the
expert's path, and the expert's answer there is what is recorded for imitation. Files that are there
already are kept, so an interrupted recording goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vla_reasoner_ros import executor, plugins
from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.episode_bags import read_told, write_recording
from vla_reasoner_ros.data.episodes import SUFFIX, Episode, EpisodeWriter, Kind
from vla_reasoner_ros.data.seeds import RANGES, require_seed
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.experts import SPEED, Expert
from vla_reasoner_ros.sim.scene import BLOCKS
from vla_reasoner_ros.sim.tasks import TASKS, get_task
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.types import FloatArray, Observation

FORMATS = ("safetensors", "mcap")
OBJECTS = (*BLOCKS, "plate", "tray")
ACTION_LIMIT = 100
"""Actions after which an episode has failed."""
KIND_SPACING = 100_000
"""The seeds of the three kinds lie this far apart."""

_NOISE = (0.15, 0.45)
_PUSH_CHANCE, _PUSH_STEPS = 0.04, 4
_SLIP_CHANCE, _SLIP_STEPS = 0.005, 3


@dataclass(frozen=True)
class Job:
    """One episode to record.

    Attributes:
        kind: who acts.
        task: the task's name.
        seed: of scene, paraphrase and disturbances.
        path: the file to write.
        limit: actions at most.
        contract: of the bag that is written; empty writes an episode file.
        policy: the policy's registered name; only for policy episodes.
        execute: actions of a chunk that are executed before the next query.
    """

    kind: Kind
    task: str
    seed: int
    path: Path
    limit: int = ACTION_LIMIT
    contract: str = ""
    policy: str = "small_vla"
    execute: int = 4


class Actor(Protocol):
    """Who decides what the arm does."""

    def act(self, observation: Observation) -> tuple[FloatArray, FloatArray]:
        """The action to record as the right one and the action to execute, each (D,)."""


class ExpertActor:
    """The scripted expert, who reads the true state instead of the observation."""

    def __init__(self, world: World) -> None:
        self._expert = Expert(world)

    def act(self, observation: Observation) -> tuple[FloatArray, FloatArray]:
        """See :class:`Actor`."""
        action = self._expert.act()
        return action, action


class DisturbedExpert:
    """The expert with jitter of a size drawn per episode, now and then a shove or a slip.

    A shove drifts the hand in one direction for a few actions; a slip opens or closes the gripper
    for a few. Both leave states from which a policy would have to recover.
    """

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._expert = Expert(world, noise=float(rng.uniform(*_NOISE)), rng=rng)
        self._rng = rng
        self._shove = np.zeros(3)
        self._shove_left = 0
        self._slip_left = 0

    def act(self, observation: Observation) -> tuple[FloatArray, FloatArray]:
        """See :class:`Actor`."""
        executed = self._expert.act()
        if self._shove_left == 0 and self._rng.random() < _PUSH_CHANCE:
            direction = self._rng.normal(size=3)
            self._shove = direction / np.linalg.norm(direction) * self._rng.uniform(0.2, 0.8)
            self._shove_left = _PUSH_STEPS
        if self._slip_left == 0 and self._rng.random() < _SLIP_CHANCE:
            self._slip_left = _SLIP_STEPS
        if self._shove_left:
            self._shove_left -= 1
            executed[:3] += self._shove * SPEED
        if self._slip_left:
            self._slip_left -= 1
            executed[6] = 1.0 - executed[6]
        return self._expert.intended, executed


class PolicyActor:
    """A policy that is queried again after a part of its chunk."""

    def __init__(self, policy: Any, execute: int) -> None:
        self._policy = policy
        self._execute = execute
        self._pending: list[FloatArray] = []
        policy.reset()

    def act(self, observation: Observation) -> tuple[FloatArray, FloatArray]:
        """See :class:`Actor`."""
        if not self._pending:
            chunk = self._policy.propose(observation)[0]
            self._pending = list(chunk.actions[: self._execute])
        action = self._pending.pop(0)
        return action, action


def object_poses(world: World) -> FloatArray:
    """(K, 7) pose of each of :data:`OBJECTS`: x y z in m and quaternion x y z w, base frame."""
    bodies = [world.data.body(name) for name in OBJECTS]
    return np.stack([np.concatenate([b.xpos, b.xquat[[1, 2, 3, 0]]]) for b in bodies])


def record(world: World, job: Job, policy: Any = None) -> bool:
    """Run one episode and write it.

    Args:
        world: is reset by this.
        job: which episode.
        policy: the policy of a policy episode.

    Returns:
        Whether the task was done.
    """
    world.reset(job.task, job.seed)
    actor: Actor
    if job.kind is Kind.EXPERT:
        actor = ExpertActor(world)
    elif job.kind is Kind.NOISY_EXPERT:
        actor = DisturbedExpert(world, np.random.default_rng([job.seed, 2]))
    else:
        actor = PolicyActor(policy, job.execute)
    writer = EpisodeWriter(world.action_spec, OBJECTS)
    while len(writer) < job.limit and not world.success():
        observation = world.observation()
        answer, executed = actor.act(observation)
        writer.append(
            observation,
            answer,
            world.progress(),
            object_poses(world),
            executed if job.kind is Kind.NOISY_EXPERT else None,
        )
        world.apply(executed)
    success = world.success()
    told: dict[str, Any] = {
        "task": job.task,
        "seed": job.seed,
        "success": success,
        "kind": job.kind,
    }
    if job.contract:
        write_recording(job.path, writer, load_contract(job.contract), **told)
    else:
        writer.write(job.path, **told)
    return success


def recorded_success(job: Job) -> bool:
    """Whether the task was done in an episode that was recorded before.

    Raises:
        EpisodeError, BagError: the recording is unusable.
    """
    if job.contract:
        return bool(read_told(job.path)["success"])
    return Episode(job.path).meta.success


def plan(
    folder: Path, counts: dict[Kind, int], tasks: Iterable[str], first: int, **options: Any
) -> list[Job]:
    """The jobs of a recording: tasks take turns, each kind has seeds of its own.

    Args:
        folder: where the files go.
        counts: episodes of each kind.
        tasks: names of the tasks.
        first: the seed of the first expert episode.
        options: further fields of :class:`Job`.

    Raises:
        ConfigurationError: an unknown task, or a seed that may not be trained on.
    """
    names = [get_task(name).name for name in tasks]
    suffix = "" if options.get("contract") else SUFFIX
    jobs = []
    for offset, kind in enumerate(Kind):
        for index in range(counts.get(kind, 0)):
            seed = require_seed(first + offset * KIND_SPACING + index, "training")
            task = names[index % len(names)]
            path = folder / f"{kind.value}-{seed}-{task}{suffix}"
            jobs.append(Job(kind, task, seed, path, **options))
    return jobs


class Recorder:
    """What a worker needs to record episodes: a world, and policies when they are asked for."""

    def __init__(self) -> None:
        self._world = World()
        self._policies: dict[str, Any] = {}

    def __call__(self, job: Job) -> bool:
        """Record one; whether the task was done."""
        policy = None
        if job.kind is Kind.POLICY:
            import torch

            torch.set_num_threads(1)  # the workers share the cores already
            if job.policy not in self._policies:
                self._policies[job.policy] = plugins.create("policy", job.policy)
            policy = self._policies[job.policy]
        return record(self._world, job, policy)


def record_all(
    jobs: list[Job], engine: executor.EngineSettings | None = None
) -> dict[str, tuple[int, int]]:
    """Record what is not there yet, on many workers.

    Args:
        jobs: whose files, on a cluster, lie in a folder that all machines share.
        engine: where; None takes this machine's cores.

    Returns:
        Kind and task to (successes, episodes), those found included.

    Raises:
        EpisodeError, BagError: a recording that was there is unusable.
        WorkerLost: an episode ended its worker again and again.
    """
    outcomes = {job: recorded_success(job) for job in jobs if job.path.exists()}
    missing = [job for job in jobs if job not in outcomes]
    progress = Progress("demo-data", len(jobs), "episodes", len(outcomes))
    for job, done in executor.run_jobs(Recorder, (), missing, engine):
        outcomes[job] = done
        solved = sum(outcomes.values())
        progress.update(len(outcomes), f"{solved} of {len(outcomes)} solved")
    table: dict[str, tuple[int, int]] = {}
    for job in jobs:
        row = f"{job.kind.value} {job.task}"
        solved, count = table.get(row, (0, 0))
        table[row] = solved + outcomes[job], count + 1
    return table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument("--out", type=Path, default=Path("data/demos"), help="folder to write to")
    parser.add_argument("--expert", type=WHOLE, default=0, help="episodes of the expert")
    parser.add_argument("--noisy-expert", type=WHOLE, default=0, help="of the disturbed expert")
    parser.add_argument("--policy", type=WHOLE, default=0, help="episodes of the policy")
    parser.add_argument("--policy-name", default="small_vla", help="the policy, by name")
    parser.add_argument("--execute", type=COUNT, default=4, help="actions executed of each chunk")
    parser.add_argument("--limit", type=COUNT, default=ACTION_LIMIT, help="actions an episode")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        default=FORMATS[0],
        help="episode files, or rosbag2 recordings (MCAP) as a robot would have made them",
    )
    parser.add_argument("--contract", default="sim", help="of the recordings: names their topics")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), help="tasks, taken in turn")
    parser.add_argument(
        "--first-seed", type=WHOLE, default=RANGES["training"].start, help="of the first scene"
    )
    executor.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Record, and print successes by kind and task."""
    counts = {
        Kind.EXPERT: arguments.expert,
        Kind.NOISY_EXPERT: arguments.noisy_expert,
        Kind.POLICY: arguments.policy,
    }
    engine = executor.settings_of(arguments)
    if arguments.execute < 1:
        raise ConfigurationError(f"--execute: expected at least 1, got {arguments.execute}")
    if max(counts.values()) > KIND_SPACING:
        raise ConfigurationError(f"demo-data: at most {KIND_SPACING} episodes of a kind")
    if not any(counts.values()):
        raise ConfigurationError("demo-data: say how many: --expert, --noisy-expert or --policy")
    jobs = plan(
        arguments.out,
        counts,
        arguments.tasks,
        arguments.first_seed,
        limit=arguments.limit,
        contract=arguments.contract if arguments.format == "mcap" else "",
        policy=arguments.policy_name,
        execute=arguments.execute,
    )
    for row, (solved, count) in sorted(record_all(jobs, engine).items()):
        print(f"{row:<30} {solved:4d} of {count:4d} solved")
    return 0
