"""Random events from everyone who may ask the arm controller for something, against the limits."""

import contextlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from test_control_executor import MS, Rig

from vla_reasoner_ros.control.executor import ResetRefused
from vla_reasoner_ros.control.queue import ChunkRejected
from vla_reasoner_ros.parameters import replace

EVENTS = ("chunk", "push", "stick", "enable", "stop", "hold", "reset", "activate")


class Cell:
    """An arm that may be pushed or stuck, and everyone who may ask its controller for something."""

    def __init__(self):
        self.rig = Rig(motion__settle_time=0.2, motion__lead_time=0.03, motion__stop_lead_time=0.01)
        self.offset, self.stuck = np.zeros(7), None

    def live(self, ticks):
        rig = self.rig
        for _ in range(ticks):
            rig.now += 10 * MS
            rig.judge.advance(rig.now)
            place = rig.judge.desired(rig.now)[0] + self.offset
            place = place if self.stuck is None else self.stuck
            rig.executor.measured(rig.now, place, np.zeros(7))
            rig.publish(rig.executor.tick(rig.now))

    def chunk(self, seed):
        way = np.random.default_rng(seed).uniform(-0.02, 0.02, (8, 6))
        way[:] = way[0]
        with contextlib.suppress(ChunkRejected):
            self.rig.submit(self.rig.chunk(way))

    def push(self, seed):
        self.offset = np.random.default_rng(seed).uniform(-0.25, 0.25, 7) * (seed % 3 > 0)

    def stick(self, seed):
        place = self.rig.judge.desired(self.rig.now)[0] + self.offset
        self.stuck = place if seed % 2 else None

    def enable(self, seed):
        self.rig.parameters = replace(self.rig.parameters, {"enable_control": bool(seed % 2)})
        self.rig.publish(self.rig.executor.set_parameters(self.rig.parameters, self.rig.now))

    def stop(self, seed):
        self.rig.publish(self.rig.executor.emergency_stop(bool(seed % 2), self.rig.now))

    def hold(self, seed):
        if seed % 2:
            self.rig.publish(self.rig.executor.hold(self.rig.now))
        else:
            self.rig.executor.release(self.rig.now)

    def reset(self, seed):
        with contextlib.suppress(ResetRefused):
            self.rig.executor.reset(self.rig.now)

    def activate(self, seed):
        self.rig.publish(self.rig.executor.stop(self.rig.now))
        self.live(50)
        self.rig.executor.reset_reference(self.rig.now)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(st.sampled_from(EVENTS), st.integers(0, 99), st.integers(1, 60)),
        max_size=25,
    )
)
def test_whatever_happens_and_whoever_asks_what_is_sent_keeps_the_limits(events):
    cell = Cell()
    cell.live(2)
    cell.chunk(0)  # before, nobody knows where the controller rests
    cell.live(20)
    for name, seed, ticks in events:
        getattr(cell, name)(seed)
        cell.live(ticks)
    cell.live(100)
    assert cell.rig.judge.problems == []
