import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torchrun_line

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.training import distributed
from vla_reasoner_ros.training.distributed import Processes
from vla_reasoner_ros.training.trainer import train

CPU = torch.device("cpu")


def torchrun(folder, *words):
    folder.mkdir(exist_ok=True)
    script = Path(torchrun_line.__file__)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [*command, script, folder, *words], capture_output=True, text=True, timeout=250
    )


def test_without_torchrun_there_is_one_process(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    alone = distributed.join()
    assert (alone.rank, alone.size, alone.first) == (0, 1, True)
    indices = np.arange(5)
    assert alone.share(indices).tolist() == [0, 1, 2, 3, 4]
    assert alone.told({"loss": 1.0}) == {"loss": 1.0}


def test_all_shares_together_are_the_batch_and_random_streams_differ():
    three = [Processes(rank, 3, CPU) for rank in range(3)]
    shares = [processes.share(np.arange(8)) for processes in three]
    assert sorted(np.concatenate(shares).tolist()) == list(range(8))
    draws = [processes.stream([1, 2, 3]).random() for processes in three]
    assert len(set(draws)) == 3
    assert draws[0] == np.random.default_rng([1, 2, 3]).random()


def test_fewer_samples_than_processes_are_refused():
    with pytest.raises(ConfigurationError, match="each of 4 processes, got 3"):
        Processes(0, 4, CPU).share(np.arange(3))


def test_a_bad_environment_is_named(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(ConfigurationError, match="WORLD_SIZE"):
        distributed.join()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_does_and_a_killed_run_goes_on(tmp_path):
    module = torchrun_line.make()
    result = train(
        module,
        torchrun_line.loss,
        torchrun_line.Line(24),
        torchrun_line.Line(9),
        torchrun_line.PARAMETERS,
        tmp_path / "alone",
        title="line",
    )
    folder = tmp_path / "two"
    killed = torchrun(folder, "dies")
    assert killed.returncode != 0
    assert not (folder / "results.jsonl").exists()
    assert (folder / "work" / "checkpoint.safetensors").exists()
    ended = torchrun(folder)
    assert ended.returncode == 0, ended.stderr
    assert [(folder / f"rank_{rank}").read_text() for rank in range(2)] == ["2", "2"]
    assert (folder / "found_1").read_text() == "1"
    (told,) = map(json.loads, (folder / "results.jsonl").read_text().splitlines())
    assert told["rank"] == 0
    assert [row["step"] for row in told["curve"]] == [5, 10, 15, 20]
    losses = [row["loss"] for row in told["curve"]]
    np.testing.assert_allclose(losses, [row["loss"] for row in result.curve], rtol=1e-4)
    for name, tensor in module.state_dict().items():
        np.testing.assert_allclose(told["weights"][name], tensor, atol=1e-5)
    assert ended.stderr.count("line: best at step") == 1
