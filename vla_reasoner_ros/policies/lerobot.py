"""Any policy directory of LeRobot (ACT, SmolVLA, pi0.5, ...), where LeRobot is importable.

LeRobot is no dependency: its own pins seldom fit beside ROS. Where it lives in another Python, the
policy ``process`` runs this one there. The checkpoint's own pre- and post-processor normalise.
"""

from __future__ import annotations

import importlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vla_reasoner_ros.errors import ConfigurationError, ModelError
from vla_reasoner_ros.policies import checkpoint as checkpoints
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.policies.convention import Convention
from vla_reasoner_ros.policies.state import width
from vla_reasoner_ros.types import ActionChunk, Observation

NAME = "lerobot"
EMPTY = "observation.images.empty_camera_"
LOGGER = logging.getLogger(__name__)
REMOTE_CODE = ("evo1", "gaussian_actor", "groot", "pi0_fast", "sac", "wall_x")
"""Types that, in LeRobot 0.4 to 0.6, load parts with ``trust_remote_code``."""


class LeRobot:
    """The policy.

    Args:
        checkpoint: a folder as ``lerobot-train`` writes it (``pretrained_model``), or a name on the
            Hugging Face hub.
        convention: the meaning of inputs and outputs, see
            :class:`~vla_reasoner_ros.policies.convention.Convention`; cameras and states by
            LeRobot's names (``observation.images.top``, ``observation.state``).
        device: torch's name, or ``auto``.
        samples: chunks drawn at most for one proposal, where the policy samples.
        seed: of its random numbers; each episode begins with it.
        allow_remote_code: take the types of policies that run Python from the hub.
        revision: of the checkpoint on the hub.

    Raises:
        ConfigurationError: LeRobot is not importable or refuses the checkpoint, the policy needs
            a history of observations, or the convention does not fit its features.
    """

    def __init__(
        self,
        checkpoint: str,
        convention: Mapping[str, Any],
        device: str = "auto",
        samples: int = 1,
        seed: int = 0,
        allow_remote_code: bool = False,
        revision: str = "",
    ) -> None:
        owner = f"policy {NAME}"
        self._convention = Convention.from_mapping(convention, owner)
        self._device, _ = checkpoints.device_and_type(device, "auto", owner)
        self._samples, self._seed = samples, seed
        folder = checkpoints.find(checkpoint, owner, revision)
        kind = checkpoints.read_json(folder / "config.json", owner).get("type")
        _require_own_code(kind, allow_remote_code, owner)
        _require_own_steps(folder, allow_remote_code, owner)
        if not list(folder.glob("model*.safetensors")):
            checkpoints.read_weights(folder, owner)  # says what is there instead
        self._config, self._network, self._before, self._after = _load(
            folder, str(kind), str(self._device), owner
        )
        self._require_features(owner)
        horizon = getattr(self._config, "chunk_size", None) or getattr(self._config, "horizon", 1)
        self._spec = self._convention.spec(NAME, horizon)
        self.reset()

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        return self._spec

    def reset(self) -> None:
        """Forget the last episode; the random numbers begin anew."""
        self._drawn = 0
        self._network.reset()

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """One chunk a sample; see :class:`~vla_reasoner_ros.policies.base.Policy`."""
        batch = self._batch(observation)
        return [
            self._convention.chunk(self._sample(batch), observation, f"policy {NAME}")
            for _ in range(max(1, min(n, self._samples)))
        ]

    def _batch(self, observation: Observation) -> dict[str, Any]:
        owner = f"policy {NAME}"
        batch: dict[str, Any] = {"task": observation.instruction, "robot_type": ""}
        for name, image in self._convention.images(observation, owner).items():
            pixels = torch.tensor(image).permute(2, 0, 1).float() / 255.0
            batch[name] = pixels.contiguous()[None].to(self._device)
        for name, state in self._convention.states(observation, owner).items():
            batch[name] = torch.from_numpy(state)[None].to(self._device)
        return batch

    def _sample(self, batch: Mapping[str, Any]) -> Any:
        """(H, R) in the dataset's units."""
        self._drawn += 1
        devices = [self._device] if self._device.type == "cuda" else []
        # LeRobot's policies draw from torch's global generators; these are put back afterwards.
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(self._seed * 1_000_003 + self._drawn)
            chunk = self._network.predict_action_chunk(self._before(dict(batch)))
            if chunk.ndim != 3 or len(chunk) != 1:
                raise ModelError(
                    f"policy {NAME}: expected a chunk (1, H, D), got shape {tuple(chunk.shape)}"
                )
            return self._after(chunk[0]).float().cpu().numpy()

    def _require_features(self, owner: str) -> None:
        """Hold the convention against what the checkpoint says of itself."""
        history = getattr(self._config, "n_obs_steps", 1)
        if history != 1:
            raise ConfigurationError(
                f"{owner}: it needs a history of {history} observations; a decision has one"
            )
        inputs = {n: tuple(f.shape) for n, f in (self._config.input_features or {}).items()}
        said: dict[str, tuple[int, ...]] = {
            **dict.fromkeys(self._convention.cameras, (3, *self._convention.image_size)),
            **{
                name: (width(parts, self._convention.joint_names),)
                for name, parts in self._convention.state.items()
            },
        }
        # Slots of a network for cameras that there are not: LeRobot fills what is missing there.
        inputs = {n: s for n, s in inputs.items() if n in said or not n.startswith(EMPTY)}
        for name in sorted(inputs.keys() | said.keys()):
            if inputs.get(name) != said.get(name):
                raise ConfigurationError(
                    f"{owner}: input {name!r}: the checkpoint has {inputs.get(name, 'none')}, the "
                    f"convention {said.get(name, 'none')}"
                )
        action = (self._config.output_features or {}).get("action")
        found = None if action is None else tuple(action.shape)
        if found != (self._convention.raw_width,):
            raise ConfigurationError(
                f"{owner}: actions: the checkpoint has {found}, the convention "
                f"{(self._convention.raw_width,)}"
            )


def _require_own_code(kind: Any, allowed: bool, owner: str) -> None:
    if kind not in REMOTE_CODE:
        return
    if not allowed:
        raise ConfigurationError(
            f"{owner}: policies of type {kind!r} run Python code that they download; set "
            "allow_remote_code: true if you trust its authors"
        )
    LOGGER.warning(
        "%s: allow_remote_code is set: a policy of type %r runs downloaded code with your rights",
        owner,
        kind,
    )


def _require_own_steps(folder: Path, allowed: bool, owner: str) -> None:
    """Refuse processors that name code from elsewhere: LeRobot imports any class they name.

    Raises:
        ConfigurationError: a step that LeRobot has not registered, or that trusts remote code.
    """
    for path in sorted(folder.glob("*.json")):
        content = checkpoints.read_json(path, owner)
        steps = content.get("steps", []) if isinstance(content, dict) else []
        for step in steps if isinstance(steps, list) else [steps]:
            if _is_own(step):
                continue
            if not allowed:
                raise ConfigurationError(
                    f"{owner}: {path.name}: the step {json.dumps(step)[:200]} may run Python code "
                    "from elsewhere; expected one of LeRobot's own by its registry_name; set "
                    "allow_remote_code: true if you trust its authors"
                )
            LOGGER.warning(
                "%s: allow_remote_code is set: %s runs code from elsewhere with your rights",
                owner,
                path.name,
            )


def _is_own(step: Any) -> bool:
    """Whether a processor's step is LeRobot's own and loads no code."""
    if not isinstance(step, dict) or not isinstance(step.get("registry_name"), str):
        return False
    named = step.get("class", "lerobot.")
    config = step.get("config") or {}
    return (
        isinstance(named, str)
        and named.startswith("lerobot.")
        and isinstance(config, dict)
        and not config.get("trust_remote_code", False)
    )


def _load(folder: Path, kind: str, device: str, owner: str) -> tuple[Any, Any, Any, Any]:
    """Configuration, policy, pre-processor and post-processor."""
    try:
        configs = importlib.import_module("lerobot.configs.policies")
        factory = importlib.import_module("lerobot.policies.factory")
    except ImportError as error:
        raise ConfigurationError(
            f"{owner}: LeRobot cannot be imported here ({error}); where it is installed in another "
            "Python, use the policy 'process' with python: PATH"
        ) from error
    try:
        policy_class = factory.get_policy_class(kind)  # registers the type's configuration
        config = configs.PreTrainedConfig.from_pretrained(str(folder), local_files_only=True)
        config.device = device
        network = policy_class.from_pretrained(str(folder), config=config, local_files_only=True)
        before, after = factory.make_pre_post_processors(
            config,
            pretrained_path=str(folder),
            preprocessor_overrides={"device_processor": {"device": device}},
        )
    except Exception as error:  # Whatever LeRobot finds wrong with it.
        raise ConfigurationError(
            f"{owner}: LeRobot does not load {folder}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return config, network.eval(), before, after
