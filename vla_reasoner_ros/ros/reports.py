"""The search's reports to messages and back."""

from __future__ import annotations

import numpy as np

from vla_reasoner_ros.msg import SearchStatistics as SearchStatisticsMessage
from vla_reasoner_ros.msg import SearchTree as SearchTreeMessage
from vla_reasoner_ros.ros.clock import to_nanoseconds, to_stamp
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.fields import fill, read
from vla_reasoner_ros.search.statistics import SearchStatistics, Status, TreeSnapshot


def statistics_to_message(statistics: SearchStatistics, stamp_ns: int) -> SearchStatisticsMessage:
    """The message of one decision's statistics, published at ``stamp_ns``."""
    return fill(
        SearchStatisticsMessage,
        statistics,
        header=header(stamp_ns),
        observation_stamp=to_stamp(statistics.observation_stamp_ns),
    )


def statistics_from_message(message: SearchStatisticsMessage) -> SearchStatistics:
    """The statistics of a message."""
    return read(
        SearchStatistics,
        message,
        observation_stamp_ns=to_nanoseconds(message.observation_stamp),
        status=Status(message.status),
        stage_names=tuple(message.stage_names),
        stage_ms=tuple(message.stage_ms),
    )


def tree_to_message(
    tree: TreeSnapshot, observation_stamp_ns: int, sequence: int, stamp_ns: int
) -> SearchTreeMessage:
    """The message of a search tree.

    Args:
        tree: the tree.
        observation_stamp_ns: stamp of the observation decided on.
        sequence: the chunk's sequence.
        stamp_ns: now.
    """
    nodes, macro_steps, dimensions = tree.actions.shape
    return fill(
        SearchTreeMessage,
        tree,
        header=header(stamp_ns),
        observation_stamp=to_stamp(observation_stamp_ns),
        sequence=sequence,
        nodes=nodes,
        macro_steps=macro_steps,
        dimensions=dimensions,
    )


def tree_from_message(message: SearchTreeMessage) -> TreeSnapshot:
    """The tree of a message, its states unknown (slots -1).

    Raises:
        ValueError: the arrays do not fit the numbers of nodes, steps and dimensions.
    """
    nodes = message.nodes
    return TreeSnapshot(
        parents=np.array(message.parents, dtype=np.int32),
        visits=np.array(message.visits, dtype=np.int32),
        values=np.array(message.values),
        leaf_values=np.array(message.leaf_values),
        priors=np.array(message.priors),
        depths=np.array(message.depths, dtype=np.int32),
        origins=tuple(message.origins),
        actions=np.array(message.actions).reshape(nodes, message.macro_steps, message.dimensions),
        slots=np.full(nodes, -1, dtype=np.int64),
        ee_positions=np.array(message.ee_positions).reshape(-1, 3),
    )
