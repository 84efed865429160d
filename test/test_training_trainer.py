import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.parameters import replace
from vla_reasoner_ros.training.progress import duration
from vla_reasoner_ros.training.trainer import TrainerParameters, learning_rate, train

PARAMETERS = TrainerParameters(
    steps=40, batch_size=8, learning_rate=0.02, warmup_steps=4, evaluate_every=10, bf16=False
)


class Line:
    """Samples of y = 2 x - 1 with augmentation noise on x."""

    def __init__(self, count, seed):
        self.x = torch.linspace(-1.0, 1.0, count)[:, None] + 0.01 * seed

    def __len__(self):
        return len(self.x)

    def batch(self, indices, rng):
        x = self.x[torch.from_numpy(indices)]
        noise = 0.0 if rng is None else torch.from_numpy(rng.normal(0.0, 0.01, x.shape)).float()
        return {"x": x + noise, "y": 2.0 * x - 1.0}


def squared_error(module, batch):
    error = module(batch["x"]) - batch["y"]
    return {"loss": error.square().mean(), "largest": error.abs().max()}


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, 1))


def run(directory, parameters=PARAMETERS, loss=squared_error, **options):
    module = make()
    training, held_out = Line(30, 0), Line(11, 1)
    result = train(module, loss, training, held_out, parameters, directory, title="line", **options)
    return module, result


def stopping_after(evaluations):
    """A loss that interrupts the process while it evaluates for the given time."""
    seen = 0

    def loss(module, batch):
        nonlocal seen
        seen += not module.training and len(batch["x"]) == 3
        if seen > evaluations:
            raise KeyboardInterrupt
        return squared_error(module, batch)

    return loss


def test_training_lowers_the_held_out_loss_and_writes_its_curve(tmp_path):
    _, result = run(tmp_path)
    losses = [row["loss"] for row in result.curve]
    assert [row["step"] for row in result.curve] == [10, 20, 30, 40]
    assert losses[-1] < losses[0]
    assert json.loads((tmp_path / "curve.json").read_text()) == result.curve
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    whole, expected = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", loss=stopping_after(2))
    resumed, result = run(tmp_path / "parts")
    assert result.curve == expected.curve
    assert result.best_step == expected.best_step
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def interrupted_in_step(number):
    """A loss that ends the process in a training step."""
    seen = 0

    def loss(module, batch):
        nonlocal seen
        seen += module.training
        if seen > number:
            raise KeyboardInterrupt
        return squared_error(module, batch)

    return loss


@pytest.mark.parametrize("step", [3, 10, 27])
def test_a_run_ended_between_evaluations_loses_no_step_that_was_kept(tmp_path, step):
    whole, expected = run(tmp_path / "whole")
    parameters = replace(PARAMETERS, {"checkpoint_every_s": 0.0})
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", parameters, loss=interrupted_in_step(step))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", parameters, loss=interrupted_in_step(5))
    resumed, result = run(tmp_path / "parts", loss=interrupted_in_step(40 - step - 5))
    assert result.curve == expected.curve
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_the_global_random_state_plays_no_part_and_is_left_alone(tmp_path):
    first, _ = run(tmp_path / "a")
    torch.manual_seed(123)
    np.random.default_rng(0)
    before = torch.random.get_rng_state()
    second, _ = run(tmp_path / "b")
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(first[0].weight, second[0].weight)


def test_the_best_weights_are_kept_and_patience_ends_the_run(tmp_path):
    def worse_and_worse(module, batch):
        parts = squared_error(module, batch)
        if not module.training:
            parts["loss"] = parts["loss"] * 0.0 + module[0].weight.square().sum()
        else:
            parts["loss"] = -module[0].weight.square().sum()
        return parts

    _, result = run(tmp_path, replace(PARAMETERS, {"patience": 2}), worse_and_worse)
    assert result.best_step == 10
    assert result.steps == 30


def test_a_finished_run_is_not_repeated(tmp_path):
    first, _ = run(tmp_path)

    def never(module, batch):
        raise AssertionError("trained again")

    again, result = run(tmp_path, loss=never)
    assert result.steps == 40
    assert torch.equal(first[0].weight, again[0].weight)


def test_a_checkpoint_of_another_run_is_refused_naming_the_difference(tmp_path):
    run(tmp_path, identity={"data": "a"})
    with pytest.raises(ConfigurationError, match="data: expected 'b', it has 'a'"):
        run(tmp_path, identity={"data": "b"})
    with pytest.raises(ConfigurationError, match=r"learning_rate: expected 0\.5"):
        run(tmp_path, replace(PARAMETERS, {"learning_rate": 0.5}), identity={"data": "a"})


def test_a_corrupt_checkpoint_is_named(tmp_path):
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no")
    with pytest.raises(ConfigurationError, match=r"checkpoint\.safetensors: unreadable"):
        run(tmp_path)


def test_divergence_is_an_error(tmp_path):
    def diverging(module, batch):
        return {"loss": squared_error(module, batch)["loss"] * float("nan")}

    with pytest.raises(ModelError, match="step 0 is nan"):
        run(tmp_path, loss=diverging)


def test_the_learning_rate_warms_up_to_its_peak_and_falls_to_zero():
    rates = [learning_rate(PARAMETERS, step) for step in range(PARAMETERS.steps + 1)]
    assert max(rates) == PARAMETERS.learning_rate == rates[3] == rates[4]
    assert all(a < b for a, b in itertools.pairwise(rates[:4]))
    assert all(a > b for a, b in itertools.pairwise(rates[4:]))
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)


def test_progress_says_rate_and_time_left(tmp_path, capsys):
    run(tmp_path)
    lines = capsys.readouterr().err
    assert "line: 20/40 steps" in lines
    assert "/s, " in lines
    assert " left, held out loss" in lines


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (float("inf"), "unknown time"),
    ],
)
def test_durations_read_as_people_say_them(seconds, text):
    assert duration(seconds) == text
