import os
import signal
import sys
import time

import numpy as np
import pytest
import tiny_policies as tiny

from vla_reasoner_ros.errors import (
    ConfigurationError,
    InstructionError,
    ModelError,
    ObservationError,
)
from vla_reasoner_ros.policies.process import ProcessPolicy
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.types import ActionChunk, ChunkSource

# A policy of another package, light enough to start quickly.
SOURCE = """
import os
import struct
import sys
import time

import numpy as np

from vla_reasoner_ros.errors import ConfigurationError, InstructionError
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.types import ActionChunk, ActionSpec


class Echo:
    def __init__(self, action, side=28, fail=""):
        if fail:
            raise ConfigurationError(fail)
        cameras = dict.fromkeys(("left", "right", "wrist"), (side, side))
        self.spec = PolicySpec("echo", cameras, ActionSpec.from_mapping(action), 4)
        self.prefix = None

    def reset(self):
        self.prefix = None

    def condition_on_prefix(self, prefix):
        self.prefix = prefix

    def propose(self, observation, n=1):
        text = observation.instruction
        if text == "hang":
            time.sleep(600)
        if text == "die":
            os._exit(7)
        if text in NONSENSE:
            os.write(int(sys.argv[2]), NONSENSE[text])  # past the worker, into its socket
            time.sleep(600)
        if text == "refuse":
            raise InstructionError("unknown instruction 'refuse'")
        if text == "break":
            raise ZeroDivisionError("division by zero")
        actions = np.zeros((4, 7))
        actions[:, 0] = os.getpid()
        actions[:, 1:4] = [image.astype(float).mean() for image in observation.images.values()]
        actions[:, 4] = observation.joint_positions[0]
        actions[:, 5] = observation.stamp_ns / 1e9
        if text == "nan":
            return [Wrong(np.full((4, 7), np.nan))]
        if text == "wrong width":
            return [Wrong(np.zeros((4, 6)))]
        if text == "wrong type":
            return [Wrong(np.array([["one", "two"]]))]
        if self.prefix is not None:
            actions[: self.prefix.steps] = self.prefix.actions
        return [ActionChunk(self.spec.action, actions, 0)] * n


class Wrong:
    def __init__(self, actions):
        self.actions = actions


NONSENSE = {
    "garbage": struct.pack("<Q", 3) + bytes([0xC1, 0xFF, 0]),
    "half": struct.pack("<Q", 1000) + bytes(10),
    "huge": struct.pack("<Q", 100_000_000),
}
"""
CAMERAS = ("left", "right", "wrist")


@pytest.fixture(scope="module", autouse=True)
def package(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packages")
    (folder / "echo_policy.py").write_text(SOURCE)
    metadata = folder / "echo_policy-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Name: echo-policy\nVersion: 1.0\n")
    entry = "[vla_reasoner_ros.policy]\necho = echo_policy:Echo\n"
    (metadata / "entry_points.txt").write_text(entry)
    with pytest.MonkeyPatch.context() as patch:
        before = os.environ.get("PYTHONPATH", "")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), before])))
        yield folder


def start(**options):
    own = {"action": tiny.ACTION, **options.pop("options", {})}
    return ProcessPolicy("echo", own, **{"answer_s": 60.0, "backoff_s": 0.01} | options)


@pytest.fixture(scope="module")
def shared(package):
    return start()


def seen(instruction="do", **changes):
    return tiny.seen(cameras=CAMERAS, instruction=instruction, **changes)


def pid(chunk):
    return int(chunk.actions[0, 0])


def test_what_it_sees_is_what_was_seen_in_another_process(shared):
    observation = seen(seed=3)
    chunk = shared.propose(observation)[0]
    means = [observation.images[name].mean() for name in CAMERAS]
    np.testing.assert_allclose(chunk.actions[0, 1:4], means)
    assert chunk.actions[0, 4] == observation.joint_positions[0]
    assert chunk.actions[0, 5] == 5.0
    assert chunk.observation_stamp_ns == observation.stamp_ns
    assert pid(chunk) == shared.process_id != os.getpid()
    other = shared.propose(seen(seed=4))[0]
    assert abs(other.actions[0, 1] - chunk.actions[0, 1]) > 0.01
    assert shared.spec.cameras == dict.fromkeys(CAMERAS, (28, 28))
    assert len(shared.propose(seen(), 3)) == 3


def test_errors_keep_their_kind_and_the_worker_lives_on(shared):
    before = shared.process_id
    with pytest.raises(InstructionError, match="unknown instruction 'refuse'"):
        shared.propose(seen("refuse"))
    with pytest.raises(ModelError, match="ZeroDivisionError: division by zero"):
        shared.propose(seen("break"))
    with pytest.raises(ModelError, match=r"x at step 0 is nan"):
        shared.propose(seen("nan"))
    with pytest.raises(ModelError, match=r"7\) numbers .* got shape \(4, 6\)"):
        shared.propose(seen("wrong width"))
    with pytest.raises(ModelError, match="policy process: "):
        shared.propose(seen("wrong type"))
    with pytest.raises(ObservationError, match="camera 'right' is missing"):
        shared.propose(tiny.seen(cameras=("left", "wrist")))
    with pytest.raises(ObservationError, match="camera 'left' needs 28x28 pixels"):
        shared.propose(seen(side=30))
    assert pid(shared.propose(seen())[0]) == before


def test_a_prefix_reaches_the_policy(shared):
    prefix = ActionChunk(shared.spec.action, np.full((2, 7), 0.5), 0)
    shared.condition_on_prefix(prefix)
    actions = shared.propose(seen())[0].actions
    np.testing.assert_array_equal(actions[:2], 0.5)
    assert actions[2, 0] == shared.process_id
    shared.reset()
    assert pid(shared.propose(seen())[0]) == shared.process_id


FAULTS = {
    "die": "ended with exit code 7",
    "killed": "was killed by signal 9",
    "hang": "did not answer in 0.3 s",
    "half": "did not answer in 0.3 s",
    "garbage": "answered nonsense",
    "huge": "100000000 bytes, at most 64000000 are read",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_worker_that_dies_hangs_or_babbles_is_named_held_over_and_started_again(fault):
    policy = start(answer_s=60.0)
    reasoner = Reasoner(policy, None, None, None)
    first = pid(reasoner.decide(seen()).chunk)
    if fault == "killed":
        os.kill(first, signal.SIGKILL)
    policy._answer_s = 0.3 if fault in ("hang", "half") else 60.0
    decision = reasoner.decide(seen(fault))
    policy._answer_s = 60.0
    assert decision.chunk.source is ChunkSource.HOLD
    assert FAULTS[fault] in decision.statistics.fallback_reason
    assert policy.ready.wait(120)
    again = reasoner.decide(seen()).chunk
    assert again.source is ChunkSource.POLICY
    assert pid(again) != first
    assert policy.restarts == 1
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)


def test_while_the_worker_is_away_nothing_waits():
    policy = start(backoff_s=600.0)
    with pytest.raises(ModelError, match="exit code 7"):
        policy.propose(seen("die"))
    with pytest.raises(ModelError, match=r"is being started again: .*exit code 7"):
        policy.propose(seen())
    policy.reset()
    assert policy.process_id is None


def test_the_worker_ends_with_its_policy():
    policy = start()
    process = policy.process_id
    policy._finalizer()
    deadline = time.monotonic() + 60
    while True:
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < deadline


def test_what_the_policy_refuses_is_told_at_configure():
    with pytest.raises(ConfigurationError, match="policy process: my weights are gone"):
        start(options={"fail": "my weights are gone"})
    with pytest.raises(ConfigurationError, match="policy 'nonsense' is unknown"):
        ProcessPolicy("nonsense")
    with pytest.raises(ConfigurationError, match="cannot run /nowhere/python"):
        start(python="/nowhere/python")
    with pytest.raises(ConfigurationError, match="ended with exit code 3"):
        start(python=str(failing_python()))
    with pytest.raises(ConfigurationError, match="a worker in a worker"):
        ProcessPolicy("process")


def failing_python():
    import tempfile
    from pathlib import Path

    path = Path(tempfile.mkdtemp()) / "python"
    path.write_text("#!/bin/sh\nexit 3\n")
    path.chmod(0o755)
    return path


def test_options_come_from_a_file_too(tmp_path):
    file = tmp_path / "echo.yaml"
    file.write_text("side: 14\n")
    policy = start(options_file=str(file))
    assert policy.spec.cameras["left"] == (14, 14)


def test_another_python_brings_its_own_libraries_first(tmp_path, package):
    # The same interpreter under another name, with a path of its own.
    python = tmp_path / "python"
    lines = [f"export PYTHONPATH={package}{os.pathsep}{os.pathsep.join(sys.path)}"]
    python.write_text("\n".join(["#!/bin/sh", *lines, f'exec {sys.executable} "$@"', ""]))
    python.chmod(0o755)
    assert pid(start(python=str(python)).propose(seen())[0]) > 0
