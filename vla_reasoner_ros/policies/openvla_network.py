"""OpenVLA's network from transformers' own modules, filled by the published names of its weights.

An image passes DINOv2 (with registers) and SigLIP, each up to the last block but one; the patches
of both, side by side, pass a projector of three layers and stand after the first token of the
prompt in a Llama. The published weights carry timm's names for the towers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import (
    Dinov2WithRegistersConfig,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    SiglipVisionConfig,
)
from transformers.models.dinov2_with_registers.modeling_dinov2_with_registers import (
    Dinov2WithRegistersEmbeddings,
    Dinov2WithRegistersEncoder,
)
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.siglip.modeling_siglip import SiglipEncoder, SiglipVisionEmbeddings

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.policies.checkpoint import load_exactly

Weights = Mapping[str, torch.Tensor]
HEADS = 16
"""Attention heads of both published towers, DINOv2 ViT-L and SigLIP So400m."""
BACKBONES = ("dinosiglip-vit-so-224px", "dinosiglip-vit-so-384px")
EPSILON = 1e-6
"""Of timm's layer normalisation."""


class DinoTower(nn.Module):
    """DINOv2's patches after the last block but one, without class token and registers."""

    def __init__(self, config: Dinov2WithRegistersConfig) -> None:
        super().__init__()
        self.embeddings = Dinov2WithRegistersEmbeddings(config)
        self.encoder = Dinov2WithRegistersEncoder(config)
        self._others = 1 + config.num_register_tokens

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) to (N, P, width)."""
        hidden = self.encoder(self.embeddings(pixels), attention_mask=None).last_hidden_state
        return hidden[:, self._others :]


class SiglipTower(nn.Module):
    """SigLIP's patches after the last block but one."""

    def __init__(self, config: SiglipVisionConfig) -> None:
        super().__init__()
        self.embeddings = SiglipVisionEmbeddings(config)
        self.encoder = SiglipEncoder(config)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 3, S, S) to (N, P, width)."""
        return self.encoder(inputs_embeds=self.embeddings(pixels)).last_hidden_state


class Projector(nn.Module):
    """Patches of both towers to the width of the language model."""

    def __init__(self, widths: tuple[int, int, int, int]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(widths[0], widths[1])
        self.fc2 = nn.Linear(widths[1], widths[2])
        self.fc3 = nn.Linear(widths[2], widths[3])

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., both towers' widths) to (..., language model's)."""
        gelu = nn.functional.gelu
        return self.fc3(gelu(self.fc2(gelu(self.fc1(patches)))))


class OpenVlaNetwork(nn.Module):
    """The whole; see the module's docstring."""

    def __init__(
        self,
        dino: Dinov2WithRegistersConfig,
        siglip: SiglipVisionConfig,
        projector: tuple[int, int, int, int],
        language: LlamaConfig,
    ) -> None:
        super().__init__()
        self.dino = DinoTower(dino)
        self.siglip = SiglipTower(siglip)
        self.projector = Projector(projector)
        self.language = LlamaForCausalLM(language)

    @property
    def vocabulary(self) -> int:
        """Rows of the table of tokens."""
        return self.language.config.vocab_size

    def patches(self, pixels: torch.Tensor) -> torch.Tensor:
        """(N, 2, 3, S, S) images to (1, N P, width) in the language model's space."""
        both = torch.cat([self.dino(pixels[:, 0]), self.siglip(pixels[:, 1])], dim=2)
        return self.projector(both).flatten(0, 1)[None]

    def embed(self, tokens: torch.Tensor, patches: torch.Tensor) -> torch.Tensor:
        """(1, T) tokens with the patches after the first one."""
        words = self.language.get_input_embeddings()(tokens)
        return torch.cat([words[:, :1], patches, words[:, 1:]], dim=1)

    def read(self, tokens: torch.Tensor, pixels: torch.Tensor) -> tuple[Any, DynamicCache]:
        """The answer to the whole prompt, logits of its last token alone, and what is kept."""
        cache = DynamicCache(config=self.language.config)
        answer = self.language(
            inputs_embeds=self.embed(tokens, self.patches(pixels)),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return answer, cache

    def generate(self, tokens: torch.Tensor, pixels: torch.Tensor, count: int) -> list[int]:
        """The ``count`` likeliest next tokens, one after the other."""
        answer, cache = self.read(tokens, pixels)
        numbers: list[int] = []
        while True:
            best = answer.logits[:, -1].argmax(dim=-1, keepdim=True)
            numbers.append(int(best))
            if len(numbers) == count:
                return numbers
            answer = self.language(input_ids=best, past_key_values=cache, use_cache=True)

    def read_all(
        self,
        tokens: torch.Tensor,
        pixels: torch.Tensor,
        proprio: torch.Tensor | None,
        count: int,
        stop: int,
    ) -> torch.Tensor:
        """OFT's parallel decoding: every token attends to every other.

        Args:
            tokens: (1, T) the prompt.
            pixels: (N, 2, 3, S, S).
            proprio: (1, width) the robot's state, which stands after the patches.
            count: action tokens, which enter as zeros.
            stop: the token at the end.

        Returns:
            (1, count, width) what predicts each action token: the last layer one place before it.
        """
        patches = self.patches(pixels)
        if proprio is not None:
            patches = torch.cat([patches, proprio[:, None]], dim=1)
        prompt = self.embed(tokens, patches)
        empty = prompt.new_zeros((1, count, prompt.shape[2]))
        end = self.language.get_input_embeddings()(tokens.new_full((1, 1), stop))
        embedded = torch.cat([prompt, empty, end], dim=1)
        length = embedded.shape[1]
        everything = embedded.new_zeros((1, 1, length, length))
        hidden = self.language.model(
            inputs_embeds=embedded, attention_mask=everything, use_cache=False
        ).last_hidden_state
        first = prompt.shape[1] - 1
        return hidden[:, first : first + count]


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.ReLU())

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return hidden + self.ffn(hidden)


class ActionHead(nn.Module):
    """OFT's regression: all tokens of one action to the action."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(_Residual(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, H, D x width) to (B, H, D) in [-1, 1]."""
        hidden = torch.relu(self.fc1(self.layer_norm1(hidden)))
        for block in self.mlp_resnet_blocks:
            hidden = block(hidden)
        return self.fc2(self.layer_norm2(hidden))

    @classmethod
    def from_weights(cls, weights: Weights, numbers: int, owner: str) -> ActionHead:
        """Make it as its weights say.

        Raises:
            ConfigurationError: it is no such head, or gives actions of another width.
        """
        weights = {name.removeprefix("model."): value for name, value in weights.items()}
        try:
            hidden, inputs = weights["fc1.weight"].shape
            outputs = len(weights["fc2.weight"])
        except (KeyError, ValueError) as error:
            raise ConfigurationError(f"{owner}: no regression head: {error}") from error
        if outputs != numbers:
            raise ConfigurationError(
                f"{owner}: the head gives actions of {outputs} numbers, the convention says "
                f"{numbers}"
            )
        found = {int(m[1]) for n in weights if (m := re.match(r"mlp_resnet_blocks\.(\d+)\.", n))}
        with torch.device("meta"):
            head = cls(inputs, hidden, outputs, len(found))
        load_exactly(head, weights, owner, "the action head")
        return head.eval()


class ProprioProjector(nn.Module):
    """OFT's robot state to one token."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.width = inputs
        self.fc1 = nn.Linear(inputs, outputs)
        self.fc2 = nn.Linear(outputs, outputs)

    def forward(self, state: torch.Tensor) -> torch.Tensor:
        """(B, S) to (B, width)."""
        return self.fc2(nn.functional.gelu(self.fc1(state)))

    @classmethod
    def from_weights(cls, weights: Weights, owner: str) -> ProprioProjector:
        """Make it as its weights say.

        Raises:
            ConfigurationError: it is no such projector.
        """
        if "fc1.weight" not in weights:
            raise ConfigurationError(f"{owner}: no projector of proprioception: fc1 is missing")
        with torch.device("meta"):
            projector = cls(weights["fc1.weight"].shape[1], weights["fc1.weight"].shape[0])
        load_exactly(projector, weights, owner, "the projector of proprioception")
        return projector.eval()


def build_network(
    config: Mapping[str, Any], weights: Weights, device: torch.device, owner: str
) -> OpenVlaNetwork:
    """Make the network as its weights say, and fill it.

    Args:
        config: the checkpoint's ``config.json``.
        weights: by their published names, on the device and in the type to compute in.
        device: theirs.
        owner: what messages call the policy.

    Raises:
        ConfigurationError: another backbone or language model, or weights missing or left over.
    """
    backbone = config.get("vision_backbone_id")
    if config.get("model_type") != "openvla" or backbone not in BACKBONES:
        raise ConfigurationError(
            f"{owner}: a model of type {config.get('model_type')!r} with backbone {backbone!r}; "
            f"expected 'openvla' with {' or '.join(BACKBONES)}"
        )
    text = dict(config.get("text_config") or {})
    if text.pop("model_type", "llama") != "llama":
        raise ConfigurationError(f"{owner}: the language model is no Llama")
    groups: dict[str, dict[str, torch.Tensor]] = {}
    prefixes = {
        "dino": "vision_backbone.featurizer.",
        "siglip": "vision_backbone.fused_featurizer.",
        "projector": "projector.",
        "language": "language_model.",
    }
    for name, value in weights.items():
        group = next((g for g, p in prefixes.items() if name.startswith(p)), None)
        if group is None:
            raise ConfigurationError(f"{owner}: weight {name} is none of OpenVLA's")
        groups.setdefault(group, {})[name[len(prefixes[group]) :]] = value
    missing = [prefix for group, prefix in prefixes.items() if group not in groups]
    if missing:
        raise ConfigurationError(f"{owner}: there are no weights {missing[0]}*")
    try:
        dino, siglip = _sizes(groups["dino"]), _sizes(groups["siglip"])
        registers = groups["dino"]["reg_token"].shape[1]
        widths = [groups["projector"][f"fc{i}.weight"].shape[::-1] for i in (1, 2, 3)]
    except KeyError as error:
        raise ConfigurationError(f"{owner}: weight {error} is missing") from error
    for unsupported in ("torch_dtype", "dtype"):
        text.pop(unsupported, None)
    with torch.device("meta"):
        network = OpenVlaNetwork(
            Dinov2WithRegistersConfig(
                **dino.common,
                mlp_ratio=dino.intermediate // dino.width,
                num_register_tokens=registers,
            ),
            SiglipVisionConfig(**siglip.common, intermediate_size=siglip.intermediate),
            (*(int(pair[0]) for pair in widths), int(widths[2][1])),
            LlamaConfig(**text),
        )
    translated = (
        {f"dino.{k}": v for k, v in _dino(groups["dino"], dino.blocks, owner).items()}
        | {f"siglip.{k}": v for k, v in _siglip(groups["siglip"], siglip.blocks, owner).items()}
        | {f"projector.{k}": v for k, v in groups["projector"].items()}
        | {f"language.{k}": v for k, v in groups["language"].items()}
    )
    load_exactly(network, translated, owner, "the network")
    # What is computed, not stored, was left on the meta device. Frequencies stay in 32 bits.
    positions = network.siglip.embeddings.num_positions
    network.siglip.embeddings.position_ids = torch.arange(positions, device=device)[None]
    frequencies = LlamaRotaryEmbedding(network.language.config)
    network.language.model.rotary_emb = frequencies.to(device)
    return network.eval()


class _Sizes:
    """Hyperparameters that a tower's weights show."""

    def __init__(self, width: int, patch: int, side: int, blocks: int, intermediate: int) -> None:
        self.width, self.blocks, self.intermediate = width, blocks, intermediate
        self.common = {
            "hidden_size": width,
            "num_hidden_layers": blocks - 1,
            "num_attention_heads": HEADS,
            "patch_size": patch,
            "image_size": side * patch,
            "hidden_act": "gelu",
            "layer_norm_eps": EPSILON,
            "attn_implementation": "sdpa",
        }


def _sizes(tower: Weights) -> _Sizes:
    convolution = tower["patch_embed.proj.weight"]
    blocks = {int(name.split(".")[1]) for name in tower if name.startswith("blocks.")}
    side = round(tower["pos_embed"].shape[1] ** 0.5)
    intermediate = tower["blocks.0.mlp.fc1.weight"].shape[0]
    return _Sizes(len(convolution), convolution.shape[3], side, len(blocks), intermediate)


def _dino(tower: Weights, blocks: int, owner: str) -> dict[str, torch.Tensor]:
    """From timm's names to those of transformers, where the class token has a position: zero."""
    position, token = tower["pos_embed"], tower["cls_token"]
    own = {
        "embeddings.cls_token": token,
        "embeddings.mask_token": torch.zeros_like(token[0]),
        "embeddings.register_tokens": tower["reg_token"],
        "embeddings.position_embeddings": torch.cat(
            [torch.zeros_like(position[:, :1]), position], dim=1
        ),
        "embeddings.patch_embeddings.projection.weight": tower["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": tower["patch_embed.proj.bias"],
    }
    names = {
        "norm1": "norm1",
        "norm2": "norm2",
        "attn.proj": "attention.o_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
        "ls1.scale_factor": "layer_scale1.lambda1",
        "ls2.scale_factor": "layer_scale2.lambda1",
    }
    known = (
        "pos_embed",
        "cls_token",
        "reg_token",
        "patch_embed.proj.weight",
        "patch_embed.proj.bias",
    )
    return own | _blocks(
        tower, blocks, names, "encoder.layer.{}.", "attention.{}_proj", known, owner
    )


def _siglip(tower: Weights, blocks: int, owner: str) -> dict[str, torch.Tensor]:
    own = {
        "embeddings.patch_embedding.weight": tower["patch_embed.proj.weight"],
        "embeddings.patch_embedding.bias": tower["patch_embed.proj.bias"],
        "embeddings.position_embedding.weight": tower["pos_embed"][0],
    }
    names = {
        "norm1": "layer_norm1",
        "norm2": "layer_norm2",
        "attn.proj": "self_attn.out_proj",
        "mlp.fc1": "mlp.fc1",
        "mlp.fc2": "mlp.fc2",
    }
    known = ("pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    return own | _blocks(
        tower, blocks, names, "encoder.layers.{}.", "self_attn.{}_proj", known, owner
    )


def _blocks(
    tower: Weights,
    blocks: int,
    names: Mapping[str, str],
    prefix: str,
    attention: str,
    known: tuple[str, ...],
    owner: str,
) -> dict[str, torch.Tensor]:
    """The blocks that are used; the last one, the pooling and the last norm are not."""
    unused: Callable[[str], bool] = re.compile(
        rf"(blocks\.{blocks - 1}|attn_pool|norm|fc_norm)\."
    ).match  # type: ignore[assignment]
    translated: dict[str, torch.Tensor] = {}
    for name, value in tower.items():
        if name in known or unused(name):
            continue
        found = re.fullmatch(r"blocks\.(\d+)\.(.+?)(?:\.(weight|bias))?", name)
        part = found[2] if found else ""
        if not found or (part not in names and part != "attn.qkv"):
            raise ConfigurationError(f"{owner}: weight {name} of a vision tower is unknown")
        block, suffix = prefix.format(found[1]), f".{found[3]}" if found[3] else ""
        if part != "attn.qkv":
            translated[f"{block}{names[part]}{suffix}"] = value
            continue
        for letter, third in zip("qkv", value.chunk(3), strict=True):
            translated[block + attention.format(letter) + suffix] = third
    return translated
