"""The search's reports to messages and back."""

from __future__ import annotations

from vla_reasoner_ros.msg import SearchStatistics as SearchStatisticsMessage
from vla_reasoner_ros.msg import SearchTree as SearchTreeMessage
from vla_reasoner_ros.ros.clock import to_stamp
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.fields import fill
from vla_reasoner_ros.search.statistics import SearchStatistics, TreeSnapshot


def statistics_to_message(statistics: SearchStatistics, stamp_ns: int) -> SearchStatisticsMessage:
    """The message of one decision's statistics, published at ``stamp_ns``."""
    return fill(
        SearchStatisticsMessage,
        statistics,
        header=header(stamp_ns),
        observation_stamp=to_stamp(statistics.observation_stamp_ns),
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
