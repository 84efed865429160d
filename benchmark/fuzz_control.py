"""Hostile chunks against the arm controller, with a model of the arm's own controller as judge.

``python -m benchmark.fuzz_control 1000000`` throws that many hostile chunks at ChunkExecutor, with
plausible ones between them, and exits with 1 when one limit was broken at 1 kHz, one command would
have been rejected, one chunk was changed without a word, or anything crashed. With ``--progress
FILE`` a run that was interrupted goes on where it was, unless the code has changed meanwhile.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

import vla_reasoner_ros
from benchmark.arm_judge import Judge, departure
from benchmark.hostile_chunks import PLAUSIBLE, HostileChunks, singular_pose
from vla_reasoner_ros.control.deadman import Deadman, DeadmanParameters
from vla_reasoner_ros.control.executor import ChunkExecutor, Commands, ResetRefused, TimedTrajectory
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.executor import EngineSettings, run_jobs
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.types import FloatArray

SECOND = 1_000_000_000
MILLISECOND = 1_000_000
ROBOTS = ("fr3", "panda", "ur5e", "ur10e")
WIDE = 3.0  # m, a workspace that no arm reaches the end of
EPISODE = 500  # hostile chunks
SHARE = 2_500  # hostile chunks, after which progress is written


@dataclass
class Report:
    """What a run did.

    Attributes:
        chunks: hostile chunks made, those included that their own constructor refused.
        outcomes: how often what came of which kind of chunk, ``kind: outcome``; plausible ones
            included.
        robots: hostile chunks per arm.
        replaced: chunks that took over from a running motion.
        problems: broken limits, rejected commands, changed chunks and exceptions; must stay empty.
    """

    chunks: int = 0
    outcomes: Counter[str] = field(default_factory=Counter)
    robots: Counter[str] = field(default_factory=Counter)
    replaced: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, other: Report) -> None:
        """Count another report in."""
        self.chunks += other.chunks
        self.outcomes += other.outcomes
        self.robots += other.robots
        self.replaced += other.replaced
        self.problems += other.problems

    def by_outcome(self) -> dict[str, int]:
        """How many chunks of any kind were accepted, or refused for which reason."""
        counts: Counter[str] = Counter()
        for name, count in self.outcomes.items():
            counts[name.split(": ")[1]] += count
        return dict(counts.most_common())


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
            "chunk.ensemble": bool(rng.random() < 0.15),
        }
        anywhere = bool(rng.random() < 0.5)
        if anywhere:
            values["motion.workspace_min"] = (-WIDE, -WIDE, -WIDE)
            values["motion.workspace_max"] = (WIDE, WIDE, WIDE)
            values["motion.self_collision"] = bool(rng.random() < 0.3)
        if values["robot"] == "fr3" and rng.random() < 0.5:
            values["limits"] = "full"
        self._now = int(rng.integers(1, 2**40))
        self._lead_ns = round(lead * SECOND)
        self._parameters = build(ControlParameters, values)
        self._executor = ChunkExecutor(self._parameters)
        self._robot = self._executor.robot
        self._judge = Judge(self._robot, self._now, self._pose(anywhere))
        self._deadman = Deadman(
            self._robot,
            build(
                DeadmanParameters,
                {"robot": values["robot"], "limits": self._parameters.limits, "lead_time": lead},
            ),
        )
        self._inbox: deque[tuple[int, TimedTrajectory]] = deque()
        self._chunks = HostileChunks(rng, self._executor)
        self._seen = 0
        self._measure()

    def run(self, chunks: int, report: Report) -> None:
        """Submit hostile chunks, and end with a stop by the deadman.

        What goes wrong is reported with the seed that repeats it.
        """
        hostile = 0
        while hostile < chunks:
            kind = self._chunks.draw()
            if kind != PLAUSIBLE:
                hostile += 1
                report.chunks += 1
                report.robots[self._robot.name] += 1
            try:
                self._submit(kind, report)
                self._live()
            except Exception as error:
                problem = f"{type(error).__name__}: {error}"
            else:
                problem = self._problem()
            if problem:
                where = f"{self._robot.name}, seed {self._seed}, hostile chunk {hostile}, {kind}"
                report.problems.append(f"{where}: {problem}")
                return
        problem = self._stop_from_outside()
        if problem:
            where = f"{self._robot.name}, seed {self._seed}, stopped by the deadman"
            report.problems.append(f"{where}: {problem}")

    def _stop_from_outside(self) -> str:
        """What goes wrong when the deadman stops whatever is under way, in words."""
        if self._inbox:
            self._now = max(self._now, self._inbox[-1][0])
        self._deliver(self._now)
        self._deadman.latch("the end of the episode")
        stop = self._deadman.tick(self._now, 0.0)
        if stop is not None:
            self._judge.receive(stop, self._now + int(self._rng.integers(0, self._lead_ns + 1)))
            self._judge.advance(stop.end_ns + SECOND)
        return self._judge.problems[0] if self._judge.problems else ""

    def _problem(self) -> str:
        self._deliver(self._now)
        if not self._inbox:
            self._judge.advance(self._now)
        status = self._executor.status(self._now)
        if status.chunks_accepted + status.chunks_rejected != self._seen:
            return f"{self._seen} chunks came, the status counts {status}"
        return self._judge.problems[0] if self._judge.problems else ""

    def _pose(self, anywhere: bool) -> FloatArray:
        """Where the arm stands at first (J,) rad: home, anywhere, singular, or at a limit."""
        rng, limits = self._rng, self._robot.limits
        if not anywhere or rng.random() < 0.2:
            return self._robot.home
        if rng.random() < 0.5:
            return singular_pose(self._executor, rng)
        joints = rng.uniform(limits.position_min, limits.position_max)
        if rng.random() < 0.5:
            joint = int(rng.integers(len(joints)))
            joints[joint] = (limits.position_min, limits.position_max)[rng.integers(2)][joint]
        return joints

    def _submit(self, kind: str, report: Report) -> None:
        try:
            chunk = self._chunks.make(kind, self._now)
        except (ActionChunkError, ConfigurationError):
            report.outcomes[f"{kind}: refused when made"] += 1
            return
        before = self._executor.commanded(self._now)
        self._seen += 1
        try:
            accepted = self._executor.submit(chunk, self._now)
        except ChunkRejected as rejection:
            report.outcomes[f"{kind}: {rejection.reason.value}"] += 1
            self._repeat(before)
            return
        report.outcomes[f"{kind}: accepted"] += 1
        report.replaced += before is not None and not before.resting
        if not self._parameters.chunk.ensemble:
            changed = departure(chunk, accepted, self._executor.kinematics, self._parameters)
            if changed:
                self._judge.problems.append(f"changed without a word: {changed}")
        self._publish(accepted.commands)

    def _repeat(self, state: MotionState | None) -> None:
        """What a simulator is told whose time waits; not on a way that is known roughly.

        There Jazzy's controller would begin anew with a step; the simulator is told only what it
        does anyhow.
        """
        commands = self._executor.repeat(self._now)
        motion = commands.trajectory
        if motion is None or motion.known_ns <= self._now or state is None or state.resting:
            self._publish(commands)

    def _live(self) -> None:
        """Let time pass, with a rare accident."""
        rng = self._rng
        lasts = rng.choice([0.0, 0.013, 0.1, 0.4, 0.9], p=[0.25, 0.2, 0.3, 0.2, 0.05])
        end = self._now + int(lasts * SECOND)
        event = rng.random()
        blind, frozen = event < 0.02, None
        if event < 0.03:
            self._publish(self._executor.hold(self._now))
        elif event < 0.05:
            self._publish(self._executor.emergency_stop(True, self._now))
        elif event < 0.06:
            self._publish(self._executor.stop(self._now))
        elif event < 0.07:
            frozen = self._judge.desired(self._now)[0]
        elif event < 0.08:
            self._change_parameters()
        while self._now < end:
            self._now = min(end, self._now + int(rng.integers(3, 60)) * MILLISECOND)
            if frozen is not None:
                self._executor.measured(self._now, frozen, np.zeros(self._robot.joints))
            elif not blind:
                self._measure()
            self._publish(self._executor.tick(self._now))
            self._deliver(self._now)
        if rng.random() < 0.3:
            self._executor.emergency_stop(False, self._now)
            self._executor.release(self._now)
            with contextlib.suppress(ResetRefused):
                self._executor.reset(self._now)

    def _change_parameters(self) -> None:
        motion = replace(
            self._parameters.motion, speed_factor=float(self._rng.choice([0.1, 0.5, 1.0]))
        )
        self._parameters = replace(self._parameters, motion=motion)
        self._publish(self._executor.set_parameters(self._parameters, self._now))

    def _measure(self) -> None:
        """The arm is where its controller wants it to be."""
        position, velocity, _ = self._judge.desired(self._now)
        self._executor.measured(self._now, position, velocity)
        self._deadman.measured(self._now, position, velocity, self._now)

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
            self._deadman.commanded(message.told, message.start_ns, arrival, 0.0)
            echo = self._executor.heard(message.told, message.start_ns, now_ns)
            if echo.trajectory is not None:
                self._judge.problems.append("its own command was taken for someone else's")


def fuzz(chunks: int, seed: int, episode: int = EPISODE) -> Report:
    """Run episodes of ``episode`` hostile chunks until ``chunks`` have been made."""
    report = Report()
    for number in range(-(-chunks // episode)):
        Episode(seed + number).run(min(episode, chunks - number * episode), report)
    return report


def fuzz_in_parallel(
    shares: Sequence[tuple[int, int]], jobs: int
) -> Iterator[tuple[tuple[int, int], Report]]:
    """Fuzz in several processes, which end with this one.

    Args:
        shares: hostile chunks and first seed of each.
        jobs: processes.

    Yields:
        A share and its report, as they become ready.

    Raises:
        WorkerLost: a share ended its process again and again.
    """
    return run_jobs(_fuzzer, (), shares, EngineSettings(workers=jobs))


def _fuzzer() -> Callable[[tuple[int, int]], Report]:
    return lambda share: fuzz(*share)


def shares_of(chunks: int, seed: int, share: int = SHARE) -> list[tuple[int, int]]:
    """Hostile chunks and first seed of each share; more seeds apart than it has episodes."""
    return [(min(share, chunks - start), seed + start) for start in range(0, chunks, share)]


class Progress:
    """What has been done, in a file of one JSON object a share.

    Args:
        path: the file; None keeps nothing. Shares that other code did are left out.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._code = code_digest()
        self.total = Report()
        self.done: set[tuple[int, int]] = set()
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                if entry.pop("code") == self._code:
                    share = tuple(entry.pop("share"))
                    entry["outcomes"] = Counter(entry["outcomes"])
                    entry["robots"] = Counter(entry["robots"])
                    self._count(share, Report(**entry))

    def add(self, share: tuple[int, int], report: Report) -> None:
        """A share has been done."""
        self._count(share, report)
        if self._path is not None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            entry = {"code": self._code, "share": share, **vars(report)}
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")

    def _count(self, share: tuple[int, int], report: Report) -> None:
        self.done.add(share)
        self.total.add(report)


def code_digest() -> str:
    """Twelve digits that change with the arm controller's code, the robot files or this fuzzer."""
    package = Path(vla_reasoner_ros.__file__).parent
    files = [
        *sorted((package / "control").glob("*.py")),
        *sorted((package.parent / "config" / "robots").glob("*.yaml")),
        *(Path(__file__).with_name(f"{name}.py") for name in ("arm_judge", "hostile_chunks")),
        Path(__file__),
    ]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("chunks", type=int, nargs="?", default=1_000_000, help="hostile chunks")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--progress", type=Path, help="file that a later run goes on from")
    arguments = parser.parse_args()
    progress = Progress(arguments.progress)
    total = progress.total
    shares = [s for s in shares_of(arguments.chunks, arguments.seed) if s not in progress.done]
    before, begin = total.chunks, time.monotonic()
    for share, report in fuzz_in_parallel(shares, arguments.jobs):
        progress.add(share, report)
        rate = (total.chunks - before) / (time.monotonic() - begin)
        left = (arguments.chunks - total.chunks) / rate / 60.0
        print(
            f"{total.chunks} of {arguments.chunks} hostile chunks, {len(total.problems)} problems, "
            f"{rate:.0f} a second, {left:.1f} minutes left",
            file=sys.stderr,
            flush=True,
        )
    print(json.dumps({"hostile": total.chunks, "replaced": total.replaced, **total.by_outcome()}))
    print(json.dumps({"robots": dict(total.robots), "kinds": dict(sorted(total.outcomes.items()))}))
    for problem in total.problems:
        print(problem)
    return 1 if total.problems else 0


if __name__ == "__main__":
    sys.exit(main())
