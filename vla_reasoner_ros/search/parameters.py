"""Every number of the search that a user may change, declared once."""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import group, parameter

METHODS = ("tree", "best_of_n", "shooting", "cem", "mppi")


@dataclass(frozen=True)
class Gumbel:
    """Sequential halving at the root (Danihelka et al., 2022), for ``selection: gumbel``."""

    considered: int = parameter(
        16, "Root candidates that enter the tournament.", minimum=1, maximum=1024
    )
    noise: float = parameter(
        1.0, "Scale of the Gumbel noise on the root's log priors; 0 is greedy.", minimum=0.0
    )
    visit_offset: float = parameter(
        50.0, "Added to the largest visit count in the weight of the values.", minimum=0.0
    )
    value_scale: float = parameter(
        0.1, "Weight of the values against the log priors, per visit.", minimum=0.0
    )


@dataclass(frozen=True)
class Widening:
    """Progressive widening: a node of n visits may have ``factor * n ** exponent`` candidates.

    They are drawn in rounds, each around the best candidate so far and closer to it than the last,
    so that a promising node is refined instead of filled (our choice; with ``shrink`` 1 only the
    centre moves). A round is also blended into that centre, not into the policy's own action: the
    more rounds, the further the search may go from the policy, whatever ``alpha`` is.
    """

    enabled: bool = parameter(
        True, "Draw a node's candidates in rounds as its visits grow, instead of all at once."
    )
    batch: int = parameter(8, "Candidates drawn in each round.", minimum=1, maximum=4096)
    factor: float = parameter(4.0, "Candidates allowed after the first visit.", minimum=1.0)
    exponent: float = parameter(
        0.5, "Growth of the allowed candidates with the visits.", minimum=0.0, maximum=1.0
    )
    shrink: float = parameter(
        0.9,
        "Distance of a round's candidates from their centre, relative to the round before.",
        minimum=0.0,
        maximum=1.0,
    )


@dataclass(frozen=True)
class Gate:
    """Leaves the search out, or shortens it, where it cannot pay.

    Decided after the policy's own first macro-action has been imagined, from the slope of its value
    (gain per macro-action) and the disagreement (standard deviation) of the value's ensemble there.
    """

    enabled: bool = parameter(False, "Whether the gate is asked at all.")
    skip_slope: float = parameter(
        0.1,
        "Skip the search when the policy's own macro-action gains at least this much value and the "
        "ensemble agrees.",
    )
    shorten_slope: float = parameter(
        0.05, "Shorten the search when it gains at least this much and the ensemble agrees."
    )
    agreement: float = parameter(
        0.05, "Disagreement up to which a good slope is believed.", minimum=0.0
    )
    trust: float = parameter(
        0.5,
        "Disagreement above which the models are not trusted: the search is skipped.",
        minimum=0.0,
    )
    fraction: float = parameter(
        0.25, "Share of the simulations that a shortened search gets.", minimum=0.0, maximum=1.0
    )


@dataclass(frozen=True)
class Drift:
    """Compares the state seen now with the one that was imagined for now."""

    threshold: float = parameter(
        0.0,
        "Distance, in the world model's unit, past which the plain policy drives; 0 is off.",
        minimum=0.0,
    )
    patience: int = parameter(
        1, "Decisions in a row past the threshold before the policy takes over.", minimum=1
    )


@dataclass(frozen=True)
class CrossEntropy:
    """The rival ``method: cem``."""

    iterations: int = parameter(4, "Rounds of sampling and refitting.", minimum=1, maximum=64)
    elite_fraction: float = parameter(
        0.2, "Share of each round that the next one is fitted to.", minimum=0.01, maximum=1.0
    )


@dataclass(frozen=True)
class PathIntegral:
    """The rival ``method: mppi``."""

    iterations: int = parameter(2, "Rounds of sampling and averaging.", minimum=1, maximum=64)
    temperature: float = parameter(
        0.02, "Value difference that matters by a factor e in the average.", minimum=1e-6
    )


@dataclass(frozen=True)
class SearchParameters:
    """Parameters of one decision, from budget to blend.

    Raises:
        ConfigurationError: values that contradict one another.
    """

    method: str = parameter(
        "tree",
        "How futures are tried: the tree, or a rival with the same number of imagined steps.",
        choices=METHODS,
    )
    seed: int = parameter(0, "Seed of all random numbers of the search.", minimum=0)

    simulations: int = parameter(
        64,
        "Imagined macro-actions per decision; 0 leaves the search out.",
        minimum=0,
        maximum=1_000_000,
    )
    deadline_ms: float = parameter(
        0.0,
        "Time for a whole decision when the caller states none; 0 is unlimited.",
        unit="ms",
        minimum=0.0,
    )
    depth: int = parameter(2, "Macro-actions imagined one after the other.", minimum=1, maximum=100)
    reach: int = parameter(
        2,
        "Macro-actions past the end of the policy's chunk whose reference is their parent's "
        "action.",
        minimum=0,
    )
    rollout: bool = parameter(
        True,
        "Continue every new leaf with the policy's own macro-actions to the full depth before it "
        "is valued, so that candidates are compared at the same distance.",
    )
    wave: int = parameter(
        16,
        "Leaves imagined together in one batch; 1 is the textbook algorithm.",
        minimum=1,
        maximum=65_536,
    )
    executed: int = parameter(
        4,
        "Actions executed per decision, at most those of the policy's chunk; may differ from the "
        "steps imagined per edge.",
        minimum=1,
    )

    samples: int = parameter(
        64,
        "Candidates drawn from the prior at each node, without widening.",
        minimum=1,
        maximum=4096,
    )
    branching: int = parameter(
        64,
        "Candidates that a node may have beside its reference: of the samples those nearest to "
        "it, or with widening all that were drawn.",
        minimum=1,
        maximum=4096,
    )
    prior_temperature: float = parameter(
        10.0,
        "Flattens the candidates' densities: p becomes p ** (1 / temperature).",
        minimum=1e-3,
    )
    support_floor: float = parameter(
        0.0,
        "Candidates whose log density lies this far below their best sibling's are cut off; 0 "
        "is off.",
        unit="nat",
        minimum=0.0,
    )
    uncertainty_limit: float = parameter(
        0.0,
        "Imagined states on which the world model's ensemble disagrees more are cut off; 0 is off.",
        minimum=0.0,
    )

    selection: str = parameter(
        "puct",
        "Rule inside the tree: ucb with density pseudo-counts (the paper), puct, or gumbel "
        "sequential halving at the root.",
        choices=("ucb", "puct", "gumbel"),
    )
    exploration: float = parameter(
        3.0, "Weight of exploration against value, c.", minimum=0.0, maximum=1e6
    )
    first_play: str = parameter(
        "try_all",
        "Value of a candidate before its first visit: every candidate once before any twice, the "
        "parent's value less first_play_value, or first_play_value itself.",
        choices=("try_all", "parent", "constant"),
    )
    first_play_value: float = parameter(0.0, "See first_play.")
    normalise: bool = parameter(
        True, "Scale values by the smallest and largest backed up so far in selection."
    )
    value_resolution: float = parameter(
        0.01,
        "Smallest spread of values that normalisation stretches to one: less is noise.",
        minimum=1e-9,
    )
    virtual_loss: float = parameter(
        0.5,
        "Value, in normalised units, withheld from a candidate whose visits are all under way in "
        "the current wave; 0 only counts them.",
        minimum=0.0,
    )
    gumbel: Gumbel = group(Gumbel)
    widening: Widening = group(Widening)

    backup: str = parameter(
        "max",
        "What a node is worth: the mean of what was found beneath it, or its best child.",
        choices=("mean", "max"),
    )
    discount: float = parameter(
        1.0, "Factor on the value per macro-action.", minimum=0.0, maximum=1.0
    )
    pessimism: float = parameter(
        1.0,
        "Leaf value is the ensemble's mean less this many standard deviations, beta.",
        minimum=0.0,
    )

    decision: str = parameter(
        "value",
        "Which root candidate wins: most visits, highest value, or highest lower bound of the "
        "value.",
        choices=("visits", "value", "lower_bound"),
    )
    bound_width: float = parameter(
        1.0,
        "Standard errors below the value, for decision lower_bound: of what was backed up, and of "
        "the value's ensemble at the leaves.",
        minimum=0.0,
    )
    margin: float = parameter(
        0.0,
        "Value by which the winner must exceed the policy's own candidate to be taken.",
        minimum=0.0,
    )
    alpha: float = parameter(
        0.6,
        "Injection strength: the share that a draw keeps of what it was drawn around, 1 is the "
        "plain policy. That is the policy's own action or, in later rounds of widening, the best "
        "candidate so far: k rounds leave about alpha ** k of the policy. Rivals, and blend_at: "
        "decision, blend straight into the policy's action.",
        minimum=0.0,
        maximum=1.0,
    )
    blend_at: str = parameter(
        "candidates",
        "Where alpha is applied: to the candidates before they are imagined, so that what is "
        "scored is what would be executed, or to the winner at the decision (the paper).",
        choices=("candidates", "decision"),
    )
    gripper_rule: str = parameter(
        "winner",
        "Whose command a binary gripper gets: the winner's, the policy's, or the one nearest to "
        "the blend.",
        choices=("winner", "policy", "nearest"),
    )
    shadow: bool = parameter(False, "Search and report, but let the policy drive.")
    restore_views: bool = parameter(
        True,
        "Show the policy, too, images of a moved camera or under changed light as the world model "
        "brings them back to the view of training, while there is a search.",
    )

    positions: bool = parameter(
        True, "Ask the world model where the end effector is in every imagined state, to be shown."
    )

    gate: Gate = group(Gate)
    drift: Drift = group(Drift)
    reuse: bool = parameter(
        False, "Start from the executed candidate's subtree when it was imagined right."
    )
    reuse_distance: float = parameter(
        0.05,
        "Largest distance of the imagined from the seen state, in the world model's unit, for "
        "reuse.",
        minimum=0.0,
    )

    cem: CrossEntropy = group(CrossEntropy)
    mppi: PathIntegral = group(PathIntegral)

    def __post_init__(self) -> None:
        if self.branching > self.samples and not self.widening.enabled:
            raise ConfigurationError(
                f"parameter branching: expected at most samples = {self.samples}, got "
                f"{self.branching}"
            )
        if self.selection == "gumbel" and (self.widening.enabled or self.reuse):
            raise ConfigurationError(
                "parameter selection: gumbel halves a fixed set of candidates with no visits yet; "
                "it goes with neither widening nor reuse"
            )
        if self.gate.shorten_slope > self.gate.skip_slope:
            raise ConfigurationError(
                f"parameter gate.shorten_slope: expected at most gate.skip_slope = "
                f"{self.gate.skip_slope}, got {self.gate.shorten_slope}"
            )
        if self.reuse and self.method != "tree":
            raise ConfigurationError(
                f"parameter reuse: only method 'tree' keeps a tree, method is {self.method!r}"
            )
        if 0 < self.simulations < self.longest:
            raise ConfigurationError(
                f"parameter simulations: to imagine one future takes depth = {self.depth}, got "
                f"{self.simulations}"
            )

    @property
    def fan(self) -> int:
        """Candidates that a node may have, the reference included, F."""
        return self.branching + 1

    @property
    def drawn(self) -> int:
        """Draws from the prior per node and round, K."""
        return min(self.widening.batch, self.branching) if self.widening.enabled else self.samples

    @property
    def longest(self) -> int:
        """Macro-actions that one simulation may imagine."""
        return 1 if self.method == "tree" and not self.rollout else self.depth

    @property
    def enabled(self) -> bool:
        """Whether there is anything to search for: a budget, and a share for the winner."""
        differs = self.alpha < 1.0 or (self.shadow and self.blend_at == "decision")
        return self.simulations > 0 and differs

    def require_chunk(self, horizon: int, macro_steps: int | None) -> None:
        """Check against the policy's chunk and the world model's macro-action.

        Args:
            horizon: actions in the policy's chunk, H.
            macro_steps: actions imagined per edge, M; None where nothing is imagined.

        Raises:
            ConfigurationError: a macro-action or the executed actions do not fit into the chunk,
                the depth goes past the chunk and the reach, or what is imagined for the next
                decision is not what is executed until then.
        """
        if self.executed > horizon:
            raise ConfigurationError(
                f"parameter executed: expected at most the {horizon} actions of the policy's "
                f"chunk, got {self.executed}"
            )
        if macro_steps is None:
            return
        segments = horizon // macro_steps
        if segments < 1:
            raise ConfigurationError(
                f"world model: one macro-action has {macro_steps} actions, the policy's chunk only "
                f"{horizon}"
            )
        if self.depth > segments + self.reach:
            raise ConfigurationError(
                f"parameter depth: the chunk holds {segments} macro-actions and reach adds "
                f"{self.reach}; expected at most {segments + self.reach}, got {self.depth}"
            )
        if self.executed > self.depth * macro_steps:
            raise ConfigurationError(
                f"parameter executed: expected at most the {self.depth} x {macro_steps} actions "
                f"that are imagined, got {self.executed}"
            )
        if (self.reuse or self.drift.threshold > 0.0) and self.executed != macro_steps:
            name = "reuse" if self.reuse else "drift.threshold"
            raise ConfigurationError(
                f"parameter {name}: compares the state after one macro-action with the next one "
                f"seen; expected executed = {macro_steps}, as many actions as are imagined per "
                f"edge, got {self.executed}"
            )
