"""What the search costs beside its models, and beside mctx: ratios within one run.

The reference model: a latent of 128, an MLP of two layers of 512 for the dynamics and another for
the value, 7-D actions, 256 simulations in waves of 32. With the extra ``mctx`` installed
(``pip install mctx==0.0.71``) the same weights run through ``mctx.muzero_policy`` as well, in the
precision and on the threads that suit it best, as ours do. What is compared runs alternately, and
the fastest runs are compared, as others only slow a run down; ``detail`` has the medians and the
load. One JSON object a line.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from vla_reasoner_ros.dense_kernels import HAS_BFLOAT16
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.perceptron import Perceptron
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.gaussian import GaussianPrior
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.budget import Budget
from vla_reasoner_ros.search.engine import Engine
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import size_in_bytes
from vla_reasoner_ros.types import ActionChunk, Observation

LATENT, HIDDEN, SIMULATIONS, WAVE, CANDIDATES, DEPTH = 128, 512, 256, 32, 16, 4
WAVES = (WAVE, 64, 128)
WIDEST = 128
"""Keeps 96 % of what W = 1 reaches on the double integrator; see docs/search.md."""
DEADLINE_S = 0.05
Slots = NDArray[np.int64]


Layers = tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]


def layers(inputs: int, outputs: int, seed: int) -> Layers:
    """Weights (1, inputs, outputs) and biases (1, outputs) of two hidden layers and the last."""
    rng = np.random.default_rng(seed)
    widths = (inputs, HIDDEN, HIDDEN, outputs)
    shapes = list(itertools.pairwise(widths))
    weights = [(rng.uniform(-1.0, 1.0, (1, *s)) / s[0] ** 0.5).astype(np.float32) for s in shapes]
    biases = [(rng.uniform(-1.0, 1.0, (1, b)) / a**0.5).astype(np.float32) for a, b in shapes]
    return weights, biases


class ReferenceModel:
    """Latent dynamics and value of the reference size; a world model and a value in one.

    Args:
        precision: of both networks, ``float32`` or ``bfloat16``.
        threads: that they use.
    """

    name, spec, macro_steps = "reference", DEFAULT_SPEC, 1
    needs_simulator_state, latent_source, privileged = False, "", False

    def __init__(self, precision: str = "float32", threads: int = 1) -> None:
        self.layers = layers(LATENT + self.spec.dimensions, LATENT, 0), layers(LATENT, 1, 1)
        self._dynamics, self._value = (
            Perceptron(*each, "relu", precision, threads) for each in self.layers
        )
        self.root = np.random.default_rng(2).standard_normal(LATENT).astype(np.float32)

    def allocate(self, capacity: int) -> None:
        """See WorldModel."""
        self.latent = np.zeros((capacity, LATENT), np.float32)
        self._inputs = np.zeros((1, capacity, self._dynamics.inputs), np.float32)

    def encode(self, observation: Observation) -> None:
        """See WorldModel."""
        self.latent[0] = self.root

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """See WorldModel."""
        inputs = self._inputs[:, : len(parents)]
        inputs[0, :, :LATENT] = self.latent[parents]
        inputs[0, :, LATENT:] = actions[:, 0]
        self.latent[children] = self._dynamics(inputs)[0]

    def bind(self, world_model: Any) -> None:
        """See Value."""

    def begin(self, observation: Observation) -> None:
        """See Value."""

    def evaluate(self, slots: Slots) -> NDArray[np.float32]:
        """See Value."""
        values: NDArray[np.float32] = expit(self._value(self.latent[None, slots])[..., 0])
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
        self.models = Models(model.step, model.evaluate, GaussianPrior().sample_with_reference)
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


def overhead(rounds: int = 300) -> dict[str, Any]:
    """Search time over the time of the bare batched world-model and value calls that it makes.

    The models are float32 on one thread. The calls are replayed alone, over and over, which is how
    models run fastest; ``detail`` also compares with the same calls timed inside the search, where
    they find the caches cold, and with faster models, beside which the same search weighs more.
    """
    bench = Bench(ReferenceModel(), parameters())
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
            "of_faster_models": faster_models(rounds),
            "load": load(),
        },
    }


def faster_models(rounds: int) -> dict[str, float]:
    """The overhead beside models in bfloat16, and on all threads, where there are such."""
    threads = os.cpu_count() or 1
    kinds = [("float32", threads)] if threads > 1 else []
    if HAS_BFLOAT16:
        kinds += [("bfloat16", count) for count in sorted({1, threads})]
    ratios = {}
    for precision, count in kinds:
        bench = Bench(ReferenceModel(precision, count), parameters())
        times = alternately({"search": bench.run, "learned": bench.bare()[1]}, rounds)
        ratio = times["search"].min() / times["learned"].min()
        ratios[f"{precision}, {count} threads"] = round(float(ratio), 4)
    return ratios


def mctx_search(model: ReferenceModel, precision: str) -> Callable[[], Any]:
    """One mctx.muzero_policy search with the model's weights, compiled.

    Raises:
        ImportError: mctx is not installed.
    """
    import jax
    import jax.numpy as jnp
    import mctx

    def weights(network: Layers) -> list[tuple[Any, Any]]:
        return [
            (jnp.asarray(weight[0], precision), jnp.asarray(bias[0], precision))
            for weight, bias in zip(*network, strict=True)
        ]

    def apply(network: list[tuple[Any, Any]], x: Any) -> Any:
        for matrix, bias in network[:-1]:
            x = jax.nn.relu(x @ matrix + bias)
        return x @ network[-1][0] + network[-1][1]

    networks = weights(model.layers[0]), weights(model.layers[1])
    moves = 0.012 * np.random.default_rng(0).standard_normal((CANDIDATES + 1, 7))
    actions = jnp.asarray(moves, precision)

    def value_of(networks: Any, latent: Any) -> Any:
        return jax.nn.sigmoid(apply(networks[1], latent))[:, 0].astype(jnp.float32)

    def recurrent(networks: Any, key: Any, action: Any, latent: Any) -> Any:
        following = apply(networks[0], jnp.concatenate([latent, actions[action]], axis=1))
        value = value_of(networks, following)
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
            value=value_of(networks, latent),
            embedding=latent,
        )
        return mctx.muzero_policy(
            networks, key, root, recurrent, num_simulations=SIMULATIONS, max_depth=DEPTH
        ).action_weights

    latent = jnp.asarray(model.root, precision)[None]

    def run() -> None:
        search(networks, jax.random.PRNGKey(0), latent).block_until_ready()

    run()
    return run


def against_mctx(rounds: int = 40) -> dict[str, Any]:
    """Simulations per second over those of mctx.muzero_policy; no value without mctx.

    One rule for both: float32 or bfloat16, as many threads as they like, and the fastest counts;
    ours with the widest waves that lose at most 5 % of what W = 1 reaches. ``detail`` has each
    precision and width apart, and what a search that costs nothing would reach: the bare model
    calls.
    """
    name = "search.speedup_vs_mctx"
    precisions = ["float32", "bfloat16"] if HAS_BFLOAT16 else ["float32"]
    threads = sorted({1, os.cpu_count() or 1})
    runs: dict[str, Callable[[], Any]] = {}
    bare: dict[str, Callable[[], Any]] = {}
    try:
        for precision in ("float32", "bfloat16"):
            runs[f"mctx, {precision}"] = mctx_search(ReferenceModel(), precision)
    except ImportError:
        missing = "mctx is not installed: pip install mctx==0.0.71"
        return {"name": name, "value": None, "unit": "ratio", "n": 0, "detail": missing}
    for precision, count, wave in itertools.product(precisions, threads, WAVES):
        bench = Bench(ReferenceModel(precision, count), parameters(wave=wave))
        key = f"{precision}, W = {wave}, {count} threads"
        runs[key] = bench.run
        bare[key] = bench.bare()[1]
        bench.run()
    times = alternately(runs, rounds)
    fastest = {key: float(each.min()) / SIMULATIONS for key, each in times.items()}
    calls = alternately(bare, rounds)

    def best(start: str) -> float:
        return min(each for key, each in fastest.items() if key.startswith(start))

    def ours(wave: int) -> float:
        return min(best(f"{precision}, W = {wave},") for precision in precisions)

    return {
        "name": name,
        "value": round(best("mctx") / ours(WIDEST), 3),
        "unit": "ratio",
        "n": rounds,
        "detail": {
            "by_wave": {wave: round(best("mctx") / ours(wave), 2) for wave in WAVES},
            "by_precision_and_wave": {
                f"{precision}, W = {wave}": round(
                    best(f"mctx, {precision}") / best(f"{precision}, W = {wave},"), 2
                )
                for precision in precisions
                for wave in WAVES
            },
            "us_per_simulation": {key: round(1e6 * each, 2) for key, each in fastest.items()},
            "median_us_per_simulation": {
                key: round(1e6 * float(np.median(each)) / SIMULATIONS, 2)
                for key, each in times.items()
            },
            "bare_models_us_per_simulation": {
                key: round(1e6 * float(each.min()) / SIMULATIONS, 2) for key, each in calls.items()
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
    model.latent = np.zeros((benches[4096].engine.capacity + 1, LATENT), np.float32)
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
    model = ReferenceModel()
    print(json.dumps(first_call(model)), flush=True)
    print(json.dumps(overhead()), flush=True)
    print(json.dumps(against_mctx()), flush=True)
    for figure in (scaling, memory, deadline):
        print(json.dumps(figure(model)), flush=True)


if __name__ == "__main__":
    main()
