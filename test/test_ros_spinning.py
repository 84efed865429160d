"""The executor goes on when endpoints are destroyed under it."""

import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import rclpy
from rclpy._rclpy_pybind11 import InvalidHandle
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from std_msgs.msg import String

from vla_reasoner_ros.ros.spinning import LifecycleExecutor, WorkExecutor


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


@pytest.fixture
def group():
    return MutuallyExclusiveCallbackGroup()


@pytest.fixture
def executors(node, group):
    work = WorkExecutor(node, group)
    made = work, LifecycleExecutor(node, work, num_threads=2)
    yield made
    for executor in made:
        executor.shutdown()


def until(executor, event):
    while not event.is_set():
        executor.spin_once(timeout_sec=60.0)


def test_ours_goes_on_as_soon_as_it_is_gone(node, executors):
    called = threading.Event()
    subscription = half_destroyed(node)
    threading.Timer(0.2, lambda: node.destroy_subscription(subscription)).start()
    node.create_timer(0.01, called.set)
    until(executors[1], called)


def test_a_subscription_is_served_beside_timers_that_are_always_due(node, group, executors):
    heard = threading.Event()

    def tick():
        publisher.publish(String())
        time.sleep(0.004)

    publisher = node.create_publisher(String, "topic", 1)
    node.create_subscription(String, "topic", lambda _: heard.set(), 1, callback_group=group)
    for _ in range(2):
        node.create_timer(0.001, tick, callback_group=group)
    until(executors[0], heard)


def test_what_is_of_the_work_is_called_in_its_thread_and_nothing_else(node, group, executors):
    called = []
    work, pool = executors
    mine, other = threading.Event(), threading.Event()
    node.create_timer(0.01, lambda: (called.append("work"), mine.set()), callback_group=group)
    node.create_timer(0.01, lambda: (called.append("other"), other.set()))
    until(work, mine)
    assert set(called) == {"work"}
    called.clear()
    until(pool, other)
    assert set(called) == {"other"}


def test_what_is_made_while_the_work_waits_is_served(node, group, executors):
    """Both executors are woken, though the node knows of one."""
    work, _ = executors
    called = threading.Event()
    waiting = threading.Thread(target=work.spin)
    waiting.start()
    node.create_timer(0.01, called.set, callback_group=group)
    assert called.wait(60.0)
    work.shutdown()
    waiting.join()


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
