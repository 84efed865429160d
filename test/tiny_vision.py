"""Vision encoders of transformers in miniature, and recordings for what is trained on them."""

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.data.episodes import EpisodeWriter
from vla_reasoner_ros.priors.space import DEFAULT_SPEC
from vla_reasoner_ros.types import Observation

JOINTS = tuple(f"fr3_joint{i}" for i in range(1, 8))
CAMERAS = ("agent", "wrist")
SIDE = 96  # of the pictures of the shipped policy
INSTRUCTION = "put the red block on the plate"


def write_vjepa2(folder, seed=0):
    from transformers import VJEPA2Config, VJEPA2Model

    torch.manual_seed(seed)
    config = VJEPA2Config(
        patch_size=8,
        crop_size=32,
        frames_per_clip=4,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2.0,
        pred_hidden_size=12,
        pred_num_attention_heads=2,
        pred_num_hidden_layers=1,
    )
    network = VJEPA2Model(config).eval()
    network.save_pretrained(folder)
    return network


def write_dinov2(folder, seed=0, registers=False):
    import transformers

    kind = "Dinov2WithRegisters" if registers else "Dinov2"
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(
        patch_size=7,
        image_size=28,
        hidden_size=24,
        num_attention_heads=2,
        num_hidden_layers=2,
        mlp_ratio=2,
    )
    network = getattr(transformers, f"{kind}Model")(config).eval()
    network.save_pretrained(folder)
    return network


def picture(position, side=SIDE):
    """A bright square whose place says where the hand is."""
    image = np.zeros((side, side, 3), np.uint8)
    row, column = (int(np.clip(side * (0.5 + 1.5 * p), 8, side - 9)) for p in position[:2])
    image[row - 8 : row + 8, column - 8 : column + 8] = (250, 180, 40)
    return image


def observation(position=(0.0, 0.0, 0.3), step=0, side=SIDE, **changes):
    position = np.asarray(position, float)
    fields = {
        "stamp_ns": step * 100_000_000,
        "images": {"agent": picture(position, side), "wrist": picture(-position, side)},
        "joint_names": JOINTS,
        "joint_positions": np.linspace(-0.3, 0.3, 7) + position[0],
        "joint_velocities": np.zeros(7),
        "ee_position": position,
        "ee_quaternion": Rotation.from_rotvec([np.pi, 0.0, 0.0]).as_quat(),
        "gripper": 1.0,
        "instruction": INSTRUCTION,
    }
    return Observation(**fields | changes)


def write_episodes(folder, seeds=range(12), steps=14, progress=False, side=SIDE, spec=DEFAULT_SPEC):
    """The hand wanders as its actions say; joint actions are the joints' next positions."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        rng = np.random.default_rng(seed)
        writer = EpisodeWriter(spec)
        position, drift = np.array([*rng.uniform(-0.2, 0.2, 2), 0.3]), rng.normal(0.0, 0.02, 3)
        for step in range(steps):
            seen = observation(position, step, side)
            joints = seen.joint_positions + drift[0]
            motion = [*drift, 0.0, 0.0, 0.0] if spec.frame else joints
            done = step / (steps - 1) if progress else None
            writer.append(seen, np.append(motion, 1.0), done)
            position = position + drift
        writer.write(
            folder / f"{seed:03}.safetensors", task="", seed=seed, success=True, kind="expert"
        )
    return folder


def write_world_model(folder, episodes):
    """A tiny DINOv2, and an untrained predictor and value on it, as their commands write them."""
    from vla_reasoner_ros.data.episode_sets import EpisodeSet
    from vla_reasoner_ros.training.vision_latents import layout_of
    from vla_reasoner_ros.values.vision_progress import VisionProgressNetwork, VisionValueConfig
    from vla_reasoner_ros.weights import save_model
    from vla_reasoner_ros.world_models.predictor import Predictor, PredictorConfig
    from vla_reasoner_ros.world_models.vision import FrozenVision
    from vla_reasoner_ros.world_models.vision_latents import VisionEncoder

    write_dinov2(folder / "encoder")
    recorded = EpisodeSet.open(episodes)
    vision = FrozenVision(str(folder / "encoder"), grid=2, device="cpu")
    encoder = VisionEncoder(vision, layout_of(recorded, vision))
    spec = recorded.action_spec
    predictor = PredictorConfig(encoder.layout, spec.dimensions, width=12, layers=1, heads=2)
    value = VisionValueConfig(encoder.layout, members=2, width=8)
    torch.manual_seed(0)
    made = {"vjepa2_ac": (Predictor(predictor), predictor)}
    made["vision_progress"] = (VisionProgressNetwork(value), value)
    for name, (network, config) in made.items():
        card = {
            "kind": name, "architecture": config.to_card(), **encoder.to_card(),
            "action_spec": spec.to_mapping(), "data": {}, "seed": 0, "command": "none",
            "metrics": {}, "licence": "Apache-2.0",
        }  # fmt: skip
        save_model(folder / name, network.state_dict(), card)
    return folder
