"""What all trainers have in common: first weights by the seed, and the card of what was trained."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch

N = TypeVar("N")


def initialised(seed: int, make: Callable[[], N]) -> N:
    """What ``make`` returns, its random first weights from a seed; the global state is kept."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make()


def training_card(
    kind: str,
    architecture: Mapping[str, Any],
    arguments: argparse.Namespace,
    data: Mapping[str, Any],
    metrics: Mapping[str, Any],
    **more: Any,
) -> dict[str, Any]:
    """The card of trained weights, as :func:`vla_reasoner_ros.weights.save_model` takes it.

    Args:
        kind: of the model.
        architecture: its sizes.
        arguments: the trainer's; the seed is read.
        data: what it was trained on.
        metrics: how good it is on what was held out.
        more: further fields.
    """
    return {
        "kind": kind,
        "architecture": dict(architecture),
        **more,
        "data": dict(data),
        "seed": arguments.seed,
        "command": shlex.join(["vla-reasoner", *sys.argv[1:]]),
        "metrics": dict(metrics),
        "licence": "Apache-2.0",
    }
