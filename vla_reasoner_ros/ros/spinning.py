"""An executor for nodes whose endpoints come and go while it spins."""

from __future__ import annotations

from typing import Any

from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.executors import MultiThreadedExecutor


class LifecycleExecutor(MultiThreadedExecutor):
    """rclpy's pool of threads, undisturbed by a cleanup in another thread.

    rclpy lists what to wait for and then waits. Of what is destroyed between, it leaves out
    everything but the events of publishers and subscriptions, which raise ``InvalidHandle`` and so
    would end the process. Here it lists anew. Errors of callbacks do not come this way.
    """

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """What is ready to be called; see :class:`rclpy.executors.Executor`."""
        while True:
            try:
                return super().wait_for_ready_callbacks(*args, **kwargs)
            except InvalidHandle:
                continue
