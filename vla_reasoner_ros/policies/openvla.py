"""OpenVLA (Kim et al., arXiv 2406.09246) and OpenVLA-OFT (arXiv 2502.19645) without remote code.

The network is :mod:`~vla_reasoner_ros.policies.openvla_network`. OpenVLA writes an action as one
token per dimension, each of 255 bins between the dataset's 1st and 99th percentile. OFT decodes a
whole chunk at once: its action tokens enter empty, attend to all others, and a regression head
reads what they become.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.policies import checkpoint as checkpoints
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.policies.convention import Convention
from vla_reasoner_ros.policies.openvla_network import (
    ActionHead,
    ProprioProjector,
    build_network,
)
from vla_reasoner_ros.policies.state import width
from vla_reasoner_ros.types import ActionChunk, Observation

NAME = "openvla"
BEGIN, STOP, EMPTY = 1, 2, 29871
"""Llama 2's ``<s>``, ``</s>`` and the lone space that stands before an answer."""
PROMPT = "In: What action should the robot take to {}?\nOut:"
Q99, BOUNDS = "bounds_q99", "bounds"


@dataclass(frozen=True)
class Range:
    """What the dataset's statistics say of an array: its ends, and which dimensions they scale."""

    low: NDArray[np.float64]
    high: NDArray[np.float64]
    mask: NDArray[np.bool_]

    def undo(self, values: NDArray[np.floating], epsilon: float = 0.0) -> NDArray[np.float64]:
        """(..., D) in [-1, 1] to the dataset's units."""
        scaled = 0.5 * (values + 1.0) * (self.high - self.low + epsilon) + self.low
        return np.where(self.mask, scaled, values)

    def normalise(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., D) to [-1, 1], cut off there, as OFT was trained."""
        scaled = 2.0 * (values - self.low) / (self.high - self.low + 1e-8) - 1.0
        return np.clip(np.where(self.mask, scaled, values), -1.0, 1.0)


class OpenVla:
    """The policy.

    Args:
        checkpoint: a folder or a name on the Hugging Face hub, with the published names.
        convention: the meaning of inputs and outputs, see
            :class:`~vla_reasoner_ros.policies.convention.Convention`; images in the order of
            training, for OFT with proprioception one state called ``state``.
        unnorm_key: the dataset whose statistics undo the normalisation.
        head: OFT's action head, a file name in the folder or a path; empty is plain OpenVLA.
        proprio: OFT's projector of the robot's state, likewise.
        normalisation: ``bounds_q99`` (percentiles) or ``bounds`` (extremes, as OFT on ALOHA).
        centre_crop: take the middle 90 % of each image's area, for checkpoints trained with
            random crops.
        repeat: how often plain OpenVLA's one action stands in the chunk, so that a search has a
            chunk to look ahead with.
        allow_pickle: read OFT's published ``.pt`` heads, which are pickles.
        device: torch's name, or ``auto``.
        dtype: ``bfloat16``, ``float32`` or ``auto``.
        revision: of the checkpoint on the hub.

    Raises:
        ConfigurationError: the checkpoint is missing, incomplete or of another model, the key is
            unknown (the message lists the known ones), or the convention does not fit.
    """

    def __init__(
        self,
        checkpoint: str,
        convention: Mapping[str, Any],
        unnorm_key: str = "",
        head: str = "",
        proprio: str = "",
        normalisation: str = Q99,
        centre_crop: bool = False,
        repeat: int = 1,
        allow_pickle: bool = False,
        device: str = "auto",
        dtype: str = "auto",
        revision: str = "",
    ) -> None:
        owner = f"policy {NAME}"
        self._convention = Convention.from_mapping(convention, owner)
        place, numbers = checkpoints.device_and_type(device, dtype, owner)
        folder = checkpoints.find(checkpoint, owner, revision)
        config = checkpoints.read_json(folder / "config.json", owner)
        statistics = dataset_statistics(folder, config, unnorm_key, owner)
        self._actions = _range(statistics, "action", normalisation, owner)
        self._require_convention(owner, config, head, repeat)
        self._repeat, self._centre_crop = repeat, centre_crop
        weights = checkpoints.read_weights(folder, owner)
        self.network = build_network(config, moved(weights, place, numbers), place, owner)
        self._device, self._dtype = place, numbers
        self._head: ActionHead | None = None
        self._proprio: ProprioProjector | None = None
        if head:
            weights = checkpoints.read_tensors(folder / head, owner, allow_pickle)
            weights = moved(weights, place, numbers)
            self._head = ActionHead.from_weights(weights, self._convention.raw_width, owner)
        if proprio:
            weights = checkpoints.read_tensors(folder / proprio, owner, allow_pickle)
            weights = moved(weights, place, numbers)
            self._proprio = ProprioProjector.from_weights(weights, owner)
            self._states = _range(statistics, "proprio", normalisation, owner)
        self._require_state(owner)
        # Numbers of action tokens count down from the end of the vocabulary proper.
        self._last_token = self.network.vocabulary - int(config.get("pad_to_multiple_of", 64))
        bins = np.linspace(-1.0, 1.0, int(config.get("n_action_bins", 256)))
        self._centres = (bins[:-1] + bins[1:]) / 2.0
        self._tokens = _tokenizer(folder, owner)
        self._means, self._deviations = _image_statistics(folder, place, owner)

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        return self._convention.spec(NAME, self._repeat)

    def reset(self) -> None:
        """Nothing is remembered between observations."""

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """One chunk whatever ``n`` is; see :class:`~vla_reasoner_ros.policies.base.Policy`."""
        with torch.inference_mode():
            tokens, pixels = self.tokens(observation.instruction), self.pixels(observation)
            if self._head is None:
                numbers = self.network.generate(tokens, pixels, self._convention.raw_width)
                actions = np.tile(self._actions.undo(self._decode(numbers)), (self._repeat, 1))
            else:
                answer = self._regress(tokens, pixels, observation)
                actions = self._actions.undo(answer.float().cpu().double().numpy(), 1e-8)
        return [self._convention.chunk(actions, observation, f"policy {NAME}")]

    def compute(self, observation: Observation) -> torch.Tensor:
        """What the network answers to the whole prompt: the most of the work, no number leaves."""
        with torch.inference_mode():
            tokens, pixels = self.tokens(observation.instruction), self.pixels(observation)
            if self._head is not None:
                return self._regress(tokens, pixels, observation)
            return self.network.read(tokens, pixels)[0].logits

    def tokens(self, instruction: str) -> torch.Tensor:
        """(1, T) the prompt."""
        numbers = self._tokens.encode(PROMPT.format(instruction.lower())).ids
        if numbers[:1] != [BEGIN]:
            numbers = [BEGIN, *numbers]
        if numbers[-1] != EMPTY:
            numbers = [*numbers, EMPTY]
        return torch.tensor([numbers], device=self._device)

    def pixels(self, observation: Observation) -> torch.Tensor:
        """(N, 2, 3, S, S) each image as both towers read it."""
        images = np.stack(list(self._convention.images(observation, f"policy {NAME}").values()))
        pixels = torch.from_numpy(images).to(self._device).permute(0, 3, 1, 2).float() / 255.0
        if self._centre_crop:
            pixels = crop_centre(pixels)
        both = (pixels[:, None] - self._means) / self._deviations
        return both.to(self._dtype)

    def _decode(self, numbers: list[int]) -> NDArray[np.float64]:
        """Tokens to (D,) in [-1, 1]."""
        index = np.clip(self._last_token - np.array(numbers) - 1, 0, len(self._centres) - 1)
        return self._centres[index]

    def _regress(
        self, tokens: torch.Tensor, pixels: torch.Tensor, observation: Observation
    ) -> torch.Tensor:
        """(H, D) in [-1, 1]."""
        assert self._head is not None
        horizon, numbers = self._convention.horizon, self._convention.raw_width
        proprio = None
        if self._proprio is not None:
            state = self._convention.states(observation, f"policy {NAME}")["state"]
            row = torch.from_numpy(self._states.normalise(state)).to(self._device, self._dtype)
            proprio = self._proprio(row[None])
        hidden = self.network.read_all(tokens, pixels, proprio, horizon * numbers, STOP)
        return self._head(hidden.reshape(1, horizon, -1))[0]

    def _require_convention(
        self, owner: str, config: Mapping[str, Any], head: str, repeat: int
    ) -> None:
        numbers, found = self._convention.raw_width, len(self._actions.low)
        if numbers != found:
            raise ConfigurationError(
                f"{owner}: the convention's actions have {numbers} numbers, the dataset's {found}"
            )
        side = int(np.ravel(config.get("image_sizes", [224]))[0])
        if self._convention.image_size != (side, side):
            raise ConfigurationError(
                f"{owner}: the checkpoint takes images of {side}x{side}, the convention says "
                f"{self._convention.image_size}"
            )
        if head and not self._convention.horizon:
            raise ConfigurationError(
                f"{owner}: convention needs 'horizon': the actions of the head's chunk"
            )
        if not head and (
            repeat < 1
            or self._convention.horizon not in (0, repeat)
            or len(self._convention.cameras) != 1
        ):
            raise ConfigurationError(
                f"{owner}: without a head one image gives one action, repeated {repeat} times; the "
                f"convention has {len(self._convention.cameras)} cameras and a horizon of "
                f"{self._convention.horizon}"
            )

    def _require_state(self, owner: str) -> None:
        names = set(self._convention.state)
        if names != ({"state"} if self._proprio is not None else set()):
            raise ConfigurationError(
                f"{owner}: the convention needs one state called 'state' with a projector of "
                f"proprioception, and none without; it has {', '.join(sorted(names)) or 'none'}"
            )
        if self._proprio is not None:
            said = width(self._convention.state["state"], self._convention.joint_names)
            if not said == len(self._states.low) == self._proprio.width:
                raise ConfigurationError(
                    f"{owner}: the convention's state has {said} numbers, the dataset's "
                    f"{len(self._states.low)}, the projector takes {self._proprio.width}"
                )


def dataset_statistics(
    folder: Path, config: Mapping[str, Any], key: str, owner: str
) -> dict[str, Any]:
    """The statistics of one dataset, from ``dataset_statistics.json`` or the configuration.

    Raises:
        ConfigurationError: there are none, or none of that key; the message lists the known.
    """
    path = folder / "dataset_statistics.json"
    known = checkpoints.read_json(path, owner) if path.is_file() else config.get("norm_stats")
    if not isinstance(known, Mapping) or not known:
        raise ConfigurationError(
            f"{owner}: {folder} has no normalisation statistics (norm_stats in config.json, or "
            "dataset_statistics.json); without them the actions mean nothing"
        )
    if not key and len(known) == 1:
        key = next(iter(known))
    if key not in known:
        raise ConfigurationError(
            f"{owner}: unnorm_key {key!r} is not one of {', '.join(sorted(known))}"
        )
    return dict(known[key])


def moved(
    weights: Mapping[str, torch.Tensor], place: torch.device, numbers: torch.dtype
) -> dict[str, torch.Tensor]:
    """The tensors on a device in a type."""
    return {name: value.to(place, numbers) for name, value in weights.items()}


def crop_centre(pixels: torch.Tensor, area: float = 0.9) -> torch.Tensor:
    """The middle of (N, 3, H, W) images in [0, 1], enlarged to their size, in steps of 1/255."""
    side = area**0.5
    theta = torch.tensor([[side, 0.0, 0.0], [0.0, side, 0.0]], device=pixels.device)
    grid = F.affine_grid(theta.expand(len(pixels), 2, 3), list(pixels.shape), align_corners=True)
    cropped = F.grid_sample(pixels, grid, align_corners=True)
    return torch.floor(cropped * 255.0 + 0.5).clamp(0.0, 255.0) / 255.0


def _range(statistics: Mapping[str, Any], part: str, normalisation: str, owner: str) -> Range:
    names = {Q99: ("q01", "q99"), BOUNDS: ("min", "max")}
    if normalisation not in names:
        raise ConfigurationError(
            f"{owner}: normalisation is {' or '.join(names)}, got {normalisation!r}"
        )
    try:
        found = statistics[part]
        low, high = (np.asarray(found[name], np.float64) for name in names[normalisation])
        mask = np.asarray(found.get("mask", np.ones(len(low))), bool)
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigurationError(f"{owner}: statistics of {part}: {error!r}") from error
    if not low.shape == high.shape == mask.shape or not np.isfinite([low, high]).all():
        raise ConfigurationError(f"{owner}: statistics of {part} are incomplete")
    return Range(low, high, mask)


def _tokenizer(folder: Path, owner: str) -> Tokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigurationError(f"{owner}: {file}: no such file")
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises a plain Exception.
        raise ConfigurationError(f"{owner}: {file}: {error}") from error


def _image_statistics(
    folder: Path, device: torch.device, owner: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, 3, 1, 1) means and deviations of the two towers' colours."""
    path = folder / "preprocessor_config.json"
    content = checkpoints.read_json(path, owner)
    parts = []
    for name in ("means", "stds"):
        values = torch.tensor(content.get(name, []), dtype=torch.float32, device=device)
        if values.shape != (2, 3):
            raise ConfigurationError(
                f"{owner}: {path}: {name} of two towers expected, got shape {tuple(values.shape)}"
            )
        parts.append(values[:, :, None, None])
    return parts[0], parts[1]
