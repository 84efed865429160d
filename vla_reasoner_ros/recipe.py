"""Make everything that is shipped again, from nothing: data, models, report card, results.

A recipe is a YAML file with a list of steps, each a verb of this program with its options. They run
one after the other, each in a process of its own. The same command given again goes on where the
last one ended, however it ended: finished steps are skipped, and the verb of the step that was cut
off goes on from its own files. What each step took is kept beside the data: a table for people, and
a file with one JSON object for each time a step ran.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import datetime
import fcntl
import glob
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.paths import MODELS_VARIABLE, share_directory
from vla_reasoner_ros.training.progress import duration

REPLACED = "replaced"
"""Folder of what changed steps had made."""
MODELS = "models"
"""Folder there of the models as they were."""
HEARTBEAT_S = 10.0
"""How often the time of the running step is written down: what a killed run loses of it at most."""
LEDGER, TABLE, LOG, LOCK = "recipe.json", "recipe.md", "recipe.jsonl", "recipe.lock"
LOCK_WAIT_S = 30.0
"""How long a killed recipe's last step may take to end before another recipe is given up."""
STEP_END_S = 30.0
"""How long a step that was told to end may take before it is killed."""
RUNNING, DONE, INTERRUPTED, KILLED = "running", "done", "interrupted", "killed"
"""How a run of a step ended; one that failed says its exit code."""
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RecipeError(VlaReasonerError, RuntimeError):
    """A step of a recipe failed."""


@dataclass(frozen=True)
class Step:
    """One verb with its options.

    Attributes:
        name: unique in its recipe.
        command: the words after ``vla-reasoner``.
        minutes: what it took when it was measured; for the time left.
        key: changes when the step, or one before it, does.
        makes: files and folders that no step before it names, below the work folder.
    """

    name: str
    command: tuple[str, ...]
    minutes: float
    key: str
    makes: tuple[Path, ...] = ()


@dataclass
class Run:
    """One time that a step ran, to its end or not.

    Attributes:
        started: when, UTC, ISO 8601.
        cores: that it could use.
        seconds: that it ran; within :data:`HEARTBEAT_S` where it was killed.
        outcome: how it ended.
    """

    started: str
    cores: int
    seconds: float = 0.0
    outcome: str = RUNNING

    @classmethod
    def begin(cls) -> Run:
        """One that starts now."""
        return cls(_now(), len(os.sched_getaffinity(0)))


@dataclass
class Entry:
    """What is known of a step that was begun.

    Attributes:
        key: of the step that was run.
        command: as a shell takes it.
        done: whether it finished.
        finished: when, UTC, ISO 8601.
        runs: each time it ran.
    """

    key: str
    command: str
    done: bool = False
    finished: str = ""
    runs: list[Run] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Spent on it so far, in all runs."""
        return sum(run.seconds for run in self.runs)


@dataclass
class Ledger:
    """Which steps are done and what they took; a file beside the data.

    Attributes:
        path: the file.
        models: the folder that this recipe makes models in.
        entries: by step name.
    """

    path: Path
    models: str
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, models: Path) -> Ledger:
        """Read it, or begin one.

        Raises:
            ConfigurationError: it is unreadable or of another folder of models, or the folder of
                models has files that no recipe of this ledger made.
        """
        name = str(models.resolve())
        if not path.exists():
            shipped = share_directory() / "resource" / "models"
            if models.resolve() == shipped.resolve():
                raise ConfigurationError(f"--models {models}: the shipped models stay as they are")
            if models.is_dir() and any(models.iterdir()):
                raise ConfigurationError(
                    f"--models {models}: expected an empty folder, there are files in it and "
                    f"{path} does not say that this recipe made them"
                )
            return cls(path, name)
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            entries = {
                name: Entry(**entry | {"runs": [Run(**run) for run in entry["runs"]]})
                for name, entry in found["steps"].items()
            }
            ledger = cls(path, found["models"], entries)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigurationError(f"recipe {path}: unreadable: {error!r}") from error
        if ledger.models != name:
            raise ConfigurationError(
                f"--models: {path} is of models in {ledger.models}, got {name}; name that folder, "
                "or another one for --work"
            )
        return ledger

    def is_done(self, step: Step) -> bool:
        """Whether a step as it is now was finished."""
        entry = self.entries.get(step.name)
        return entry is not None and entry.done and entry.key == step.key

    def write(self, steps: Sequence[Step]) -> None:
        """Keep it, and the table and the log of times beside it."""
        content = {
            "models": self.models,
            "steps": {name: asdict(entry) for name, entry in self.entries.items()},
        }
        write_atomically(self.path, (json.dumps(content, indent=1) + "\n").encode())
        write_atomically(self.path.with_name(TABLE), self.table(steps).encode())
        write_atomically(self.path.with_name(LOG), self.log().encode())

    def log(self) -> str:
        """One JSON object a line for each run of a step: what, when, for how long, on what."""
        runs = [
            {"step": name, "command": entry.command, **asdict(run)}
            for name, entry in self.entries.items()
            for run in entry.runs
        ]
        runs.sort(key=lambda run: run["started"])
        return "".join(json.dumps(run) + "\n" for run in runs)

    def table(self, steps: Sequence[Step]) -> str:
        """The steps with what they took, as Markdown."""
        cores = sorted({run.cores for entry in self.entries.values() for run in entry.runs})
        rows = [
            f"Times on {' and '.join(map(str, cores)) or 'no'} CPU cores.",
            "",
            "| step | command | time | runs | state |",
            "|---|---|---|---|---|",
        ]
        for step in steps:
            entry = self.entries.get(step.name)
            state = "waiting"
            if entry is not None:
                state = f"done {entry.finished}" if self.is_done(step) else "begun"
            seconds = entry.seconds if entry else 0.0
            rows.append(
                f"| {step.name} | `{_shown(step)}` | "
                f"{duration(seconds)} | {len(entry.runs) if entry else 0} | {state} |"
            )
        total = sum(e.seconds for n, e in self.entries.items() if n in {s.name for s in steps})
        return "\n".join([*rows, f"| all | | {duration(total)} | | |", ""])


def load_recipe(name: str, work: Path, models: Path) -> list[Step]:
    """The steps of a recipe.

    Args:
        name: of a file in ``config/recipes``, or the path of one.
        work: what ``{work}`` stands for: the folder of data, checkpoints and results.
        models: what ``{models}`` stands for: the folder of the weights.

    Raises:
        ConfigurationError: no such recipe, or the file is none.
    """
    path = Path(name)
    if not path.suffix:
        path = share_directory() / "config" / "recipes" / f"{name}.yaml"
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        known = sorted(p.stem for p in (share_directory() / "config" / "recipes").glob("*.yaml"))
        raise ConfigurationError(
            f"recipe {path}: there is none; known are {', '.join(known)}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"recipe {path}: not readable as YAML: {error}") from error
    listed = content.get("steps") if isinstance(content, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ConfigurationError(f"recipe {path}: expected a list of steps")
    steps: list[Step] = []
    named: set[Path] = set()
    key = ""
    for number, entry in enumerate(listed, start=1):
        words = _words(entry, f"recipe {path}, step {number}", work, models)
        if entry["name"] in {step.name for step in steps}:
            raise ConfigurationError(f"recipe {path}: the step {entry['name']} stands twice")
        # Of the command as it is written, so that moved folders stay done.
        key = hashlib.sha256((key + " ".join(entry["run"].split())).encode()).hexdigest()[:16]
        paths = [Path(word) for word in words if work in Path(word).parents]
        makes = tuple(p for p in paths if not (named | {models}) & {p, *p.parents})
        named.update(makes)
        steps.append(Step(entry["name"], words, float(entry.get("minutes", 1.0)), key, makes))
    return steps


def _words(entry: Any, where: str, work: Path, models: Path) -> tuple[str, ...]:
    fields = {"name": str, "run": str, "minutes": (int, float)}
    if (
        not isinstance(entry, dict)
        or not {"name", "run"} <= entry.keys() <= fields.keys()
        or not all(isinstance(value, fields[name]) for name, value in entry.items())
    ):
        raise ConfigurationError(f"{where}: expected name, run and perhaps minutes, got {entry!r}")
    places = {"work": str(work), "models": str(models)}
    try:
        return tuple(word.format_map(places) for word in shlex.split(entry["run"]))
    except (KeyError, ValueError, IndexError) as error:
        raise ConfigurationError(f"{where}: not a command: {error!r}") from error


def run_steps(steps: Sequence[Step], ledger: Ledger, lock: int) -> None:
    """Run what is not done yet.

    Args:
        steps: of the recipe.
        ledger: what is known of them; kept up to date.
        lock: descriptor of the lock's file, which each step holds as well.

    Raises:
        RecipeError: a step failed; the same call goes on with it.
        KeyboardInterrupt: one came; the running step was told, and ended first.
    """
    models = Path(ledger.models)
    models.mkdir(parents=True, exist_ok=True)
    changed = False
    for number, step in enumerate(steps, start=1):
        if ledger.is_done(step):
            _say(f"{number}/{len(steps)} {step.name}: done before")
            continue
        known = ledger.entries.get(step.name)
        same = known is not None and known.key == step.key
        entry = known if known is not None and same else Entry(step.key, _shown(step))
        entry.done = False
        for earlier in entry.runs:
            if earlier.outcome == RUNNING:
                earlier.outcome = KILLED
        if known is not None and not same:
            # Steps write into the one folder of models: it is kept as it was before the first.
            set_aside(step, ledger.path.parent, None if changed else models)
            changed = True
        ledger.entries[step.name] = entry
        left = time_left(steps, ledger)
        _say(f"{number}/{len(steps)} {step.name}, about {duration(left)} left in all")
        _say(f"  {_shown(step)}")
        code = _run(step, entry, ledger, steps, lock)
        if code != 0:
            raise RecipeError(
                f"recipe: step {step.name} failed with exit code {code}; when its cause is gone, "
                "the same command goes on with it"
            )
        entry.done, entry.finished = True, _now()
        ledger.write(steps)
        _say(f"{number}/{len(steps)} {step.name}: done in {duration(entry.seconds)}")


def set_aside(step: Step, work: Path, models: Path | None = None) -> None:
    """Move what an earlier recipe's step of this name made out of the way, below ``replaced``.

    Args:
        step: what it makes; of a file NAME.json also what lies beside it as NAME.*.
        work: the folder of data, checkpoints and results.
        models: a folder that is copied there; None for none.
    """
    folder = work / REPLACED / _now().replace(":", "")
    if models is not None and any(models.iterdir()):
        shutil.copytree(models, folder / MODELS, dirs_exist_ok=True)
        _say(f"{step.name} has changed: models as they were are in {folder / MODELS}")
    for made in _made(step):
        target = folder / made.relative_to(work)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.rename(target)
        _say(f"{step.name} has changed: {made} is now {target}")


def _made(step: Step) -> list[Path]:
    """What there is of a step's work: results have episodes, report and plots beside them."""
    found = {path for path in step.makes if path.exists()}
    for path in step.makes:
        if path.suffix == ".json":
            found.update(path.parent.glob(f"{glob.escape(path.stem)}.*"))
    return sorted(found)


def time_left(steps: Sequence[Step], ledger: Ledger) -> float:
    """Seconds that the remaining steps will take.

    By what they took when they were measured, scaled by how fast the finished ones were here.
    """
    done = [step for step in steps if ledger.is_done(step)]
    expected = sum(60.0 * step.minutes for step in done)
    spent = sum(ledger.entries[step.name].seconds for step in done)
    # A minute at the usual speed counts beside what was seen, so that short steps decide nothing.
    speed = (spent + 60.0) / (expected + 60.0)
    left = 0.0
    for step in steps:
        if not ledger.is_done(step):
            entry = ledger.entries.get(step.name)
            begun = entry.seconds if entry is not None and entry.key == step.key else 0.0
            left += max(60.0 * step.minutes * speed - begun, 0.0)
    return left


def _run(step: Step, entry: Entry, ledger: Ledger, steps: Sequence[Step], lock: int) -> int:
    """Run a step in a process of its own; its exit code. Its time is kept while it runs."""
    command = [sys.executable, "-m", "vla_reasoner_ros.cli", *step.command]
    environment = os.environ | {MODELS_VARIABLE: ledger.models}
    run, started = Run.begin(), time.monotonic()
    entry.runs.append(run)
    ledger.write(steps)
    process = subprocess.Popen(
        command, env=environment, pass_fds=(lock,), preexec_fn=_end_with(os.getpid())
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(HEARTBEAT_S)
                run.outcome = f"exit code {code}" if code else DONE
                return code
            run.seconds = time.monotonic() - started
            ledger.write(steps)
    except BaseException:
        _end(process)
        run.outcome = INTERRUPTED
        raise
    finally:
        run.seconds = time.monotonic() - started
        ledger.write(steps)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Tell a step to end, and see to it."""
    process.terminate()
    try:
        process.wait(STEP_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _end_with(parent: int) -> Callable[[], None]:
    """For the child to call: be told to end when the recipe is killed, so that no one works on."""

    def arrange() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # killed before it could be arranged
            os._exit(1)

    return arrange


@contextlib.contextmanager
def locked(work: Path, wait_s: float = LOCK_WAIT_S) -> Iterator[int]:
    """Keep a second recipe out of a folder; the lock goes with the process and its step.

    Yields:
        The descriptor that holds the lock.

    Raises:
        ConfigurationError: another one is at work there, and still is after ``wait_s``.
    """
    work.mkdir(parents=True, exist_ok=True)
    give_up = time.monotonic() + wait_s
    with (work / LOCK).open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() >= give_up:
                    raise ConfigurationError(
                        f"--work {work}: another recipe is at work in it"
                    ) from error
            time.sleep(0.1)
        yield file.fileno()


def _shown(step: Step) -> str:
    return f"vla-reasoner {shlex.join(step.command)}"


def _now() -> str:
    return f"{datetime.datetime.now(datetime.timezone.utc):%Y-%m-%dT%H:%M:%SZ}"


def _say(line: str) -> None:
    print(f"recipe: {line}", file=sys.stderr, flush=True)


def _interrupted(_signal: int, _frame: object) -> None:
    raise KeyboardInterrupt


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's options."""
    parser.add_argument(
        "recipe",
        nargs="?",
        default="shipped",
        help="by name (config/recipes), or its YAML file (default: shipped)",
    )
    parser.add_argument("--work", type=Path, default=Path("data/recipe"), help="folder of the data")
    parser.add_argument("--models", type=Path, help="folder of the weights (default: WORK/models)")
    parser.add_argument("--list", action="store_true", help="say what is done, and do nothing")


def run(arguments: argparse.Namespace) -> int:
    """Run what is not done yet, then print the table of times."""
    models = arguments.models or arguments.work / "models"
    steps = load_recipe(arguments.recipe, arguments.work, models)
    if arguments.list:
        ledger = Ledger.open(arguments.work / LEDGER, models)
        print(ledger.table(steps))
        print(f"about {duration(time_left(steps, ledger))} left")
        return 0
    with locked(arguments.work) as lock:
        ledger = Ledger.open(arguments.work / LEDGER, models)
        before = signal.signal(signal.SIGTERM, _interrupted)
        try:
            run_steps(steps, ledger, lock)
        finally:
            signal.signal(signal.SIGTERM, before)
    print(ledger.table(steps))
    print(
        f"recipe: models in {models}, times in {arguments.work / TABLE} and {arguments.work / LOG}"
    )
    return 0
