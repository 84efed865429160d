"""World model in the manner of V-JEPA 2-AC: a frozen vision encoder and a learned predictor.

With a V-JEPA 2 encoder it is V-JEPA 2-AC's idea (arXiv 2506.09985); with DINOv2 it is DINO-WM's
(Zhou et al. 2024, arXiv 2411.04983). ``vla-reasoner train vision-model`` trains the predictor on
recorded episodes of any robot; no object has to be known.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.types import ActionSpec, Observation
from vla_reasoner_ros.weights import load_into, load_model
from vla_reasoner_ros.world_models.base import Slots
from vla_reasoner_ros.world_models.latent_states import LatentStates
from vla_reasoner_ros.world_models.predictor import Predictor, PredictorConfig, with_rotation
from vla_reasoner_ros.world_models.vision_latents import VisionEncoder

MODEL_NAME = "vjepa2_ac"


def load_predictor(folder: Path) -> tuple[Predictor, dict[str, Any]]:
    """The trained predictor, for inference, and its card.

    Raises:
        ConfigurationError: weights are missing, corrupt or of another architecture.
    """
    tensors, card = load_model(folder / MODEL_NAME, MODEL_NAME)
    network = Predictor(PredictorConfig.from_card(card["architecture"]))
    load_into(network, tensors, MODEL_NAME)
    return network.eval().requires_grad_(False), card


class Vjepa2Ac(LatentStates):
    """The learned world model, its imagined states in numbered slots.

    Args:
        models_dir: folder of the predictor's weights and card; empty takes the shipped models'.
        encoder: folder or hub name of the vision encoder; empty takes the card's.
        device: torch's name, or ``auto``: the GPU where there is one.
        dtype: of the vision encoder: ``bfloat16``, ``float32`` or ``auto``; the predictor computes
            in 32 bits.

    Raises:
        ConfigurationError: weights are missing or corrupt, or the vision encoder is another one
            than the predictor was trained on.
    """

    name = MODEL_NAME
    needs_simulator_state = False

    def __init__(
        self, models_dir: str = "", encoder: str = "", device: str = "auto", dtype: str = "auto"
    ) -> None:
        folder = Path(models_dir) if models_dir else models_directory()
        self._network, card = load_predictor(folder)
        owner = f"world model {MODEL_NAME} in {folder}"
        self.encoder = VisionEncoder.from_card(card, encoder, device, dtype, owner)
        self.device = self.encoder.vision.device
        self._network.to(self.device)
        config = self._network.config
        self._layout = config.layout
        super().__init__(
            ActionSpec.from_mapping(card["action_spec"]),
            config.macro_steps,
            config.layout.width,
            self.device,
        )
        self.joints = config.layout.joints
        self.latent_source = self.encoder.fingerprint

    def encode(self, observation: Observation) -> None:
        """Write the state that was seen to slot 0."""
        self._set_root(self.encoder.encode([observation])[0])

    @torch.inference_mode()
    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """Imagine a batch: (B,) slots, (B, M, D) actions, (B,) slots.

        Raises:
            ModelError: the actions have another shape than M and D say, or the answer is not
                finite.
        """
        moves = torch.from_numpy(self._commands(parents, actions)).to(self.device)
        source, target = self._index(parents), self._index(children)
        members = self._network(self._states[source], moves)
        mean = members.mean(dim=0)
        self._require_finite(bool(torch.isfinite(mean).all()))
        state, tokens = self._layout.split(mean)
        self._states[target] = self._layout.join(with_rotation(state), tokens)
        tokens = self._layout.split(members)[1]
        disagreement = tokens.var(dim=0, unbiased=False).mean(dim=(-2, -1))
        self._variance[target] = self._variance[source] + disagreement

    def uncertainty(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) root mean square disagreement of the members per feature, along the path."""
        return self._deviation(slots)

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) mean absolute difference of the features from those seen in slot 0."""
        now, seen = (
            self._layout.split(states)[1] for states in (self.latents(slots), self._states[:1])
        )
        return (now - seen).abs().mean(dim=(-2, -1)).double().cpu().numpy()

    def ee_positions(self, slots: Slots) -> NDArray[np.float64]:
        """(B, 3) imagined end-effector positions, m, in the frame of the recordings."""
        return self.latents(slots)[:, :3].double().cpu().numpy()
