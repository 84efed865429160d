"""What the endurance benchmark calls memory that grows."""

from __future__ import annotations

import os

import numpy as np
import pytest

from benchmark.process_watch import FEWEST, Watch, growth, resident_mib


def test_level_memory_with_pictures_that_come_and_go_has_not_grown() -> None:
    samples = np.full(600, 117.0)
    samples[::5] += 50.0  # a queue while the machine does something else
    found = growth(samples.tolist())
    assert found is not None
    assert found.percent == pytest.approx(0.0)
    assert found.peak == 167.0


def test_a_leak_below_the_pictures_that_come_and_go_is_seen() -> None:
    samples = np.linspace(100.0, 110.0, 600)
    samples[::5] += 50.0
    found = growth(samples.tolist())
    assert found is not None
    assert 8.0 < found.percent < 10.0


def test_too_few_samples_say_nothing() -> None:
    assert growth([100.0] * (FEWEST - 1)) is None
    assert growth([100.0] * FEWEST) is not None


def test_memory_that_this_process_takes_is_seen() -> None:
    before = resident_mib(os.getpid())
    taken = np.ones(8 * 2**20)
    assert resident_mib(os.getpid()) - before == pytest.approx(taken.nbytes / 2**20, abs=8.0)


def test_cores_are_shared_out_among_watched_processes_this_one_and_the_rest() -> None:
    watch = Watch({"init": 1})
    watch.sample()
    assert len(watch.memory["init"]) == 1
    assert set(watch.cores()) == {"init", "benchmark", "others"}
