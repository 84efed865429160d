"""Overrides of the quality of service by parameter, and the middleware's events."""

from dataclasses import dataclass

import pytest

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import time

import rclpy
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import LivelinessPolicy, QoSProfile, ReliabilityPolicy
from std_msgs.msg import Bool, String

from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.diagnostics import Level
from vla_reasoner_ros.ros.lifecycle import BaseParameters, LifecycleNode

HEARD = "qos_overrides./heard.subscription."
SAID = "qos_overrides./said.publisher."


@dataclass(frozen=True)
class NoParameters(BaseParameters):
    pass


class Parrot(LifecycleNode[NoParameters]):
    parameters_class = NoParameters

    def configure(self):
        self.heard = []
        self.ears = self.create_subscription(
            String, "heard", lambda m: self.heard.append(m.data), qos.STATE
        )
        self.stops = []
        for profile in qos.STOPS:
            self.create_subscription(Bool, "estop", lambda m: self.stops.append(m.data), profile)
        self.mouth = self.create_lifecycle_publisher(String, "said", qos.STATE)

    def report(self):
        return self._endpoints.report()


@pytest.fixture
def rig():
    context = rclpy.Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    other = rclpy.create_node("other", context=context)
    executor.add_node(other)

    class Rig:
        node = None

        def make(self, **overrides):
            self.node = Parrot(
                "parrot",
                context=context,
                parameter_overrides=[Parameter(n, value=v) for n, v in overrides.items()],
            )
            executor.add_node(self.node)
            return self.node.trigger_configure()

        def wait(self, condition):
            end = time.monotonic() + 60.0
            while not condition():
                assert time.monotonic() < end, "it did not happen"
                executor.spin_once(timeout_sec=0.05)

    rig = Rig()
    rig.other = other
    yield rig
    executor.shutdown()
    for node in (rig.node, other):
        if node is not None:
            node.destroy_node()
    rclpy.shutdown(context=context)


def test_an_override_changes_one_endpoint_and_no_other(rig):
    rig.make(**{f"{HEARD}reliability": "best_effort", f"{HEARD}depth": 3})
    (found,) = rig.other.get_subscriptions_info_by_topic("/heard")
    assert found.qos_profile.reliability == ReliabilityPolicy.BEST_EFFORT
    assert rig.node.ears.qos_profile.depth == 3
    assert rig.node.mouth.qos_profile.reliability == ReliabilityPolicy.RELIABLE
    assert qos.STATE.depth == 10  # the profile that all share


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("qos_overrides./herd.subscription.depth", 3, "qos_overrides./herd.subscription.depth"),
        (f"{HEARD}durability", "transient_local", "nothing here has this quality"),
        ("qos_overrides./estop.subscription.depth", 0, "nothing here has this quality"),
        (f"{SAID}reliability", "maybe", "maybe"),
    ],
)
def test_an_override_that_cannot_be_followed_is_refused_by_name(rig, name, value, said):
    assert rig.make(**{name: value}) == TransitionCallbackReturn.FAILURE
    assert said in rig.node.stop_reason


def test_overrides_survive_a_cleanup(rig):
    rig.make(**{f"{HEARD}depth": 3})
    rig.node.trigger_cleanup()
    rig.node.trigger_configure()
    assert rig.node.ears.qos_profile.depth == 3


def test_an_incompatible_publisher_is_reported_by_topic_and_policy(rig):
    rig.make()
    best_effort = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    rig.other.create_publisher(String, "heard", best_effort)
    rig.wait(lambda: rig.node.report().level == Level.WARN)
    report = rig.node.report()
    assert "/heard: incompatible RELIABILITY" in report.message
    assert report.values["/heard: incompatible"] == 1


def test_a_deadline_that_the_publisher_does_not_offer_lets_nothing_through(rig):
    rig.make(**{f"{HEARD}deadline": 500_000_000})
    publisher = rig.other.create_publisher(String, "heard", qos.STATE)
    rig.wait(lambda: "/heard: incompatible DEADLINE" in rig.node.report().message)
    assert publisher.get_subscription_count() == 0
    rig.other.destroy_publisher(publisher)
    rig.wait(lambda: rig.other.count_publishers("/heard") == 0)
    assert rig.node.report().level == Level.WARN  # nobody tells that it has gone
    rig.node.trigger_cleanup()
    assert rig.node.report().level == Level.OK


def test_the_two_kinds_of_stop_publishers_are_no_fault(rig):
    rig.make()
    rig.other.create_publisher(Bool, "estop", qos.COMMAND)
    rig.wait(lambda: rig.other.count_subscribers("/estop") == 2)
    assert rig.node.report().level == Level.OK


@pytest.mark.parametrize("profile", [qos.LATCHED, qos.COMMAND], ids=["latched", "volatile"])
def test_a_stop_that_is_let_go_of_while_the_node_is_busy_is_heard(rig, profile):
    rig.make()
    # A latched publisher keeps one message, and reliably delivers each to those who are there.
    button = rig.other.create_publisher(Bool, "estop", profile)
    rig.wait(lambda: button.get_subscription_count() == (2 if profile is qos.LATCHED else 1))
    for pressed in (True, False):
        button.publish(Bool(data=pressed))
        assert button.wait_for_all_acked(Duration(seconds=10.0))
    rig.wait(lambda: False in rig.node.stops)
    assert True in rig.node.stops


def test_a_missed_deadline_and_a_dead_publisher_are_reported(rig):
    lease = 50_000_000
    rig.make(
        **{
            f"{HEARD}deadline": lease,
            f"{HEARD}liveliness": "manual_by_topic",
            f"{HEARD}liveliness_lease_duration": lease,
        }
    )
    publisher = rig.other.create_publisher(
        String,
        "heard",
        QoSProfile(
            depth=1,
            deadline=Duration(nanoseconds=lease),
            liveliness=LivelinessPolicy.MANUAL_BY_TOPIC,
            liveliness_lease_duration=Duration(nanoseconds=lease),
        ),
    )

    def heard():
        publisher.publish(String(data="hello"))
        return rig.node.heard

    rig.wait(heard)
    reports = []

    def dead():
        reports.append(rig.node.report())
        return reports[-1].level == Level.ERROR

    rig.wait(dead)
    assert "/heard: no publisher is alive" in reports[-1].message
    rig.wait(lambda: rig.node.report().values.get("/heard: missed deadlines", 0) > 0)
