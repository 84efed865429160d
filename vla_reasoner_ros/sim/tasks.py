"""The six language tasks as data, and what success and progress mean in the true state.

Progress is dense: phases (reach, grasp, carry, place, hold) take shares of [0, 1], and within a
phase it follows the length of the path that is left. The path goes over an obstacle, not through
it: see :func:`path_left`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.scene import (
    BLOCK_HALF,
    BLOCKS,
    LINE_X,
    PLATE_RADIUS,
    PLATE_TOP,
    TRAY_FLOOR,
    TRAY_HALF,
)
from vla_reasoner_ros.types import FloatArray

HOLD_S = 1.0
"""The goal must hold for this long before an episode is a success, s."""
LIFT_Z = 0.14
"""Height of the block's centre that counts as lifted, m."""
PUSH_X = LINE_X + BLOCK_HALF
"""The block's centre when the whole block is past the marked line, m."""
PUSH_OFFSET = BLOCK_HALF + 0.012
"""From the centre of the pushed block back to the fingers behind it, m."""
TIP_HALF = (0.010, 0.006)
"""Half the extent of one finger's tip along x and y, m."""
TIP_BELOW = 0.010
"""How far the tips reach below the TCP, m."""
FINGER_TRAVEL = 0.04
"""How far each finger goes from the middle to be open, m."""


@dataclass(frozen=True)
class Task:
    """One row of the task table.

    Attributes:
        name: how the task is asked for.
        kind: ``place``, ``push`` or ``lift``.
        block: the block that is moved.
        target: where it is placed: ``plate``, ``tray`` or a block; empty for push and lift.
        instructions: the paraphrases used for training; a seed picks one.
        held_out: paraphrases kept for the evaluation of language.
    """

    name: str
    kind: str
    block: str
    target: str
    instructions: tuple[str, ...]
    held_out: tuple[str, ...]


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "red_on_plate",
            "place",
            "red_block",
            "plate",
            (
                "put the red block on the plate",
                "place the red cube on the plate",
                "move the red block onto the white plate",
                "pick up the red block and put it on the plate",
                "set the red cube down on the plate",
            ),
            ("lay the red block on the plate", "the red cube belongs on the white plate"),
        ),
        Task(
            "blue_on_plate",
            "place",
            "blue_block",
            "plate",
            (
                "put the blue block on the plate",
                "place the blue cube on the plate",
                "move the blue block onto the white plate",
                "pick up the blue block and put it on the plate",
                "set the blue cube down on the plate",
            ),
            ("lay the blue block on the plate", "the blue cube belongs on the white plate"),
        ),
        Task(
            "green_in_tray",
            "place",
            "green_block",
            "tray",
            (
                "put the green block in the tray",
                "place the green cube in the tray",
                "move the green block into the wooden tray",
                "pick up the green block and drop it in the tray",
                "set the green cube down inside the tray",
            ),
            ("lay the green block in the tray", "the green cube belongs in the wooden tray"),
        ),
        Task(
            "red_on_green",
            "place",
            "red_block",
            "green_block",
            (
                "stack the red block on the green block",
                "put the red block on top of the green block",
                "place the red cube on the green cube",
                "pick up the red block and stack it on the green one",
                "build a tower with the red block on the green block",
            ),
            ("set the red cube on top of the green cube", "balance the red block on the green one"),
        ),
        Task(
            "push_blue_back",
            "push",
            "blue_block",
            "",
            (
                "push the blue block back past the line",
                "push the blue cube to the back",
                "slide the blue block backwards over the black line",
                "shove the blue block away from the robot",
                "push the blue cube beyond the line",
            ),
            ("move the blue block back by pushing it", "slide the blue cube away past the line"),
        ),
        Task(
            "lift_green",
            "lift",
            "green_block",
            "",
            (
                "lift the green block",
                "pick up the green cube",
                "raise the green block off the table",
                "grasp the green block and lift it up",
                "hold the green cube in the air",
            ),
            ("take the green block up", "lift the green cube high above the table"),
        ),
    )
}


def get_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ConfigurationError: there is none; the message lists those there are.
    """
    try:
        return TASKS[name]
    except KeyError:
        raise ConfigurationError(
            f"task {name!r} is unknown; known are {', '.join(TASKS)}"
        ) from None


@dataclass(frozen=True)
class TrueState:
    """What the tasks read of the simulator, positions in the base frame, m.

    Attributes:
        tcp: (3,) the point between the finger tips.
        opening: of the gripper, 0 closed to 1 open.
        blocks: name to (3,) centre.
        yaws: name to the yaw of a block, rad.
        plate: (3,) centre of the plate's underside.
        tray: (3,) centre of the tray's underside.
        pinched: blocks that touch both finger pads.
        touched: blocks that touch any part of the hand or fingers.
        held_s: how long the goal has held, s.
    """

    tcp: FloatArray
    opening: float
    blocks: Mapping[str, FloatArray]
    yaws: Mapping[str, float]
    plate: FloatArray
    tray: FloatArray
    pinched: frozenset[str]
    touched: frozenset[str]
    held_s: float


def place_goal(task: Task, state: TrueState) -> tuple[FloatArray, float]:
    """Where the block's centre shall come to rest (3,), and the horizontal tolerance, m."""
    if task.target == "plate":
        return _above(state.plate, PLATE_TOP + BLOCK_HALF), 0.040
    if task.target == "tray":
        return _above(state.tray, TRAY_FLOOR + BLOCK_HALF), 0.042
    return _above(state.blocks[task.target], 2 * BLOCK_HALF), 0.020


def _above(point: FloatArray, height: float) -> FloatArray:
    return np.array([point[0], point[1], point[2] + height])


def _rests_at_goal(task: Task, state: TrueState) -> bool:
    goal, tolerance = place_goal(task, state)
    offset = state.blocks[task.block] - goal
    return bool(np.hypot(offset[0], offset[1]) < tolerance and abs(offset[2]) < 0.006)


def achieved(task: Task, state: TrueState) -> bool:
    """Whether the goal is met at this moment; success is this for :data:`HOLD_S`."""
    block = state.blocks[task.block]
    if task.kind == "place":
        return _rests_at_goal(task, state) and task.block not in state.touched
    if task.kind == "push":
        return bool(block[0] > PUSH_X and block[2] < 1.5 * BLOCK_HALF)
    return bool(block[2] > LIFT_Z and task.block in state.pinched)


def path_left(
    horizontal: float, height: float, aside: float, clearance: float, radius: float
) -> float:
    """Length of the way to a point that must be approached from above, m.

    Off the free column over the point, whatever moves has to be ``clearance`` above it; within
    ``radius`` of the column this height falls smoothly to zero. What is too low first has to rise.

    Args:
        horizontal: distance to the point in the plane, m.
        height: above the point, m; may be negative.
        aside: distance from the free column in the plane, m.
        clearance: m.
        radius: m.
    """
    share = min(aside / radius, 1.0)
    needed = clearance * share * share * (3.0 - 2.0 * share)
    return max(needed - height, 0.0) + horizontal + max(height, needed)


def _closeness(path: float, reach: float, near: float = 0.08) -> float:
    """1 at no path left, 0 at ``reach``; half linear, half steeper near the end."""
    linear = max(1.0 - path / reach, 0.0)
    return 0.5 * linear + 0.5 * float(np.exp(-path / near))


def _reaching(point: FloatArray, state: TrueState, free_behind: bool = False) -> float:
    """Closeness of the TCP to a point between or behind blocks; ``free_behind``: toward -x."""
    x, y, z = state.tcp - point
    aside = np.hypot(max(x, 0.0) if free_behind else x, y)
    path = path_left(float(np.hypot(x, y)), float(z), float(aside), 2 * BLOCK_HALF, 0.035)
    return _closeness(path, 0.6)


def _grasping(task: Task, state: TrueState) -> float:
    """[0, 1) before the pinch: reach with open fingers, then close them around the block."""
    block = state.blocks[task.block]
    reach = _reaching(block, state)
    distance = float(np.linalg.norm(state.tcp - block))
    around = float(np.clip((0.03 - distance) / 0.015, 0.0, 1.0))
    opened = min(state.opening / 0.9, 1.0)
    closing = float(np.clip((1.0 - state.opening) / 0.4, 0.0, 1.0))
    fingers = (1.0 - around) * 0.5 * opened + around * (0.5 + 0.5 * closing)
    return 0.8 * reach + 0.2 * fingers


def _pinning(block: FloatArray, state: TrueState) -> float:
    """Whether the finger tips are upon a block and press it to the table, 0 to 1.

    Smooth, from geometry alone, so that it means the same in an imagined state. The fingers are
    taken to open along y, as they do while they push.
    """
    x, y, z = state.tcp - block
    finger = FINGER_TRAVEL * min(max(state.opening, 0.0), 1.0) + TIP_HALF[1]
    overlap = BLOCK_HALF + min(TIP_HALF[0] - abs(x), TIP_HALF[1] - abs(abs(y) - finger))
    # Tips below the block's middle are beside it, tips above its top are free of it.
    bottom = z - TIP_BELOW
    shares = [overlap / 0.010, bottom / 0.008, (BLOCK_HALF + 0.010 - bottom) / 0.008]
    return float(np.prod(np.clip(shares, 0.0, 1.0)))


def _pushing(block: FloatArray, state: TrueState) -> float:
    """[0, 0.9) before the block is past the line: reach behind it, then push.

    A block that is dragged along under the finger tips slips out where nobody can tell, so how far
    it has come does not count until it is free again.
    """
    reach = _reaching(block - (PUSH_OFFSET, 0.0, 0.0), state, free_behind=True)
    pushed = float(np.clip(1.0 - (PUSH_X - block[0]) / 0.28, 0.0, 1.0))
    pinning = _pinning(block, state)
    return 0.4 * reach * (1.0 - 0.5 * pinning) + 0.5 * pushed * (1.0 - pinning)


def progress(task: Task, state: TrueState) -> float:
    """How far the task has come, in [0, 1]; 1 exactly at success."""
    held = min(state.held_s / HOLD_S, 1.0)
    if achieved(task, state):
        return 0.9 + 0.1 * held
    block = state.blocks[task.block]
    if task.kind == "push":
        return _pushing(block, state)
    pinched = task.block in state.pinched
    if task.kind == "lift":
        if not pinched:
            return 0.45 * _grasping(task, state)
        return 0.5 + 0.4 * float(np.clip((block[2] - BLOCK_HALF) / (LIFT_Z - BLOCK_HALF), 0.0, 1.0))
    if _rests_at_goal(task, state):
        return 0.82 + 0.08 * min(state.opening, 1.0)
    if not pinched:
        return 0.35 * _grasping(task, state)
    goal, _ = place_goal(task, state)
    offset = block - goal
    horizontal = float(np.hypot(offset[0], offset[1]))
    path = path_left(horizontal, float(offset[2]), horizontal, 0.06, 0.05)
    return 0.40 + 0.40 * _closeness(path, 0.7)


@dataclass(frozen=True)
class InitialScene:
    """Where things start, base frame, m and rad.

    Attributes:
        blocks: name to x, y, yaw.
        plate, tray: x, y.
        tcp: (3,) start of the end effector.
        tcp_yaw: rotation about z from the home orientation.
    """

    blocks: Mapping[str, tuple[float, float, float]]
    plate: tuple[float, float]
    tray: tuple[float, float]
    tcp: tuple[float, float, float]
    tcp_yaw: float


BLOCK_AREA = ((0.44, 0.59), (-0.11, 0.11))
"""Lowest and highest x, and y, of the blocks' centres at the start, m."""
BLOCK_SPACING = 0.09
"""Least distance between two blocks' centres at the start, m: room for the open fingers."""
TARGET_GAP = 0.033
"""Least distance of a block's centre from the edge of plate and tray, m."""
PUSH_LANE = 0.06
"""Half the width of the strip that is kept free for pushing, m."""
PUSH_MIN_X = 0.485
"""The arm must reach behind the block that it pushes, m."""


def _fits(
    task: Task, blocks: Mapping[str, FloatArray], plate: FloatArray, tray: FloatArray
) -> bool:
    places = np.stack(list(blocks.values()))
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)
    if gaps[np.triu_indices(len(places), 1)].min() < BLOCK_SPACING:
        return False
    if np.linalg.norm(places - plate, axis=1).min() < PLATE_RADIUS + TARGET_GAP:
        return False
    if np.abs(places - tray).max(axis=1).min() < TRAY_HALF + TARGET_GAP:
        return False
    if task.kind != "push":
        return True
    pushed = blocks[task.block]
    others = [place for name, place in blocks.items() if name != task.block]
    return bool(pushed[0] > PUSH_MIN_X and min(abs(p[1] - pushed[1]) for p in others) > PUSH_LANE)


def sample_scene(task: Task, rng: np.random.Generator) -> InitialScene:
    """Draw a start: blocks apart from one another, all reachable, nothing on its target yet.

    For pushing, no other block stands in the way of the pushed one or of the fingers behind it.
    """
    plate = np.array([0.50, -0.215]) + rng.uniform(-0.015, 0.015, 2)
    tray = np.array([0.50, 0.215]) + rng.uniform(-0.015, 0.015, 2)
    low, high = np.transpose(BLOCK_AREA)
    while True:
        by_name = dict(zip(BLOCKS, rng.uniform(low, high, size=(len(BLOCKS), 2)), strict=True))
        if _fits(task, by_name, plate, tray):
            break
    blocks = {
        name: (float(x), float(y), float(rng.uniform(-0.3, 0.3)))
        for name, (x, y) in by_name.items()
    }
    tcp = np.array([0.45, 0.0, 0.26]) + rng.uniform((-0.03, -0.05, -0.03), (0.03, 0.05, 0.03))
    return InitialScene(
        blocks=blocks,
        plate=(float(plate[0]), float(plate[1])),
        tray=(float(tray[0]), float(tray[1])),
        tcp=(float(tcp[0]), float(tcp[1]), float(tcp[2])),
        tcp_yaw=float(rng.uniform(-0.1, 0.1)),
    )
