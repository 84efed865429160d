"""Many episodes on many workers, each kept on disk as soon as it is finished."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vla_reasoner_ros import __version__
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.ablations import KINDS
from vla_reasoner_ros.evaluation.records import EPISODE_ACTIONS
from vla_reasoner_ros.executor import EngineSettings, run_jobs
from vla_reasoner_ros.files import digest, models_fingerprint, write_atomically
from vla_reasoner_ros.parameters import flatten
from vla_reasoner_ros.paths import MODELS_VARIABLE, models_directory
from vla_reasoner_ros.plugins import read_options

if TYPE_CHECKING:
    from vla_reasoner_ros.reasoner import Reasoner
    from vla_reasoner_ros.sim.world import World

REASONERS = 4
"""Arms that a worker keeps loaded, the latest used."""


@dataclass(frozen=True)
class Case:
    """One episode of one arm."""

    task: str
    seed: int
    arm: str


@dataclass(frozen=True)
class Settings:
    """What all episodes of one results file share.

    Attributes:
        overrides: search and planner parameters by full name.
        options: options of components by kind, over those of their options files.
        scene_hook: FILE.py:FUNCTION, or empty.
        limit: actions per episode.
        held_out: instructions kept out of training.
        latency_true: the world goes on while the planner thinks.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scene_hook: str = ""
    limit: int = EPISODE_ACTIONS
    held_out: bool = False
    latency_true: bool = False

    def fingerprint(self) -> dict[str, Any]:
        """The settings, what they leave to defaults, and hashes of the files that they depend on.

        Raises:
            ConfigurationError: a file cannot be read, a name is unknown or a value wrong.
        """
        search = arm_table.search_parameters("search", self.overrides)
        components = arm_table.component_parameters("search", self.overrides)
        files = {kind: getattr(components, f"{kind}_options") for kind in KINDS}
        return {
            "version": __version__,
            "overrides": dict(self.overrides),
            "parameters": flatten(search, "search.") | flatten(components, "planner."),
            "options": {kind: dict(values) for kind, values in self.options.items()},
            "options_files": {k: digest([Path(path)]) for k, path in files.items() if path},
            "options_models": _models_of(
                {kind: read_options(path) | dict(self.options.get(kind, {}))}
                for kind, path in files.items()
            ),
            "scene_hook": _hook_fingerprint(self.scene_hook),
            "limit": self.limit,
            "held_out": self.held_out,
            "latency_true": self.latency_true,
            "models": models_fingerprint(models_directory()),
        }


def _hook_fingerprint(hook: str) -> str:
    """What tells one function of a file from another, and from itself before a change."""
    file, _, function = hook.rpartition(":")
    return f"{digest([Path(file).expanduser()])}:{function}" if hook else ""


def _models_of(options: Any) -> dict[str, str]:
    """Hashes of the models that options name anywhere, by the folder or path stem in the options.

    Raises:
        ConfigurationError: a card cannot be read.
    """
    if isinstance(options, str) and options:
        if os.path.isdir(options):
            return {options: models_fingerprint(Path(options))}
        card = f"{options}.json"
        return {options: digest([Path(card)])} if os.path.isfile(card) else {}
    if isinstance(options, Mapping):
        options = options.values()
    elif isinstance(options, str) or not isinstance(options, Iterable):
        return {}
    found: dict[str, str] = {}
    for part in options:
        found |= _models_of(part)
    return found


class EpisodeStore:
    """Finished episodes, one JSON line each, after a first line with the settings.

    Args:
        path: the file.
        settings: of this run.
        fresh: forget what the file holds.

    Raises:
        ConfigurationError: the file was made with other settings, other models or by another
            version, or a line is none of an episode.
    """

    def __init__(self, path: Path, settings: Settings, fresh: bool = False) -> None:
        self._path = path
        self._episodes: dict[Case, dict[str, Any]] = {}
        header = settings.fingerprint()
        lines = [] if fresh or not path.is_file() else list(_json_lines(path))
        if lines:
            differing = [name for name, value in header.items() if lines[0].get(name) != value]
            if differing:
                raise ConfigurationError(
                    f"{path} was made with other {', '.join(differing)}; give another --json "
                    "(ablate: --out), or --fresh"
                )
            for number, episode in enumerate(lines[1:], start=2):
                if not {"task", "seed", "arm"} <= episode.keys():
                    raise ConfigurationError(
                        f"{path}, line {number}: expected an episode with task, seed and arm, "
                        f"got {', '.join(episode) or 'nothing'}"
                    )
                self._episodes[Case(episode["task"], episode["seed"], episode["arm"])] = episode
        # Written anew, without the half line that a killed run may have left.
        kept = [header, *self._episodes.values()]
        write_atomically(path, "".join(json.dumps(line) + "\n" for line in kept).encode())

    def __contains__(self, case: Case) -> bool:
        return case in self._episodes

    def add(self, case: Case, episode: dict[str, Any]) -> None:
        """Keep an episode, on disk at once."""
        self._episodes[case] = episode
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(episode) + "\n")

    def finished(self, cases: Sequence[Case]) -> list[dict[str, Any]]:
        """Those of these cases that are done, in their order."""
        return [self._episodes[case] for case in cases if case in self._episodes]


@dataclass(frozen=True)
class Job:
    """One episode to run."""

    case: Case
    settings: Settings


def run_cases(
    jobs: Sequence[Job], engine: EngineSettings | None = None
) -> Iterator[tuple[Job, dict[str, Any]]]:
    """Run episodes and yield the summary of each when it is done; one worker runs in this process.

    Raises:
        WorkerLost: an episode ended its worker again and again.
    """
    engine = engine or EngineSettings()
    models = os.environ.get(MODELS_VARIABLE, "")
    if engine.engine == "processes" and (engine.workers == 1 or len(jobs) == 1):
        worker = Worker(models)
        for job in jobs:
            yield job, worker(job)
        return
    yield from run_jobs(Worker, (models,), jobs, engine)


class Worker:
    """A world for each scene and the reasoners used last: loading is paid once.

    Args:
        models: folder of the weights; empty takes the shipped ones.
    """

    def __init__(self, models: str = "") -> None:
        import torch

        torch.set_num_threads(1)
        if models:
            os.environ[MODELS_VARIABLE] = models
        self._worlds: dict[str, World] = {}
        self._reasoners: OrderedDict[str, Reasoner] = OrderedDict()

    def __call__(self, job: Job) -> dict[str, Any]:
        """Run one episode; its summary."""
        # Imported here: the simulator chooses its OpenGL in the process that renders.
        from vla_reasoner_ros.evaluation import closed_loop, real_time

        case, settings = job.case, job.settings
        world = self._world(settings.scene_hook)
        reasoner = self._reasoner(job, world)
        common: dict[str, Any] = {
            "task": case.task,
            "seed": case.seed,
            "arm": case.arm,
            "executed": reasoner.parameters.executed,
            "limit": settings.limit,
            "held_out": settings.held_out,
        }
        if not settings.latency_true:
            return closed_loop.run_episode(world, reasoner, **common).summary()
        counted = not arm_table.thinks_in_no_time(case.arm, settings.overrides)
        return real_time.run_episode(world, reasoner, counted=counted, **common).summary()

    def _world(self, scene_hook: str) -> World:
        from vla_reasoner_ros.sim.world import World

        if scene_hook not in self._worlds:
            self._worlds[scene_hook] = World(scene_hook or None)
        return self._worlds[scene_hook]

    def _reasoner(self, job: Job, world: World) -> Reasoner:
        case, settings = job.case, job.settings
        made_of = [case.arm, settings.scene_hook, settings.overrides, settings.options]
        key = json.dumps(made_of, sort_keys=True, default=str)
        if key not in self._reasoners:
            reasoner = arm_table.make_reasoner(
                case.arm, settings.overrides, settings.scene_hook, settings.options
            )
            world.reset(case.task, case.seed, settings.held_out)
            reasoner.warm_up(world.observation())
            self._reasoners[key] = reasoner
            if len(self._reasoners) > REASONERS:
                self._reasoners.popitem(last=False)
        self._reasoners.move_to_end(key)
        return self._reasoners[key]


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file; the half line that a killed run leaves at its end is left out.

    Raises:
        ConfigurationError: another line is no JSON object.
    """
    lines = path.read_bytes().splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            found = json.loads(line)
        except ValueError:
            if number == len(lines):
                return
            found = None
        if not isinstance(found, dict):
            raise ConfigurationError(
                f"{path}, line {number}: expected a JSON object, got {line[:60]!r}; mend the line "
                "or delete it, or --fresh"
            )
        yield found
