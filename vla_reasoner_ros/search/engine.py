"""The search of one decision: waves in a tree, or a rival's rollouts, on a budget."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.errors import ModelError
from vla_reasoner_ros.priors.base import Candidates
from vla_reasoner_ros.search import rivals
from vla_reasoner_ros.search.base import SOUND, Models, doubted, evaluated, refuse
from vla_reasoner_ros.search.blend import mix_of
from vla_reasoner_ros.search.budget import Budget, Stop
from vla_reasoner_ros.search.candidates import POLICY, POLICY_ORIGIN, CandidateSource
from vla_reasoner_ros.search.direct import direct
from vla_reasoner_ros.search.gate import Verdict, ask
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.selection import rules_of
from vla_reasoner_ros.search.stages import Stages
from vla_reasoner_ros.search.tree import (
    LARGEST_VALUE,
    NODES,
    back_up,
    edge_capacity,
    new_tree,
    re_root,
    reset,
    settle_root,
    subtree,
)
from vla_reasoner_ros.search.wave import (
    collect,
    expand,
    moments,
    new_wave,
    note_doubt,
    roll_on,
    select,
)
from vla_reasoner_ros.types import ActionSpec

Floats = NDArray[np.float64]
_NOTHING = np.zeros((1, 0))


@dataclass
class Outcome:
    """What a search did; what it found stands in the tree.

    Attributes:
        simulations: macro-actions imagined, or values backed up again.
        allowed: simulations the budget allowed, after the gate had its say.
        calls: batched calls of the world model.
        ready: when the first wave could begin, s, on the clock of the stages.
        stop: why it ended.
        verdict: what the gate said.
    """

    simulations: int = 0
    allowed: int = 0
    calls: int = 0
    ready: float = 0.0
    stop: Stop = Stop.SIMULATIONS
    verdict: Verdict = Verdict.OFF


class Engine:
    """Owns the tree and the buffers; made once per parameter set, used for every decision.

    Making one compiles the kernels of a wave, or loads them from the disk cache.

    Args:
        parameters: the search's.
        macro_steps: actions on an edge, M.
        spec: what the numbers of an action mean.

    Attributes:
        capacity: states that the world model must hold, the root included.
        tree: what the last search found.
        source: draws the candidates.
        rules: the parameters as the kernels take them, with this decision's Gumbel noise.
    """

    def __init__(self, parameters: SearchParameters, macro_steps: int, spec: ActionSpec) -> None:
        self.parameters = parameters
        self.macro_steps = macro_steps
        self.spec = spec
        width = macro_steps * spec.dimensions
        early = parameters.blend_at == "candidates"
        mix = mix_of(spec, *((parameters.alpha, parameters.gripper_rule) if early else (0.0,)))
        self.source = CandidateSource(macro_steps, spec, mix)
        self.capacity = 1 + parameters.simulations * (2 if parameters.reuse else 1)
        self.tree = new_tree(self.capacity, self._edge_capacity(), width)
        self._wave = new_wave(min(parameters.wave, max(1, parameters.simulations)), width)
        self.rules = rules_of(parameters)
        self._link(width)

    def search(
        self,
        models: Models,
        segments: Floats,
        budget: Budget,
        rng: np.random.Generator,
        stages: Stages,
        *,
        keep_tree: bool = False,
    ) -> Outcome:
        """Spend a budget.

        Args:
            models: the callables; state 0 is the one seen now.
            segments: (S, M * D) the policy's own chunk, cut into macro-actions.
            budget: simulations and time.
            rng: the only source of randomness.
            stages: books the time.
            keep_tree: go on with the tree as :meth:`reuse` left it.

        Raises:
            ModelError: a model answered in the wrong form, or the value of the state seen now is
                not finite, or larger than :data:`LARGEST_VALUE`.
        """
        outcome = Outcome()
        segments = np.ascontiguousarray(segments, np.float64)
        tree, parameters = self.tree, self.parameters
        mean, spread = moments(evaluated(models, np.zeros(1, np.int64)), 0)
        value = mean - parameters.pessimism * spread
        if not abs(value) <= LARGEST_VALUE:
            raise ModelError(f"value: the state seen now has value {value}")
        stages.lap("value")
        if keep_tree:
            settle_root(tree, value, spread, parameters.discount, parameters.backup == "max")
            budget.shorten(self.capacity - int(tree.counters[NODES]))
        else:
            reset(tree)
            tree.nodes["leaf_value"][0] = value
            back_up(tree, 0, value, spread, parameters.discount, False)
        outcome.ready = stages.last
        if parameters.method == "tree":
            self._grow(models, segments, mean, budget, rng, stages, outcome)
        else:
            rollouts = rivals.Rollouts(
                tree, models, self.source, segments, budget, rng, stages, parameters, self.spec
            )
            rivals.RIVALS[parameters.method](rollouts)
            outcome.calls = rollouts.calls
        outcome.simulations, outcome.allowed = budget.done, budget.allowed
        outcome.stop = budget.stop
        return outcome

    def compile(self) -> None:
        """Run every kernel once on a state that never changes; loads or fills the disk cache."""

        def candidates(reference: Floats, count: int, rng: np.random.Generator) -> Candidates:
            actions = np.repeat(reference[:, None], 1 + count, axis=1)
            return Candidates(actions, np.zeros(actions.shape[:2]), (POLICY,) * (1 + count))

        models = Models(
            step=lambda parents, actions, children: None,
            evaluate=lambda slots: np.zeros((1, len(slots))),
            candidates=candidates,
        )
        segments = np.zeros((1, self.tree.action.shape[1]))
        budget = Budget(self.parameters.simulations)
        self.search(models, segments, budget, np.random.default_rng(0), Stages())
        reset(self.tree)

    def can_keep(self, top: int) -> bool:
        """Whether a node's subtree is worth keeping and leaves room to search on."""
        kept = self.tree.nodes["edge_count"][top] > 1
        room = self.capacity - len(subtree(self.tree, top))
        return bool(kept) and room >= self.parameters.longest

    def reuse(self, top: int, reference: Floats) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Make an expanded node's subtree the tree; see :func:`re_root` for what is returned."""
        return re_root(
            self.tree,
            top,
            reference.astype(np.float32),
            POLICY_ORIGIN,
            self.parameters.fan,
            self.parameters.discount,
        )

    def _grow(
        self,
        models: Models,
        segments: Floats,
        now: float,
        budget: Budget,
        rng: np.random.Generator,
        stages: Stages,
        outcome: Outcome,
    ) -> None:
        """Grow the tree wave by wave; the state seen now has the mean value ``now``."""
        tree, rules, wave = self.tree, self.rules, self._wave
        parameters, gate = self.parameters, self.parameters.gate
        if parameters.selection == "gumbel":
            rules.noise[:] = parameters.gumbel.noise * rng.gumbel(size=len(rules.noise))
        longest = parameters.longest
        asked = not gate.enabled
        while allowed := budget.begin_wave((len(wave.descents) if asked else 1) * longest, longest):
            if allowed < longest:
                return
            before = int(tree.counters[NODES])
            made, expanding, leaves = self._select(tree, rules, wave, segments, allowed // longest)
            stages.lap("select")
            if expanding:
                leaves = self._expand(models, made, expanding, rng, stages)
            count = leaves
            while count:
                self._imagine(models, made, count)
                outcome.calls += 1
                stages.lap("world_model")
                if not parameters.rollout:
                    break
                count, leaves = self._roll_on(tree, rules, wave, segments, made)
                stages.lap("select")
            values = evaluated(models, wave.children[:leaves]) if leaves else _NOTHING
            stages.lap("value")
            again = self._collect(tree, rules, wave, made, values)
            stages.lap("backup")
            budget.end_wave(int(tree.counters[NODES]) - before + again)
            if not asked and leaves:
                asked = True
                slope = (float(values[:, 0].mean()) - now) / longest
                outcome.verdict = ask(gate, slope, float(values[:, 0].std()))
                if outcome.verdict is Verdict.SKIP:
                    budget.stop = Stop.GATE
                    return
                if outcome.verdict is Verdict.SHORTEN:
                    budget.shorten(max(1, round(gate.fraction * budget.allowed)))

    def _expand(
        self,
        models: Models,
        made: int,
        expanding: int,
        rng: np.random.Generator,
        stages: Stages,
    ) -> int:
        """Give the wave's nodes their candidates; returns how many states are to be imagined."""
        wave, source = self._wave, self.source
        drawn = source.ask(models, wave.reference[:expanding], self.parameters.drawn, rng)
        stages.lap("prior")
        leaves = self._attach(
            self.tree,
            self.rules,
            wave,
            source.mix,
            drawn.actions,
            drawn.log_density,
            source.identify(drawn.origins),
            made,
        )
        stages.lap("select")
        refuse(min(leaves, SOUND))
        return leaves

    def _link(self, width: int) -> None:
        """Find the kernels' machine code, compiled for what this engine passes to them."""
        shared = self.tree, self.rules, self._wave
        numbers, origins = np.zeros((1, width)), np.zeros(1, np.int16)
        self._select = direct(select, *shared, numbers, 1)
        self._attach = direct(expand, *shared, self.source.mix, numbers[None], numbers, origins, 1)
        self._roll_on = direct(roll_on, *shared, numbers, 1)
        self._collect = direct(collect, *shared, 1, numbers)

    def _edge_capacity(self) -> int:
        """Edges that the tree can need, see :func:`edge_capacity`."""
        parameters = self.parameters
        if parameters.method != "tree":
            return self.capacity
        # Cut-off candidates have no child, so that rounds of drawing are not bounded by nodes.
        by_nodes = parameters.support_floor == 0.0
        return edge_capacity(
            self.capacity,
            parameters.depth,
            parameters.fan,
            parameters.drawn if parameters.widening.enabled and by_nodes else 0,
            exhaustive=by_nodes
            and parameters.selection != "gumbel"
            and parameters.first_play == "try_all"
            and not (parameters.widening.enabled or parameters.rollout),
            childless=parameters.reuse,
        )

    def _imagine(self, models: Models, made: int, count: int) -> None:
        """Step the world model once for the listed states."""
        wave = self._wave
        shape = (count, self.macro_steps, self.spec.dimensions)
        children = wave.children[:count]
        models.step(wave.parents[:count], wave.actions[:count].reshape(shape), children)
        if models.uncertainty is not None:
            note_doubt(wave, children, made, doubted(models.uncertainty, children))
