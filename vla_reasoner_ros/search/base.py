"""What the search asks of its models: plain callables over numbered states.

Shapes: B states in a batch, K members of an ensemble or candidates of a node, M actions in a
macro-action, D numbers in an action. State 0 is the root; states never leave the model that owns
them, the tree knows them by number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.kernels import kernel
from vla_reasoner_ros.priors.base import Candidates

Floats = NDArray[np.floating[Any]]
SOUND, ACTION, DENSITY = 0, -1, -2
"""What may be wrong with candidates; see :func:`fault_of`."""
Slots = NDArray[np.int64]

Step = Callable[[Slots, NDArray[np.float32], Slots], None]
"""``step(parents (B,), actions (B, M, D), children (B,))`` imagines B macro-actions."""

Evaluate = Callable[[Slots], Floats]
"""``evaluate(slots (B,)) -> (K, B)`` values, one row per member of the ensemble."""

Draw = Callable[[NDArray[np.float64], int, np.random.Generator], Candidates]
"""``candidates(reference (B, M, D), count, rng)``: ``count`` draws a node, the reference first.

See :meth:`~vla_reasoner_ros.priors.base.Prior.sample_with_reference`."""

Uncertainty = Callable[[Slots], Floats]
"""``uncertainty(slots (B,)) -> (B,)`` disagreement about how each state came to be."""


class Models(NamedTuple):
    """The callables of one decision; ``uncertainty`` is None where no limit is set."""

    step: Step
    evaluate: Evaluate
    candidates: Draw
    uncertainty: Uncertainty | None = None


def evaluated(models: Models, slots: Slots) -> NDArray[np.float64]:
    """Ask the value and check the form of its answer, (K, B) floats.

    Raises:
        ModelError: anything but a (K >= 1, B) array of floats. Non-finite numbers pass: they cut
            off single candidates, not the decision.
    """
    values = models.evaluate(slots)
    if (
        not isinstance(values, np.ndarray)
        or values.dtype.kind != "f"
        or values.ndim != 2
        or values.shape[0] < 1
        or values.shape[1] != len(slots)
    ):
        raise ModelError(f"value: expected (K >= 1, {len(slots)}) floats, got {described(values)}")
    return np.ascontiguousarray(values, dtype=np.float64)


def doubted(uncertainty: Uncertainty, slots: Slots) -> NDArray[np.float64]:
    """Ask the world model's uncertainty and check the form of its answer, (B,).

    Raises:
        ModelError: anything but a (B,) array of floats.
    """
    values = uncertainty(slots)
    if (
        not isinstance(values, np.ndarray)
        or values.dtype.kind != "f"
        or values.shape != (len(slots),)
    ):
        raise ModelError(
            f"world model: expected ({len(slots)},) floats of uncertainty, got {described(values)}"
        )
    return np.ascontiguousarray(values, dtype=np.float64)


def drawn(
    models: Models, reference: NDArray[np.float64], count: int, rng: np.random.Generator
) -> Candidates:
    """Ask the prior and check the form of its answer; the numbers are for :func:`fault_of`.

    Returns:
        What it said, each macro-action as one row: actions (B, 1 + K, M * D).

    Raises:
        ModelError: wrong shapes.
    """
    answer = models.candidates(reference, count, rng)
    nodes, *step_shape = reference.shape
    shape = (nodes, 1 + count, *step_shape)
    if np.shape(answer.actions) != shape or np.shape(answer.log_density) != shape[:2]:
        raise ModelError(
            f"prior: expected actions {shape} and densities {shape[:2]}, got "
            f"{described(answer.actions)} and {described(answer.log_density)}"
        )
    if len(answer.origins) != 1 + count:
        raise ModelError(f"prior: expected {1 + count} origins, got {len(answer.origins)}")
    actions = np.ascontiguousarray(answer.actions, np.float64).reshape(nodes, 1 + count, -1)
    log_density = np.ascontiguousarray(answer.log_density, np.float64)
    return Candidates(actions, log_density, answer.origins)


def refuse(fault: int) -> None:
    """Raise what :func:`fault_of` found.

    Raises:
        ModelError: anything but :data:`SOUND`.
    """
    if fault != SOUND:
        number = "an action is not finite"
        raise ModelError(f"prior: {number if fault == ACTION else 'a log density is NaN or +inf'}")


@kernel
def fault_of(actions: NDArray[np.float64], log_density: NDArray[np.float64]) -> int:
    """Whether candidates can be used: actions are finite, densities neither NaN nor +inf."""
    for node in range(len(actions)):
        for column in range(actions.shape[1]):
            for number in actions[node, column]:
                if not math.isfinite(number):
                    return ACTION
            if not log_density[node, column] < np.inf:
                return DENSITY
    return SOUND


def described(value: object) -> str:
    """Shape and type of what came instead, for messages."""
    if isinstance(value, np.ndarray):
        return f"{value.shape} {value.dtype}"
    return type(value).__name__
