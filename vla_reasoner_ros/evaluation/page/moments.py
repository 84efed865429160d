"""What the explorer shows: recordings of decisions, wherever they come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.evaluation.records import Arm, EpisodeRecord, RunRecord


@dataclass(frozen=True)
class Moment:
    """One decision.

    Attributes:
        time_s: of the observation decided on, s since the recording's start.
        statistics: the fields of SearchStatistics by name.
        tree: the fields of SearchTree by name, arrays flat or shaped; None where it was not kept.
        picture: JPEG of the moment; None where it was not kept.
        faults: what else went wrong around this decision, a few words each.
        remarks: what else is to be said about it, one sentence each.
        frames: JPEG of the imagined state of some nodes of the tree, from models that draw.
    """

    time_s: float
    statistics: Mapping[str, Any]
    tree: Mapping[str, Any] | None = None
    picture: bytes | None = None
    faults: Sequence[str] = ()
    remarks: Sequence[str] = ()
    frames: Mapping[int, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """Decisions that followed one another: an episode, a live run or a replayed bag.

    Attributes:
        title: the instruction.
        detail: who decided, where, and how it ended, in a few words.
        moments: in order; read once, so that a long recording need not be in memory.
        duration_s: seconds; 0 takes the time of the last moment.
        projection: (3, 4) from homogeneous points in the base frame, m, to pixels of the pictures;
            None where the camera's place is unknown.
        picture_size: width and height that the projection is for, pixels.
    """

    title: str
    detail: str
    moments: Iterable[Moment]
    duration_s: float = 0.0
    projection: NDArray[np.float64] | None = None
    picture_size: tuple[int, int] = (640, 480)


def from_run(record: RunRecord) -> list[Recording]:
    """The episodes of an evaluation whose decisions were kept."""
    arms = {arm.name: arm for arm in record.arms}
    return [
        Recording(
            title=episode.instruction,
            detail=_detail(arms[episode.arm], episode),
            moments=[Moment(d.time_s, d.statistics, d.tree, d.picture) for d in episode.decisions],
            duration_s=episode.duration_s,
            projection=record.projection,
            picture_size=record.picture_size,
        )
        for episode in record.shown
        if episode.decisions
    ]


def _detail(arm: Arm, episode: EpisodeRecord) -> str:
    ending = "success" if episode.success else f"failed: {episode.ending}"
    rejected = f", {episode.rejections} chunks rejected" if episode.rejections else ""
    return f"{arm.label}, {episode.task} {episode.seed}, {ending}{rejected}"
