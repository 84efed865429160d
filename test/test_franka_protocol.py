"""What a Franka makes of our motions: libfranka's rate limiter, and its protocol on the wire."""

import subprocess
import sys

import numpy as np
import pytest

from benchmark.arm_judge import Judge
from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.control.parameters import ControlParameters
from vla_reasoner_ros.parameters import build
from vla_reasoner_ros.types import ActionChunk, ActionSpec, GripperSpec, Representation

S, MS = 1_000_000_000, 1_000_000
SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(6),
)
WAYS = np.array([[0.02, 0.01, -0.02], [0.03, -0.03, 0.0], [-0.03, 0.02, 0.03], [0.0, 0.03, -0.01]])


class Rig:
    """An executor whose commands a trajectory controller plays at 1 kHz."""

    def __init__(self, position, **values):
        values = {"enable_control": True, "motion.settle_time": 0.1} | values
        self.executor = ChunkExecutor(build(ControlParameters, values))
        self.now, self.sequence = 1_000 * S, 0
        self.judge = Judge(self.executor.robot, self.now, position)
        self.measure()

    def measure(self):
        position, velocity, _ = self.judge.desired(self.now)
        self.executor.measured(self.now, position, velocity)

    def send(self, commands):
        if commands.trajectory is not None:
            self.judge.receive(commands.trajectory, self.now)

    def submit(self, way):
        self.sequence += 1
        actions = np.zeros((8, 7))
        actions[:, :3], actions[:, 5], actions[:, 6] = way, 0.05, 1.0
        self.send(
            self.executor.submit(
                ActionChunk(SPEC, actions, self.now, self.sequence), self.now
            ).commands
        )

    def tick(self):
        """A millisecond; the position (J,) that is desired then, rad."""
        self.now += MS
        if self.now % (10 * MS) == 0:
            self.measure()
            self.send(self.executor.tick(self.now))
        return self.judge.desired(self.now)[0]

    def motion(self, size=1.0):
        """Chunks that replace one another in motion, and a stop: positions (N, J) at 1 kHz."""
        for way in WAYS:
            self.submit(size * way)
            yield from (self.tick() for _ in range(400))
        self.send(self.executor.emergency_stop(True, self.now))
        yield from (self.tick() for _ in range(600))
        self.judge.advance(self.now)
        assert self.judge.problems == []


def rate_limited(limits, wanted):
    """What libfranka's rate limiter (``limit_rate``) passes of joint positions (N, J) at 1 kHz.

    Jerk is limited first, then acceleration, to what lets the velocity stay below its limit by
    reducing the acceleration at full jerk; the velocity that results is integrated. As its
    documentation has it: frankarobotics.github.io, libfranka, ``rate_limiting.h``.
    """
    dt, ratio = 1e-3, limits.jerk / limits.acceleration
    position = wanted[0].copy()
    velocity = acceleration = np.zeros_like(position)
    passed = []
    for target in wanted:
        lowest, highest = limits.velocity_bounds(position)
        jerk = ((target - position) / dt - velocity) / dt - acceleration
        asked = acceleration + np.clip(jerk, -limits.jerk * dt, limits.jerk * dt)
        least = np.maximum(ratio * (lowest - velocity), -limits.acceleration)
        most = np.minimum(ratio * (highest - velocity), limits.acceleration)
        acceleration = np.clip(asked, least, most)
        velocity = velocity + acceleration * dt
        position = position + velocity * dt
        passed.append(position)
    return np.array(passed)


@pytest.mark.parametrize("limits", ["", "full"], ids=["rectangular", "position-dependent"])
def test_the_rate_limiter_of_libfranka_changes_nothing(limits):
    rig = Rig(None, limits=limits)
    wanted = np.array(list(rig.motion()))
    assert np.abs(np.diff(wanted, axis=0)).max() > 3e-4  # 0.3 rad/s: it does move
    np.testing.assert_allclose(rate_limited(rig.executor.robot.limits, wanted), wanted, atol=1e-6)


def test_that_rate_limiter_does_change_what_is_too_fast():
    rig = Rig(None)
    wanted = np.array(list(rig.motion()))[::3]
    passed = rate_limited(rig.executor.robot.limits, wanted)
    assert np.abs(passed - wanted).max() > 1e-3


SERVER = """
from franky_sim import SimulationServer
from franky_sim.mujoco_simulator import MujocoSimulator

with MujocoSimulator(enable_visualization=False) as simulator:
    robot = simulator.add_robot()
    with SimulationServer(simulator) as server:
        print(robot.hostname, flush=True)
        server.run_forever()
"""


@pytest.fixture
def franka():
    """The address of an FR3 that speaks libfranka's protocol."""
    pytest.importorskip("franky_sim", reason="the extra franky-sim is not installed")
    pytest.importorskip("pylibfranka", reason="the extra franky-sim is not installed")
    with subprocess.Popen(
        [sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True
    ) as server:
        yield server.stdout.readline().strip()
        server.kill()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_an_fr3_behind_the_protocol_of_libfranka_follows_without_an_abort(franka):
    import pylibfranka

    robot = pylibfranka.Robot(franka, pylibfranka.RealtimeConfig.kIgnore)
    rig = Rig(np.array(robot.read_once().q_d))
    wanted = list(rig.motion(size=0.3))  # it begins with the arm stretched out
    control = robot.start_joint_position_control(pylibfranka.ControllerMode.JointImpedance)
    control.readOnce()
    errors = []
    for index, position in enumerate(wanted):
        command = pylibfranka.JointPositions(position.tolist())
        command.motion_finished = index == len(wanted) - 1
        control.writeOnce(command)
        if not command.motion_finished:
            state, _ = control.readOnce()
            errors.append(np.abs(np.array(state.q) - position).max())
    assert not state.current_errors
    given = rig.executor.parameters.watchdog
    assert max(errors) < given.max_tracking_error  # of the simulated servo, which is soft
    assert errors[-1] < 0.01
    assert np.abs(wanted[-1] - wanted[0]).max() > 0.01
