"""Checkpoints of other people's policies in miniature: their files and names, random weights."""

import json

import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing

from vla_reasoner_ros.types import Observation

ACTION = {
    "representation": "end_effector_delta",
    "names": ["x", "y", "z", "rx", "ry", "rz", "gripper"],
    "frame": "base",
    "dt": 0.1,
    "gripper": {"index": 6, "open": 1.0, "closed": 0.0, "binary": True},
}
JOINTS = tuple(f"joint{i}" for i in range(1, 8))
INSTRUCTION = "pick up the cup"


def convention(side=28, **changes):
    cameras = {"base": "agent", "wrist": "wrist"}
    return {"action": ACTION, "cameras": cameras, "image_size": [side, side], **changes}


def seen(side=28, cameras=("agent", "wrist"), seed=0, **changes):
    rng = np.random.default_rng(seed)
    images = {name: rng.integers(0, 256, (side, side, 3), dtype=np.uint8) for name in cameras}
    fields = {
        "stamp_ns": 5_000_000_000,
        "images": images,
        "joint_names": JOINTS,
        "joint_positions": np.linspace(-0.3, 0.3, 7),
        "joint_velocities": np.zeros(7),
        "ee_position": np.array([0.4, 0.1, 0.3]),
        "ee_quaternion": np.array([1.0, 0.0, 0.0, 0.0]),
        "gripper": 0.75,
        "instruction": INSTRUCTION,
    }
    return Observation(**fields | changes)


def tokenizer(vocabulary, template=None):
    """One token a character of lower-case text; the template adds tokens as published ones do."""
    tokens = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = Split("", "isolated")
    if template:
        tokens.post_processor = TemplateProcessing(
            single=f"{template} $A", special_tokens=[(template, vocabulary[template])]
        )
    return tokens


def characters(first):
    text = "abcdefghijklmnopqrstuvwxyzIWO ?:.\n"
    return {letter: first + index for index, letter in enumerate(text)}


def pi0_config(side=28, patch=14, vocabulary=80):
    from transformers import PI0Config

    text = {
        "model_type": "gemma",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": vocabulary,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "intermediate_size": 24,
        "hidden_size": 16,
        "patch_size": patch,
        "image_size": side,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "vision_use_head": False,
    }
    return PI0Config(
        vlm_config={
            "model_type": "paligemma",
            "text_config": text,
            "vision_config": vision,
            "projection_dim": 32,
            "image_token_id": 70,
        },
        dit_config={**text, "hidden_size": 24, "intermediate_size": 32},
        chunk_size=10,
        max_state_dim=16,
        max_action_dim=16,
        num_inference_steps=4,
    )


def write_pi0(folder, state=10, actions=7, **size):
    """A folder with weights, tokenizer and statistics, and the network that was saved."""
    from transformers import PI0ForConditionalGeneration

    torch.manual_seed(0)
    network = PI0ForConditionalGeneration(pi0_config(**size)).eval()
    network.save_pretrained(folder)
    rng = np.random.default_rng(1)
    numbers = {
        "state_mean": rng.normal(size=state),
        "state_std": rng.uniform(0.1, 2.0, state),
        "actions_mean": rng.normal(size=actions, scale=0.01),
        "actions_std": rng.uniform(0.01, 0.05, actions),
    }
    content = {name: values.tolist() for name, values in numbers.items()}
    (folder / "processor_config.json").write_text(json.dumps(content))
    words = {"<unk>": 0, "<bos>": 2, **characters(3)}
    tokenizer(words).save(str(folder / "tokenizer.json"))
    return network


def pi0_convention(side=28, **changes):
    state = {"state": ["ee_position", "ee_rotation_6d", "gripper_opening"]}
    return convention(side, state=state, **changes)


# OpenVLA

TEXT = {
    "model_type": "llama",
    "vocab_size": 32064,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "pad_token_id": 32000,
}
NORM = {
    "bridge_orig": {
        "action": {
            "q01": [-0.03, -0.04, -0.04, -0.08, -0.09, -0.2, 0.0],
            "q99": [0.03, 0.04, 0.04, 0.08, 0.08, 0.2, 1.0],
            "mask": [True] * 6 + [False],
        },
        "proprio": {"q01": [-0.5] * 8, "q99": [0.6] * 8},
    },
    "fractal": {"action": {"q01": [-1.0] * 7, "q99": [1.0] * 7, "mask": [True] * 6 + [False]}},
}


def _tower(prefix, width, blocks, intermediate, size, random, registers=0):
    side, patch = size
    weights = {
        "patch_embed.proj.weight": random(width, 3, patch, patch, scale=0.05),
        "patch_embed.proj.bias": random(width),
        "pos_embed": random(1, (side // patch) ** 2, width),
        "norm.weight": random(width),
        "norm.bias": random(width),
    }
    if registers:
        weights |= {"cls_token": random(1, 1, width), "reg_token": random(1, registers, width)}
    else:
        weights |= {"attn_pool.latent": random(1, 1, width), "attn_pool.q.weight": random(8, 8)}
    for block in range(blocks):
        parts = {
            "norm1.weight": 1.0 + random(width),
            "norm1.bias": random(width),
            "attn.qkv.weight": random(3 * width, width),
            "attn.qkv.bias": random(3 * width),
            "attn.proj.weight": random(width, width),
            "attn.proj.bias": random(width),
            "norm2.weight": 1.0 + random(width),
            "norm2.bias": random(width),
            "mlp.fc1.weight": random(intermediate, width),
            "mlp.fc1.bias": random(intermediate),
            "mlp.fc2.weight": random(width, intermediate),
            "mlp.fc2.bias": random(width),
        }
        if registers:
            parts |= {f"ls{i}.scale_factor": 0.5 + random(width) for i in (1, 2)}
        weights |= {f"blocks.{block}.{name}": value for name, value in parts.items()}
    return {prefix + name: value for name, value in weights.items()}


def openvla_weights(seed=0, side=28, patch=14):
    """Random weights by their published names: towers of 3 blocks."""
    from transformers import LlamaConfig, LlamaForCausalLM

    generator = torch.Generator().manual_seed(seed)

    def random(*shape, scale=0.2):
        return scale * torch.randn(shape, generator=generator)

    torch.manual_seed(seed)
    language = LlamaForCausalLM(LlamaConfig(**{k: v for k, v in TEXT.items() if k != "model_type"}))
    state = {f"language_model.{k}": v.clone() for k, v in language.state_dict().items()}
    state = {k: v * 4.0 if v.ndim == 2 else v for k, v in state.items()}
    widths = [(192, 48), (32, 192), (32, 32)]
    projector = {}
    for index, shape in enumerate(widths, 1):
        projector[f"projector.fc{index}.weight"] = random(*shape)
        projector[f"projector.fc{index}.bias"] = random(shape[0])
    return (
        _tower("vision_backbone.featurizer.", 16, 3, 32, (side, patch), random, registers=4)
        | _tower("vision_backbone.fused_featurizer.", 32, 3, 40, (side, patch), random)
        | projector
        | state
    )


def write_openvla(folder, weights, side=28):
    config = {
        "model_type": "openvla",
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "use_fused_vision_backbone": True,
        "image_sizes": [side, side],
        "text_config": TEXT,
        "n_action_bins": 256,
        "pad_to_multiple_of": 64,
        "norm_stats": NORM,
    }
    colours = {"means": [[0.48, 0.45, 0.4], [0.5] * 3], "stds": [[0.23, 0.22, 0.22], [0.5] * 3]}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "preprocessor_config.json").write_text(json.dumps(colours))
    names = sorted(weights)
    for index, part in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"model-{index:05}-of-00002.safetensors"
        save_file({name: weights[name].contiguous() for name in part}, file)
    words = {"<unk>": 0, "<s>": 1, **characters(300)}
    tokenizer(words, template="<s>").save(str(folder / "tokenizer.json"))
    return folder


def head_weights(numbers=7, width=32, seed=3):
    generator = torch.Generator().manual_seed(seed)

    def random(*shape):
        return 0.1 * torch.randn(shape, generator=generator)

    inputs = numbers * width
    weights = {
        "layer_norm1.weight": 1 + random(inputs),
        "layer_norm1.bias": random(inputs),
        "fc1.weight": random(width, inputs),
        "fc1.bias": random(width),
        "layer_norm2.weight": 1 + random(width),
        "layer_norm2.bias": random(width),
        "fc2.weight": random(numbers, width),
        "fc2.bias": random(numbers),
    }
    for block in range(2):
        prefix = f"mlp_resnet_blocks.{block}.ffn."
        weights |= {
            f"{prefix}0.weight": 1 + random(width),
            f"{prefix}0.bias": random(width),
            f"{prefix}1.weight": random(width, width),
            f"{prefix}1.bias": random(width),
        }
    return {f"model.{name}": value for name, value in weights.items()}


def proprio_weights(inputs=8, width=32, seed=4):
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "fc1.weight": (width, inputs),
        "fc1.bias": (width,),
        "fc2.weight": (width, width),
        "fc2.bias": (width,),
    }
    return {k: 0.3 * torch.randn(shape, generator=generator) for k, shape in shapes.items()}


# LeRobot

# A package with the part of LeRobot 0.4's interface that loads and runs a policy. The policy
# answers with a linear map of what it was given plus noise of torch's global generator.
LEROBOT_CONFIGS = """
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass
class PolicyFeature:
    type: str
    shape: tuple


class PreTrainedConfig:
    known = {}

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, local_files_only=False, **kwargs):
        values = json.loads((Path(pretrained_name_or_path) / "config.json").read_text())
        config = cls.known[values.pop("type")]()
        for side in ("input_features", "output_features"):
            values[side] = {
                name: PolicyFeature(f["type"], tuple(f["shape"]))
                for name, f in values[side].items()
            }
        vars(config).update(values)
        return config
"""
LEROBOT_FACTORY = """
import json
from pathlib import Path

import safetensors.torch
import torch

from lerobot.configs.policies import PreTrainedConfig


class ActConfig(PreTrainedConfig):
    n_obs_steps = 1


class ActPolicy(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.weight = torch.nn.Parameter(torch.zeros(7, 8))
        self.resets = 0

    @classmethod
    def from_pretrained(cls, pretrained_name_or_path, *, config=None, local_files_only=False):
        policy = cls(config)
        file = Path(pretrained_name_or_path) / "model.safetensors"
        safetensors.torch.load_model(policy, str(file))
        return policy.to(config.device)

    def reset(self):
        self.resets += 1

    def predict_action_chunk(self, batch):
        assert batch["task"][0].endswith("\\n"), batch["task"]
        image = batch["observation.images.top"]
        assert image.shape[:2] == (1, 3) and image.dtype == torch.float32
        assert 0.0 <= image.min() and image.max() <= 1.0
        answer = self.weight @ batch["observation.state"][0]
        answer = answer + image.mean() + 0.01 * torch.randn(())
        chunk = answer.expand(1, self.config.chunk_size, 7)
        return chunk if self.config.shape == "chunk" else chunk[0]


def get_policy_class(name):
    if name not in ("act", "groot"):
        raise NotImplementedError(f"Policy with name {name} is not implemented.")
    PreTrainedConfig.known[name] = ActConfig
    return ActPolicy


def make_pre_post_processors(policy_cfg, pretrained_path=None, **kwargs):
    assert kwargs["preprocessor_overrides"]["device_processor"]["device"] == policy_cfg.device
    stats = json.loads((Path(pretrained_path) / "stats.json").read_text())

    def before(batch):
        state = (batch["observation.state"] - stats["mean"]) / stats["std"]
        return {**batch, "observation.state": state, "task": [batch["task"] + "\\n"]}

    return before, lambda action: action * 0.05
"""


def write_lerobot_package(folder):
    """The stand-in, to be put on the path."""
    for package, name, text in (
        ("configs", "policies", LEROBOT_CONFIGS),
        ("policies", "factory", LEROBOT_FACTORY),
    ):
        (folder / "lerobot" / package).mkdir(parents=True)
        (folder / "lerobot" / package / f"{name}.py").write_text(text)
    return folder


def write_lerobot(folder, side=28, chunk=6):
    """A policy directory; its configuration and its only weight."""
    config = {
        "type": "act",
        "shape": "chunk",
        "chunk_size": chunk,
        "input_features": {
            "observation.images.top": {"type": "VISUAL", "shape": [3, side, side]},
            "observation.state": {"type": "STATE", "shape": [8]},
        },
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
    }
    weight = torch.randn((7, 8), generator=torch.Generator().manual_seed(0))
    save_file({"weight": weight}, folder / "model.safetensors")
    (folder / "stats.json").write_text(json.dumps({"mean": 0.1, "std": 0.5}))
    (folder / "config.json").write_text(json.dumps(config))
    return config, weight
