"""The executor goes on when endpoints are destroyed under it."""

import subprocess
import sys
import threading

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.executors import MultiThreadedExecutor
from std_msgs.msg import String

from vla_reasoner_ros.ros.spinning import LifecycleExecutor


@pytest.fixture
def node():
    rclpy.init()
    made = rclpy.create_node("spinning")
    yield made
    made.destroy_node()
    rclpy.shutdown()


def half_destroyed(node):
    """A subscription in the middle of being destroyed: its events are gone and still listed."""
    subscription = node.create_subscription(String, "topic", lambda _: None, 1)
    for event in subscription.event_handlers:
        event.destroy()
    return subscription


def test_rclpys_own_executor_ends_when_an_event_is_destroyed_under_it(node):
    half_destroyed(node)
    executor = MultiThreadedExecutor(num_threads=2)
    executor.add_node(node)
    with pytest.raises(InvalidHandle):
        executor.spin_once(timeout_sec=10.0)
    executor.shutdown()


def test_ours_goes_on_as_soon_as_it_is_gone(node):
    subscription = half_destroyed(node)
    called = threading.Event()
    executor = LifecycleExecutor(num_threads=2)
    executor.add_node(node)
    threading.Timer(0.2, lambda: node.destroy_subscription(subscription)).start()
    node.create_timer(0.01, called.set)
    while not called.is_set():
        executor.spin_once(timeout_sec=60.0)
    executor.shutdown()


HEARD_ELSEWHERE = """
import signal, threading, time
from vla_reasoner_ros.ros.spinning import EndRequest

def other():
    time.sleep(0.5)  # the main thread waits by now
    signal.pthread_kill(threading.get_ident(), signal.{name})

request = EndRequest(lambda: print("told"))
threading.Thread(target=other).start()
request.wait()
print("ended", request.event.is_set())
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_the_system_gives_to_another_thread_ends_the_wait(name):
    script = [sys.executable, "-c", HEARD_ELSEWHERE.format(name=name)]
    done = subprocess.run(script, capture_output=True, text=True, timeout=120.0)
    assert done.stdout.split() == ["told", "ended", "True"], done.stderr
