"""Parameters as a room declares them, for the tests of parameters with and without ROS."""

from dataclasses import dataclass

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.parameters import group, parameter


@dataclass(frozen=True)
class Search:
    """A group of parameters."""

    simulations: int = parameter(50, "Simulations.", minimum=1, maximum=1000)
    alpha: float = parameter(0.6, "Injection strength.", minimum=0.0, maximum=1.0)
    rule: str = parameter("ucb", "Selection rule.", choices=("ucb", "puct"))
    deadline: float = parameter(0.1, "Deadline.", unit="s", minimum=0.0)


@dataclass(frozen=True)
class Settings:
    """Parameters of every kind, and a rule between two of them."""

    enabled: bool = parameter(True, "Whether it runs.")
    policy: str = parameter("small_vla", "Policy.", read_only=True)
    cameras: tuple[str, ...] = parameter(("agent",), "Cameras.")
    weights: tuple[float, ...] = parameter((), "Weights.", minimum=0.0)
    search: Search = group(Search)

    def __post_init__(self):
        if self.weights and len(self.weights) != len(self.cameras):
            raise ConfigurationError(
                f"weights: expected {len(self.cameras)}, one per camera, got {len(self.weights)}"
            )
