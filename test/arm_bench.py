"""The arm controller, and a deadman beside it, as processes; the test is their clock and arm."""

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import JointState
from std_msgs.msg import Bool, Float64
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.control.executor import ControllerState
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.msg import ActionChunk as ActionChunkMessage
from vla_reasoner_ros.msg import ControllerStatus
from vla_reasoner_ros.priors.space import DEFAULT_SPEC as SPEC
from vla_reasoner_ros.ros import graph as lifecycle
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds, to_stamp
from vla_reasoner_ros.ros.conversions import chunk_to_message, header
from vla_reasoner_ros.ros.graph import GraphClient
from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
from vla_reasoner_ros.sim.joint_trajectory_controller import (
    JointTrajectoryController,
    TrajectoryMessage,
    TrajectoryPoint,
)
from vla_reasoner_ros.types import ActionChunk

NODE, DEADMAN = "arm_controller_node", "deadman_node"
ROBOT = load_robot("fr3")
FORWARD = np.tile([0.012, 0.006, -0.01, 0.0, 0.0, 0.02, 1.0], (8, 1))
MS = 1_000_000
PERIODS = 0.02  # s: two control periods (watchdog.period, deadman's period)


class Bench:
    """The node under test, and an arm that does what joint_trajectory_controller does.

    Simulated time passes only as far as the nodes have seen it, however slow the machine.

    Args:
        folder: of the processes' logs.
        deadman: parameters of a deadman_node beside it; None for none.
        settings: more parameters of the arm controller.
    """

    def __init__(self, folder, deadman=None, settings=()):
        self.graph = ProcessGraph(folder)
        self.parameters = {
            "use_sim_time": True,
            "autostart": False,
            "enable_control": True,
            "status_period": 0.01,
            "diagnostics_period": 0.1,
            "motion.settle_time": 0.0,
            "watchdog.max_clock_standstill": 0.0,
            "motion.stop_lead_time": 0.03,  # the bench's clock moves in steps of 0.01 s
            **dict(settings),
        }
        self.nodes = [NODE]
        self.graph.start(NodeProcess(NODE, NODE, self.parameters))
        if deadman is not None:
            self.nodes.append(DEADMAN)
            watch = {"use_sim_time": True, "autostart": False, "status_period": 0.01}
            self.graph.start(NodeProcess(DEADMAN, DEADMAN, watch | deadman))
        self.client = GraphClient(self.graph)
        node = self.client.node
        self.clock = node.create_publisher(Clock, "/clock", qos.CLOCK)
        self.joints = node.create_publisher(JointState, "joint_states", qos.STATE)
        self.chunks = node.create_publisher(ActionChunkMessage, "action_chunk", qos.COMMAND)
        self.estop = node.create_publisher(Bool, "estop", qos.COMMAND)
        for kind, topic, callback in (
            (JointTrajectory, "joint_trajectory", self._command),
            (Float64, "gripper_command", lambda m: self.grips.append(m.data)),
            (ControllerStatus, f"{NODE}/status", self._status),
            (ControllerStatus, f"{DEADMAN}/status", self._deadman_status),
            (DiagnosticArray, "/diagnostics", self._diagnose),
        ):
            node.create_subscription(kind, topic, callback, 100)
        self.now = 1_000_000 * MS
        self.sequence = 0
        self.last_chunk = None  # of those that were sent
        self.diagnostics = {}
        self.status = self.deadman = None
        self.forget()
        for name in self.nodes:
            self.client.change(name, lifecycle.CONFIGURE)

    def forget(self):
        self.arm = JointTrajectoryController(ROBOT.joint_names, ROBOT.limits, ROBOT.home, self.now)
        self.arm_ahead = 0  # ns, of the arm's clock before the nodes'
        self.refuses = False  # whether the arm takes no command
        self.since = self.now  # a last stop, sent before, may be on its way still
        self.commands, self.grips = [], []

    def start(self):
        """Activate with the arm at home, in a clean state."""
        for name in self.nodes:
            if self.client.state(name) == lifecycle.ACTIVE:  # a test before ended half-way
                self.client.change(name, lifecycle.DEACTIVATE)
        self.step(0.02)
        self.forget()
        # Another arm: a controller that was only activated would wait for this one to come from
        # where the last was left.
        for transition in (lifecycle.CLEANUP, lifecycle.CONFIGURE):
            self.client.change(NODE, transition)
        for name in self.nodes:
            self.client.change(name, lifecycle.ACTIVATE)
        publishers = (self.clock, self.joints, self.chunks, self.estop)
        self.wait(lambda: all(p.get_subscription_count() for p in publishers), "connections")
        self.run(0.05)

    def step(self, seconds, joints=True):
        """Let time pass for everyone.

        Args:
            seconds: how much.
            joints: whether joint states are published; or a state that is, whatever the arm does.
        """
        self.now += round(seconds * 1000) * MS
        self.arm.advance(self.now + self.arm_ahead)
        if joints:
            state = self.arm.state if joints is True else joints
            self.joints.publish(
                JointState(
                    header=header(self.now),
                    name=[*ROBOT.joint_names[::-1], "finger"],
                    position=[*state.position[::-1], 0.0],
                    velocity=[*state.velocity[::-1], 0.0],
                )
            )
        self.clock.publish(Clock(clock=to_stamp(self.now)))

    def run(self, seconds, joints=True):
        """Let time pass in steps that the node has seen before the next one."""
        for _ in range(round(seconds / 0.01)):
            self.step(0.01, joints)
            self.wait(self.caught_up, f"status at {self.now}")

    def caught_up(self):
        told = {NODE: self.status, DEADMAN: self.deadman}
        ahead = [told[name] and self.stamp(told[name]) - self.now for name in self.nodes]
        if all(time is not None and 0 <= time < 1000 * MS for time in ahead):
            return True  # what is farther ahead was said before the clock jumped back
        self.clock.publish(Clock(clock=to_stamp(self.now)))  # best effort: it may be lost
        return False

    @staticmethod
    def stamp(message):
        return to_nanoseconds(message.header.stamp)

    def wait(self, condition, what):
        return self.client.wait(condition, 120.0, what, period=0.01)

    def chunk(self, motion=FORWARD, stamp=None):
        self.sequence += 1
        chunk = ActionChunk(SPEC, motion, self.now if stamp is None else stamp, self.sequence)
        return chunk_to_message(chunk, self.now)

    def send(self, message):
        """Publish a chunk; no time passes until the node has judged it and its command is here."""
        before, commands = self.status, len(self.commands)
        self.last_chunk = message

        def judged():
            now = self.status
            if now.chunks_accepted > before.chunks_accepted:
                return now.state == ControllerState.DRY_RUN or len(self.commands) > commands
            return now.chunks_rejected > before.chunks_rejected

        self.chunks.publish(message)
        self.wait(judged, "an answer to the chunk")

    def until_it_moves(self):
        """Let time pass until the arm moves: after a reset it is given time to come there."""
        for _ in range(30):
            self.run(0.05)
            if not self.at_rest():
                return
        raise AssertionError((self.status, self.deadman))

    def move(self):
        self.send(self.chunk())
        self.until_it_moves()
        self.run(0.25)
        assert self.status.state == ControllerState.EXECUTING, (self.status, self.deadman)
        assert np.abs(self.arm.state.velocity).max() > 0.1

    def call(self, kind, name, **fields):
        return self.client.call(kind, f"{NODE}/{name}", kind.Request(**fields))

    def at_rest(self):
        return not np.abs(self.arm.state.velocity).any()

    def judge(self):
        assert not self.arm.rejections
        assert not self.arm.violations

    def _command(self, message):
        if self.stamp(message) < self.since:
            return
        self.commands.append(message)
        if self.refuses:
            return
        points = [
            TrajectoryPoint(
                p.time_from_start.sec * 1000 * MS + p.time_from_start.nanosec,
                p.positions,
                p.velocities,
                p.accelerations,
            )
            for p in message.points
        ]
        stamp = self.stamp(message) + self.arm_ahead
        self.arm.accept(TrajectoryMessage(message.joint_names, points, stamp))

    def _status(self, message):
        self.status = message

    def _deadman_status(self, message):
        self.deadman = message

    def _diagnose(self, message):
        for status in message.status:
            self.diagnostics[status.name] = status


def decelerated(bench, fault_ns, allowed=0.0, lead=0.03, joints=True, slack=1e-6):
    """See one stop come in time, the arm get slower from then on, and rest."""
    sent = len(bench.commands)
    for _ in range(round((allowed + 0.6) / 0.01)):
        bench.run(0.01, joints)
        if len(bench.commands) > sent:
            break
    see_it_decelerate(bench, bench.commands[sent], fault_ns, allowed, lead, joints, slack)


def see_it_decelerate(bench, stop, fault_ns, allowed=0.0, lead=0.03, joints=True, slack=1e-6):
    delay = (bench.stamp(stop) - fault_ns) / 1e9
    assert delay <= allowed + PERIODS + 1e-9
    speeds = []
    for _ in range(60):
        bench.run(0.01, joints)
        speeds.append(float(np.abs(bench.arm.state.velocity).max()))
        if not speeds[-1]:
            break
    assert bench.at_rest()
    later = np.array(speeds[round(lead / 0.01) :])
    assert np.all(np.diff(later) <= slack), "it only gets slower"


def reset(bench, name):
    """A reset is granted, at the latest when what was under way has come to rest."""
    for _ in range(50):
        answer = bench.client.call(Trigger, f"{name}/reset", Trigger.Request())
        if answer.success:
            return
        bench.run(0.02)
    raise AssertionError(f"{name}: {answer.message}")
