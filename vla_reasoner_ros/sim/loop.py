"""The simulator's loop: one thread that owns the world, paces it and says when to publish what.

Everything that touches the world runs in this thread, since an OpenGL context belongs to the thread
that made it; others hand in work with :meth:`SimulationLoop.submit`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import parameter
from vla_reasoner_ros.sim.pacing import NANOSECONDS, Pacer, PacingParameters
from vla_reasoner_ros.sim.world import World

T = TypeVar("T")

TICK_NS = 10_000_000
"""Simulated time between two turns: joint states go out at 100 Hz."""
RESET_GAP_NS = 2 * NANOSECONDS
"""The clock goes on by this much at a reset: whatever was meant for the last episode is over."""
REPEAT_S = 0.05
"""While simulated time stands still the clock is said again this often: whoever missed its last
message, or comes late, must not live in the past."""


@dataclass(frozen=True)
class LoopParameters(PacingParameters):
    """The simulator's episode and pace."""

    task: str = parameter("lift_green", "Task of the first episode.", read_only=True)
    seed: int = parameter(0, "Seed of the first episode.", minimum=0, read_only=True)
    scene_hook: str = parameter(
        "",
        "FILE.py:FUNCTION that changes the scene's MjSpec before it is compiled.",
        read_only=True,
    )
    camera_rate: float = parameter(
        10.0,
        "Images per simulated second and camera; must divide 100.",
        unit="Hz",
        minimum=0.1,
        maximum=100.0,
        read_only=True,
    )


class Outputs(Protocol):
    """Where the loop sends what happens; called in the loop's thread."""

    def joints(self, world: World, stamp_ns: int) -> None:
        """Simulated time has come to ``stamp_ns``: joint states."""

    def clock(self, stamp_ns: int) -> None:
        """The time, after the joint states of this time; again and again while it stands still."""

    def frames(self, world: World, stamp_ns: int) -> None:
        """It is time for images and the simulator's state; follows :meth:`clock` of this time."""

    def failed(self, error: Exception) -> None:
        """The loop ended by an error."""


class SimulationLoop:
    """Runs a world in a thread of its own.

    Simulated time goes on through resets and never back.

    Args:
        parameters: episode and pace.
        outputs: takes what is to be published.

    Raises:
        ConfigurationError: the camera rate does not fit the tick, or the world cannot be made.
    """

    def __init__(self, parameters: LoopParameters, outputs: Outputs) -> None:
        self._frame_ticks = round(NANOSECONDS / parameters.camera_rate / TICK_NS)
        if abs(self._frame_ticks * TICK_NS - NANOSECONDS / parameters.camera_rate) > 1.0:
            raise ConfigurationError(
                f"camera_rate: expected a rate whose period is a whole number of "
                f"{TICK_NS / 1e6:g} ms, got {parameters.camera_rate} Hz"
            )
        self._parameters = parameters
        self._outputs = outputs
        self._work: queue.SimpleQueue[tuple[Callable[[World], Any], Future[Any]]]
        self._work = queue.SimpleQueue()
        self._wake = threading.Event()
        self._running = threading.Event()
        self._ending = False
        self._time_ns = NANOSECONDS
        self._episode = 0
        self._since_frames = self._frame_ticks
        self._pacer = Pacer(parameters, TICK_NS, self._time_ns, time.monotonic())
        self._thread = threading.Thread(target=self._run, name="simulation", daemon=True)
        self._ready: Future[None] = Future()

    @property
    def time_ns(self) -> int:
        """Simulated time, nanoseconds."""
        return self._time_ns

    @property
    def episode(self) -> int:
        """Counts the resets, from 1."""
        return self._episode

    def start(self, timeout: float = 60.0) -> None:
        """Make the world; time stands still until :meth:`resume`.

        Raises:
            ConfigurationError: the world cannot be made.
        """
        self.begin().result(timeout)

    def begin(self) -> Future[None]:
        """Begin to make the world, which is done when the answer is; see :meth:`start`."""
        self._thread.start()
        return self._ready

    def resume(self) -> None:
        """Let time pass, and say first how things stand."""
        self._running.set()
        self.submit(lambda world: self._begin())

    def pause(self) -> None:
        """Let time stand still."""
        self._running.clear()

    def stop(self, timeout: float = 10.0) -> None:
        """End the thread and free the world."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def submit(self, work: Callable[[World], T]) -> Future[T]:
        """Run something in the loop's thread between two ticks."""
        future: Future[T] = Future()
        self._work.put((work, future))
        self._wake.set()
        return future

    def trajectory_accepted(self) -> None:
        """Tell, in the loop's thread, that a trajectory begins now."""
        self._pacer.accepted(self._time_ns)

    def reset(self, task: str, seed: int) -> Future[str]:
        """Begin an episode; its instruction."""

        def begin(world: World) -> str:
            instruction = world.reset(task or world.task, seed)
            self._episode += 1
            self._time_ns += RESET_GAP_NS
            self._begin()
            return instruction

        return self.submit(begin)

    def _begin(self) -> None:
        self._pacer.restart(self._time_ns, time.monotonic())
        self._since_frames = self._frame_ticks

    def _run(self) -> None:
        parameters = self._parameters
        try:
            world = World(parameters.scene_hook or None)
        except Exception as error:
            self._ready.set_exception(error)
            return
        try:
            world.reset(parameters.task, parameters.seed)
            self._episode = 1
            self._begin()
        except Exception as error:
            world.close()
            self._ready.set_exception(error)
            return
        self._ready.set_result(None)
        try:
            while not self._ending:
                self._do_work(world)
                self._advance(world)
        except Exception as error:
            self._outputs.failed(error)
        finally:
            world.close()

    def _do_work(self, world: World) -> None:
        while not self._work.empty():
            work, future = self._work.get()
            try:
                future.set_result(work(world))
            except Exception as error:
                future.set_exception(error)

    def _advance(self, world: World) -> None:
        """One turn: the ticks that are due, or a wait for the next one or for work."""
        if not self._running.is_set():
            self._outputs.clock(self._time_ns)
            self._sleep(REPEAT_S)
            return
        if self._since_frames >= self._frame_ticks:
            self._publish(world)
        ticks = self._pacer.ticks(self._time_ns, time.monotonic())
        for _ in range(ticks):
            world.advance(TICK_NS / NANOSECONDS)
            self._time_ns += TICK_NS
            self._since_frames += 1
            standing = self._pacer.standing(self._time_ns)
            if standing or self._since_frames >= self._frame_ticks:
                self._publish(world)
            else:
                self._tick(world)
            if not self._work.empty():
                return
        if not ticks:
            self._outputs.clock(self._time_ns)
            self._sleep(min(self._pacer.wait(self._time_ns, time.monotonic()), REPEAT_S))

    def _publish(self, world: World) -> None:
        self._since_frames = 0
        self._tick(world)
        self._outputs.frames(world, self._time_ns)

    def _tick(self, world: World) -> None:
        # What was measured comes before its time: no one then finds it missing.
        self._outputs.joints(world, self._time_ns)
        self._outputs.clock(self._time_ns)

    def _sleep(self, seconds: float) -> None:
        """Sleep until there is work, at most so long."""
        self._wake.wait(seconds)
        self._wake.clear()
