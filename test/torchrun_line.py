"""Started under torchrun by test_training_distributed.py: several processes learn a line."""

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from vla_reasoner_ros.training import distributed
from vla_reasoner_ros.training.trainer import TrainerParameters, train

PARAMETERS = TrainerParameters(
    steps=20, batch_size=8, learning_rate=0.02, warmup_steps=2, evaluate_every=5, bf16=False
)


class Line:
    """Samples of y = 2 x - 1."""

    def __init__(self, count):
        self.x = torch.linspace(-1.0, 1.0, count)[:, None]

    def __len__(self):
        return len(self.x)

    def batch(self, indices, rng):
        x = self.x[torch.from_numpy(indices)]
        return {"x": x, "y": 2.0 * x - 1.0}


def loss(module, batch):
    return {"loss": (module[1](module[0](batch["x"])) - batch["y"]).square().mean()}


def make():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(1, 8), nn.Linear(8, 1))


def killed_after(steps):
    """The loss, in a process that dies in the given step."""
    seen = 0

    def dying(module, batch):
        nonlocal seen
        seen += module.training
        if seen > steps:
            os._exit(9)
        return loss(module, batch)

    return dying


def main(folder, dies):
    processes = distributed.join()
    (folder / f"rank_{processes.rank}").write_text(str(processes.size))
    objective = killed_after(12) if dies and processes.rank == 1 else loss
    module = make()
    with distributed.first_alone():
        alone = (folder / "cache").exists()
        (folder / "cache").touch()
    (folder / f"found_{processes.rank}").write_text(str(int(alone)))
    result = train(module, objective, Line(24), Line(9), PARAMETERS, folder / "work", title="line")
    # Only the first process comes here.
    found = {name: tensor.tolist() for name, tensor in module.state_dict().items()}
    told = {"rank": processes.rank, "curve": result.curve, "weights": found}
    with (folder / "results.jsonl").open("a") as file:
        file.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:] == ["dies"])
