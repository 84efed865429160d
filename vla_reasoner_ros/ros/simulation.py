"""The simulated world to messages, commands from messages, and its diagnostics."""

from __future__ import annotations

import math

from sensor_msgs.msg import CameraInfo, JointState
from trajectory_msgs.msg import JointTrajectory

from vla_reasoner_ros.msg import SimulatorState
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import header
from vla_reasoner_ros.ros.diagnostics import Level, Report
from vla_reasoner_ros.sim.joint_trajectory_controller import TrajectoryMessage, TrajectoryPoint
from vla_reasoner_ros.sim.loop import SimulationLoop
from vla_reasoner_ros.sim.world import World


def joints_to_message(world: World, fingers: tuple[str, ...], stamp_ns: int) -> JointState:
    """Arm and finger joints: rad and rad/s, m and m/s."""
    count = len(world.robot.joint_names) + len(fingers)
    return JointState(
        header=header(stamp_ns),
        name=[*world.robot.joint_names, *fingers],
        position=world.data.qpos[:count].tolist(),
        velocity=world.data.qvel[:count].tolist(),
    )


def state_to_message(world: World, episode: int, stamp_ns: int) -> SimulatorState:
    """The full state, and what the task says of it."""
    return SimulatorState(
        header=header(stamp_ns),
        task=world.task,
        seed=world.seed,
        episode=episode,
        state=world.get_state().tolist(),
        progress=world.progress(),
        success=world.success(),
    )


def camera_to_message(
    world: World, camera: str, width: int, height: int, stamp_ns: int
) -> CameraInfo:
    """A pinhole camera without distortion; its frame has the camera's name."""
    fovy = math.radians(float(world.model.camera(camera).fovy[0]))
    focal = 0.5 * height / math.tan(0.5 * fovy)
    info = CameraInfo(
        header=header(stamp_ns, camera), width=width, height=height, distortion_model="plumb_bob"
    )
    info.d = [0.0] * 5
    info.k = [focal, 0.0, width / 2, 0.0, focal, height / 2, 0.0, 0.0, 1.0]
    info.r = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0]
    info.p = [focal, 0.0, width / 2, 0.0, 0.0, focal, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    return info


def trajectory_from_message(message: JointTrajectory, offset_ns: int) -> TrajectoryMessage:
    """The controller's message; its clock is ``offset_ns`` behind the node's."""
    stamp_ns = to_nanoseconds(message.header.stamp)
    return TrajectoryMessage(
        joint_names=message.joint_names,
        # A stamp of zero means "now"; the start of an episode must not.
        stamp_ns=(stamp_ns - offset_ns) or 1 if stamp_ns else 0,
        points=[
            TrajectoryPoint(
                to_nanoseconds(point.time_from_start),
                point.positions,
                point.velocities,
                point.accelerations,
                point.effort,
            )
            for point in message.points
        ],
    )


def report(loop: SimulationLoop, world: World) -> Report:
    """The state of the simulation; a refused command or a broken limit is a warning."""
    controller = world.controller
    values: dict[str, object] = {
        "task": world.task,
        "seed": world.seed,
        "episode": loop.episode,
        "simulated time": loop.time_ns / 1e9,
        "trajectories accepted": controller.accepted,
        "trajectories refused": sum(controller.rejections.values()),
        "limit violations": sum(controller.violations.values()),
        **{f"refused: {why.value}": n for why, n in controller.rejections.items()},
        **{f"violation: {what}": n for what, n in controller.violations.items()},
    }
    if values["trajectories refused"] or values["limit violations"]:
        return Report(Level.WARN, "a command was refused or broke a limit", values)
    return Report(Level.OK, "running", values)
