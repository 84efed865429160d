"""What is kept of an evaluation: episodes, their decisions, and what the report needs to show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

EPISODE_ACTIONS = 100
"""Actions after which an episode is over."""


@dataclass(frozen=True)
class Arm:
    """One way of deciding that is compared with the others.

    Attributes:
        name: short, as in ``--arms``.
        label: as people read it.
        description: which world model, value and method, in one sentence.
    """

    name: str
    label: str
    description: str


@dataclass
class DecisionRecord:
    """One decision.

    Attributes:
        time_s: episode time of the observation decided on, s.
        statistics: the fields of SearchStatistics by name.
        tree: the fields of SearchTree by name; None where it was not kept.
        picture: JPEG of the moment; None where it was not kept.
    """

    time_s: float
    statistics: Mapping[str, Any]
    tree: Mapping[str, Any] | None = None
    picture: bytes | None = None


@dataclass(frozen=True)
class CommandCounts:
    """What the simulated arm's own controller says of the trajectories that it was sent.

    Attributes:
        sent: trajectories, the rejected ones included.
        rejected: those that joint_trajectory_controller would not have taken.
        violations: samples at 1 kHz of what it then commanded in which a joint broke a limit.
    """

    sent: int
    rejected: int
    violations: int


@dataclass
class EpisodeRecord:
    """One episode of one arm.

    Attributes:
        task, seed: the scene; the same for every arm of a pair.
        arm: the arm's name.
        instruction: what was asked, in words.
        success: whether the goal was held.
        ending: "success", "time limit", or what went wrong.
        duration_s: simulated seconds.
        progress: true progress at the end, 0 to 1.
        decisions: in order.
        rejections: chunks that the arm controller refused.
        commands: what became of its trajectories; None where the arm was moved otherwise.
    """

    task: str
    seed: int
    arm: str
    instruction: str
    success: bool = False
    ending: str = ""
    duration_s: float = 0.0
    progress: float = 0.0
    decisions: list[DecisionRecord] = field(default_factory=list)
    rejections: int = 0
    commands: CommandCounts | None = None

    def summary(self) -> dict[str, Any]:
        """What the tables need, as JSON can hold it."""
        times = [decision.statistics["time_ms"] for decision in self.decisions]
        return {
            "task": self.task,
            "seed": self.seed,
            "arm": self.arm,
            "instruction": self.instruction,
            "success": self.success,
            "ending": self.ending,
            "duration_s": round(self.duration_s, 3),
            "progress": round(self.progress, 4),
            "decision_ms": [round(time, 2) for time in times],
            "simulations": [int(d.statistics["simulations"]) for d in self.decisions],
            "world_model_calls": [int(d.statistics["world_model_calls"]) for d in self.decisions],
            "rejections": self.rejections,
            "commands": None if self.commands is None else asdict(self.commands),
            "deviated": sum(bool(d.statistics["deviated"]) for d in self.decisions),
            "fallbacks": sorted(
                {r for d in self.decisions if (r := d.statistics["fallback_reason"])}
            ),
        }


@dataclass
class RunRecord:
    """A whole run, as the report shows it.

    Attributes:
        title: the report's heading.
        facts: name and text of what a reader needs to repeat the run.
        notes: what must be said about the arms, one sentence each.
        arms: in the order of tables; the first is the base that the others are compared with.
        episodes: summaries of every episode.
        shown: episodes with pictures and trees, in the order they are shown.
        projection: (3, 4) from homogeneous points in the base frame to pixels of the pictures.
        picture_size: width and height of the pictures, pixels.
    """

    title: str
    facts: Sequence[tuple[str, str]]
    notes: Sequence[str]
    arms: Sequence[Arm]
    episodes: Sequence[Mapping[str, Any]]
    shown: Sequence[EpisodeRecord] = ()
    projection: NDArray[np.float64] | None = None
    picture_size: tuple[int, int] = (800, 600)


def camera_projection(
    position: NDArray[np.float64],
    rotation: NDArray[np.float64],
    fovy: float,
    width: int,
    height: int,
) -> NDArray[np.float64]:
    """(3, 4) pinhole projection of a camera that looks along its negative z axis, as MuJoCo's do.

    Args:
        position: (3,) of the camera in the base frame, m.
        rotation: (3, 3) whose columns are the camera's x (right), y (up) and z (backward) axes.
        fovy: vertical field of view, rad.
        width: pixels.
        height: pixels.
    """
    focal = 0.5 * height / math.tan(0.5 * fovy)
    intrinsic = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    optical = np.diag([1.0, -1.0, -1.0]) @ rotation.T
    return intrinsic @ np.hstack([optical, -(optical @ position)[:, None]])


def project(projection: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, 2) pixels of (N, 3) points in the base frame, m; NaN for those behind the camera."""
    homogeneous = np.concatenate([points, np.ones((len(points), 1))], axis=1) @ projection.T
    depth = np.where(homogeneous[:, 2:] > 1e-6, homogeneous[:, 2:], np.nan)
    return homogeneous[:, :2] / depth
