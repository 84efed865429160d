"""What goes wrong on the way from the camera to the chunk while the arm moves, with real nodes.

camera_node, planner_node, arm_controller_node and deadman_node run as processes; the test is the
camera, the arm and the clock, which passes only as far as the nodes have seen it and waits for
every decision that is due.
"""

from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

from arm_bench import DEADMAN, MS, NODE, PERIODS, Bench, reset, see_it_decelerate
from scripted_policy import python_path
from sensor_msgs.msg import Image
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from vla_reasoner_ros.control.commands import ControllerState
from vla_reasoner_ros.msg import ActionChunk, SearchStatistics
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import image_to_message
from vla_reasoner_ros.ros.processes import NodeProcess

CAMERA, PLANNER = "camera_node", "planner_node"
FRAME = 100 * MS  # ns between two pictures
DUE = 400 * MS  # ns after the last observation that was decided on, the next decision is due
pytestmark = pytest.mark.timeout(300)
CONTRACT = {
    "robot": "fr3",
    "reference": "agent",
    "rate": 10.0,
    "instruction": "instruction",
    "future_tolerance": 1.0,
    "max_age": 5.0,
    "joint_states": {"topic": "joint_states", "reliability": "reliable", "tolerance": 0.05},
    "gripper": {"joints": ["finger"]},
    "cameras": {
        "agent": {"topic": "agent/image_raw", "reliability": "reliable", "frozen_after": 0.5}
    },
}


class PlannerBench(Bench):
    """The whole way from a picture to the arm.

    Attributes:
        script: the file that the policy reads.
        camera: what the camera does: ``good``, ``gone``, ``same picture``, ``same stamp``.
        waits: whether time waits for the decisions that are due.
    """

    def __init__(self, folder):
        watch = {"controller_timeout": 2.0, "controller_wall_timeout": 0.0, "lead_time": 0.03}
        super().__init__(folder / "log", deadman=watch)
        self.folder, self.script = folder, folder / "script"
        contract, options = folder / "contract.yaml", folder / "options.yaml"
        contract.write_text(yaml.safe_dump(CONTRACT))
        options.write_text(yaml.safe_dump({"script": str(self.script)}))
        own = {"use_sim_time": True, "autostart": False, "diagnostics_period": 0.1}
        self.processes = {
            CAMERA: own | {"contract": str(contract)},
            PLANNER: own
            | {
                "planner.policy": "scripted",
                "planner.policy_options": str(options),
                "planner.world_model": "none",
                "search.deadline_ms": 0.0,
                "diagnostics.stale": 0.2,
            },
        }
        node = self.client.node
        self.pictures = node.create_publisher(Image, "agent/image_raw", qos.STATE)
        self.instruction = node.create_publisher(String, "instruction", qos.LATCHED)
        self.seen = []  # chunks
        self.reasons = []  # why decisions fell back
        node.create_subscription(ActionChunk, "action_chunk", self.seen.append, 100)
        node.create_subscription(
            SearchStatistics,
            "search_statistics",
            lambda message: self.reasons.append(message.fallback_reason),
            100,
        )
        for name in self.processes:
            self.begin(name)

    def begin(self, name):
        self.graph.start(NodeProcess(name, name, self.processes[name]))
        self.client.change(name, lifecycle.CONFIGURE, timeout=120.0)

    def start(self):
        self.camera, self.waits = "good", False
        self.script.write_text("")
        self.say("go left")
        super().start()
        for name in self.processes:
            self.rest(name)
            self.client.change(name, lifecycle.ACTIVATE)
        count = self.client.node.count_publishers
        self.wait(
            lambda: (
                self.pictures.get_subscription_count()
                and count("observation")
                and count("action_chunk") > 1  # the bench's own is the other
            ),
            "connections of camera and planner",
        )
        self.begins_to_move()

    def rest(self, name):
        """Take a node to where it can be activated, from any state."""
        state = self.client.state(name)
        if state == lifecycle.ACTIVE:
            self.client.change(name, lifecycle.DEACTIVATE)
        elif state != lifecycle.INACTIVE:
            self.client.change(name, lifecycle.CONFIGURE, timeout=120.0)

    def say(self, instruction):
        self.instruction.publish(String(data=instruction))

    def step(self, seconds, joints=True):
        super().step(seconds, joints)
        if self.now % FRAME or self.camera == "gone":
            return
        if self.camera == "good":
            self.shade, self.stamp_ns = self.now // FRAME % 200, self.now
        elif self.camera == "same picture":
            self.stamp_ns = self.now
        picture = np.full((48, 64, 3), self.shade, np.uint8)
        self.pictures.publish(image_to_message(picture, self.stamp_ns, "agent"))

    def run(self, seconds, joints=True):
        for _ in range(round(seconds / 0.01)):
            answered, due = self.answered(), self.now + 10 * MS - self.decided() >= DUE
            super().run(0.01, joints)
            if self.waits and due and self.now % FRAME == 0:
                self.decision(answered)

    def decision(self, answered):
        """Wait for the decision that is due, and for an answer that was not there before."""
        self.wait(lambda: self.now - self.decided() < DUE, f"a decision on {self.now}")
        self.wait(lambda: self.answered() > answered, "an answer to the chunk")

    def decided(self):
        """The stamp, ns, of the newest observation that was decided on."""
        return to_nanoseconds(self.seen[-1].observation_stamp) if self.seen else 0

    def answered(self):
        status = self.status
        return status.chunks_accepted + status.chunks_rejected if status else 0

    def until(self, condition, joints=True):
        """Let time pass until something is so."""
        for _ in range(2000):
            if condition():
                return
            self.run(0.02, joints)
        raise AssertionError((self.status, self.deadman, self.arm.state))

    def begins_to_move(self):
        """The planner is heard by the controller, and from now on waited for; it moves the arm."""
        accepted = self.status.chunks_accepted
        self.until(lambda: self.status.chunks_accepted > accepted)
        self.waits = True
        self.move()

    def move(self):
        """Until the planner moves the arm, whatever was under way before."""
        wanted = self.status.chunks_accepted + 2
        self.until(
            lambda: self.status.chunks_accepted >= wanted and self.speed() > 0.05,
        )

    def speed(self):
        return np.abs(self.arm.state.velocity).max()

    def rests(self):
        """The arm comes to rest by itself, as the motion that it has was sent."""
        self.until(lambda: self.at_rest() and self.status.reason.startswith("no new chunk"))

    def diagnosed(self, node, task, text):
        def said():
            status = self.diagnostics.get(f"{node}: {task}")
            return status is not None and any(
                text in words for words in (status.message, *(v.value for v in status.values))
            )

        self.wait(said, f"{text!r} in the diagnostics of {node}")


@pytest.fixture(scope="module")
def graph(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", python_path(folder))
        bench = PlannerBench(folder)
        yield bench
        bench.graph.stop()


@pytest.fixture
def bench(graph):
    graph.start()
    yield graph
    graph.judge()
    graph.script.write_text("")
    for name in (*graph.processes, *graph.nodes):
        graph.rest(name)


def hangs(bench):
    """Let the planner hang in a decision."""
    mark = Path(f"{bench.script}.hangs")
    mark.unlink(missing_ok=True)
    bench.waits = False
    bench.script.write_text("hang")
    bench.until(mark.exists)


def thinks_to_the_end(bench, rejection):
    """What the planner that hung says at last is rejected."""
    bench.script.write_text("")
    bench.wait(lambda: rejection in bench.status.last_rejection, "the late chunk")


def test_a_policy_that_raises_holds_the_arm_and_the_next_decision_is_clean(bench):
    bench.script.write_text("raise")
    sent = len(bench.commands)
    bench.until(lambda: bench.seen[-1].source == ActionChunk.SOURCE_HOLD)
    fault_ns = bench.decided()
    since_ns = fault_ns - 10 * MS  # a chunk may overtake the clock by a step
    bench.until(lambda: bench.stamp(bench.commands[-1]) >= since_ns)
    hold = next(c for c in bench.commands[sent:] if bench.stamp(c) >= since_ns)
    assert bench.stamp(hold) - fault_ns <= PERIODS * 1e9, bench.status
    bench.wait(lambda: "an illegal memory access" in bench.reasons[-1], "the reason")
    # Each hold takes the arm back to where it was when observed, which is less and less far.
    bench.until(lambda: bench.speed() < 1e-3)
    bench.script.write_text("")
    bench.move()


def test_a_planner_that_hangs_lets_the_arm_come_to_rest_and_what_it_says_later_is_stale(bench):
    hangs(bench)
    bench.camera = "gone"  # there is nothing newer to decide on afterwards
    bench.rests()
    bench.diagnosed(PLANNER, "decisions", "no decision for")
    bench.run(2.2)
    thinks_to_the_end(bench, "stale_observation")
    bench.run(0.1)
    assert bench.at_rest()
    bench.camera = "good"
    bench.begins_to_move()


def test_an_emergency_stop_while_the_policy_thinks(bench):
    """The chunk that it thinks of is refused, however good it is."""
    hangs(bench)
    sent, fault = len(bench.commands), bench.now
    bench.estop.publish(Bool(data=True))
    bench.wait(lambda: len(bench.commands) > sent, "the stop")
    see_it_decelerate(bench, bench.commands[sent], fault)
    assert bench.status.state == ControllerState.STOPPED
    thinks_to_the_end(bench, "stopped: the emergency stop is latched")
    refused = bench.call(Trigger, "reset")
    assert (refused.success, refused.message) == (False, "the emergency stop is still set")
    bench.run(0.1)
    assert len(bench.commands) == sent + 1
    bench.estop.publish(Bool(data=False))
    bench.wait(lambda: "emergency stop cleared" in bench.status.reason, "the release")
    reset(bench, NODE)
    bench.begins_to_move()


def test_an_instruction_that_changes_in_motion_turns_the_arm_within_its_limits(bench):
    left = np.sign(bench.arm.state.velocity[0])
    rejected = bench.status.chunks_rejected
    bench.say("go right")
    bench.until(lambda: bench.arm.state.velocity[0] * left < -0.05)
    assert bench.status.chunks_rejected == rejected
    bench.say("bake a cake")
    bench.until(lambda: "bake a cake" in bench.reasons[-1] and bench.speed() < 1e-3)
    bench.say("go left")
    bench.move()


@pytest.mark.parametrize(
    ("camera", "said"),
    [
        ("gone", (PLANNER, "decisions", "no decision for")),
        ("same stamp", (PLANNER, "decisions", "no decision for")),
        ("same picture", (CAMERA, "observations", "the picture has not changed for")),
    ],
    ids=["gone", "same stamp", "same picture"],
)
def test_a_camera_that_is_gone_or_frozen_lets_the_arm_come_to_rest(bench, camera, said):
    bench.camera = camera
    bench.waits = False
    bench.rests()
    decided = len(bench.seen)
    bench.run(1.0)
    assert len(bench.seen) == decided
    assert bench.at_rest()
    bench.diagnosed(*said)
    bench.camera = "good"
    bench.begins_to_move()


def test_a_planner_that_is_killed_and_started_again(bench):
    """In a motion of seconds, which the deadman stops; the new one counts its chunks from 1."""
    bench.script.write_text("long")
    bench.run(0.6)
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 0.5})
    bench.waits = False
    bench.graph.end(PLANNER)
    fault, sent = bench.decided(), len(bench.commands)
    bench.until(lambda: len(bench.commands) > sent)
    see_it_decelerate(bench, bench.commands[sent], fault, allowed=0.5)
    bench.client.set_parameters(DEADMAN, {"planner_timeout": 2.0})
    assert bench.deadman.reason.startswith("the planner silent for 0.5")
    assert bench.status.reason.startswith("someone else commands the arm")
    bench.script.write_text("")
    bench.begin(PLANNER)
    reset(bench, DEADMAN)
    reset(bench, NODE)
    bench.client.change(PLANNER, lifecycle.ACTIVATE)
    before = len(bench.seen)
    bench.begins_to_move()
    assert bench.seen[before].sequence == 1
