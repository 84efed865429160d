"""What a replay leaves: a table with one row a decision, and a bag with trees and pictures.

The folder of a replay::

    replay.json        what was replayed, with what, and how far it came
    decisions.parquet  one row a decision, the columns of COLUMNS
    bag/               rosbag2: /observation (with the pictures), /action_chunk, /policy_chunk,
                       /search_statistics and /search_tree of every decision

Everything in the bag is recorded at the stamp of the observation decided on, so that a row's
``stamp_ns`` finds its tree and its pictures.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from vla_reasoner_ros.data import messages
from vla_reasoner_ros.data.bags import BagReader, BagWriter
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.search.stages import STAGES
from vla_reasoner_ros.search.statistics import TreeSnapshot
from vla_reasoner_ros.types import Decision, Observation

TABLE, INFO, BAG, PARTS = "decisions.parquet", "replay.json", "bag", "parts"
FORMAT = 1

OBSERVATION_TOPIC = "/observation"
CHUNK_TOPIC = "/action_chunk"
POLICY_TOPIC = "/policy_chunk"
STATISTICS_TOPIC = "/search_statistics"
TREE_TOPIC = "/search_tree"
TOPICS = {
    OBSERVATION_TOPIC: messages.OBSERVATION,
    CHUNK_TOPIC: messages.ACTION_CHUNK,
    POLICY_TOPIC: messages.ACTION_CHUNK,
    STATISTICS_TOPIC: messages.SEARCH_STATISTICS,
    TREE_TOPIC: messages.SEARCH_TREE,
}

_FLOATS, _INTS, _TEXTS = pa.list_(pa.float64()), pa.list_(pa.int32()), pa.list_(pa.string())

COLUMNS: dict[str, tuple[pa.DataType, str]] = {
    "episode": (
        pa.int32(),
        "counts the beginnings, from 0: one more after each reset",
    ),
    "stamp_ns": (pa.int64(), "stamp of the observation decided on, ns; finds tree and pictures"),
    "time_s": (pa.float64(), "seconds since the first observation of the bag"),
    "recorded_ns": (pa.int64(), "when the observation was complete, by the recorder's clock, ns"),
    "sequence": (pa.int64(), "number of the decision in its episode, from 1"),
    "instruction": (pa.string(), "what to do"),
    "source": (pa.string(), "of the chunk: search, blend, policy or hold"),
    "status": (pa.string(), "ok, deadline, skipped, policy or hold"),
    "fallback_reason": (pa.string(), "why the status is not ok; empty when it is"),
    "value_seen": (pa.float64(), "value of the state seen now; null without a search"),
    "value_policy": (pa.float64(), "value imagined for the policy's own; null without a search"),
    "value_chosen": (pa.float64(), "value imagined for the search's winner; null without a search"),
    "margin": (pa.float64(), "value_chosen less value_policy; null without a search"),
    "margin_required": (pa.float64(), "what it takes to deviate"),
    "deviated": (pa.bool_(), "the chunk differs from the policy's own"),
    "would_deviate": (pa.bool_(), "the search would rather do something else, in shadow mode too"),
    "alpha": (pa.float64(), "injection strength applied; 1 is the policy's chunk"),
    "gate": (pa.string(), "off, run, shorten or skip"),
    "drift": (pa.float64(), "seen from imagined state, world model's unit; null when unknown"),
    "drift_tripped": (pa.bool_(), "the drift monitor handed over to the policy"),
    "tree_reused": (pa.bool_(), "the search started from the last decision's subtree"),
    "decision_ms": (pa.float64(), "time of the decision in this replay, ms"),
    "deadline_ms": (pa.float64(), "what live decisions are allowed, ms; 0 is unlimited"),
    "deadline_missed": (pa.bool_(), "decision_ms above deadline_ms"),
    "stage_ms": (_FLOATS, "time in each stage, ms: " + ", ".join(STAGES)),
    "simulations": (pa.int32(), "imagined macro-actions"),
    "simulations_budget": (pa.int32(), "imagined macro-actions allowed"),
    "world_model_calls": (pa.int32(), "batched calls of the world model"),
    "nodes": (pa.int32(), "nodes in the tree; 0 when there is none"),
    "pruned": (pa.int32(), "candidates cut off"),
    "depth": (pa.int32(), "of the deepest node"),
    "mean_depth": (pa.float64(), "of the evaluated leaves"),
    "root_entropy": (pa.float64(), "of the root's visits, nat"),
    "confidence": (pa.float64(), "share of the root's visits on the chosen candidate"),
    "consumed": (pa.int32(), "actions that fell due while planning: as recorded live, else 0"),
    "seed": (pa.uint64(), "of this decision's random numbers"),
    "chosen_id": (pa.int32(), "root candidate chosen by the search; 0 is the policy's own"),
    "candidate_ids": (_INTS, "the most visited root candidates, best first"),
    "candidate_visits": (_INTS, "their visits"),
    "candidate_values": (_FLOATS, "their values"),
    "candidate_priors": (_FLOATS, "their normalised prior densities"),
    "candidate_origins": (_TEXTS, "who drew them"),
    "actions": (_FLOATS, "H x D of the chunk, row by row"),
    "policy_actions": (_FLOATS, "H x D of the policy's own chunk; null when it failed"),
    "ee_position": (_FLOATS, "x y z of the end effector seen, m"),
    "gripper": (pa.float64(), "opening seen, 0 closed to 1 open"),
    "demonstrated": (_FLOATS, "M x D that was really done next; null when the bag does not say"),
    "demonstrated_rank": (
        pa.int32(),
        "candidates with a better value than the one nearest to it; null without a search",
    ),
    "demonstrated_value": (pa.float64(), "value of that nearest candidate"),
    "demonstrated_distance": (pa.float64(), "to that candidate, in the prior's spread"),
    "policy_distance": (pa.float64(), "from the demonstrated to the policy's own, likewise"),
    "winner_distance": (pa.float64(), "from the demonstrated to the search's winner, likewise"),
    "candidates": (pa.int32(), "root candidates in the tree"),
    "live_source": (pa.string(), "source of the recorded live decision; null when there is none"),
    "live_ms": (pa.float64(), "time of the recorded live decision, ms"),
    "live_equal": (pa.bool_(), "the recorded live chunk has the same actions"),
    "progress": (pa.float64(), "true progress, where a simulator was recorded"),
    "success": (pa.bool_(), "true success so far, where a simulator was recorded"),
    "faults": (_TEXTS, "what went wrong at or since the last decision, in words"),
}
"""Name to type and meaning of each column; every one but the texts may be null where it says so."""

SCHEMA = pa.schema([pa.field(name, kind) for name, (kind, _) in COLUMNS.items()])

Row = dict[str, Any]


@dataclass
class Replay:
    """A finished or unfinished replay.

    Attributes:
        path: its folder.
        info: ``replay.json``: ``bag``, ``bag_hash``, ``contract``, ``parameters``, ``components``,
            ``seed``, ``spec`` (of the actions), ``stages``, ``problems``, ``ingest``, ``finished``.
        table: the columns of :data:`COLUMNS`, one row a decision.
    """

    path: Path
    info: Mapping[str, Any]
    table: pa.Table
    _reader: BagReader | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def rows(self) -> list[Row]:
        """The table as dictionaries."""
        return list(self.table.to_pylist())

    def column(self, name: str) -> NDArray[Any]:
        """A column of numbers, NaN where it is null."""
        return np.asarray(self.table[name].to_numpy(zero_copy_only=False))

    def tree(self, stamp_ns: int) -> TreeSnapshot | None:
        """The search tree of a decision; None when it made no search."""
        message = self._at(TREE_TOPIC, stamp_ns)
        return None if message is None else messages.tree_from_message(message)

    def observation(self, stamp_ns: int) -> Observation | None:
        """What was decided on, with the pictures as the models saw them; None when unknown."""
        message = self._at(OBSERVATION_TOPIC, stamp_ns)
        return None if message is None else messages.observation_from_message(message)

    def trees(self) -> Iterator[tuple[int, TreeSnapshot]]:
        """Stamp and tree of every decision that made a search, in the order of their stamps."""
        for message in self._bag().messages([TREE_TOPIC]):
            fields = self._bag().deserialize(message)
            yield message.time_ns, messages.tree_from_message(fields)

    def observations(self) -> Iterator[Observation]:
        """Every observation decided on, in the order of their stamps."""
        for message in self._bag().messages([OBSERVATION_TOPIC]):
            yield messages.observation_from_message(self._bag().deserialize(message))

    def close(self) -> None:
        """Let go of the bag."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _bag(self) -> BagReader:
        if self._reader is None:
            self._reader = BagReader(self.path / BAG)
        return self._reader

    def _at(self, topic: str, stamp_ns: int) -> Any:
        bag = self._bag()
        for message in bag.messages([topic], (stamp_ns, stamp_ns + 1)):
            return bag.deserialize(message)
        return None


def read_replay(path: str | Path) -> Replay:
    """The replay in a folder, also while it is still running or was interrupted.

    Raises:
        ConfigurationError: there is none, or it is of another version.
    """
    folder = Path(path)
    info = read_info(folder)
    table = folder / TABLE
    try:
        if table.is_file():
            return Replay(folder, info, pq.read_table(table, schema=SCHEMA))
        parts = [folder / PARTS / f"{number}.parquet" for number in range(info["parts"])]
        tables = [pq.read_table(part, schema=SCHEMA) for part in parts]
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigurationError(f"replay {folder}: its table is broken: {error}") from error
    return Replay(folder, info, pa.concat_tables([SCHEMA.empty_table(), *tables]))


def read_info(folder: Path) -> dict[str, Any]:
    """``replay.json``.

    Raises:
        ConfigurationError: there is none, or it is of another version.
    """
    try:
        info = json.loads((folder / INFO).read_text(encoding="utf-8"))
        version = info["format"]
    except OSError as error:
        raise ConfigurationError(f"replay {folder}: {INFO}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"replay {folder}: {INFO} is broken: {error!r}") from error
    if version != FORMAT:
        raise ConfigurationError(f"replay {folder}: expected format {FORMAT}, got {version}")
    return dict(info)


class ReplayWriter:
    """Writes a replay in parts, each whole on disk before the next begins.

    Args:
        folder: where to; an unfinished replay of the same settings is gone on with.
        info: what ``replay.json`` shall say beside the progress.
        fresh: forget what is there.

    Attributes:
        state: of the last part that is whole, as given to :meth:`commit`; None at the beginning.

    Raises:
        ConfigurationError: a replay of other settings is there.
    """

    def __init__(self, folder: Path, info: Mapping[str, Any], fresh: bool = False) -> None:
        self.folder = folder
        self.state: dict[str, Any] | None = None
        self._info = {"format": FORMAT, "finished": False, "parts": 0, "files": 0, **info}
        self._rows: list[Row] = []
        if fresh:
            for name in (BAG, PARTS):
                shutil.rmtree(folder / name, ignore_errors=True)
            for name in (TABLE, INFO):
                (folder / name).unlink(missing_ok=True)
        if (folder / INFO).is_file():
            self._go_on(read_info(folder), info)
        self.finished = bool(self._info["finished"])
        if self.finished:
            return
        if not self._info["parts"]:
            shutil.rmtree(folder / BAG, ignore_errors=True)
        self._bag = BagWriter(folder / BAG, compress=True, keep=self._info["files"])
        for topic, kind in TOPICS.items():
            self._bag.add_topic(topic, kind)

    def add(self, row: Row, observation: Observation, decision: Decision) -> None:
        """Add a decision."""
        stamp_ns = observation.stamp_ns
        self._rows.append(row)
        write, fields = self._bag.write, messages
        write(OBSERVATION_TOPIC, stamp_ns, fields.observation_fields(observation))
        write(CHUNK_TOPIC, stamp_ns, fields.chunk_fields(decision.chunk, stamp_ns))
        if decision.policy_chunk is not None:
            write(POLICY_TOPIC, stamp_ns, fields.chunk_fields(decision.policy_chunk, stamp_ns))
        write(STATISTICS_TOPIC, stamp_ns, fields.statistics_fields(decision.statistics, stamp_ns))
        if decision.tree is not None:
            sequence = decision.chunk.sequence
            write(
                TREE_TOPIC,
                stamp_ns,
                fields.tree_fields(decision.tree, stamp_ns, sequence, stamp_ns),
            )

    def commit(self, state: Mapping[str, Any]) -> None:
        """Make what was added since the last time whole on disk.

        Args:
            state: what it takes to go on from here, as JSON can hold it.
        """
        part = self._info["parts"]
        self._bag.split()
        _write_table(self.folder / PARTS / f"{part}.parquet", _table(self._rows))
        self._rows.clear()
        self.state = dict(state)
        self._info |= {"parts": part + 1, "files": self._bag.finished, "state": self.state}
        self._write_info()

    def finish(self, **info: Any) -> Path:
        """Join the parts to the table; its path."""
        self._bag.close()
        tables = [
            pq.read_table(self.folder / PARTS / f"{number}.parquet", schema=SCHEMA)
            for number in range(self._info["parts"])
        ]
        table = pa.concat_tables([SCHEMA.empty_table(), *tables, _table(self._rows)])
        _write_table(self.folder / TABLE, table)
        self._info |= {"finished": True, **info}
        self._write_info()
        shutil.rmtree(self.folder / PARTS, ignore_errors=True)
        return self.folder / TABLE

    def abandon(self) -> None:
        """End without finishing; the same replay can go on later."""
        if not self.finished:
            self._bag.close()

    def _go_on(self, found: dict[str, Any], info: Mapping[str, Any]) -> None:
        differing = [n for n in info.get("settings", {}) if n not in found.get("settings", {})]
        differing += [
            name
            for name, value in found.get("settings", {}).items()
            if json.loads(json.dumps(info["settings"].get(name))) != value
        ]
        if differing:
            raise ConfigurationError(
                f"replay {self.folder} was made with other {', '.join(sorted(set(differing)))}; "
                "give another --out or --fresh"
            )
        self._info = found
        self.state = found.get("state")

    def _write_info(self) -> None:
        text = json.dumps(self._info, indent=1)
        write_atomically(self.folder / INFO, text.encode())


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), schema=SCHEMA)


def _write_table(path: Path, table: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    try:
        write_atomically(path, sink.getvalue().to_pybytes())
    except OSError as error:
        raise BagError(f"replay table {path}: {error.strerror}") from error
