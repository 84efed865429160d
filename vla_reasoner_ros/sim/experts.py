"""Scripted experts: the next action from the true state, by geometry alone.

An expert remembers nothing but its last displacement, so it recovers from noise, and can label
states that another policy reached.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.sim import tasks
from vla_reasoner_ros.sim.inverse_kinematics import rotate, rotation_between
from vla_reasoner_ros.sim.scene import BLOCK_HALF
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.types import FloatArray

SPEED = 0.024
"""Largest translation of an action, m."""
SPEED_CHANGE = 0.010
"""Largest change of translation from one action to the next, m."""
TURN = 0.15
"""Largest rotation of an action, rad."""
TURN_CHANGE = 0.05
"""Largest change of rotation from one action to the next, rad."""
HOVER = 0.075
"""Height of the fingers above what they will approach, m."""
PUSH_HEIGHT = 0.022
"""Height of the fingers while they push, m."""
OPEN, CLOSED = 1.0, 0.0


@dataclass(frozen=True)
class _Aim:
    """Where the TCP should go next (m, base frame), its yaw (None keeps it), and the gripper."""

    position: FloatArray
    gripper: float
    yaw: float | None = None


class Expert:
    """Solves the running task of a world.

    Args:
        world: read at each :meth:`act`; the caller applies the action.
        noise: standard deviation of what is added to an action, as a share of the largest motion.
        rng: draws the noise; needed when ``noise`` is not 0.
    """

    def __init__(
        self, world: World, noise: float = 0.0, rng: np.random.Generator | None = None
    ) -> None:
        if noise and rng is None:
            raise ValueError("expert: noise needs a random generator, got None")
        self._world = world
        self._noise = noise
        self._rng = rng
        self._last = np.zeros(6)
        self.intended = np.zeros(7)
        """The last action before noise was added: the label to learn from."""

    def reset(self) -> None:
        """Begin a new episode of the world."""
        self._last = np.zeros(6)

    def act(self) -> FloatArray:
        """The next action (7,), SI units of the world's action spec."""
        state = self._world.true_state()
        task = tasks.get_task(self._world.task)
        aim = _AIMS[task.kind](task, state, self._world)
        position, quaternion = self._world.target_pose
        step = _approach(aim.position - position, self._last[:3], SPEED, SPEED_CHANGE)
        turn = _approach(_turn_down(quaternion, aim.yaw), self._last[3:], TURN, TURN_CHANGE)
        self.intended = np.concatenate([step, turn, [aim.gripper]])
        self._last = self.intended[:6]
        action = self.intended.copy()
        if self._rng is not None and self._noise:
            action[:3] += self._rng.normal(0.0, self._noise * SPEED, 3)
            action[3:6] += self._rng.normal(0.0, self._noise * TURN * 0.3, 3)
        return action


def _approach(wanted: FloatArray, last: FloatArray, most: float, change: float) -> FloatArray:
    """One action's share (3,) of a wanted displacement: bounded, smooth, and able to stop in time.

    Args:
        wanted: (3,) the whole displacement.
        last: (3,) of the action before.
        most: largest norm of the share.
        change: largest norm of its change.
    """
    distance = float(np.linalg.norm(wanted))
    if distance > 1e-9:
        # Braking by ``change`` an action from speed v takes v^2 / (2 change); with some reserve.
        wanted = wanted * (min(most, np.sqrt(0.9 * change * distance), distance) / distance)
    difference = wanted - last
    size = float(np.linalg.norm(difference))
    return wanted if size <= change else last + difference * (change / size)


def _turn_down(quaternion: FloatArray, yaw: float | None) -> FloatArray:
    """Rotation vector (3,) from a pose to the one that points down, with a yaw when asked for."""
    axis_x = _axis_x(quaternion)
    heading = float(np.arctan2(axis_x[1], axis_x[0])) if yaw is None else yaw
    down = rotate(np.array([0.0, 1.0, 0.0, 0.0]), np.array([0.0, 0.0, heading]))
    return rotation_between(quaternion, down)


def _axis_x(quaternion: FloatArray) -> FloatArray:
    w, x, y, z = quaternion
    return np.array([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)])


def _at_height(point: FloatArray, height: float) -> FloatArray:
    return np.array([point[0], point[1], height])


def _nearest_quarter(yaw: float, reference: float = 0.0) -> float:
    """The yaw of a square object, up to quarter turns, that is nearest to the reference."""
    return reference + (yaw - reference + np.pi / 4) % (np.pi / 2) - np.pi / 4


def _to_grasp(task: tasks.Task, state: tasks.TrueState) -> _Aim:
    """Above the block, down to it, close."""
    block = state.blocks[task.block]
    yaw = _nearest_quarter(state.yaws[task.block])
    offset = block - state.tcp
    horizontal = float(np.hypot(offset[0], offset[1]))
    if horizontal > 0.012 + 0.25 * max(state.tcp[2] - block[2] - 0.02, 0.0):
        height = block[2] + HOVER if horizontal > 0.03 else max(state.tcp[2], block[2] + HOVER)
        return _Aim(_at_height(block, height), OPEN, yaw)
    if horizontal > 0.006 or state.tcp[2] - block[2] > 0.008 or state.opening < 0.5:
        ready = state.tcp[2] - block[2] < 0.03 and state.opening < 0.9
        if not ready:
            return _Aim(block, OPEN, yaw)
    return _Aim(block, CLOSED, yaw)


def _place(task: tasks.Task, state: tasks.TrueState, world: World) -> _Aim:
    block = state.blocks[task.block]
    goal, tolerance = tasks.place_goal(task, state)
    offset = goal - block
    horizontal = float(np.hypot(offset[0], offset[1]))
    resting = horizontal < tolerance and abs(offset[2]) < 0.004
    if resting and (task.block in state.touched or state.opening < 0.98):
        position, _ = world.target_pose
        return _Aim(position, OPEN)
    if resting:
        return _Aim(_at_height(block, goal[2] + 0.10), OPEN)
    if task.block not in state.pinched:
        return _to_grasp(task, state)
    # The TCP relative to the block stays as it was grasped.
    grasp = state.tcp - block
    over = goal + np.array([0.0, 0.0, 0.05])
    yaw = _nearest_quarter(state.yaws[task.target]) if task.target in state.yaws else None
    # Once on the way down, a small offset is corrected on the way, not above again.
    if horizontal > (0.006 if block[2] > over[2] - 0.01 else 0.013):
        # Above the other blocks before it goes far.
        needed = over[2] - 0.012 if horizontal < 0.12 else 3 * BLOCK_HALF + 0.008
        if block[2] < needed:
            share = 0.2 if horizontal > 0.12 else 0.0
            return _Aim(_at_height(block + share * offset, over[2]) + grasp, CLOSED, yaw)
        return _Aim(over + grasp, CLOSED, yaw)
    return _Aim(goal + grasp - (0.0, 0.0, 0.001), CLOSED, yaw)


def _push(task: tasks.Task, state: tasks.TrueState, world: World) -> _Aim:
    block = state.blocks[task.block]
    if block[0] > tasks.PUSH_X + 0.008:
        return _Aim(np.array([tasks.PUSH_X - 0.08, state.tcp[1], PUSH_HEIGHT]), CLOSED, 0.0)
    behind = np.array([block[0] - tasks.PUSH_OFFSET - 0.02, block[1], PUSH_HEIGHT])
    gap = block[0] - state.tcp[0]
    aside = state.tcp[1] - block[1]
    if abs(aside) < 0.012 and gap > tasks.PUSH_OFFSET - 0.01 and state.tcp[2] < PUSH_HEIGHT + 0.006:
        # Push through, and lean against the drift that would let the block slip off.
        return _Aim(
            np.array([tasks.PUSH_X + 0.05, block[1] - 0.3 * aside, PUSH_HEIGHT]), CLOSED, 0.0
        )
    if abs(aside) > 0.008 or gap < tasks.PUSH_OFFSET + 0.005:
        return _Aim(_at_height(behind, BLOCK_HALF + HOVER), CLOSED, 0.0)
    return _Aim(behind, CLOSED, 0.0)


def _lift(task: tasks.Task, state: tasks.TrueState, world: World) -> _Aim:
    if task.block not in state.pinched:
        return _to_grasp(task, state)
    height = tasks.LIFT_Z + 0.04
    return _Aim(_at_height(state.tcp, height), CLOSED)


_AIMS = {"place": _place, "push": _push, "lift": _lift}
