"""What the search costs beside its models, and beside mctx: ratios within one run.

The reference model: a latent of 128, an MLP of two layers of 512 for the dynamics and another for
the value, 7-D actions, 256 simulations in waves of 32, torch on one thread. With the extra ``mctx``
installed (``pip install mctx==0.0.71``) the same weights run through ``mctx.muzero_policy`` as
well, on all the threads it likes. One JSON object a line.
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


def perceptron(inputs: int, outputs: int, seed: int) -> nn.Sequential:
    """Two hidden layers."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(inputs, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, HIDDEN),
        nn.ReLU(),
        nn.Linear(HIDDEN, outputs),
    ).eval()


class ReferenceModel:
    """Latent dynamics and value of the reference size; a world model and a value in one."""

    name, spec, macro_steps = "reference", DEFAULT_SPEC, 1
    needs_simulator_state, latent_source, privileged = False, "", False

    def __init__(self) -> None:
        self.dynamics = perceptron(LATENT + self.spec.dimensions, LATENT, 0)
        self.value = perceptron(LATENT, 1, 1)
        self.root = torch.randn(LATENT, generator=torch.Generator().manual_seed(2))

    def allocate(self, capacity: int) -> None:
        """See WorldModel."""
        self.latent = torch.zeros(capacity, LATENT)

    def encode(self, observation: Observation) -> None:
        """See WorldModel."""
        self.latent[0] = self.root

    @torch.inference_mode()
    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """See WorldModel."""
        state = self.latent[torch.from_numpy(parents)]
        move = torch.from_numpy(actions[:, 0])
        self.latent[torch.from_numpy(children)] = self.dynamics(torch.cat([state, move], dim=1))

    def bind(self, world_model: Any) -> None:
        """See Value."""

    def begin(self, observation: Observation) -> None:
        """See Value."""

    @torch.inference_mode()
    def evaluate(self, slots: Slots) -> NDArray[np.float32]:
        """See Value."""
        return self.value(self.latent[torch.from_numpy(slots)]).T.sigmoid().numpy()

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """See WorldModel."""
        return np.zeros(len(slots))


def parameters(**changes: Any) -> SearchParameters:
    """The reference search: textbook expansion, so that every simulation is one imagined step."""
    values = {
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


def median_time(run: Callable[[], Any], repeats: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times))


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


def overhead(model: ReferenceModel, repeats: int = 60) -> dict[str, Any]:
    """Search time over the time of its bare model calls, measured alternately.

    The models are the search's three callables: world model, value and prior (here a Gaussian).
    """
    bench = Bench(model, parameters())
    every, learned = bench.bare()
    times = [[median_time(run, 5) for run in (bench.run, every, learned)] for _ in range(repeats)]
    search, all_calls, learned_calls = np.array(times).T
    stages = {name: round(1e3 * s, 3) for name, s in bench.stages.seconds.items()}
    return {
        "name": "search.overhead_ratio",
        "value": round(float(np.median(search / all_calls)), 4),
        "unit": "ratio",
        "n": repeats,
        "detail": {
            "over_world_model_and_value_only": round(float(np.median(search / learned_calls)), 4),
            "search_ms": round(1e3 * float(np.median(search)), 3),
            "stages_ms": stages,
        },
    }


def against_mctx(model: ReferenceModel, repeats: int = 15) -> dict[str, Any] | None:
    """Simulations per second over those of mctx.muzero_policy; None without mctx.

    Both may use every core; of torch on one thread and on all, the faster counts.
    """
    try:
        import jax
        import jax.numpy as jnp
        import mctx
    except ImportError:
        return None

    def weights(network: nn.Sequential) -> list[tuple[Any, Any]]:
        layers = [layer for layer in network if isinstance(layer, nn.Linear)]
        return [
            (jnp.asarray(layer.weight.detach().numpy().T), jnp.asarray(layer.bias.detach().numpy()))
            for layer in layers
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
    bench = Bench(model, parameters())
    bench.run()
    ratios, detail = {}, {}
    for threads in sorted({1, os.cpu_count() or 1}):
        torch.set_num_threads(threads)
        pairs = [(median_time(theirs, 1), median_time(bench.run, 5)) for _ in range(repeats)]
        ratios[threads] = float(np.median([a / b for a, b in pairs]))
        slow, fast = np.median(pairs, axis=0)
        detail[f"torch threads {threads}"] = {
            "simulations_per_s": round(SIMULATIONS / fast),
            "mctx_simulations_per_s": round(SIMULATIONS / slow),
        }
    torch.set_num_threads(1)
    return {
        "name": "search.speedup_vs_mctx",
        "value": round(max(ratios.values()), 3),
        "unit": "ratio",
        "n": repeats,
        "detail": detail,
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
        },
    }


def scaling(model: ReferenceModel, repeats: int = 12) -> dict[str, Any]:
    """Time per simulation at 4,096 simulations over that at 64."""
    benches = {}
    for simulations in (64, 4096):
        benches[simulations] = Bench(model, parameters(simulations=simulations))
        benches[simulations].run()
    ratios = []
    for _ in range(repeats):
        costs = {}
        for simulations, bench in benches.items():
            model.latent = torch.zeros(bench.engine.capacity + 1, LATENT)
            model.latent[0] = model.root
            costs[simulations] = median_time(bench.run, 4096 // simulations // 4 or 1) / simulations
        ratios.append(costs[4096] / costs[64])
    return {
        "name": "search.scaling_ratio",
        "value": round(float(np.median(ratios)), 4),
        "unit": "ratio",
        "n": repeats,
        "detail": {"simulations": [64, 4096]},
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


def main() -> None:
    """Print every figure; what cannot be measured here is left out."""
    torch.set_num_threads(1)
    model = ReferenceModel()
    started = time.perf_counter()
    Bench(model, parameters()).engine.compile()
    first = time.perf_counter() - started
    figures = [
        {
            "name": "search.first_call_s",
            "value": round(first, 3),
            "unit": "s",
            "n": 1,
            "detail": "compilation, or loading from the disk cache",
        },
        overhead(model),
        against_mctx(model),
        scaling(model),
        memory(model),
        deadline(model),
    ]
    for figure in figures:
        if figure is not None:
            print(json.dumps(figure), flush=True)


if __name__ == "__main__":
    main()
