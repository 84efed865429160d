"""The action-conditioned predictor of V-JEPA 2-AC (arXiv 2506.09985, section 3), by macro-actions.

A transformer reads the tokens of now, the arm's state and the M actions to come, and answers the
tokens and the state after them. The paper's reads up to sixteen frames with block-causal attention;
this one reads a single frame, since the nodes of a search tree keep one.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.weights import NetworkConfig
from vla_reasoner_ros.world_models.encoder import rotation_matrix
from vla_reasoner_ros.world_models.vision_latents import VisionLayout


@dataclass(frozen=True)
class PredictorConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        layout: of the latents.
        actions: numbers of an action, D.
        macro_steps: actions per call, M.
        members: networks in the ensemble, E; one has no opinion of its own uncertainty.
        width: of the transformer.
        layers: of it.
        heads: of its attention; a divisor of the width.
    """

    layout: VisionLayout
    actions: int
    macro_steps: int = 4
    members: int = 1
    width: int = 384
    layers: int = 6
    heads: int = 6


class _Member(nn.Module):
    """One transformer; what it answers is added to what it was given."""

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        layout, width = config.layout, config.width
        self.tokens = nn.Linear(layout.channels, width)
        self.state = nn.Linear(layout.state, width)
        self.action = nn.Linear(config.actions, width)
        length = layout.tokens + 1 + config.macro_steps
        self.places = nn.Parameter(torch.randn(length, width) * 0.02)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.body = nn.TransformerEncoder(
            layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False
        )
        self.next_tokens = nn.Linear(width, layout.channels)
        self.next_state = nn.Linear(width, layout.state)
        with torch.no_grad():
            # Before it has learned anything it says: all stays.
            for head in (self.next_tokens, self.next_state):
                head.weight.zero_()
                head.bias.zero_()

    def forward(self, state: Tensor, tokens: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        parts = [self.tokens(tokens), self.state(state)[:, None], self.action(actions)]
        read = self.body(torch.cat(parts, dim=1) + self.places)
        count = tokens.shape[1]
        return self.next_state(read[:, count]), self.next_tokens(read[:, :count])


class Predictor(nn.Module):
    """An ensemble of predictors; actions and states are normalised inside.

    Args:
        config: the architecture.
    """

    def __init__(self, config: PredictorConfig) -> None:
        super().__init__()
        self.config = config
        self.members = nn.ModuleList(_Member(config) for _ in range(config.members))
        for name, size in (("action", config.actions), ("state", config.layout.state)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_std", torch.ones(size))

    def forward(self, latents: Tensor, actions: Tensor) -> Tensor:
        """Imagine one macro-action.

        Args:
            latents: (B, Z), or (E, B, Z) with a state of its own for each member.
            actions: (B, M, D) in SI units of the convention trained on.

        Returns:
            (E, B, Z) what each member imagines.
        """
        layout = self.config.layout
        if latents.ndim == 2:
            latents = latents.expand(self.config.members, -1, -1)
        moves = (actions - self.action_mean) / self.action_std
        imagined = []
        for member, given in zip(self.members, latents, strict=True):
            state, tokens = layout.split(given)
            scaled = (state - self.state_mean) / self.state_std
            moved, changed = member(scaled, tokens, moves)
            after = with_rotation(state + self.state_std * moved)
            features = functional.layer_norm(tokens + changed, (layout.channels,))
            imagined.append(layout.join(after, features))
        return torch.stack(imagined)


def with_rotation(states: Tensor) -> Tensor:
    """(..., S) states whose columns are again those of a rotation."""
    rotation = rotation_matrix(states[..., 3:9])
    columns = torch.cat([rotation[..., 0], rotation[..., 1]], dim=-1)
    return torch.cat([states[..., :3], columns, states[..., 9:]], dim=-1)
