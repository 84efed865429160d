"""A replayed bag as the explorer shows it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from vla_reasoner_ros.data.cameras import FixedCamera
from vla_reasoner_ros.data.images import encode_jpeg
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.page.moments import Moment, Recording
from vla_reasoner_ros.evaluation.replay_record import Replay, Row
from vla_reasoner_ros.evaluation.replay_rows import COPIED
from vla_reasoner_ros.evaluation.views import RerunLog, annotated
from vla_reasoner_ros.search.lines import imagined_paths
from vla_reasoner_ros.search.statistics import Status, TreeSnapshot

JPEG_QUALITY = 80
PICTURE_HEIGHT = 480
TREE_FIELDS = ("parents", "visits", "values", "leaf_values", "priors", "origins", "ee_positions")
_SAME = (*COPIED, "deadline_missed", "stage_ms")
_RENAMED = {
    "budget_ms": "deadline_ms",
    "time_ms": "decision_ms",
    "max_depth": "depth",
    "root_value": "value_seen",
    "chosen_value": "value_chosen",
    "policy_value": "value_policy",
    "margin": "margin",
    "drift": "drift",
}
# What the statistics say themselves is no fault of its own.
_SAID = ("deadline missed:", "fell back:")


def from_replay(
    replay: Replay, camera: str = "", cameras: Mapping[str, FixedCamera] | None = None
) -> list[Recording]:
    """The episodes of a replay; pictures and trees are read when the moments are.

    Args:
        replay: it.
        camera: whose pictures are shown; empty takes one that has a calibration, else the first.
        cameras: calibrations by name; without one, paths are shown from above and from the side.

    Raises:
        ConfigurationError: the replay has no pictures of this camera.
    """
    rows = replay.rows()
    if not rows:
        return []
    seen = replay.observation(rows[0]["stamp_ns"])
    images = {} if seen is None else seen.images
    known = cameras or {}
    name = camera or next((n for n in images if n in known), next(iter(images), ""))
    if camera and camera not in images:
        raise ConfigurationError(
            f"camera {camera!r}: the replay has pictures of {', '.join(images) or 'none'}"
        )
    height, width = images[name].shape[:2] if name else (0, 0)
    bag = Path(replay.info["bag"]).name
    recordings = []
    for episode, group in groupby(rows, key=lambda row: row["episode"]):
        own = list(group)
        start = own[0]["time_s"]
        recordings.append(
            Recording(
                title=own[0]["instruction"],
                detail=f"bag {bag}, episode {episode + 1}",
                moments=_moments(replay, own, name, start),
                duration_s=own[-1]["time_s"] - start,
                projection=known[name].projection(width, height) if name in known else None,
                picture_size=(width, height) if name else (640, 480),
            )
        )
    return recordings


def log_replay(replay: Replay, log: RerunLog, cameras: Mapping[str, FixedCamera]) -> None:
    """Write the decisions of a replay to a Rerun recording.

    Args:
        replay: it.
        log: where to.
        cameras: calibrations by name, for paths in the pictures.
    """
    for row in replay.rows():
        seen = replay.observation(row["stamp_ns"])
        if seen is None:
            continue
        statistics = _statistics(row, replay.info)
        tree = replay.tree(row["stamp_ns"]) if row["nodes"] else None
        paths = imagined_paths(vars(tree), statistics) if tree is not None else ()
        name = next((n for n in seen.images if n in cameras), next(iter(seen.images), ""))
        picture = None
        if name:
            image, camera = seen.images[name], cameras.get(name)
            picture = annotated(image, paths, statistics, camera, PICTURE_HEIGHT)
        log.add(seen, statistics, paths, picture)


def _moments(replay: Replay, rows: Sequence[Row], camera: str, start: float) -> Iterator[Moment]:
    for row in rows:
        stamp_ns = row["stamp_ns"]
        seen = replay.observation(stamp_ns) if camera else None
        yield Moment(
            time_s=row["time_s"] - start,
            statistics=_statistics(row, replay.info),
            tree=_tree(replay.tree(stamp_ns)) if row["nodes"] else None,
            picture=None if seen is None else encode_jpeg(seen.images[camera], JPEG_QUALITY),
            faults=[fault for fault in row["faults"] or () if not fault.startswith(_SAID)],
            remarks=_remarks(row),
        )


def _statistics(row: Row, info: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of SearchStatistics by name, unknown numbers NaN."""
    components = info["components"]
    said = {name: row[name] for name in _SAME}
    said |= {
        name: math.nan if row[column] is None else row[column] for name, column in _RENAMED.items()
    }
    return said | {
        "status": Status[row["status"].upper()],
        "stage_names": info["stages"],
        **{name: components.get(name, "") for name in ("policy", "world_model", "value", "prior")},
    }


def _tree(tree: TreeSnapshot | None) -> dict[str, Any] | None:
    if tree is None:
        return None
    fields = {name: getattr(tree, name) for name in TREE_FIELDS}
    return {n: v.tolist() if isinstance(v, np.ndarray) else v for n, v in fields.items()}


def _remarks(row: Row) -> list[str]:
    """What the recording says about the decision, in sentences."""
    said = []
    if row["live_equal"] is not None:
        same = "The same was decided" if row["live_equal"] else "Another chunk was decided"
        said.append(f"{same} when this was recorded ({row['live_source']}).")
    if row["demonstrated_rank"] is not None:
        said.append(
            f"What was really done next is nearest to the candidate ranked "
            f"{row['demonstrated_rank'] + 1} of {row['candidates']} by value "
            f"({row['demonstrated_value']:.3f}), {row['demonstrated_distance']:.1f} standard "
            "deviations away."
        )
    if row["progress"] is not None:
        said.append(f"True progress was {row['progress']:.2f}.")
    return said
