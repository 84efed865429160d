"""The node of a verb on the command line: it talks to a graph until it is done or told to end."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from vla_reasoner_ros.ros.middleware import use_shared_memory


@contextlib.contextmanager
def verb_node(
    name: str, namespace: str = ""
) -> Iterator[tuple[Node, SingleThreadedExecutor, Callable[[], bool]]]:
    """Join the graph, and leave it at the end of the block.

    Ctrl-C and SIGTERM end nothing by themselves while it lasts: the verb finishes what it writes.

    Args:
        name: of the node.
        namespace: of the node; empty is the root.

    Yields:
        The node, an executor that spins it, and whether the user wants an end.
    """
    use_shared_memory(os.environ)
    rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
    told: list[int] = []
    handlers = {
        number: signal.signal(number, lambda number, _: told.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        node = rclpy.create_node(name, namespace=namespace or None, use_global_arguments=False)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        try:
            yield node, executor, lambda: bool(told)
        finally:
            executor.shutdown()
            node.destroy_node()
    finally:
        rclpy.try_shutdown()
        for number, handler in handlers.items():
            signal.signal(number, handler)
