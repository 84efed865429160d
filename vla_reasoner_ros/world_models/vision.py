"""A frozen vision encoder of transformers: pictures in, a square grid of feature vectors out.

V-JEPA 2 (Assran et al. 2025, arXiv 2506.09985) and DINOv2 (Oquab et al. 2023, arXiv 2304.07193),
with transformers' own modules and weights from safetensors; nothing of the repository's code runs,
so an ``auto_map`` in its configuration has no effect.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies import checkpoint as checkpoints
from vla_reasoner_ros.weights import tensors_hash

OWNER = "vision encoder"
CLASSES = {
    "vjepa2": "VJEPA2Model",
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
}
"""``model_type`` of a configuration to transformers' class."""
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPROCESSORS = ("preprocessor_config.json", "video_preprocessor_config.json")


@dataclass(frozen=True)
class VisionSettings:
    """What is read of a vision encoder, kept in the cards of the models trained on it.

    Attributes:
        checkpoint: a local folder, or a name on the Hugging Face hub.
        family: the ``model_type`` of its configuration, one of :data:`CLASSES`.
        size: side of the square that every picture is resized to, pixels.
        grid: cells a side that its patches are averaged to, G.
        fingerprint: of weights, colours, size and grid.
        revision: branch, tag or commit on the hub; empty is the newest.
    """

    checkpoint: str
    family: str
    size: int
    grid: int
    fingerprint: str
    revision: str = ""


class FrozenVision:
    """A vision encoder that is used as it is.

    Args:
        checkpoint: a local folder with ``config.json`` and ``model*.safetensors``, or a name on
            the Hugging Face hub.
        size: side that pictures are resized to, pixels; 0 takes the checkpoint's.
        grid: cells a side of the answer, a divisor of the patches a side; 0 takes all patches.
        device: torch's name, or ``auto``: the GPU where there is one.
        dtype: ``bfloat16``, ``float32`` or ``auto``: 16 bits on a GPU, 32 on the CPU.
        revision: of the checkpoint on the hub.

    Raises:
        ConfigurationError: no such checkpoint, one of another kind, weights that do not fit (only
            pickles, say), or sizes that contradict one another.
    """

    def __init__(
        self,
        checkpoint: str,
        size: int = 0,
        grid: int = 0,
        device: str = "auto",
        dtype: str = "auto",
        revision: str = "",
    ) -> None:
        folder = checkpoints.find(checkpoint, OWNER, revision)
        config = checkpoints.read_json(folder / "config.json", OWNER)
        family = config.get("model_type")
        if family not in CLASSES:
            raise ConfigurationError(
                f"{OWNER} {checkpoint}: expected model_type {', '.join(CLASSES)}, got {family!r}"
            )
        self.device, self._dtype = checkpoints.device_and_type(device, dtype, OWNER)
        processor = _processor(folder)
        network, patch, self.channels = _network(folder, family)
        size = size or _size(processor, config)
        if size < patch or size % patch:
            raise ConfigurationError(
                f"{OWNER} {checkpoint}: size must be a multiple of its patches of {patch} pixels, "
                f"got {size}"
            )
        self.patches = size // patch
        grid = grid or self.patches
        if grid < 1 or self.patches % grid:
            raise ConfigurationError(
                f"{OWNER} {checkpoint}: grid must divide its {self.patches} patches a side, got "
                f"{grid}"
            )
        colours = [
            [float(x) for x in processor.get(name, default)]
            for name, default in (("image_mean", IMAGENET_MEAN), ("image_std", IMAGENET_STD))
        ]
        told = json.dumps([family, colours, size, grid])
        digest = hashlib.sha256((told + _hash(network)).encode()).hexdigest()
        self.settings = VisionSettings(str(checkpoint), family, size, grid, digest, revision)
        self._mean, self._std = (
            torch.tensor(c, device=self.device)[:, None, None] for c in colours
        )
        self._network = network.to(self.device, self._dtype).eval().requires_grad_(False)

    @classmethod
    def like(
        cls, settings: VisionSettings, checkpoint: str, device: str, dtype: str, owner: str
    ) -> FrozenVision:
        """The encoder that a model was trained on, from where it lies now.

        Args:
            settings: what the model's card says.
            checkpoint: where it lies; empty takes the card's.
            device: as of the class.
            dtype: as of the class.
            owner: what messages call the model.

        Raises:
            ConfigurationError: what lies there is another encoder; both are named.
        """
        place = checkpoint or settings.checkpoint
        known = f"trained on the {settings.family} encoder {settings.checkpoint}"
        try:
            found = cls(place, settings.size, settings.grid, device, dtype, settings.revision)
        except ConfigurationError as error:
            raise ConfigurationError(f"{owner}: {known}; {error}") from error
        if found.settings.fingerprint != settings.fingerprint:
            raise ConfigurationError(
                f"{owner}: {known} ({settings.fingerprint[:12]}); {place} is another one, "
                f"{found.settings.family} ({found.settings.fingerprint[:12]}); name the right one "
                "or train again"
            )
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenVision:
        """Itself: what is frozen need not be there twice."""
        return self

    def features(self, images: Tensor) -> Tensor:
        """(B, C, G, G) float32 features of (B, H, W, 3) uint8 pictures; see :meth:`of_pixels`."""
        return self.of_pixels(images.to(self.device).permute(0, 3, 1, 2).float() / 255.0)

    @torch.inference_mode()
    def of_pixels(self, pixels: Tensor) -> Tensor:
        """(B, C, G, G) float32 features of (B, 3, H, W) pixels in 0..1, stretched to the square.

        Each cell is the mean of its patches, its C numbers brought to mean 0 and variance 1 as in
        V-JEPA 2-AC.

        Raises:
            ModelError: the encoder answers with a number that is not finite.
        """
        pixels, side = pixels.to(self.device).float(), self.settings.size
        pixels = functional.interpolate(pixels, (side, side), mode="bilinear", antialias=True)
        pixels = ((pixels - self._mean) / self._std).to(self._dtype)
        if self.settings.family == "vjepa2":
            # A picture is a clip in which nothing moves: one tubelet, its frames all alike.
            tokens = self._network(pixels[:, None]).last_hidden_state
        else:
            tokens = self._network(pixels).last_hidden_state[:, -(self.patches**2) :]
        maps = tokens.float().transpose(1, 2).unflatten(2, (self.patches, self.patches))
        maps = functional.adaptive_avg_pool2d(maps, self.settings.grid)
        if not torch.isfinite(maps).all():
            raise ModelError(f"{OWNER} {self.settings.checkpoint}: the answer is not finite")
        return functional.layer_norm(maps.movedim(1, -1), (self.channels,)).movedim(-1, 1)


def _network(folder: Path, family: str) -> tuple[nn.Module, int, int]:
    """The network with its weights, the side of its patches and the width C."""
    import transformers

    if not list(folder.glob("model*.safetensors")):
        checkpoints.read_weights(folder, OWNER)  # says what is there instead
    try:
        network, told = getattr(transformers, CLASSES[family]).from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # Whatever transformers finds wrong with it.
        raise ConfigurationError(
            f"{OWNER}: {folder}: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error
    # A classifier's head may be left over; V-JEPA 2's own predictor, which fills masks and knows
    # no actions, may be missing.
    for what in ("missing_keys", "mismatched_keys"):
        names = [n for n in sorted(map(str, told[what])) if not n.startswith("predictor.")]
        if names:
            raise ConfigurationError(
                f"{OWNER}: {folder}: {len(names)} {what.replace('_', ' ')}, {names[0]} for one"
            )
    config = network.config
    network = network.encoder if family == "vjepa2" else network
    return network, int(config.patch_size), int(config.hidden_size)


def _processor(folder: Path) -> dict[str, Any]:
    for name in PREPROCESSORS:
        if (folder / name).is_file():
            return checkpoints.read_json(folder / name, OWNER)
    return {}


def _size(processor: dict[str, Any], config: dict[str, Any]) -> int:
    cropped = processor.get("crop_size")
    if isinstance(cropped, dict):
        cropped = cropped.get("height")
    return int(cropped or config.get("crop_size") or config.get("image_size") or 0)


def _hash(network: nn.Module) -> str:
    return tensors_hash(
        {name: tensor.float().numpy() for name, tensor in network.state_dict().items()}
    )
