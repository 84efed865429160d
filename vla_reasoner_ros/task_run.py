"""One run of one task: what belongs to it, how far it is, and what ends it."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from enum import IntEnum

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.search.statistics import SearchStatistics, Status

_FALLBACKS = (Status.POLICY, Status.HOLD)


class Ending(IntEnum):
    """Why a task ended; numbers as in ``action/RunTask.action``."""

    SUCCEEDED = 0
    TIME_LIMIT = 1
    CANCELED = 2
    PREEMPTED = 3
    INSTRUCTION_REPLACED = 4
    NO_DECISION = 5
    HELD = 6
    EMERGENCY_STOP = 7
    DEACTIVATED = 8
    RESET = 9


@dataclass(frozen=True)
class TaskParameters:
    """When a task counts as begun, done or stuck."""

    wait: bool = parameter(
        False, "Decide nothing after activation until ~/start or a RunTask goal asks for it."
    )
    time_limit: float = parameter(
        60.0,
        "Time for a RunTask goal that states none, on the node's clock; 0 is unlimited.",
        unit="s",
        minimum=0.0,
    )
    success_value: float = parameter(
        0.0,
        "Progress value at which a RunTask goal that states none counts as done; 0 is never, for "
        "values that were not calibrated on this task.",
        minimum=0.0,
        maximum=1.0,
    )
    success_time: float = parameter(
        1.0,
        "How long the progress value must stay there, on the node's clock.",
        unit="s",
        minimum=0.0,
    )
    patience: float = parameter(
        30.0,
        "Wall-clock time without a decision, or with holds only, after which a RunTask goal is "
        "given up; 0 is for ever. A pause does not count.",
        unit="s",
        minimum=0.0,
    )


@dataclass(frozen=True)
class Progress:
    """How far a task is.

    Attributes:
        time_s: on the node's clock, since it began.
        value: newest progress value, 0 to 1; NaN where no value judged it.
        decisions: decisions made.
        deviations: of them, those that left the policy's own chunk.
        fallbacks: of them, those that fell back to the policy or held.
        fallback_reason: of the newest decision; empty when there is none.
    """

    time_s: float = 0.0
    value: float = math.nan
    decisions: int = 0
    deviations: int = 0
    fallbacks: int = 0
    fallback_reason: str = ""


class TaskRun:
    """Follows one task from acceptance to its end; thread-safe. The first ending counts.

    Args:
        instruction: what to do.
        time_limit_s: on the node's clock; 0 takes that of the parameters.
        success_value: progress that counts as done; 0 takes that of the parameters.
        parameters: the node's.
        now_ns: the node's clock at the beginning, nanoseconds.
        wall_s: a clock that always runs, seconds.

    Raises:
        ConfigurationError: an empty instruction, or a number out of its range.
    """

    def __init__(
        self,
        instruction: str,
        time_limit_s: float,
        success_value: float,
        parameters: TaskParameters,
        now_ns: int,
        wall_s: float,
    ) -> None:
        if not instruction.strip():
            raise ConfigurationError("instruction: expected a text, got nothing")
        if not (math.isfinite(time_limit_s) and time_limit_s >= 0.0):
            raise ConfigurationError(f"time_limit: expected 0 s or more, got {time_limit_s}")
        if not 0.0 <= success_value <= 1.0:
            raise ConfigurationError(f"success_value: expected 0 to 1, got {success_value}")
        self.instruction = instruction
        self._time_limit_s = time_limit_s or parameters.time_limit
        self._success_value = success_value or parameters.success_value
        self._parameters = parameters
        self._begun_ns = now_ns
        self._lock = threading.Lock()
        self._progress = Progress()
        self._seen = False
        self._reached_ns: int | None = None
        self._decided_s = self._moved_s = wall_s
        self._end: tuple[Ending, str] | None = None
        self.ended = threading.Event()
        """Set when the task has ended."""

    @property
    def end_reason(self) -> tuple[Ending, str] | None:
        """Why it ended, with a line for a person; None while it runs."""
        with self._lock:
            return self._end

    @property
    def waiting(self) -> bool:
        """Whether no observation of this task has come yet."""
        return not self._seen

    def progress(self, now_ns: int) -> Progress:
        """How far it is."""
        with self._lock:
            known = self._progress
        return Progress(**{**vars(known), "time_s": (now_ns - self._begun_ns) / 1e9})

    def end(self, ending: Ending, message: str) -> None:
        """End it, unless it has ended."""
        with self._lock:
            if self._end is None:
                self._end = (ending, message)
        self.ended.set()

    def observed(self, instruction: str) -> bool:
        """Whether an observation with this instruction is one to decide on.

        Observations still carry the instruction from before for a moment; once the task's own came,
        another one means that someone else took over.
        """
        if instruction == self.instruction:
            self._seen = True
            return not self.ended.is_set()
        if self._seen:
            self.end(
                Ending.INSTRUCTION_REPLACED,
                f"{self.instruction!r} was replaced by {instruction!r}",
            )
        return False

    def decided(self, said: SearchStatistics, now_ns: int, wall_s: float) -> None:
        """A decision was made for this task."""
        judged = bool(said.value) and said.root_visits > 0
        with self._lock:
            before = self._progress
            self._progress = Progress(
                value=said.root_value if judged else before.value,
                decisions=before.decisions + 1,
                deviations=before.deviations + said.deviated,
                fallbacks=before.fallbacks + (said.status in _FALLBACKS),
                fallback_reason=said.fallback_reason,
            )
            self._decided_s = wall_s
            if said.status != Status.HOLD:
                self._moved_s = wall_s
        if judged and self._success_value:
            self._judge(said.root_value, now_ns)

    def _judge(self, value: float, now_ns: int) -> None:
        if not value >= self._success_value:  # NaN reaches nothing
            self._reached_ns = None
            return
        if self._reached_ns is None:
            self._reached_ns = now_ns
        if now_ns - self._reached_ns >= self._parameters.success_time * 1e9:
            self.end(
                Ending.SUCCEEDED,
                f"the progress value stayed at {self._success_value:g} or more for "
                f"{self._parameters.success_time:g} s",
            )

    def clock_jumped(self, seconds: float) -> None:
        """The node's clock jumped: its time goes on from there."""
        with self._lock:
            self._begun_ns += round(seconds * 1e9)

    def paused(self, wall_s: float) -> None:
        """No decisions are due now, which is nobody's fault."""
        with self._lock:
            self._decided_s = self._moved_s = wall_s

    def check(self, now_ns: int, wall_s: float) -> None:
        """End it when time or patience is over."""
        patience = self._parameters.patience
        time_s = (now_ns - self._begun_ns) / 1e9
        with self._lock:
            silent_s, still_s = wall_s - self._decided_s, wall_s - self._moved_s
            reason = self._progress.fallback_reason
        if self._time_limit_s and time_s >= self._time_limit_s:
            self.end(Ending.TIME_LIMIT, f"{self._time_limit_s:g} s are over")
        elif patience and silent_s >= patience:
            what = "observation with this instruction" if self.waiting else "decision"
            self.end(Ending.NO_DECISION, f"no {what} came for {patience:g} s")
        elif patience and still_s >= patience:
            self.end(Ending.HELD, f"only holds for {patience:g} s: {reason}")
