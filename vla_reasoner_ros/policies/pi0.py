"""pi0 (Black et al., arXiv 2410.24164) as transformers has it: PaliGemma and a flow expert.

Images and instruction pass the language model once; its keys and values stay while the expert
integrates the flow from noise to a chunk of actions, for all samples of a proposal together.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer

from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.policies import checkpoint as checkpoints
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.policies.convention import Convention
from vla_reasoner_ros.policies.normalisation import MeanScale, Statistics, read_statistics
from vla_reasoner_ros.policies.state import width
from vla_reasoner_ros.types import ActionChunk, Observation

NAME = "pi0"


class Pi0:
    """The policy.

    Args:
        checkpoint: a folder or a name on the Hugging Face hub, in transformers' or LeRobot's names.
        convention: the meaning of inputs and outputs, see
            :class:`~vla_reasoner_ros.policies.convention.Convention`; its cameras stand in the
            order of training, its only state is called ``state``.
        statistics: openpi's ``norm_stats.json`` where the checkpoint has no statistics of its own.
        tokenizer: ``tokenizer.json`` where the checkpoint has none.
        device: torch's name, or ``auto``.
        dtype: ``bfloat16``, ``float32`` or ``auto``.
        steps: of the integration; 0 takes the checkpoint's.
        seed: of the noise; each episode begins with it.
        revision: of the checkpoint on the hub.

    Raises:
        ConfigurationError: the checkpoint is missing, incomplete or of another model, or the
            convention does not fit its widths.
    """

    def __init__(
        self,
        checkpoint: str,
        convention: Mapping[str, Any],
        statistics: str = "",
        tokenizer: str = "",
        device: str = "auto",
        dtype: str = "auto",
        steps: int = 0,
        seed: int = 0,
        revision: str = "",
    ) -> None:
        owner = f"policy {NAME}"
        self._convention = Convention.from_mapping(convention, owner)
        self._device, self._dtype = checkpoints.device_and_type(device, dtype, owner)
        folder = checkpoints.find(checkpoint, owner, revision)
        self.model = load_network(folder, self._device, self._dtype, owner)
        config = self.model.config
        self._steps = steps or config.num_inference_steps
        self._padded_state, self._padded_actions = config.max_state_dim, config.max_action_dim
        self._chunk = config.chunk_size
        if self._steps < 1 or not self._convention.horizon <= self._chunk:
            raise ConfigurationError(
                f"{owner}: {self._steps} steps and a horizon of {self._convention.horizon}; "
                f"expected at least one step and at most {self._chunk} actions"
            )
        self._statistics = read_statistics(folder, statistics, owner)
        self._require_widths(owner)
        side = config.vlm_config.vision_config.image_size
        if self._convention.image_size != (side, side):
            raise ConfigurationError(
                f"{owner}: the checkpoint takes images of {side}x{side}, the convention says "
                f"{self._convention.image_size}"
            )
        patch = config.vlm_config.vision_config.patch_size
        self._image_tokens = [config.vlm_config.image_token_id] * (side // patch) ** 2
        self._tokens, self._begin = read_tokenizer(folder, tokenizer, owner)
        self._seed, self._generator = seed, torch.Generator()
        self._prefix: NDArray[np.float64] | None = None
        self.reset()

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives."""
        return self._convention.spec(NAME, self._chunk)

    def reset(self) -> None:
        """Begin the noise anew."""
        self._generator.manual_seed(self._seed)
        self._prefix = None

    def condition_on_prefix(self, prefix: ActionChunk | None) -> None:
        """Hold the chunk's first actions to these while the flow is integrated.

        See :class:`~vla_reasoner_ros.policies.base.PrefixConditioned`. What is known of x_t, t
        noise and 1 - t action, replaces the expert's own at each step (inpainting; Lugmayr et al.,
        arXiv 2201.09865), so that the free actions continue the held ones. A model whose actions
        cannot be turned back (:attr:`Convention.invertible`) draws its chunks without that.
        """
        if prefix is None or not self._convention.invertible:
            self._prefix = None
            return
        if prefix.spec != self._convention.action or prefix.steps > self.spec.horizon:
            raise ActionChunkError(
                f"policy {NAME}: expected a prefix of at most {self.spec.horizon} actions of its "
                f"own convention, got {prefix.steps} of {prefix.spec.names}"
            )
        self._prefix = prefix.actions

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """Draw ``n`` chunks; see :class:`~vla_reasoner_ros.policies.base.Policy`."""
        actions = self.compute(observation, n)[:, :, : self._width]
        undone = self._statistics.actions.undo(actions.float().cpu().double().numpy())
        return [self._convention.chunk(one, observation, f"policy {NAME}") for one in undone]

    def compute(self, observation: Observation, n: int = 1) -> torch.Tensor:
        """(n, chunk, padded width) normalised actions; all the work, and no number leaves it."""
        noise = torch.randn(
            (n, self._chunk, self._padded_actions), generator=self._generator, dtype=torch.float32
        )
        held, self._prefix = self._prefix, None
        with torch.inference_mode():
            return self.integrate(
                self.inputs(observation),
                noise.to(self._device, self._dtype),
                self._held(held, observation),
            )

    def inputs(self, observation: Observation) -> dict[str, torch.Tensor]:
        """What the network reads: one row each of tokens, images (N, 3, S, S) and state."""
        owner = f"policy {NAME}"
        images = np.stack(list(self._convention.images(observation, owner).values()))
        # In place, and the channels stay last in memory: the reordering is only a view.
        pixels = torch.from_numpy(images).to(self._device).float().div_(127.5).sub_(1.0)
        state = np.zeros(self._padded_state)
        measured = self._convention.states(observation, owner)["state"]
        state[: len(measured)] = self._statistics.state.normalise(measured)
        text = " ".join(observation.instruction.replace("_", " ").split())
        words = self._tokens.encode(text + "\n", add_special_tokens=False).ids
        tokens = [*self._image_tokens * len(images), self._begin, *words]
        row = torch.tensor([tokens], device=self._device)
        return {
            "input_ids": row,
            "attention_mask": torch.ones_like(row),
            "pixel_values": pixels.permute(0, 3, 1, 2).to(self._dtype)[None],
            "pixel_attention_mask": torch.ones(
                (1, len(images)), dtype=torch.bool, device=self._device
            ),
            "state": torch.from_numpy(state).to(self._device, self._dtype)[None],
        }

    def integrate(
        self,
        inputs: Mapping[str, torch.Tensor],
        noise: torch.Tensor,
        held: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Euler's method from noise (t = 1) to actions (t = 0).

        Args:
            inputs: as :meth:`inputs` makes them.
            noise: (n, chunk, padded width).
            held: (k, padded width) normalised actions that the chunk must begin with.

        Returns:
            (n, chunk, padded width) normalised actions.
        """
        mask = inputs["attention_mask"]
        embedded = self.model.model.embed_prefix(
            inputs["input_ids"], inputs["pixel_values"], inputs["pixel_attention_mask"]
        )
        cache = self.model.model.vlm(
            inputs_embeds=embedded,
            attention_mask=mask,
            position_ids=mask.cumsum(-1) - 1,
            token_type_ids=torch.zeros_like(embedded)[:, :, 0],
            use_cache=True,
        ).past_key_values
        count, prefix = len(noise), cache.get_seq_length()
        if count > 1:
            cache.batch_repeat_interleave(count)
        state, mask = inputs["state"].expand(count, -1), mask.expand(count, -1)
        actions, step = noise, -1.0 / self._steps
        for index in range(self._steps):
            time = 1.0 + index * step
            if held is not None:
                known = time * noise[:, : len(held)] + (1.0 - time) * held
                actions = torch.cat([known, actions[:, len(held) :]], dim=1)
            velocity = self.model(
                state=state,
                noise=actions,
                timestep=torch.full((count,), time, device=noise.device),
                attention_mask=mask,
                past_key_values=cache,
            ).logits
            # The expert's own keys and values are of this step alone.
            cache.crop(prefix - cache.get_seq_length())
            actions = actions + step * velocity
        if held is not None:
            actions = torch.cat([held.expand(count, -1, -1), actions[:, len(held) :]], dim=1)
        return actions

    def _held(
        self, actions: NDArray[np.float64] | None, observation: Observation
    ) -> torch.Tensor | None:
        if actions is None:
            return None
        raw = self._convention.raw(actions, observation, f"policy {NAME}")
        padded = np.zeros((len(raw), self._padded_actions))
        padded[:, : self._width] = self._statistics.actions.normalise(raw)
        return torch.from_numpy(padded).to(self._device, self._dtype)

    @property
    def _width(self) -> int:
        return self._convention.raw_width

    def _require_widths(self, owner: str) -> None:
        if set(self._convention.state) != {"state"}:
            raise ConfigurationError(
                f"{owner}: convention needs one state called 'state', got "
                f"{', '.join(self._convention.state) or 'none'}"
            )
        state = width(self._convention.state["state"], self._convention.joint_names)
        # openpi computed them of padded states until June 2025.
        self._statistics = Statistics(
            self._statistics.state.without_padding(state),
            self._statistics.actions.without_padding(self._width),
        )
        for what, said, statistics, most in (
            ("state", state, self._statistics.state, self._padded_state),
            ("actions", self._width, self._statistics.actions, self._padded_actions),
        ):
            found = len(statistics.mean)
            if said != found or said > most:
                raise ConfigurationError(
                    f"{owner}: the convention's {what} have {said} numbers, the checkpoint's "
                    f"statistics {found}, the network at most {most}"
                )

    @property
    def statistics(self) -> MeanScale:
        """Of the actions that it was trained on, in the model's own units."""
        return self._statistics.actions


def load_network(folder: Path, device: torch.device, dtype: torch.dtype, owner: str) -> Any:
    """The network of transformers with the folder's weights, every one of them accounted for.

    Raises:
        ConfigurationError: no safetensors, another model, or weights missing or left over.
    """
    config = checkpoints.read_json(folder / "config.json", owner)
    kind = config.get("model_type", config.get("type"))
    if kind != "pi0":
        raise ConfigurationError(f"{owner}: {folder} is a model of type {kind!r}, expected 'pi0'")
    from transformers import PI0Config, PI0ForConditionalGeneration

    if checkpoints.only_shapes():
        from transformers.initialization import no_init_weights

        with no_init_weights(), device:
            shapes = PI0ForConditionalGeneration._from_config(
                PI0Config.from_pretrained(folder), dtype=dtype
            )
        return shapes.eval()
    if not list(folder.glob("model*.safetensors")):
        checkpoints.read_weights(folder, owner)  # says what is there instead
    try:
        model, told = PI0ForConditionalGeneration.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            dtype=dtype,
            output_loading_info=True,
        )
    except Exception as error:  # Whatever transformers finds wrong with it.
        raise ConfigurationError(
            f"{owner}: {folder}: {type(error).__name__}: {' '.join(str(error).split())[:400]}"
        ) from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if told.get(what):
            names = sorted(map(str, told[what]))
            raise ConfigurationError(
                f"{owner}: {folder}: {len(names)} {what.replace('_', ' ')}, {names[0]} for one"
            )
    return model.to(device).eval()


def read_tokenizer(folder: Path, path: str, owner: str) -> tuple[Tokenizer, int]:
    """The tokenizer and the number of its first token.

    Raises:
        ConfigurationError: no such file, or a vocabulary without ``<bos>``.
    """
    file = Path(path).expanduser() if path else folder / "tokenizer.json"
    if not file.is_file():
        raise ConfigurationError(
            f"{owner}: {file}: no such file; PaliGemma's tokenizer.json can be named by the option "
            "tokenizer"
        )
    try:
        tokens = Tokenizer.from_file(str(file))
    except Exception as error:  # The library raises a plain Exception.
        raise ConfigurationError(f"{owner}: {file}: {error}") from error
    begin = tokens.token_to_id("<bos>")
    if begin is None:
        raise ConfigurationError(f"{owner}: {file}: there is no token <bos>")
    tokens.no_padding()
    tokens.no_truncation()
    return tokens, begin
