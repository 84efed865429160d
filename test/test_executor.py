import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.executor import EngineSettings, WorkerLost, run_jobs

RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("ray") is None, reason="the package ray is not installed"
    ),
)


class Squares:
    """Squares numbers; what its folder holds says which of them end the worker, and how often."""

    def __init__(self, folder):
        self.folder = Path(folder)
        (self.folder / f"started_{os.getpid()}").touch()

    def __call__(self, number):
        deaths = self.folder / f"dies_{number}"
        if deaths.exists() and (left := int(deaths.read_text())):
            deaths.write_text(str(left - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        if number < 0:
            raise ConfigurationError(f"number: expected 0 or more, got {number}")
        return number * number, os.environ["OMP_NUM_THREADS"]


class Endless:
    """Says which process it is, and never ends."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def __call__(self, job):
        (self.folder / f"job_{job}").write_text(str(os.getpid()))
        while True:
            time.sleep(0.05)


def started(folder):
    return len(list(folder.glob("started_*")))


@pytest.mark.parametrize("engine", ["processes", RAY])
def test_a_lost_workers_job_is_run_again(engine, tmp_path, monkeypatch):
    # Workers of Ray import what this process names, from where this says.
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    (tmp_path / "dies_3").write_text("1")
    settings = EngineSettings(engine, workers=2)
    results = dict(run_jobs(Squares, (str(tmp_path),), range(8), settings))
    assert {number: result[0] for number, result in results.items()} == {
        number: number * number for number in range(8)
    }
    assert {result[1] for result in results.values()} == {"1"}
    assert (tmp_path / "dies_3").read_text() == "0"
    assert started(tmp_path) >= 2


def test_a_job_that_ends_every_worker_is_given_up_by_name(tmp_path):
    (tmp_path / "dies_1").write_text("9")
    settings = EngineSettings(workers=1, attempts=2)
    with pytest.raises(WorkerLost, match=r"1: ended its worker 2 times \(exit code -9\)"):
        dict(run_jobs(Squares, (str(tmp_path),), [0, 1], settings))


def test_an_error_of_a_job_comes_as_it_was_raised_and_ends_the_run(tmp_path):
    settings = EngineSettings(workers=1)
    with pytest.raises(ConfigurationError, match="expected 0 or more, got -5"):
        dict(run_jobs(Squares, (str(tmp_path),), [1, -5], settings))


@pytest.fixture
def interruptible():
    """The workers of a parallel test run ignore Ctrl-C; here it interrupts, as in a terminal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_leaving_early_ends_the_workers(tmp_path, interruptible):
    def leave():
        deadline = time.monotonic() + 60.0
        while not (tmp_path / "job_0").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=leave)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        dict(run_jobs(Endless, (str(tmp_path),), [0], EngineSettings(workers=1)))
    thread.join()
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "job_0").read_text()), 0)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_the_process_that_started_them(tmp_path, monkeypatch, end):
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    code = (
        "from test_executor import *; "
        f"dict(run_jobs(Endless, ({str(tmp_path)!r},), [0, 1], EngineSettings(workers=2)))"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120.0
    while len(list(tmp_path.glob("job_*"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    assert process.poll() is None
    process.send_signal(end)
    process.communicate(timeout=60.0)  # the workers hold the pipe open for as long as they live
    assert process.returncode == -end
    assert len(list(tmp_path.glob("job_*"))) == 2


def test_without_jobs_nothing_is_started(tmp_path):
    assert list(run_jobs(Squares, (str(tmp_path),), [])) == []
    assert started(tmp_path) == 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"engine": "threads"}, "expected one of processes, ray, got 'threads'"),
        ({"workers": -1}, "expected at least 0 and 1"),
        ({"address": "10.0.0.1:6379"}, "only for --engine ray"),
    ],
)
def test_settings_that_cannot_work_are_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        EngineSettings(**given)
