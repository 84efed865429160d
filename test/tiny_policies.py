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


def pi0_config():
    from transformers import PI0Config

    text = {
        "model_type": "gemma",
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "vocab_size": 80,
    }
    vision = {
        "model_type": "siglip_vision_model",
        "intermediate_size": 24,
        "hidden_size": 16,
        "patch_size": 14,
        "image_size": 28,
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


def write_pi0(folder, state=10, actions=7):
    """A folder with weights, tokenizer and statistics, and the network that was saved."""
    from transformers import PI0ForConditionalGeneration

    torch.manual_seed(0)
    network = PI0ForConditionalGeneration(pi0_config()).eval()
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


def pi0_convention(**changes):
    state = {"state": ["ee_position", "ee_rotation_6d", "gripper_opening"]}
    return convention(state=state, **changes)


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


def _tower(prefix, width, blocks, intermediate, patches, random, registers=0):
    weights = {
        "patch_embed.proj.weight": random(width, 3, 14, 14, scale=0.05),
        "patch_embed.proj.bias": random(width),
        "pos_embed": random(1, patches, width),
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


def openvla_weights(seed=0):
    """Random weights by their published names: towers of 3 blocks, 4 patches a picture."""
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
        _tower("vision_backbone.featurizer.", 16, 3, 32, 4, random, registers=4)
        | _tower("vision_backbone.fused_featurizer.", 32, 3, 40, 4, random)
        | projector
        | state
    )


def write_openvla(folder, weights):
    config = {
        "model_type": "openvla",
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "use_fused_vision_backbone": True,
        "image_sizes": [28, 28],
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
