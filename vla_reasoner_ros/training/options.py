"""What the command lines of all trainers share."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vla_reasoner_ros.arguments import COUNT, POSITIVE, WHOLE
from vla_reasoner_ros.training.trainer import TrainerParameters


def add_trainer_arguments(
    parser: argparse.ArgumentParser,
    name: str,
    *,
    steps: int,
    batch_size: int,
    samples: str = "samples",
    learning_rate: float = 1e-3,
    evaluate_every: int = 500,
    threads: int = 1,
) -> None:
    """Declare the options that :func:`trainer_parameters` reads, and ``--work``.

    Args:
        parser: of the verb.
        name: of the folder of checkpoints below ``data/training``.
        steps: default.
        batch_size: default.
        samples: what a batch is made of, plural.
        learning_rate: default.
        evaluate_every: default.
        threads: default.
    """
    parser.add_argument("--steps", type=COUNT, default=steps, help="of training")
    parser.add_argument("--batch-size", type=COUNT, default=batch_size, help=f"{samples} a step")
    parser.add_argument("--learning-rate", type=POSITIVE, default=learning_rate, help="the largest")
    parser.add_argument(
        "--evaluate-every", type=COUNT, default=evaluate_every, help="steps to an evaluation"
    )
    parser.add_argument(
        "--threads", type=WHOLE, default=threads, help="of the processor; 0 takes torch's choice"
    )
    parser.add_argument("--seed", type=WHOLE, default=0, help="of all random numbers")
    parser.add_argument(
        "--work",
        type=Path,
        default=Path("data/training") / name,
        help="folder of checkpoints and learning curves",
    )


def trainer_parameters(arguments: argparse.Namespace, **others: Any) -> TrainerParameters:
    """How to train: what the command line says, and ``others`` that it does not."""
    return TrainerParameters(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        evaluate_every=arguments.evaluate_every,
        threads=arguments.threads,
        seed=arguments.seed,
        **others,
    )
