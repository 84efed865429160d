"""Measure closed-loop success of several arms on the same scenes and seeds.

Every finished episode is kept at once in a file of lines beside the results, so that an
interrupted run goes on where it was. Beside the results lie a Markdown report and its plot.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vla_reasoner_ros import __version__, executor
from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.data.seeds import said_of_seeds
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.markdown import write_markdown
from vla_reasoner_ros.evaluation.runs import Case, EpisodeStore, Job, Settings, run_cases
from vla_reasoner_ros.evaluation.summary import summarise
from vla_reasoner_ros.files import beside, write_atomically
from vla_reasoner_ros.parameter_text import parse_overrides
from vla_reasoner_ros.paths import MODELS_VARIABLE
from vla_reasoner_ros.sim.scene import load_hook
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.training.progress import Progress

DEFAULT_ARMS = "policy,search"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--tasks", default="all", help="all, or names with commas between")
    parser.add_argument("--episodes", type=COUNT, default=50, help="seeds per task (default 50)")
    parser.add_argument("--seed-start", type=WHOLE, default=0, help="first seed (default 0)")
    parser.add_argument(
        "--arms",
        default=DEFAULT_ARMS,
        help=f"with commas between, of {', '.join(arm_table.RECIPES)} (default {DEFAULT_ARMS})",
    )
    parser.add_argument("--json", type=Path, required=True, help="results file to write")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of all arms, as search.depth=2 or planner.prior=kde; may be repeated",
    )
    parser.add_argument(
        "--scene-hook", default="", metavar="FILE.py:FUNCTION", help="changes the scene's MjSpec"
    )
    parser.add_argument(
        "--held-out", action="store_true", help="instructions that training never saw"
    )
    parser.add_argument("--models", default="", help="folder of the weights (default: the shipped)")
    parser.add_argument(
        "--latency-true",
        action="store_true",
        help="the arm and the world go on while the planner thinks, by its measured time",
    )
    parser.add_argument("--fresh", action="store_true", help="forget episodes finished before")
    executor.add_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, then write the results and print the table."""
    engine = executor.settings_of(arguments)
    if arguments.models:
        os.environ[MODELS_VARIABLE] = arguments.models
    names = arguments.arms.split(",")
    settings = Settings(
        overrides=parse_overrides(arguments.set),
        scene_hook=arguments.scene_hook,
        held_out=arguments.held_out,
        latency_true=arguments.latency_true,
    )
    if arguments.json.is_dir():
        raise ConfigurationError(f"--json: {arguments.json} is a folder; name a file in it")
    cases = plan(arguments.tasks, arguments.episodes, arguments.seed_start, names)
    for name in names:
        arm_table.search_parameters(name, settings.overrides)
        arm_table.component_parameters(name, settings.overrides)
    load_hook(settings.scene_hook)
    notes = arm_table.notes(names, settings.overrides)
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    last = arguments.seed_start + arguments.episodes - 1
    warned = warn_of_seeds(range(arguments.seed_start, last + 1), ["tuning", "training"])
    store = EpisodeStore(beside(arguments.json, ".episodes.jsonl"), settings, fresh=arguments.fresh)
    progress = Progress("evaluate", len(cases), "episodes", done=len(store.finished(cases)))
    missing = [Job(case, settings) for case in cases if case not in store]
    for job, episode in run_cases(missing, engine):
        case = job.case
        store.add(case, episode)
        verdict = "success" if episode["success"] else episode["ending"]
        progress.update(
            len(store.finished(cases)), f"{case.arm} {case.task} {case.seed}: {verdict}"
        )
    episodes = store.finished(cases)
    results = summarise(episodes, names) | {
        "arms": [asdict(arm_table.describe(name, settings.overrides)) for name in names],
        "notes": notes,
        "facts": {
            "command": shlex.join(["vla-reasoner", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
            "version": __version__,
            "seeds": f"{arguments.seed_start} to {last} of each task",
            "time": "goes on while the planner thinks"
            if settings.latency_true
            else "stands still while the planner thinks",
            "models": settings.fingerprint()["models"],
        }
        | warned,
        "episodes": episodes,
    }
    write_atomically(arguments.json, (json.dumps(results, indent=1) + "\n").encode())
    report = beside(arguments.json, ".md")
    write_markdown(report, results)
    print(table(results, names))
    print(f"results: {arguments.json}, {report}")
    return 0


def plan(tasks: str, episodes: int, seed_start: int, names: Sequence[str]) -> list[Case]:
    """All episodes, seed by seed, so that an unfinished run is balanced over tasks and arms.

    Raises:
        ConfigurationError: an unknown task or arm, a name twice, or nothing to do.
    """
    chosen = chosen_tasks(tasks)
    _require_once("arms", names)
    for name in names:
        arm_table.recipe(name)
    if episodes < 1 or seed_start < 0:
        raise ConfigurationError(
            f"expected at least 1 episode and a first seed of 0 or more, got {episodes} and "
            f"{seed_start}"
        )
    seeds = range(seed_start, seed_start + episodes)
    return [Case(task, seed, arm) for seed in seeds for task in chosen for arm in names]


def chosen_tasks(tasks: str) -> list[str]:
    """The tasks of ``all``, or of names with commas between.

    Raises:
        ConfigurationError: an unknown task, or a name twice.
    """
    chosen = list(TASKS) if tasks == "all" else tasks.split(",")
    for task in chosen:
        if task not in TASKS:
            raise ConfigurationError(f"task {task!r} is unknown; known are {', '.join(TASKS)}")
    _require_once("tasks", chosen)
    return chosen


def _require_once(kind: str, names: Sequence[str]) -> None:
    if len(set(names)) != len(names):
        raise ConfigurationError(f"{kind}: a name stands twice in {','.join(names)}")


def warn_of_seeds(seeds: range, purposes: Sequence[str]) -> dict[str, str]:
    """Warn on standard error of scenes that serve one of these purposes.

    Returns:
        the same as a fact for the results; empty where there is no such scene.
    """
    said = said_of_seeds(seeds, purposes)
    if not said:
        return {}
    print(f"warning: {said}", file=sys.stderr)
    return {"warning": said}


def table(results: Mapping[str, Any], names: Sequence[str]) -> str:
    """The results as text: success with intervals, differences, decision times."""
    lines = [" " * 26 + "".join(f"{name:>26}" for name in names)]
    blocks = [*results["tasks"].items(), ("all tasks", results["overall"])]
    for task, block in blocks:
        cells = []
        for name in names:
            rate, (low, high) = block["success"][name], block["success_interval"][name]
            share = "–" if rate is None else f"{100 * rate:.0f} %"
            cells.append(f"{f'{share} ({100 * low:.0f} to {100 * high:.0f})':>26}")
        lines.append(f"{task:<18}n = {block['n']:<4}{''.join(cells)}")
    for name, found in results["overall"]["differences"].items():
        low, high = found["interval"]
        lines.append(
            f"{name} against policy: {found['points']:+.1f} points ({low:+.1f} to {high:+.1f}), "
            f"gained {found['gained']}, lost {found['lost']}, p = {found['mcnemar_p']:.3g}"
        )
    for name in names:
        times = results["overall"]["decision_ms"][name]
        if times["p50"] is not None:
            lines.append(
                f"{name}: decision {times['p50']:.1f} ms at p50, {times['p95']:.1f} ms at p95"
            )
    return "\n".join(lines)
