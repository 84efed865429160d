"""Monte Carlo tree search as a textbook has it: objects, dictionaries, one simulation at a time.

Short and slow on purpose: the compiled search must grow the same tree, node for node.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from vla_reasoner_ros.search.base import Models
from vla_reasoner_ros.search.parameters import SearchParameters


@dataclass(eq=False)
class Node:
    parent: Node | None
    action: np.ndarray | None
    prior: float
    depth: int
    slot: int | None = None
    visits: int = 0
    returns: list[float] = field(default_factory=list)
    leaf_value: float = 0.0
    children: list[Node] = field(default_factory=list)
    drawn: bool = False

    @property
    def seen(self) -> list[Node]:
        return [child for child in self.children if child.visits]

    @property
    def untried(self) -> list[Node]:
        return [child for child in self.children if not child.visits]


class Textbook:
    def __init__(self, parameters: SearchParameters, models: Models, segments: np.ndarray, rng):
        self.p, self.models, self.segments, self.rng = parameters, models, segments, rng
        self.nodes: list[Node] = []
        self.low, self.high = math.inf, -math.inf
        self.noise = (
            parameters.gumbel.noise * rng.gumbel(size=parameters.fan)
            if parameters.selection == "gumbel"
            else None
        )

    def run(self) -> list[Node]:
        root = Node(None, None, 1.0, 0, slot=0)
        self.nodes.append(root)
        root.leaf_value = self.value(root)
        self.back_up(root, root.leaf_value)
        budget = self.p.simulations
        while budget >= self.p.longest:
            budget -= self.simulate(root)
        return self.nodes

    def simulate(self, node: Node) -> int:
        while node.depth < self.p.depth:
            if not node.drawn or self.wants_more(node):
                self.draw(node)
                chosen = self.choose(node, node.untried)
            else:
                chosen = self.choose(node, node.children)
            if not chosen.visits:
                return self.add(chosen)
            node = chosen
        self.back_up(node, node.leaf_value)
        return 1

    def add(self, top: Node) -> int:
        self.imagine(top)
        leaf, steps = top, 1
        while self.p.rollout and leaf.depth < self.p.depth:
            child = Node(leaf, self.reference(leaf), 1.0, leaf.depth + 1)
            leaf.children.append(child)
            self.imagine(child)
            leaf, steps = child, steps + 1
        self.back_up(leaf, self.value(leaf))
        node = leaf
        while node is not top.parent:
            node.leaf_value = self.worth(node)
            node = node.parent
        return steps

    def imagine(self, node: Node) -> None:
        node.slot = len(self.nodes)
        self.nodes.append(node)
        action = node.action.astype(np.float32).reshape(1, 1, -1)
        self.models.step(np.array([node.parent.slot]), action, np.array([node.slot]))

    def value(self, node: Node) -> float:
        members = self.models.evaluate(np.array([node.slot]))[:, 0]
        return members.mean() - (self.p.pessimism * members.std() if len(members) > 1 else 0.0)

    def reference(self, node: Node) -> np.ndarray:
        return self.segments[node.depth] if node.depth < len(self.segments) else node.action

    def wants_more(self, node: Node) -> bool:
        p, count = self.p.widening, len(node.children)
        allowed = p.factor * node.visits**p.exponent
        return p.enabled and not node.untried and count < self.p.fan and count < allowed

    def draw(self, node: Node) -> None:
        center, shrink, weight = self.reference(node), 1.0, 1.0
        first = not node.drawn
        if not first:
            best = max(node.seen, key=lambda child: self.p.discount * self.worth(child))
            center, weight = best.action.astype(np.float32).astype(float), best.prior
            shrink = self.p.widening.shrink ** ((len(node.children) - 1) // self.p.drawn)
        answer = self.models.candidates(center.reshape(1, 1, -1), self.p.drawn, self.rng)
        actions = answer.actions[0, :, 0].copy()
        actions[1:] = center + shrink * (actions[1:] - center)
        if not self.p.widening.enabled and self.p.branching < self.p.samples:
            away = (actions[1:] - actions[0]) ** 2
            nearest = np.argsort((away / away.mean(0)).sum(1), kind="stable")[: self.p.branching]
            kept = [0, *(1 + nearest)]
        else:
            kept = list(range(len(actions)))
        if self.p.blend_at == "candidates":
            actions[1:] = self.p.alpha * center + (1.0 - self.p.alpha) * actions[1:]
        density = answer.log_density[0, kept]
        priors = weight * np.exp((density - density.max()) / self.p.prior_temperature)
        for index, (i, prior) in enumerate(zip(kept, priors, strict=True)):
            if index == 0 and (not first or node.children):
                if first:
                    node.children[0].prior = prior
                continue
            if len(node.children) < self.p.fan:
                node.children.append(Node(node, actions[i], prior, node.depth + 1))
        total = sum(child.prior for child in node.children)
        for child in node.children:
            child.prior /= total
        node.drawn = True

    def worth(self, node: Node) -> float:
        if self.p.backup == "max" and node.seen:
            return max(self.p.discount * self.worth(child) for child in node.seen)
        return float(np.mean(node.returns))

    def scaled(self, value: float) -> float:
        if not self.p.normalise:
            return value
        return (value - self.low) / max(self.high - self.low, self.p.value_resolution)

    def back_up(self, node: Node | None, value: float) -> None:
        while node is not None:
            node.visits += 1
            node.returns.append(value)
            self.low = min(self.low, self.worth(node))
            self.high = max(self.high, self.worth(node))
            value *= self.p.discount
            node = node.parent

    def choose(self, node: Node, among: list[Node]) -> Node:
        if node.parent is None and not node.children[0].visits:
            return node.children[0]
        if self.p.selection == "gumbel":
            return self.choose_gumbel(node, among)
        return max(among, key=lambda child: self.score(node, child))

    def score(self, node: Node, child: Node) -> float:
        visits, prior = node.visits, child.prior
        if not child.visits and self.p.first_play == "try_all":
            return 1e12 * (1.0 + prior)
        if self.p.selection == "ucb":
            bonus = math.sqrt(math.log(1 + visits) / (1 + visits * prior))
        else:
            bonus = prior * math.sqrt(visits) / (1 + child.visits)
        if child.visits:
            value = self.scaled(self.p.discount * self.worth(child))
        elif self.p.first_play == "parent":
            value = self.scaled(self.worth(node)) - self.p.first_play_value
        else:
            value = self.p.first_play_value
        return value + self.p.exploration * bonus

    def choose_gumbel(self, node: Node, among: list[Node]) -> Node:
        visits = sum(child.visits for child in node.children)
        completion = node.leaf_value
        if node.seen:
            mass = sum(child.prior for child in node.seen)
            mean = sum(c.prior * self.p.discount * self.worth(c) for c in node.seen) / mass
            completion = (completion + visits * mean) / (1 + visits)
        values = np.array(
            [self.p.discount * self.worth(c) if c.visits else completion for c in node.children]
        )
        spread = max(values.max() - values.min(), self.p.value_resolution)
        most = max(child.visits for child in node.children)
        weight = (self.p.gumbel.visit_offset + most) * self.p.gumbel.value_scale
        logits = (
            np.log([c.prior for c in node.children]) + weight * (values - values.min()) / spread
        )
        if node.parent is None:
            due = self.schedule()[visits]
            scores = logits + self.noise - [1e9 * abs(c.visits - due) for c in node.children]
        else:
            policy = np.exp(logits - logits.max())
            counts = np.array([child.visits for child in node.children])
            scores = policy / policy.sum() - counts / (1 + visits)
        allowed = [scores[i] if c in among else -math.inf for i, c in enumerate(node.children)]
        return node.children[int(np.argmax(allowed))]

    def schedule(self) -> list[int]:
        """Visits that the candidate of each visit has had, by simulating the tournament."""
        considered = min(self.p.gumbel.considered, self.p.fan)
        sure, budget = 0, self.p.simulations
        while budget >= self.p.longest:  # to be followed to the full depth
            budget -= self.p.longest if sure < considered else max(1, self.p.longest - 1)
            sure += 1
        if considered <= 1:
            return list(range(self.p.simulations))
        rounds, order = math.ceil(math.log2(considered)), []
        visits = dict.fromkeys(range(considered), 0)
        left = list(visits)
        while len(order) < self.p.simulations:
            for _ in range(max(1, sure // (rounds * len(left)))):
                for i in left:
                    order.append(visits[i])
                    visits[i] += 1
            left = left[: max(2, len(left) // 2)]
        return order
