"""Chunks as a broken planner would send them, by kind; everything random comes from one generator.

``KINDS`` says what each kind is and how often it is drawn. ``plausible`` chunks are not
hostile: they keep the arm moving, so that the hostile ones replace a running motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vla_reasoner_ros.control.decode import EE_NAMES
from vla_reasoner_ros.control.executor import ChunkExecutor
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    FloatArray,
    GripperSpec,
    Representation,
)

SECOND = 1_000_000_000
PLAUSIBLE = "plausible"
MILLIONS = (1_000_000, 3_000_000)  # steps of the longest chunks, about
LENGTHS = (1, 2, 2, 4, 8, 8, 8, 8, 16, 50)  # steps of the other chunks
AGES = (0.0, 0.0, 0.05, 0.3)  # s, of the observation behind a plausible chunk
POSES = 48  # looked at in search of a singular one


@dataclass(frozen=True)
class Draft:
    """A chunk before it is made: what its constructor and the controller may refuse.

    Attributes:
        motion: (H, D) of the stream's representation.
        spec: the stream's convention.
        age: s since the observation.
        opening: of the gripper, in all steps.
        ahead: of its place in the sequence.
    """

    motion: FloatArray
    spec: ActionSpec
    age: float = 0.0
    opening: float = 1.0
    ahead: int = 0


class HostileChunks:
    """One stream of chunks for one arm.

    Args:
        rng: all randomness.
        executor: whose commanded state the chunks aim at.
    """

    def __init__(self, rng: np.random.Generator, executor: ChunkExecutor) -> None:
        self._rng = rng
        self._executor = executor
        self._robot = executor.robot
        self._sequence = 0
        self._newest = 0  # ns, the stamp of the last plausible observation
        self._last: ActionChunk | None = None
        representation = Representation(rng.choice([r.value for r in Representation]))
        names = EE_NAMES.get(representation, self._robot.joint_names)
        gripper = None if self._robot.gripper_opening is None else GripperSpec(len(names))
        self._spec = ActionSpec(
            representation,
            (*names, "gripper") if gripper else names,
            "base" if representation in EE_NAMES else "",
            float(rng.choice([0.02, 0.05, 0.1, 0.2])),
            gripper,
        )
        self._drift = rng.normal(size=7)
        self._names = tuple(KINDS)
        weights = np.array([weight for weight, _ in KINDS.values()])
        self._upto = np.cumsum(weights) / weights.sum()

    def draw(self) -> str:
        """The kind of the next chunk."""
        return self._names[int(np.searchsorted(self._upto, self._rng.random(), side="right"))]

    def make(self, kind: str, now_ns: int) -> ActionChunk:
        """The next chunk, of a kind.

        Raises:
            ActionChunkError, ConfigurationError: the chunk's or the convention's own constructor
                refuses it.
        """
        rng = self._rng
        if kind == "replayed" and self._last is not None:
            return self._last
        self._drift = 0.7 * self._drift + 0.7 * rng.normal(size=7)
        self._sequence += 1
        draft = KINDS[kind][1](self, self._plausible(now_ns), now_ns)
        actions = draft.motion
        if draft.spec.gripper is not None:
            opening = np.full((len(actions), 1), draft.opening)
            actions = np.concatenate([actions, opening], axis=1)
        stamp = now_ns - round(draft.age * SECOND)
        chunk = ActionChunk(draft.spec, actions, stamp, max(self._sequence + draft.ahead, 0))
        if kind == PLAUSIBLE:
            self._last, self._newest = chunk, stamp
        return chunk

    # -- the kinds --------------------------------------------------------------------------

    def _as_it_is(self, draft: Draft, now_ns: int) -> Draft:
        return draft

    def _not_finite(self, draft: Draft, now_ns: int) -> Draft:
        return self._put(draft, self._rng.choice([np.nan, np.inf, -np.inf]))

    def _extreme_number(self, draft: Draft, now_ns: int) -> Draft:
        return self._put(draft, self._rng.choice([5e-324, -5e-324, 2e-308, 1e308, -1e308, 1e17]))

    def _denormal(self, draft: Draft, now_ns: int) -> Draft:
        tiny = self._rng.choice([5e-324, 1e-310, 1e-300])
        noise = tiny * self._rng.integers(-9, 10, size=draft.motion.shape)
        if self._spec.representation is Representation.JOINT_POSITION:
            noise = noise + self._position(now_ns)
        elif self._spec.representation is Representation.EE_POSE:
            noise = noise + draft.motion[0]
        return replace(draft, motion=noise)

    def _jump(self, draft: Draft, now_ns: int) -> Draft:
        rng = self._rng
        size = rng.choice([-1.0, 1.0]) * rng.choice([0.02, 0.05, 0.1, 0.3, 1.0, 10.0])
        row, column = self._place(draft)
        motion = draft.motion.copy()
        motion[row, column] += size
        return replace(draft, motion=motion)

    def _last_step(self, draft: Draft, now_ns: int) -> Draft:
        motion = draft.motion.copy()
        size = 10.0 ** self._rng.uniform(-3.0, 0.5) * self._drift[: motion.shape[1]]
        motion[-1] += size
        return replace(draft, motion=motion)

    def _seam(self, draft: Draft, now_ns: int) -> Draft:
        rng = self._rng
        offset = 10.0 ** rng.uniform(-4.0, 0.0) * rng.normal(size=draft.motion.shape[1])
        if self._spec.representation is Representation.EE_POSE:
            offset[3:] = 0.0
        motion = draft.motion.copy()
        if self._absolute:
            motion += offset
        else:
            motion[0] += offset
        return replace(draft, motion=motion)

    def _reversal(self, draft: Draft, now_ns: int) -> Draft:
        self._drift = -float(self._rng.choice([1.0, 3.0])) * self._drift
        return self._plausible(now_ns)

    def _too_fast(self, draft: Draft, now_ns: int) -> Draft:
        speed = float(self._rng.choice([2.0, 5.0, 10.0, 30.0]))
        return replace(draft, motion=self._motion(len(draft.motion), now_ns, speed, 0.1))

    def _noise(self, draft: Draft, now_ns: int) -> Draft:
        speed = float(self._rng.choice([0.05, 0.3, 1.0, 3.0]))
        return replace(draft, motion=self._motion(len(draft.motion), now_ns, speed, 1.0))

    def _stutter(self, draft: Draft, now_ns: int) -> Draft:
        motion = draft.motion.copy()
        if self._rng.random() < 0.5:
            motion[1:] = motion[0]
        elif self._absolute:
            motion[1::2] = motion[::2][: len(motion[1::2])]
        else:
            motion[::2] *= -1.0
        return replace(draft, motion=motion)

    def _shape(self, draft: Draft, now_ns: int) -> Draft:
        motion = draft.motion
        shapes = (motion[:, :-1], np.repeat(motion, 2, axis=1), motion[:0])
        return replace(draft, motion=shapes[int(self._rng.integers(3))])

    def _long(self, draft: Draft, now_ns: int) -> Draft:
        times = int(self._rng.choice([40, 400]))
        return replace(draft, motion=np.repeat(draft.motion, times, axis=0))

    def _millions_of_steps(self, draft: Draft, now_ns: int) -> Draft:
        steps = int(self._rng.integers(*MILLIONS))
        return replace(draft, motion=np.tile(draft.motion[:1], (steps, 1)))

    def _time_step(self, draft: Draft, now_ns: int) -> Draft:
        dt = self._rng.choice(
            [
                0.0,
                -0.0,
                -0.1,
                np.nan,
                np.inf,
                -np.inf,
                5e-324,
                1e-9,
                1e300,
                1.000001 * draft.spec.dt,
            ]
        )
        return replace(draft, spec=replace(draft.spec, dt=float(dt)))

    def _convention(self, draft: Draft, now_ns: int) -> Draft:
        spec, rng = draft.spec, self._rng
        kind = rng.integers(4)
        if kind == 0:
            return replace(draft, spec=replace(spec, frame="camera"))
        if kind == 1:
            return replace(draft, spec=replace(spec, names=(*spec.names[1::-1], *spec.names[2:])))
        if kind == 2:
            return replace(draft, spec=replace(spec, gripper=None))
        other = Representation(rng.choice([r.value for r in Representation]))
        return replace(draft, spec=replace(spec, representation=other))

    def _stamp(self, draft: Draft, now_ns: int) -> Draft:
        age = float(self._rng.choice([-1e6, -1.0, -0.06, -0.02, 1.9, 2.1, 5.0, now_ns / SECOND]))
        return replace(draft, age=age)

    def _order(self, draft: Draft, now_ns: int) -> Draft:
        ahead = self._rng.choice([-1, -2, -1000, 1, 5, 2**40], p=[0.3, 0.3, 0.2, 0.15, 0.04, 0.01])
        return replace(draft, ahead=int(ahead))

    def _at_a_limit(self, draft: Draft, now_ns: int) -> Draft:
        """On, just inside and just outside of joint limits; poses at the edge of the reach."""
        rng, limits, motion = self._rng, self._robot.limits, draft.motion.copy()
        over = rng.choice([-1.0, 1.0]) * rng.choice([0.0, 1e-12, 1e-6, 1e-3, 0.011, 0.1])
        position = self._position(now_ns)
        joint = int(rng.integers(self._robot.joints))
        bound = (limits.position_min if rng.random() < 0.5 else limits.position_max)[joint] + over
        steps = np.arange(1.0, len(motion) + 1.0) / len(motion)
        if self._spec.representation is Representation.JOINT_POSITION:
            motion[:, joint] = position[joint] + steps * (bound - position[joint])
        elif self._spec.representation is Representation.JOINT_DELTA:
            motion[:, joint] = (bound - position[joint]) / len(motion)
        else:
            place, _ = self._executor.kinematics.forward(position)
            way = rng.normal(size=3)
            way *= rng.choice([0.05, 0.2, 0.6]) / np.linalg.norm(way)
            if self._absolute:
                motion[:, :3] = place + steps[:, None] * way
            else:
                motion[:, :3] = way / len(motion)
        return replace(draft, motion=motion)

    def _through_a_singularity(self, draft: Draft, now_ns: int) -> Draft:
        """Along the direction in which the arm can hardly move; joints: into a singular pose."""
        rng, motion = self._rng, draft.motion.copy()
        position = self._position(now_ns)
        steps = np.arange(1.0, len(motion) + 1.0) / len(motion)
        if self._spec.representation not in EE_NAMES:
            target = singular_pose(self._executor, rng, position)
            wanted = position + steps[:, None] * (target - position)
            motion = wanted if self._absolute else np.diff(wanted, axis=0, prepend=position[None])
            return replace(draft, motion=motion)
        vectors, _, _ = np.linalg.svd(self._executor.kinematics.jacobian(position))
        way = vectors[:, -1] * rng.choice([-1.0, 1.0]) * rng.choice([0.01, 0.05, 0.2])
        if not self._absolute:
            motion[:, :6] = way / len(motion)
        else:
            motion[:, :3] += steps[:, None] * way[:3]
        return replace(draft, motion=motion)

    def _quaternion(self, draft: Draft, now_ns: int) -> Draft:
        """What is no rotation, or a large one; for joints a large step."""
        motion, rng = draft.motion.copy(), self._rng
        if self._spec.representation is Representation.EE_POSE:
            motion[self._place(draft)[0], 3:] *= rng.choice([0.0, -1.0, 5e-324, 0.5, 1.02, 1e200])
        else:
            motion[self._place(draft)[0], 3:] += rng.choice([0.5, 0.9, np.pi, 2 * np.pi, 1e9])
        return replace(draft, motion=motion)

    def _gripper(self, draft: Draft, now_ns: int) -> Draft:
        opening = self._rng.choice([1.05, -0.05, 1.2, -3.0, 1e300, 0.4999999])
        if draft.spec.gripper is None:
            draft = replace(draft, spec=replace(draft.spec, gripper=GripperSpec(0)))
        return replace(draft, opening=float(opening))

    # -- what they are made of --------------------------------------------------------------

    def _plausible(self, now_ns: int) -> Draft:
        rng = self._rng
        steps = LENGTHS[int(rng.integers(len(LENGTHS)))]
        speed = (0.05, 0.15, 0.4)[int(rng.integers(3))]
        motion = self._motion(steps, now_ns, speed, (0.0, 0.05)[int(rng.integers(2))])
        age = min(AGES[int(rng.integers(len(AGES)))], max((now_ns - self._newest) / SECOND, 0.0))
        return Draft(motion, self._spec, age, float(rng.random() < 0.5))

    def _motion(self, steps: int, now_ns: int, speed: float, noise: float) -> FloatArray:
        """Steps (H, D) along the drift: ``speed`` rad/s, or 0.4 of it in m/s, and noise on top."""
        deltas = self._drift + noise * self._rng.normal(size=(steps, 7))
        deltas *= speed * self._spec.dt
        representation, joints = self._spec.representation, self._robot.joints
        if representation is Representation.JOINT_DELTA:
            return deltas[:, :joints]
        if representation is Representation.JOINT_POSITION:
            return self._position(now_ns) + np.cumsum(deltas[:, :joints], axis=0)
        if representation is Representation.EE_DELTA:
            return 0.4 * deltas[:, :6]
        place, quaternion = self._executor.kinematics.forward(self._position(now_ns))
        path = place + np.cumsum(0.4 * deltas[:, :3], axis=0)
        return np.concatenate([path, np.repeat(quaternion[None], steps, axis=0)], axis=1)

    @property
    def _absolute(self) -> bool:
        return self._spec.representation in (
            Representation.JOINT_POSITION,
            Representation.EE_POSE,
        )

    def _position(self, now_ns: int) -> FloatArray:
        state = self._executor.commanded(now_ns)
        return self._robot.home if state is None else state.position

    def _place(self, draft: Draft) -> tuple[int, int]:
        rows, columns = draft.motion.shape
        row = self._rng.choice([0, rows - 1, self._rng.integers(rows)])
        return int(row), int(self._rng.integers(columns))

    def _put(self, draft: Draft, value: float) -> Draft:
        motion = draft.motion.copy()
        motion[self._place(draft)] = value
        return replace(draft, motion=motion)


def singular_pose(
    executor: ChunkExecutor, rng: np.random.Generator, near: FloatArray | None = None
) -> FloatArray:
    """The most singular (J,) of some poses with a joint at zero or at a limit, rad.

    Args:
        executor: gives robot and kinematics.
        rng: draws them.
        near: (J,) rad, if given they differ from it in up to two joints by no more than 0.5 rad.
    """
    limits = executor.robot.limits
    low, high = limits.position_min, limits.position_max
    best, least = executor.robot.home, np.inf
    for _ in range(POSES if near is None else POSES // 4):
        joints = rng.uniform(low, high) if near is None else near.copy()
        for joint in rng.integers(len(low), size=2):
            joints[joint] = rng.choice([0.0, low[joint], high[joint]])
        joints = np.clip(joints, low, high)
        if near is not None:
            joints = np.clip(joints, near - 0.5, near + 0.5)
        smallest = float(np.linalg.svd(executor.kinematics.jacobian(joints), compute_uv=False)[-1])
        if smallest < least:
            best, least = joints, smallest
    return best


Kind = Callable[[HostileChunks, Draft, int], Draft]

# kind -> how often it is drawn, and what makes it of a plausible chunk
KINDS: dict[str, tuple[float, Kind]] = {
    PLAUSIBLE: (25.0, HostileChunks._as_it_is),
    "not finite": (5.0, HostileChunks._not_finite),
    "extreme number": (4.0, HostileChunks._extreme_number),
    "denormal": (2.0, HostileChunks._denormal),
    "jump": (8.0, HostileChunks._jump),
    "last step": (8.0, HostileChunks._last_step),
    "seam": (8.0, HostileChunks._seam),
    "reversal": (5.0, HostileChunks._reversal),
    "too fast": (4.0, HostileChunks._too_fast),
    "noise": (4.0, HostileChunks._noise),
    "stutter": (4.0, HostileChunks._stutter),
    "shape": (3.0, HostileChunks._shape),
    "long": (1.0, HostileChunks._long),
    "millions of steps": (0.02, HostileChunks._millions_of_steps),
    "time step": (5.0, HostileChunks._time_step),
    "convention": (3.0, HostileChunks._convention),
    "stamp": (4.0, HostileChunks._stamp),
    "order": (4.0, HostileChunks._order),
    "replayed": (3.0, HostileChunks._as_it_is),
    "at a limit": (5.0, HostileChunks._at_a_limit),
    "singularity": (4.0, HostileChunks._through_a_singularity),
    "rotation": (3.0, HostileChunks._quaternion),
    "gripper": (2.0, HostileChunks._gripper),
}
