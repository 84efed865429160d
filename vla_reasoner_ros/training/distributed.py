"""Training in several processes that torchrun started: one model, each its share of every batch.

Without torchrun, or with one process, nothing here does anything. Gradients are averaged by
PyTorch's DistributedDataParallel (Li et al., arXiv 2006.15704): over gloo on CPUs, over nccl on
GPUs.
"""

from __future__ import annotations

import contextlib
import datetime
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed, nn

from vla_reasoner_ros.errors import ConfigurationError

PATIENCE = datetime.timedelta(hours=4)
"""How long processes wait for the first one, which alone evaluates and fills caches."""


@dataclass(frozen=True)
class Processes:
    """The processes that train together.

    Attributes:
        rank: of this one; 0 evaluates, writes and talks.
        size: how many there are.
        device: that this one computes on.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the one that writes."""
        return self.rank == 0

    def share(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """What of a batch is this process's; all shares together are the batch of one process.

        Raises:
            ConfigurationError: there are fewer samples than processes.
        """
        if len(indices) < self.size:
            raise ConfigurationError(
                f"training: expected a batch of at least one sample for each of {self.size} "
                f"processes, got {len(indices)}"
            )
        return indices[self.rank :: self.size]

    def stream(self, seed: list[int]) -> np.random.Generator:
        """Randomness of a step: the first process's is that of training alone."""
        return np.random.default_rng(seed if self.first else [*seed, self.rank])

    def parallel(self, objective: nn.Module) -> nn.Module:
        """The objective with gradients averaged over all processes."""
        if self.size == 1:
            return objective
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(
            objective, device_ids=ids, find_unused_parameters=True
        )

    def told(self, value: Any) -> Any:
        """What the first process says, in all of them."""
        if self.size == 1:
            return value
        box = [value]
        distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]


def join() -> Processes:
    """This process among those that torchrun started; joins them when that was not done yet.

    Raises:
        ConfigurationError: what torchrun says in the environment is no number.
    """
    try:
        rank, size, local = (
            int(os.environ.get(name, default))
            for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
        )
    except ValueError as error:
        raise ConfigurationError(f"RANK, WORLD_SIZE, LOCAL_RANK: {error}") from error
    cuda = torch.cuda.is_available()
    if size == 1:
        return Processes(0, 1, torch.device("cuda" if cuda else "cpu"))
    device = torch.device("cuda", local) if cuda else torch.device("cpu")
    if not distributed.is_initialized():
        if cuda:
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE)
    return Processes(rank, size, device)


@contextlib.contextmanager
def first_alone() -> Iterator[None]:
    """The first process goes through the block before the others: it fills caches, they read."""
    processes = join()
    if processes.size > 1 and not processes.first:
        distributed.barrier()
    yield
    if processes.size > 1 and processes.first:
        distributed.barrier()


def leave() -> None:
    """After training, when all have come to the end."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()
