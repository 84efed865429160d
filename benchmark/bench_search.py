"""What the search costs beside its models, and beside mctx: ratios within one run.

The reference model: a latent of 128, an MLP of two layers of 512 for the dynamics and another for
the value, 7-D actions, 256 simulations in waves of 32. With the extra ``mctx`` installed
(``pip install mctx==0.0.71``) the same weights run through ``mctx.muzero_policy`` as well, on all
the threads it likes. What is compared runs alternately, and the fastest runs are compared, as
others only slow a run down; ``detail`` has the medians and the load. One JSON object a line.
"""

from __future__ import annotations

import gc
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.reasoner import Reasoner, with_reference
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import size_in_bytes
from vla_reasoner_ros.types import ActionChunk, Observation

LATENT, HIDDEN, SIMULATIONS, WAVE, CANDIDATES, DEPTH = 128, 512, 256, 32, 16, 4
DEADLINE_S = 0.05
Slots = NDArray[np.int64]


class Perceptron:
    """Two hidden layers, with one set of buffers per batch size: nothing is allocated per call."""

    def __init__(self, inputs: int, outputs: int, seed: int) -> None:
        torch.manual_seed(seed)
        sizes = [(inputs, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, outputs)]
        layers = [nn.Linear(*size) for size in sizes]
        self.weights = [layer.weight.detach().T.contiguous() for layer in layers]
        self.biases = [layer.bias.detach() for layer in layers]
        self._buffers: dict[int, list[torch.Tensor]] = {}

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """(B, inputs) to (B, outputs), valid until the next call."""
        if len(x) not in self._buffers:
            self._buffers[len(x)] = [torch.empty(len(x), w.shape[1]) for w in self.weights]
        first, second, last = self._buffers[len(x)]
        torch.addmm(self.biases[0], x, self.weights[0], out=first).relu_()
        torch.addmm(self.biases[1], first, self.weights[1], out=second).relu_()
        return torch.addmm(self.biases[2], second, self.weights[2], out=last)


class ReferenceModel:
    """Latent dynamics and value of the reference size; a world model and a value in one."""

    name, spec, macro_steps = "reference", DEFAULT_SPEC, 1
    needs_simulator_state, latent_source, privileged = False, "", False

    def __init__(self) -> None:
        self.dynamics = Perceptron(LATENT + self.spec.dimensions, LATENT, 0)
        self.value = Perceptron(LATENT, 1, 1)
        self.root = torch.randn(LATENT, generator=torch.Generator().manual_seed(2))

    def allocate(self, capacity: int) -> None:
        """See WorldModel."""
        self.latent = torch.zeros(capacity, LATENT)

    def encode(self, observation: Observation) -> None:
        """See WorldModel."""
        self.latent[0] = self.root

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """See WorldModel."""
        state = self.latent.index_select(0, torch.from_numpy(parents))
        following = self.dynamics(torch.cat([state, torch.from_numpy(actions[:, 0])], dim=1))
        self.latent.index_copy_(0, torch.from_numpy(children), following)

    def bind(self, world_model: Any) -> None:
        """See Value."""

    def begin(self, observation: Observation) -> None:
        """See Value."""

    def evaluate(self, slots: Slots) -> NDArray[np.float32]:
        """See Value."""
        state = self.latent.index_select(0, torch.from_numpy(slots))
        values: NDArray[np.float32] = self.value(state).sigmoid().T.numpy()
        return values

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """See WorldModel."""
        return np.zeros(len(slots))


def parameters(**changes: Any) -> SearchParameters:
    """The reference search: as mctx does it, every simulation is one imagined step, unblended."""
    values = {
        "alpha": 0.0,
        "simulations": SIMULATIONS,
        "wave": WAVE,
        "depth": DEPTH,
        "samples": CANDIDATES,
        "branching": CANDIDATES,
        "rollout": False,
        "widening.enabled": False,
        "reach": DEPTH,
        "executed": 1,
    }
    return build(SearchParameters, values | {k.replace("__", "."): v for k, v in changes.items()})


def alternately(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, NDArray[np.float64]]:
    """Seconds (rounds,) of each of several calls, made in turn."""
    times = {name: np.empty(rounds) for name in runs}
    for i in range(rounds):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            times[name][i] = time.perf_counter() - started
    return times


def load() -> float:
    """Processes that wanted to run in the last minute, per core."""
    return round(os.getloadavg()[0] / (os.cpu_count() or 1), 2)


class Bench:
    """One engine with its models."""

    def __init__(self, model: ReferenceModel, search: SearchParameters) -> None:
        self.model, self.search = model, search
        self.engine = Engine(search, model.macro_steps, model.spec)
        model.allocate(self.engine.capacity + 1)
        model.latent[0] = model.root
        self.models = Models(model.step, model.evaluate, with_reference(GaussianPrior()))
        self.segments = np.zeros((8, model.spec.dimensions))
        self.stages = Stages()
        self._seed = 0

    def run(self) -> None:
        """One search."""
        self._seed += 1
        self.stages = Stages()
        budget = Budget(self.search.simulations)
        rng = np.random.default_rng(self._seed)
        self.engine.search(self.models, self.segments, budget, rng, self.stages)

    def timed(self) -> float:
        """One search: its time over that of its world-model and value calls."""
        models, spent = self.models, [0.0]

        def watched(model: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                started = time.perf_counter()
                answer = model(*arguments)
                spent[0] += time.perf_counter() - started
                return answer

            return call

        self.models = models._replace(step=watched(models.step), evaluate=watched(models.evaluate))
        started = time.perf_counter()
        self.run()
        whole = time.perf_counter() - started
        self.models = models
        return whole / spent[0]

    def bare(self) -> tuple[Callable[[], None], Callable[[], None]]:
        """The model calls of one search, replayed alone: all, and all but the prior's."""
        calls: list[tuple[Any, ...]] = []

        def recorded(model: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any) -> Any:
                kept = [a.copy() if isinstance(a, np.ndarray) else a for a in arguments]
                calls.append((model, *kept))
                return model(*arguments)

            return call

        models = self.models
        self.models = Models(*(model and recorded(model) for model in models))
        self.run()
        self.models = models

        def replay(prior: bool) -> Callable[[], None]:
            chosen = [call for call in calls if prior or call[0] is not models.candidates]

            def run() -> None:
                for call, *arguments in chosen:
                    call(*arguments)

            return run

        return replay(True), replay(False)


def overhead(model: ReferenceModel, rounds: int = 300) -> dict[str, Any]:
    """Search time over the time of the bare batched world-model and value calls that it makes.

    The calls are replayed alone, over and over, which is how models run fastest; ``detail`` also
    compares with the same calls timed inside the search, where they find the caches cold.
    """
    bench = Bench(model, parameters())
    every, learned = bench.bare()
    times = alternately({"search": bench.run, "every": every, "learned": learned}, rounds)
    fastest = {name: float(seconds.min()) for name, seconds in times.items()}
    median = {name: float(np.median(seconds)) for name, seconds in times.items()}
    inside = [bench.timed() for _ in range(rounds)]
    return {
        "name": "search.overhead_ratio",
        "value": round(fastest["search"] / fastest["learned"], 4),
        "unit": "ratio",
        "n": rounds,
        "detail": {
            "over_world_model_value_and_prior": round(fastest["search"] / fastest["every"], 4),
            "over_the_same_calls_in_the_search": round(float(np.median(inside)), 4),
            "of_medians": round(median["search"] / median["learned"], 4),
            "search_ms": round(1e3 * fastest["search"], 3),
            "world_model_and_value_ms": round(1e3 * fastest["learned"], 3),
            "load": load(),
        },
    }


def against_mctx(model: ReferenceModel, rounds: int = 40) -> dict[str, Any]:
    """Simulations per second over those of mctx.muzero_policy; no value without mctx.

    Both may use every core; of torch on one thread and on all, the faster counts. ``detail`` says
    what a search that costs nothing would reach: the bare model calls, by the width of a wave.
    """
    name = "search.speedup_vs_mctx"
    try:
        import jax
        import jax.numpy as jnp
        import mctx
    except ImportError:
        missing = "mctx is not installed: pip install mctx==0.0.71"
        return {"name": name, "value": None, "unit": "ratio", "n": 0, "detail": missing}

    def weights(network: Perceptron) -> list[tuple[Any, Any]]:
        return [
            (jnp.asarray(weight.numpy()), jnp.asarray(bias.numpy()))
            for weight, bias in zip(network.weights, network.biases, strict=True)
        ]

    def apply(layers: list[tuple[Any, Any]], x: Any) -> Any:
        for matrix, bias in layers[:-1]:
            x = jax.nn.relu(x @ matrix + bias)
        return x @ layers[-1][0] + layers[-1][1]

    networks = weights(model.dynamics), weights(model.value)
    rng = np.random.default_rng(0)
    moves = 0.012 * rng.standard_normal((CANDIDATES + 1, model.spec.dimensions))
    actions = jnp.asarray(moves, jnp.float32)

    def recurrent(networks: Any, key: Any, action: Any, latent: Any) -> Any:
        following = apply(networks[0], jnp.concatenate([latent, actions[action]], axis=1))
        value = jax.nn.sigmoid(apply(networks[1], following))[:, 0]
        output = mctx.RecurrentFnOutput(
            reward=jnp.zeros_like(value),
            discount=jnp.ones_like(value),
            prior_logits=jnp.zeros((len(action), len(actions))),
            value=value,
        )
        return output, following

    @jax.jit
    def search(networks: Any, key: Any, latent: Any) -> Any:
        root = mctx.RootFnOutput(
            prior_logits=jnp.zeros((1, len(actions))),
            value=jax.nn.sigmoid(apply(networks[1], latent))[:, 0],
            embedding=latent,
        )
        return mctx.muzero_policy(
            networks, key, root, recurrent, num_simulations=SIMULATIONS, max_depth=DEPTH
        ).action_weights

    latent = jnp.asarray(model.root.numpy())[None]

    def theirs() -> None:
        search(networks, jax.random.PRNGKey(0), latent).block_until_ready()

    theirs()
    ours = {wave: Bench(model, parameters(wave=wave)) for wave in (WAVE, 2 * WAVE, 4 * WAVE)}
    for bench in ours.values():
        bench.run()
    threads = sorted({1, os.cpu_count() or 1})
    seconds: dict[str, list[float]] = {}
    for count in threads:
        torch.set_num_threads(count)
        runs: dict[str, Callable[[], Any]] = {"mctx": theirs}
        runs |= {f"W = {wave}, {count} threads": bench.run for wave, bench in ours.items()}
        for key, times in alternately(runs, rounds).items():
            seconds.setdefault(key, []).extend(times.tolist())
    bare: dict[str, float] = {}
    for count in threads:
        torch.set_num_threads(count)
        for wave in (8, 16, 32, 64, 128, 256):
            slots, moved = np.zeros(wave, np.int64), np.zeros((wave, 1, 7), np.float32)

            def call(slots: Slots = slots, moved: NDArray[np.float32] = moved) -> None:
                children = 1 + np.arange(len(slots))
                model.step(slots, moved, children)
                model.evaluate(children)

            each = alternately({"bare": call}, 4 * rounds)["bare"].min() / wave
            bare[f"W = {wave}, {count} threads"] = each
    torch.set_num_threads(1)
    fastest = {key: min(times) / SIMULATIONS for key, times in seconds.items()}
    reference = [fastest[f"W = {WAVE}, {count} threads"] for count in threads]
    return {
        "name": name,
        "value": round(fastest["mctx"] / min(reference), 3),
        "unit": "ratio",
        "n": rounds,
        "detail": {
            "us_per_simulation": {key: round(1e6 * s, 2) for key, s in fastest.items()},
            "median_us_per_simulation": {
                key: round(1e6 * float(np.median(times)) / SIMULATIONS, 2)
                for key, times in seconds.items()
            },
            "bare_models_us_per_simulation": {
                key: round(1e6 * each, 2) for key, each in bare.items()
            },
            "speedup_if_the_search_cost_nothing": {
                key: round(fastest["mctx"] / each, 2) for key, each in bare.items()
            },
            "load": load(),
        },
    }


class Still:
    """A policy that proposes to stand still."""

    spec = PolicySpec("still", {}, DEFAULT_SPEC, 8)

    def reset(self) -> None:
        """See Policy."""

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """See Policy."""
        return [ActionChunk(DEFAULT_SPEC, np.zeros((8, 7)), observation.stamp_ns)]


def deadline(model: ReferenceModel, decisions: int = 1000) -> dict[str, Any]:
    """99th percentile of the decision time over a deadline of 50 ms."""
    search = parameters(simulations=20_000, positions=False)
    reasoner = Reasoner(Still(), model, model, GaussianPrior(), search)
    seen = Observation(
        0, {}, ("a",), np.zeros(1), np.zeros(1), np.zeros(3), np.array([0.0, 0, 0, 1]), 1.0, "wait"
    )
    reasoner.warm_up(seen)
    for _ in range(5):
        reasoner.decide(seen, DEADLINE_S)
    gc.collect()
    gc.freeze()
    times, simulations = [], []
    for _ in range(decisions):
        started = time.perf_counter()
        decision = reasoner.decide(seen, DEADLINE_S)
        times.append(time.perf_counter() - started)
        simulations.append(decision.statistics.simulations)
    return {
        "name": "search.deadline_p99_ratio",
        "value": round(float(np.percentile(times, 99)) / DEADLINE_S, 4),
        "unit": "ratio",
        "n": decisions,
        "detail": {
            "p50": round(float(np.median(times)) / DEADLINE_S, 4),
            "max": round(max(times) / DEADLINE_S, 4),
            "simulations_p50": int(np.median(simulations)),
            "load": load(),
        },
    }


def scaling(model: ReferenceModel, repeats: int = 20) -> dict[str, Any]:
    """Time per simulation at 4,096 simulations over that at 64."""
    benches = {}
    for simulations in (64, 4096):
        benches[simulations] = Bench(model, parameters(simulations=simulations))
        benches[simulations].run()
    model.latent = torch.zeros(benches[4096].engine.capacity + 1, LATENT)
    model.latent[0] = model.root
    runs = {str(simulations): bench.run for simulations, bench in benches.items()}
    times = alternately(runs, repeats)
    costs = {key: seconds / int(key) for key, seconds in times.items()}
    return {
        "name": "search.scaling_ratio",
        "value": round(float(costs["4096"].min() / costs["64"].min()), 4),
        "unit": "ratio",
        "n": repeats,
        "detail": {
            "of_medians": round(float(np.median(costs["4096"]) / np.median(costs["64"])), 4),
            "load": load(),
        },
    }


def memory(model: ReferenceModel) -> dict[str, Any]:
    """Bytes of the tree per node, latents aside, for the reference and for the default search."""
    default = build(SearchParameters, {"simulations": SIMULATIONS})
    sizes = {}
    for name, search, steps in (("reference", parameters(), 1), ("default, M = 4", default, 4)):
        engine = Engine(search, steps, model.spec)
        sizes[name] = round(size_in_bytes(engine.tree) / engine.capacity, 1)
    return {
        "name": "search.bytes_per_node",
        "value": sizes["reference"],
        "unit": "B",
        "n": 1,
        "detail": sizes,
    }


def first_call(model: ReferenceModel) -> dict[str, Any]:
    """Seconds to compile the kernels, or to load them from the disk cache."""
    started = time.perf_counter()
    Bench(model, parameters()).engine.compile()
    seconds = round(time.perf_counter() - started, 3)
    return {"name": "search.first_call_s", "value": seconds, "unit": "s", "n": 1, "detail": {}}


def main() -> None:
    """Print every figure as soon as it is known."""
    torch.set_num_threads(1)
    model = ReferenceModel()
    for figure in (first_call, overhead, against_mctx, scaling, memory, deadline):
        print(json.dumps(figure(model)), flush=True)


if __name__ == "__main__":
    main()
