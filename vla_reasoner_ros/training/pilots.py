"""Who drives while decisions are branched: the expert, a policy, or the search itself."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.world import World

MACRO_STEPS = 4
"""Actions in a macro-action, M."""


class Pilot(Protocol):
    """Decides where an episode goes."""

    def macro(self) -> NDArray[np.float64]:
        """(M, 7) the next actions."""


class ExpertPilot:
    """The expert, made as fallible as a small policy: noisy, biased for a while, or mistaken."""

    def __init__(self, world: World, rng: np.random.Generator) -> None:
        self._world = world
        self._rng = rng
        self._noise = float(rng.choice([0.0, 0.2, 0.5, 0.9]))

    def macro(self) -> NDArray[np.float64]:
        """(M, 7) the next actions; the world is where it was afterwards."""
        rng, world = self._rng, self._world
        bias = np.zeros(6)
        if rng.random() < 0.4:
            bias[:3] = rng.normal(0.0, 0.008, 3)
            bias[3:] = rng.normal(0.0, 0.02, 3)
        flips = rng.random() < 0.06
        state = world.get_state()
        expert = Expert(world, self._noise, rng)
        actions = np.empty((MACRO_STEPS, 7))
        for step in range(MACRO_STEPS):
            actions[step] = expert.act()
            actions[step, :6] += bias
            if flips:
                actions[step, 6] = 1.0 - actions[step, 6]
            world.apply(actions[step])
        world.set_state(state)
        return actions


class SearchPilot:
    """The search over learned models: it goes where they promise too much, to be told better."""

    def __init__(self, world: World, reasoner: Reasoner, seed: int) -> None:
        self._world = world
        self._reasoner = reasoner
        reasoner.reset(seed)

    def macro(self) -> NDArray[np.float64]:
        """(M, 7) the next actions."""
        return self._reasoner.decide(self._world.observation()).chunk.actions[:MACRO_STEPS]


class PolicyPilot:
    """A policy, asked for a chunk whose first macro-action is executed."""

    def __init__(self, world: World, policy: Any) -> None:
        self._world = world
        self._policy = policy
        policy.reset()

    def macro(self) -> NDArray[np.float64]:
        """(M, 7) the next actions."""
        return self._policy.propose(self._world.observation())[0].actions[:MACRO_STEPS]


def expert_macro(world: World) -> NDArray[np.float64]:
    """(M, 7) what the undisturbed expert would do; the world is where it was afterwards."""
    state = world.get_state()
    expert = Expert(world)
    actions = np.empty((MACRO_STEPS, 7))
    for step in range(MACRO_STEPS):
        actions[step] = expert.act()
        world.apply(actions[step])
    world.set_state(state)
    return actions
