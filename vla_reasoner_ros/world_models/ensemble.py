"""Several small networks of one shape, evaluated in one batched product."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.perceptron import Perceptron


class EnsembleLinear(nn.Module):
    """E linear layers side by side.

    Args:
        members: E.
        inputs: width of the input.
        outputs: width of the output.
    """

    def __init__(self, members: int, inputs: int, outputs: int) -> None:
        super().__init__()
        bound = 1.0 / math.sqrt(inputs)
        self.weight = nn.Parameter(torch.empty(members, inputs, outputs).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(members, 1, outputs).uniform_(-bound, bound))

    def forward(self, inputs: Tensor) -> Tensor:
        """(E, B, inputs) to (E, B, outputs)."""
        return torch.baddbmm(self.bias, inputs, self.weight)


class EnsembleMlp(nn.Module):
    """E multilayer perceptrons with SiLU between the layers.

    Args:
        members: E.
        widths: input, hidden and output widths.
    """

    def __init__(self, members: int, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.members = members
        self.layers = nn.ModuleList(
            EnsembleLinear(members, a, b) for a, b in itertools.pairwise(widths)
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, inputs), shared by the members, or (E, B, inputs), to (E, B, outputs)."""
        if inputs.ndim == 2:
            inputs = inputs.expand(self.members, -1, -1)
        for layer in self.layers[:-1]:
            inputs = functional.silu(layer(inputs))
        return self.layers[-1](inputs)

    def compiled(self, precision: str = "float32") -> Perceptron:
        """The same networks for inference on the processor, with as many threads as torch uses.

        Raises:
            ConfigurationError: a precision that the processor does not have.
        """
        return Perceptron(
            [layer.weight.detach().cpu().numpy() for layer in self.layers],
            [layer.bias.detach().cpu().numpy()[:, 0] for layer in self.layers],
            "silu",
            precision,
            torch.get_num_threads(),
        )
