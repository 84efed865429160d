"""What the package asks of a vision-language-action policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

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
        state: what it reads of the robot's state, by the names of
            :data:`~vla_reasoner_ros.policies.state.PARTS`; empty where it reads none or does not
            say.
        joint_names: the joints whose positions or velocities it reads, in order.
    """

    name: str
    cameras: dict[str, tuple[int, int]]
    action: ActionSpec
    horizon: int
    control_frame: str = ""
    example_instruction: str = ""
    state: tuple[str, ...] = ()
    joint_names: tuple[str, ...] = ()


class Policy(Protocol):
    """A frozen policy. Made from a configuration, then queried once per decision.

    It is made when the planner is configured, loads its weights then, and is used in the thread
    that made it. A policy that holds a process, a connection or a file lets go of it when it is
    collected.
    """

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


@runtime_checkable
class PrefixConditioned(Protocol):
    """A policy that can continue a chunk under way instead of starting afresh."""

    def condition_on_prefix(self, prefix: ActionChunk | None) -> None:
        """Have the next proposal, and it alone, begin with these actions.

        Args:
            prefix: the actions, of the policy's own convention, that will be executed whatever is
                proposed; at most H of them. None takes the condition back.

        Raises:
            ActionChunkError: another convention, or more actions than the policy's chunk has.
        """
