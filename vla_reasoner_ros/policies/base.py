"""What the package asks of a vision-language-action policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from vla_reasoner_ros.types import ActionChunk, ActionSpec, Observation


@dataclass(frozen=True)
class PolicySpec:
    """What a policy takes and gives.

    Attributes:
        name: the name it is registered under.
        cameras: camera name to the (height, width) that the policy takes, pixels.
        action: the convention of its actions, in SI units: its own units and normalisation are
            undone inside the policy.
        horizon: actions in a chunk, H.
        control_frame: the link whose pose end-effector actions move; empty for joint actions.
        example_instruction: one that the policy knows, for warming up.
    """

    name: str
    cameras: dict[str, tuple[int, int]]
    action: ActionSpec
    horizon: int
    control_frame: str = ""
    example_instruction: str = ""


class Policy(Protocol):
    """A frozen policy. Made from a configuration, then queried once per decision."""

    @property
    def spec(self) -> PolicySpec:
        """What it takes and gives; known once the policy is made."""

    def reset(self) -> None:
        """Forget what is left of the last episode."""

    def propose(self, observation: Observation, n: int = 1) -> list[ActionChunk]:
        """Propose ``n`` chunks for an observation; the first is the policy's best.

        A deterministic policy returns one chunk whatever ``n`` is.

        Raises:
            ObservationError: a camera is missing or has the wrong size.
            InstructionError: the instruction is not one the policy knows.
            ModelError: the model failed or answered with non-finite numbers.
        """
