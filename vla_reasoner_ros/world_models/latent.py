"""A learned world model on the encoder's latent: the arm obeys, things stay unless touched.

Imagining in a compact latent follows TD-MPC2 (Hansen et al., arXiv 2310.16828); that the latent
consists of objects whose motion is gated by a learned probability of contact is the choice of this
package, because a small network that predicts whole latents moves what should stay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.paths import models_directory
from vla_reasoner_ros.types import ActionSpec, Observation
from vla_reasoner_ros.weights import NetworkConfig, load_into, load_model
from vla_reasoner_ros.world_models.base import Slots
from vla_reasoner_ros.world_models.compiled_dynamics import (
    FAR,
    NEAR,
    ROTATION_SCALE,
    STAY_BELOW,
    TRANSLATION_SCALE,
    CompiledDynamics,
)
from vla_reasoner_ros.world_models.encoder import Encoder, LatentLayout, rotation_matrix
from vla_reasoner_ros.world_models.ensemble import EnsembleMlp
from vla_reasoner_ros.world_models.latent_states import LatentStates
from vla_reasoner_ros.world_models.tracking import ObjectTracker
from vla_reasoner_ros.world_models.views import ViewCorrector

MODEL_NAME = "latent_dynamics"


@dataclass(frozen=True)
class DynamicsConfig(NetworkConfig):
    """The architecture, kept in the card beside the weights.

    Attributes:
        layout: what the latent is made of.
        macro_steps: actions per call, M.
        members: networks in the ensemble, E.
        hidden: width of their hidden layers.
    """

    layout: LatentLayout = field(default_factory=LatentLayout)
    macro_steps: int = 4
    members: int = 3
    hidden: int = 192


def rotation_from_vector(vectors: Tensor) -> Tensor:
    """(..., 3) rotation vectors, rad, to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = vectors.norm(dim=-1).clamp_min(1e-8)[..., None, None]
    x, y, z = (vectors / angle[..., 0]).unbind(-1)
    zero = torch.zeros_like(x)
    cross = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).unflatten(-1, (3, 3))
    identity = torch.eye(3, dtype=vectors.dtype, device=vectors.device)
    return identity + torch.sin(angle) * cross + (1.0 - torch.cos(angle)) * (cross @ cross)


def near_and_far(vectors: Tensor) -> Tensor:
    """(..., n) distances in m to (..., 2 n) features: linear afar, resolved to mm nearby."""
    return torch.cat([vectors / FAR, torch.tanh(vectors / NEAR)], dim=-1)


def scaled_actions(actions: Tensor) -> Tensor:
    """(B, M, 7) end-effector deltas and openings, SI units, to numbers of the order of one."""
    return torch.cat(
        [
            actions[..., :3] / TRANSLATION_SCALE,
            actions[..., 3:6] / ROTATION_SCALE,
            actions[..., 6:] * 2.0 - 1.0,
        ],
        dim=-1,
    )


@dataclass(frozen=True)
class Imagined:
    """One macro-action ahead, for E members and B states.

    Attributes:
        latents: (E, B, Z).
        contact_logits: (E, B, K) whether each object is moved during the macro-action.
    """

    latents: Tensor
    contact_logits: Tensor


class DynamicsNetwork(nn.Module):
    """Macro-actions of end-effector deltas on structured latents."""

    def __init__(self, config: DynamicsConfig) -> None:
        super().__init__()
        self.config = config
        layout = config.layout
        objects = len(layout.objects)
        arm = 3 + 6 + 1 + layout.joints + 7 * config.macro_steps
        hidden = config.hidden
        self.arm = EnsembleMlp(
            config.members, (arm + 6 * objects, hidden, hidden, 7 + layout.joints)
        )
        things = objects + 6 + 6 * (1 + config.macro_steps) + 1 + 5 + 6 * objects + 4
        self.object = EnsembleMlp(config.members, (arm + things, hidden, hidden, hidden, 11))
        with torch.no_grad():
            # Before it has seen anything the network says: the arm obeys, nothing is touched.
            self.arm.layers[-1].weight.mul_(0.1)
            self.arm.layers[-1].bias.zero_()
            self.object.layers[-1].weight.mul_(0.1)
            self.object.layers[-1].bias.zero_()
            self.object.layers[-1].bias[..., 0] = -2.0
        self.register_buffer("position_mean", torch.tensor([0.5, 0.0, 0.1]))
        self.register_buffer("position_scale", torch.tensor([0.15, 0.2, 0.15]))

    def forward(self, latents: Tensor, actions: Tensor) -> Imagined:
        """Imagine one macro-action.

        Args:
            latents: (B, Z), or (E, B, Z) with a state of its own for each member.
            actions: (B, M, 7) end-effector deltas and gripper opening commands, SI units.
        """
        layout, members = self.config.layout, self.config.members
        if latents.ndim == 2:
            latents = latents.expand(members, -1, -1)
        position = layout.get(latents, "ee_position")
        rotation = rotation_matrix(layout.get(latents, "ee_rotation"))
        objects = layout.get(latents, "object_position")
        scaled = scaled_actions(actions)
        arm = self._arm_inputs(latents, scaled)
        to_objects = objects - position[..., None, :]

        moved = self.arm(torch.cat([arm, near_and_far(to_objects.flatten(-2))], dim=-1))
        new_position = position + actions[..., :3].sum(dim=1) + TRANSLATION_SCALE * moved[..., :3]
        turn = rotation_from_vector(ROTATION_SCALE * moved[..., 3:6])
        places, rotations = self._path(position, rotation, new_position, actions)
        new_rotation = turn @ rotations[..., -1, :, :]
        # The fingers close or open fully within a macro-action unless something stops them.
        new_gripper = torch.sigmoid(3.0 * scaled[:, -1, 6:] + 4.0 * moved[..., 6:7])
        carried = new_position - position

        # What counts for a grasp is where things are in the hand when the fingers close.
        in_hand = torch.einsum(
            "ebsji,ebskj->ebksi", rotations, objects[..., None, :, :] - places[..., None, :]
        )
        new = self._objects(latents, arm, to_objects, in_hand, carried, new_gripper)
        imagined = layout.join(
            {
                "ee_position": new_position,
                "ee_rotation": torch.cat([new_rotation[..., 0], new_rotation[..., 1]], dim=-1),
                "gripper": new_gripper,
                "joint_velocity": moved[..., 7:],
                **self._things(latents, new, carried),
            }
        )
        return Imagined(imagined, new[..., 0])

    def compiled(self, precision: str = "float32") -> CompiledDynamics:
        """The same dynamics for inference on the processor.

        Raises:
            ConfigurationError: a precision that the processor does not have.
        """
        return CompiledDynamics(
            self.arm.compiled(precision),
            self.object.compiled(precision),
            self.config.layout,
            self.position_mean.cpu().numpy(),
            self.position_scale.cpu().numpy(),
        )

    def _arm_inputs(self, latents: Tensor, scaled: Tensor) -> Tensor:
        """(E, B, 10 + joints + 7 M): the arm and what it is told to do, as the networks see it."""
        layout = self.config.layout
        position = layout.get(latents, "ee_position")
        return torch.cat(
            [
                (position - self.position_mean) / self.position_scale,
                layout.get(latents, "ee_rotation"),
                layout.get(latents, "gripper"),
                layout.get(latents, "joint_velocity"),
                scaled.flatten(1).expand(len(latents), -1, -1),
            ],
            dim=-1,
        )

    def _things(self, latents: Tensor, new: Tensor, carried: Tensor) -> dict[str, Tensor]:
        """What becomes of the objects, by the layout's names.

        An object moves only as far as it is thought to be touched: with the hand, by a share that
        is learned, and by a remainder of some centimetres.

        Args:
            latents: (E, B, Z).
            new: (E, B, K, 11) outputs of the object network.
            carried: (E, B, 3) displacement of the hand, m.
        """
        layout = self.config.layout
        blocks = layout.blocks
        contact = torch.sigmoid(new[..., 0])
        contact = torch.where(contact < STAY_BELOW, torch.zeros_like(contact), contact)
        with_hand = torch.sigmoid(new[..., 1:2]) * carried[..., None, :]
        displacement = contact[..., None] * (with_hand + 0.03 * new[..., 2:5])
        turned = contact[..., :blocks, None] * new[..., :blocks, 6:8]
        doubt = contact * 0.01 * functional.softplus(new[..., 5])
        return {
            "object_position": layout.get(latents, "object_position") + displacement,
            "object_error": layout.get(latents, "object_error") + doubt,
            "block_yaw": layout.get(latents, "block_yaw") + turned,
            "object_up": layout.get(latents, "object_up") + contact * new[..., 8],
            "block_held": torch.sigmoid(new[..., :blocks, 9]),
        }

    def _path(
        self, position: Tensor, rotation: Tensor, end: Tensor, actions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Commanded poses of the hand, (E, B, M + 1, 3) and (E, B, M + 1, 3, 3), its own first.

        Positions are bent to end where the arm is thought to arrive.
        """
        members, steps = position.shape[0], actions.shape[1]
        offsets = actions[..., :3].cumsum(dim=1)
        share = torch.arange(1, steps + 1, device=actions.device)[:, None] / steps
        bend = (end - position - offsets[:, -1])[..., None, :] * share
        places = position[..., None, :] + offsets + bend
        turns = rotation_from_vector(actions[..., 3:6])
        rotations = [rotation]
        for step in range(steps):
            rotations.append(turns[:, step].expand(members, -1, -1, -1) @ rotations[-1])
        return torch.cat([position[..., None, :], places], dim=-2), torch.stack(rotations, dim=-3)

    def _objects(
        self,
        latents: Tensor,
        arm: Tensor,
        to_objects: Tensor,
        in_hand: Tensor,
        carried: Tensor,
        gripper: Tensor,
    ) -> Tensor:
        """(E, B, K, 11) outputs of the object network, which all objects share."""
        layout = self.config.layout
        count, blocks = len(layout.objects), layout.blocks
        members, batch = arm.shape[:2]

        def of_blocks(part: Tensor) -> Tensor:
            return functional.pad(part, (0, 0, 0, count - blocks))

        objects = layout.get(latents, "object_position")
        between = objects[..., None, :, :] - objects[..., :, None, :]
        state = torch.cat(
            [
                of_blocks(layout.get(latents, "block_yaw")),
                layout.get(latents, "object_up")[..., None],
                of_blocks(layout.get(latents, "block_held")[..., None]),
                100.0 * layout.get(latents, "object_error")[..., None],
            ],
            dim=-1,
        )
        common = torch.cat([arm, carried / TRANSLATION_SCALE, gripper], dim=-1)
        inputs = torch.cat(
            [
                torch.eye(count, device=arm.device).expand(members, batch, -1, -1),
                near_and_far(to_objects),
                near_and_far(in_hand.flatten(-2)),
                objects[..., 2:] / 0.1,
                state,
                near_and_far(between.flatten(-2)),
                common[:, :, None].expand(-1, -1, count, -1),
            ],
            dim=-1,
        )
        return self.object(inputs.flatten(1, 2)).unflatten(1, (batch, count))


def load_dynamics(folder: Path, encoder: Encoder) -> tuple[DynamicsNetwork, dict[str, Any]]:
    """The trained network, for inference, and its card.

    Raises:
        ConfigurationError: weights are missing or corrupt, or were trained on another encoder.
    """
    tensors, card = load_model(folder / MODEL_NAME, MODEL_NAME)
    if card.get("encoder") != encoder.fingerprint:
        raise ConfigurationError(
            f"{MODEL_NAME} in {folder}: trained on the encoder {str(card.get('encoder'))[:12]}, "
            f"the encoder there is {encoder.fingerprint[:12]}; train it again"
        )
    network = DynamicsNetwork(DynamicsConfig.from_card(card["architecture"]))
    load_into(network, tensors, MODEL_NAME)
    return network.eval().requires_grad_(False), card


class LatentWorldModel(LatentStates):
    """The learned world model, its imagined states in numbered slots.

    Args:
        models_dir: folder of the encoder's and the dynamics' weights; empty takes the shipped ones.
        precision: of the dynamics, ``float32`` or ``bfloat16``.
        vision: folder or hub name of the frozen vision encoder below the encoder, where it was
            trained on one; empty takes the encoder's card's.
        tracking: values of :class:`~vla_reasoner_ros.world_models.tracking.TrackerParameters`.
        views: whether images of a moved camera or under changed light are brought back to the view
            of training, where the folder has weights for that.

    Raises:
        ConfigurationError: weights are missing or corrupt, the dynamics was trained on another
            encoder's latents, or the processor does not have the precision.
    """

    name = "latent"
    needs_simulator_state = False

    def __init__(
        self,
        models_dir: str = "",
        precision: str = "float32",
        vision: str = "",
        tracking: Mapping[str, Any] | None = None,
        views: bool = True,
    ) -> None:
        folder = Path(models_dir) if models_dir else models_directory()
        self.encoder = Encoder.load(folder, vision)
        network, card = load_dynamics(folder, self.encoder)
        self._dynamics = network.compiled(precision)
        config = network.config
        self._layout = config.layout
        super().__init__(
            ActionSpec.from_mapping(card["action_spec"]), config.macro_steps, config.layout.width
        )
        self.joints = config.layout.joints
        self.latent_source = self.encoder.fingerprint
        self._tracker = ObjectTracker(config.layout, tracking)
        self.views = ViewCorrector.load(folder) if views else None

    def forget(self) -> None:
        """An episode begins: what was seen before is no longer there."""
        self._tracker.forget()

    def encode(self, observation: Observation) -> None:
        """Write the state that was seen to slot 0, with what is hidden where it was seen last."""
        if self.views is not None:
            observation = self.views.restore(observation)
        seen = self.encoder.encode([observation])[0]
        self._set_root(self._tracker.update(seen, observation.stamp_ns))

    def step(self, parents: Slots, actions: NDArray[np.float32], children: Slots) -> None:
        """Imagine a batch: (B,) slots, (B, M, D) actions, (B,) slots.

        Raises:
            ModelError: the actions have another shape than M and D say, or the answer is not
                finite.
        """
        commands = self._commands(parents, actions)
        states, variance = self._states.numpy(), self._variance.numpy()
        self._require_finite(self._dynamics.step(states, variance, parents, commands, children))

    def uncertainty(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) standard deviation between the members, summed along the path, m."""
        return self._deviation(slots)

    def distance(self, slots: Slots) -> NDArray[np.float64]:
        """(B,) the farthest that the end effector or an object is from where it was seen, m."""
        states = self.latents(slots)
        parts = [
            torch.cat(
                [
                    self._layout.get(states, "ee_position")[..., None, :],
                    self._layout.get(states, "object_position"),
                ],
                dim=-2,
            )
            for states in (states, self._states[:1])
        ]
        return (parts[0] - parts[1]).norm(dim=-1).amax(dim=-1).double().numpy()

    def ee_positions(self, slots: Slots) -> NDArray[np.float64]:
        """(B, 3) imagined end-effector positions, m, base frame."""
        states = self.latents(slots)
        return self._layout.get(states, "ee_position").double().numpy()
