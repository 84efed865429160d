"""The training loop that all models share: seeded, resumable, stopped by held-out data.

Step s draws its batch, its augmentation and its dropout from generators seeded with the seed and s
alone, so a run that was interrupted and resumed ends with the same weights as one that was not.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from safetensors.torch import save as save_tensors
from torch import nn

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.parameters import flatten, parameter
from vla_reasoner_ros.training import distributed
from vla_reasoner_ros.training.distributed import Processes
from vla_reasoner_ros.training.progress import Progress, duration

CHECKPOINT = "checkpoint.safetensors"
Batch = dict[str, torch.Tensor]
Loss = Callable[[nn.Module, Batch], dict[str, torch.Tensor]]
"""(module, batch) to named scalars; ``loss`` is minimised and judged, the others are reported."""


@dataclass(frozen=True)
class TrainerParameters:
    """How a model is trained."""

    steps: int = parameter(4000, "Optimiser steps at most.", minimum=1)
    batch_size: int = parameter(64, "Samples per step.", minimum=1)
    learning_rate: float = parameter(1e-3, "Peak learning rate of AdamW.", minimum=0.0)
    weight_decay: float = parameter(1e-4, "Weight decay of AdamW.", minimum=0.0)
    warmup_steps: int = parameter(
        100, "Steps of linear warm-up; a cosine to zero follows.", minimum=0
    )
    gradient_clip: float = parameter(
        1.0, "The norm that gradients are clipped to; 0 does not clip.", minimum=0.0
    )
    average_decay: float = parameter(
        0.995,
        "Decay of the moving average of the weights, which is what is evaluated and kept.",
        minimum=0.0,
        maximum=0.99999,
    )
    evaluate_every: int = parameter(
        250, "Steps between held-out evaluations; each writes a checkpoint.", minimum=1
    )
    checkpoint_every_s: float = parameter(
        60.0,
        "Time between checkpoints besides: what a kill loses at most. Changes no result.",
        unit="s",
        minimum=0.0,
    )
    patience: int = parameter(
        0, "Evaluations without a better held-out loss before stopping; 0 never stops.", minimum=0
    )
    bf16: bool = parameter(True, "Compute in bfloat16 where autocast holds it to be safe.")
    threads: int = parameter(0, "CPU threads of torch; 0 leaves its choice.", minimum=0)
    seed: int = parameter(0, "Seed of order, augmentation and dropout.", minimum=0)


class Samples(Protocol):
    """What the loop draws batches from."""

    def __len__(self) -> int:
        """The number of samples N."""

    def batch(self, indices: NDArray[np.int64], rng: np.random.Generator | None) -> Batch:
        """The samples of the given indices, augmented from ``rng``; not at all when it is None."""


@dataclass
class TrainingResult:
    """What came out; the module passed to :func:`train` holds the best weights.

    Attributes:
        best_step: the step whose averaged weights did best on held-out data.
        metrics: their held-out metrics.
        steps: steps taken.
        curve: one row per evaluation: step, training loss since the last, held-out metrics.
        seconds: wall-clock time of this process's part.
    """

    best_step: int
    metrics: dict[str, float]
    steps: int
    curve: list[dict[str, float]]
    seconds: float


@dataclass
class _Progress:
    """The part of the loop's state that is not tensors."""

    step: int = 0
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    curve: list[dict[str, float]] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    """Of the steps since the last evaluation."""

    @property
    def stale(self) -> int:
        """Evaluations since the best one."""
        return sum(row["step"] > self.best_step for row in self.curve)


class _Objective(nn.Module):
    """The loss of a module as a module, so that its gradients can be averaged over processes."""

    def __init__(self, module: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.module = module
        self._loss = loss

    def forward(self, batch: Batch) -> torch.Tensor:
        return self._loss(self.module, batch)["loss"]


def training_device() -> torch.device:
    """The GPU where there is one; its convolutions and products keep all digits of float32."""
    device = distributed.join().device
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    return device


def train(
    module: nn.Module,
    loss: Loss,
    training: Samples,
    held_out: Samples,
    parameters: TrainerParameters,
    directory: str | Path,
    *,
    title: str,
    identity: Mapping[str, Any] | None = None,
    stream: TextIO | None = None,
) -> TrainingResult:
    """Train a module; resumes from ``directory`` when a checkpoint lies there.

    Under torchrun every process calls this alike, with the same ``directory``; the first one
    evaluates, writes and returns, the others end here when all is done
    (:mod:`vla_reasoner_ros.training.distributed`).

    Args:
        module: initialised by the caller, on the CPU; left there with the best weights.
        loss: the objective.
        training: what is learned from.
        held_out: what decides which weights are kept.
        parameters: how.
        directory: for ``checkpoint.safetensors``, ``curve.json`` and ``curve.png``.
        title: what progress lines and the plot call it.
        identity: what a checkpoint must share to be resumed, such as data hash and architecture.
        stream: where progress goes; None is standard error.

    Raises:
        ConfigurationError: the checkpoint is unreadable, or of another run.
        ModelError: the loss is no longer finite.
        SystemExit: in every process but the first, when training is over.
    """
    directory = Path(directory)
    device, processes = training_device(), distributed.join()
    if parameters.threads:
        torch.set_num_threads(parameters.threads)
    module.to(device)
    run = _Run.begin(module, loss, parameters, processes)
    settings = {n: v for n, v in flatten(parameters).items() if n != "checkpoint_every_s"}
    run.identity = {"title": title, **settings, **(identity or {})}
    path = directory / CHECKPOINT
    if path.exists():
        run.resume(path)
    state = run.state
    stream = (stream or sys.stderr) if processes.first else io.StringIO()
    progress = Progress(title, parameters.steps, "steps", state.step, stream=stream)
    if state.step:
        progress.update(state.step, "resumed", force=True)

    saved = progress.seconds
    while state.step < parameters.steps:
        if parameters.patience and state.stale >= parameters.patience:
            break
        value = _step(
            run.objective, run.averaged, run.optimizer, training, parameters, state.step, processes
        )
        state.losses.append(value)
        state.step += 1
        progress.update(state.step, f"loss {value:.4f}")
        if state.step % parameters.evaluate_every == 0 or state.step == parameters.steps:
            metrics: dict[str, float] = {}
            if processes.first:
                metrics = evaluate(run.averaged, loss, held_out, parameters, device)
            metrics = processes.told(metrics)
            run.keep(metrics)
            if processes.first:
                _write_curve(directory, title, state.curve)
            progress.update(state.step, f"held out {_text(metrics)}", force=True)
            saved = -math.inf
        if processes.first and progress.seconds - saved >= parameters.checkpoint_every_s:
            run.save(path)
            saved = progress.seconds

    distributed.leave()
    if not processes.first:
        raise SystemExit(0)
    module.load_state_dict(run.best)
    module.to("cpu").eval()
    print(
        f"{title}: best at step {state.best_step}, held out {_text(state.best_metrics)}, "
        f"{duration(progress.seconds)}",
        file=stream,
        flush=True,
    )
    return TrainingResult(
        state.best_step, state.best_metrics, state.step, state.curve, progress.seconds
    )


@dataclass
class _Run:
    """Everything that a checkpoint holds, and what is needed to go on."""

    module: nn.Module
    averaged: nn.Module
    objective: nn.Module
    optimizer: torch.optim.Optimizer
    best: dict[str, torch.Tensor]
    state: _Progress = field(default_factory=_Progress)
    identity: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def begin(
        cls, module: nn.Module, loss: Loss, parameters: TrainerParameters, processes: Processes
    ) -> _Run:
        """A run of a module that lies on its device."""
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=parameters.learning_rate, weight_decay=parameters.weight_decay
        )
        averaged = copy.deepcopy(module).eval()
        objective = processes.parallel(_Objective(module, loss))
        return cls(module, averaged, objective, optimizer, _snapshot(module))

    def keep(self, metrics: dict[str, float]) -> None:
        """Note an evaluation, and the averaged weights if they are the best so far."""
        state = self.state
        training_loss = float(np.mean(state.losses))
        state.losses = []
        state.curve.append({"step": state.step, "training_loss": training_loss, **metrics})
        if not state.best_metrics or metrics["loss"] < state.best_metrics["loss"]:
            state.best_step, state.best_metrics = state.step, metrics
            self.best = _snapshot(self.averaged)

    def save(self, path: Path) -> None:
        """Write a checkpoint."""
        _save(
            path, self.identity, self.state, self.module, self.averaged, self.best, self.optimizer
        )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""
        self.state, self.best = _resume(
            path, self.identity, self.module, self.averaged, self.optimizer
        )


@torch.inference_mode()
def evaluate(
    module: nn.Module,
    loss: Loss,
    samples: Samples,
    parameters: TrainerParameters,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Mean of each of the loss's scalars over all samples, without augmentation."""
    module.eval()
    totals: dict[str, float] = {}
    for start in range(0, len(samples), parameters.batch_size):
        indices = np.arange(start, min(start + parameters.batch_size, len(samples)))
        batch = _on(samples.batch(indices, None), device)
        with _autocast(parameters, device):
            parts = loss(module, batch)
        for name, value in parts.items():
            totals[name] = totals.get(name, 0.0) + float(value) * len(indices)
    return {name: total / len(samples) for name, total in totals.items()}


def learning_rate(parameters: TrainerParameters, step: int) -> float:
    """Linear warm-up, then a cosine to zero (Loshchilov and Hutter, arXiv 1608.03983)."""
    if step < parameters.warmup_steps:
        return parameters.learning_rate * (step + 1) / parameters.warmup_steps
    span = max(1, parameters.steps - parameters.warmup_steps)
    phase = (step - parameters.warmup_steps) / span
    return parameters.learning_rate * 0.5 * (1.0 + math.cos(math.pi * phase))


def _step(
    objective: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: Samples,
    parameters: TrainerParameters,
    step: int,
    processes: Processes,
) -> float:
    device = processes.device
    module = objective.module if processes.size == 1 else objective.module.module
    assert isinstance(module, nn.Module)
    rng = processes.stream([parameters.seed, 1, step])
    indices = processes.share(_indices(len(training), parameters, step))
    batch = _on(training.batch(indices, rng), device)
    for settings in optimizer.param_groups:
        settings["lr"] = learning_rate(parameters, step)
    module.train()
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(int(rng.integers(2**62)))
        with _autocast(parameters, device):
            value = objective(batch)
    if not torch.isfinite(value):
        raise ModelError(f"training diverged: the loss at step {step} is {value.item()}")
    optimizer.zero_grad(set_to_none=True)
    value.backward()
    if parameters.gradient_clip:
        nn.utils.clip_grad_norm_(module.parameters(), parameters.gradient_clip)
    optimizer.step()
    # A young average forgets faster, so that it does not hold on to the initial weights.
    decay = min(parameters.average_decay, (step + 1) / (step + 10))
    with torch.no_grad():
        for mean, new in zip(
            averaged.state_dict().values(), module.state_dict().values(), strict=True
        ):
            if mean.is_floating_point():
                mean.lerp_(new, 1.0 - decay)
            else:
                mean.copy_(new)
    return float(value.detach())


def _indices(count: int, parameters: TrainerParameters, step: int) -> NDArray[np.int64]:
    """The samples of a step: each epoch is a new permutation, its last partial batch left out."""
    batches = max(1, count // parameters.batch_size)
    epoch, position = divmod(step, batches)
    order = np.random.default_rng([parameters.seed, 0, epoch]).permutation(count)
    return order[position * parameters.batch_size :][: parameters.batch_size]


def _autocast(parameters: TrainerParameters, device: torch.device | str) -> torch.autocast:
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=parameters.bf16)


def _on(batch: Batch, device: torch.device | str) -> Batch:
    return {name: tensor.to(device) for name, tensor in batch.items()}


def _snapshot(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def _text(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4f}" for name, value in metrics.items())


def _save(
    path: Path,
    identity: Mapping[str, Any],
    state: _Progress,
    module: nn.Module,
    averaged: nn.Module,
    best: Mapping[str, torch.Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    parts = {"module": module.state_dict(), "averaged": averaged.state_dict(), "best": best}
    tensors = {f"{part}/{name}": t for part, group in parts.items() for name, t in group.items()}
    for index, values in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": tensor for name, tensor in values.items()}
    header = {
        "identity": json.dumps(identity, sort_keys=True),
        "progress": json.dumps(dataclasses.asdict(state)),
    }
    stored = {name: tensor.detach().cpu().clone() for name, tensor in tensors.items()}
    stored = {name: tensor.contiguous() for name, tensor in stored.items()}
    write_atomically(path, save_tensors(stored, metadata=header))


def _resume(
    path: Path,
    identity: Mapping[str, Any],
    module: nn.Module,
    averaged: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> tuple[_Progress, dict[str, torch.Tensor]]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = json.loads(header["identity"])
        state = _Progress(**json.loads(header["progress"]))
    except (OSError, safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"checkpoint {path}: unreadable: {error}") from error
    expected = json.loads(json.dumps(identity))
    differing = [k for k in expected.keys() | found.keys() if expected.get(k) != found.get(k)]
    if differing:
        raise ConfigurationError(
            f"checkpoint {path} is of another run; "
            + "; ".join(
                f"{k}: expected {expected.get(k)!r}, it has {found.get(k)!r}"
                for k in sorted(differing)
            )
            + "; delete it or name another folder"
        )
    device = next(module.parameters()).device

    def part(name: str) -> dict[str, torch.Tensor]:
        prefix = f"{name}/"
        return {
            key[len(prefix) :]: tensor.to(device)
            for key, tensor in tensors.items()
            if key.startswith(prefix)
        }

    module.load_state_dict(part("module"))
    averaged.load_state_dict(part("averaged"))
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for key, tensor in part("optimizer").items():
        index, _, name = key.partition("/")
        moments.setdefault(int(index), {})[name] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state, part("best")


def _write_curve(directory: Path, title: str, curve: list[dict[str, float]]) -> None:
    from matplotlib.figure import Figure

    write_atomically(directory / "curve.json", json.dumps(curve, indent=1).encode())
    figure = Figure(figsize=(6.0, 3.5), layout="constrained")
    axes = figure.add_subplot()
    steps = [row["step"] for row in curve]
    axes.plot(steps, [row["training_loss"] for row in curve], label="training loss")
    for name in curve[0]:
        if name not in ("step", "training_loss"):
            axes.plot(steps, [row[name] for row in curve], label=f"held out: {name}")
    axes.set(xlabel="step", title=title, yscale="log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    write_atomically(directory / "curve.png", image.getvalue())
