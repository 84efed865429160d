"""From streams that arrive when they like to observations of one moment each.

Live topics and bags go through the same code: no ROS, no clock of its own, no thread. Three kinds
of time are given by the caller and never mixed:

* stamps, ns: when something happened, by the sender's header;
* ``now_ns``: the node's clock, which judges stamps and may be simulated, paused or jump back;
* ``arrival``: a steady clock in seconds, which only measures how long something has been waited
  for. From a bag, take the recorded time of reception.
"""

from __future__ import annotations

import zlib
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.control.robots import Robot
from vla_reasoner_ros.data.contract import (
    ASOF,
    DROP,
    HOLD,
    INSTRUCTION,
    JOINT_STATES,
    CameraStream,
    Contract,
)
from vla_reasoner_ros.data.images import resize
from vla_reasoner_ros.data.joints import JointLayout
from vla_reasoner_ros.data.streams import (
    NANOSECONDS,
    Refused,
    Sample,
    StreamBuffer,
    StreamStatistics,
)
from vla_reasoner_ros.errors import ConfigurationError, ObservationError
from vla_reasoner_ros.types import FloatArray, Observation

EARLY = 0.5
"""Share of the time between two pictures by which one may come early and be the next moment: the
picture nearest to the due time is taken."""
INTERVAL_SMOOTHING = 0.1
PAUSED_AFTER = 3.0
"""Periods, in wall-clock time, after which a picture that came too early is used after all: time
stands still, and no later one will come."""

Decoder = Callable[[], NDArray[np.uint8]]


class ForwardKinematics(Protocol):
    """What is asked of :class:`vla_reasoner_ros.control.kinematics.Kinematics`."""

    robot: Robot

    def forward(self, joints: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Position (3,), m, and quaternion (4,), x y z w, of the TCP in the base frame."""


@dataclass
class _Moment:
    stamp_ns: int
    arrival: float
    sample: Sample


@dataclass
class _Picture:
    checksum: int
    stamp_ns: int  # since when it has looked like this


class Ingest:
    """Aligns the streams of a contract.

    Args:
        contract: what an observation is made of.
        kinematics: for the end-effector pose; its robot must be the contract's.

    Attributes:
        statistics: stream name (with ``instruction``) to what became of its samples.
        moments: what became of the moments: ``observed``, or the reason why not.
        last_error: text of the newest moment that made no observation.
    """

    def __init__(self, contract: Contract, kinematics: ForwardKinematics) -> None:
        self.contract = contract
        self._kinematics = kinematics
        self._robot = kinematics.robot
        self._joints = JointLayout(
            names=(*self._robot.joint_names, *contract.gripper.joints),
            ignored=contract.joint_states.ignored_joints,
            needs_velocities=contract.joint_states.velocity == "measured",
        )
        self._buffers = {name: StreamBuffer(name, s) for name, s in contract.streams.items()}
        for name in (JOINT_STATES, INSTRUCTION):
            if name in contract.cameras:
                raise ConfigurationError(f"cameras: {name!r} cannot be the name of a camera")
        self._reference = contract.moments.reference
        self._period_ns = round(NANOSECONDS / contract.moments.rate)
        self._pause = PAUSED_AFTER / contract.moments.rate
        self._instruction = ""
        self._instruction_ns = 0
        self._pending: deque[_Moment] = deque()
        self._withheld: _Moment | None = None
        self._due_ns: int | None = None
        self._interval_ns = 0.0  # between two pictures of the reference camera, smoothed
        self._pictures: dict[str, _Picture] = {}
        self.statistics = {name: b.statistics for name, b in self._buffers.items()}
        self.statistics[INSTRUCTION] = StreamStatistics()
        self.moments: Counter[str] = Counter()
        self.last_error = ""

    def set_instruction(self, text: str, now_ns: int) -> None:
        """Take an instruction; it holds until the next one.

        Raises:
            ObservationError: it is empty.
        """
        statistics = self.statistics[INSTRUCTION]
        statistics.received += 1
        if not text.strip():
            statistics.dropped["empty"] += 1
            statistics.last_error = f"{self.contract.moments.instruction}: the instruction is empty"
            raise ObservationError(statistics.last_error)
        self._instruction, self._instruction_ns = text, now_ns
        statistics.delivered = True

    def push_joints(self, message: Any, stamp_ns: int, now_ns: int, arrival: float) -> None:
        """Take a joint state.

        Args:
            message: anything with the fields of ``sensor_msgs/JointState``.
            stamp_ns: its header's stamp.
            now_ns: the node's clock.
            arrival: the steady clock, s.

        Raises:
            ObservationError: it cannot be used; counted already.
        """
        topic = self.contract.joint_states.topic
        self._push(
            JOINT_STATES, stamp_ns, now_ns, arrival, lambda: self._joints.read(message, topic)
        )

    def push_picture(
        self, camera: str, decode: Decoder, stamp_ns: int, now_ns: int, arrival: float
    ) -> None:
        """Take a picture, which is decoded only if an observation is made of it.

        Args:
            camera: its name in the contract.
            decode: gives (H, W, 3) uint8 RGB, or raises ObservationError.
            stamp_ns: its header's stamp.
            now_ns: the node's clock.
            arrival: the steady clock, s.

        Raises:
            ObservationError: it cannot be used; counted already.
        """
        self._push(camera, stamp_ns, now_ns, arrival, lambda: decode)

    def poll(self, arrival: float) -> list[Observation]:
        """The observations that are complete by now, oldest first.

        Call it after every push, and at :meth:`wake_at`.
        """
        self._release_withheld(arrival)
        ready = []
        while self._pending:
            moment = self._pending[0]
            try:
                observation = self._observe(moment, arrival)
            except Refused as refusal:
                self._refuse_moment(refusal)
            except ObservationError as error:  # or it would stay the oldest for ever
                self._refuse_moment(Refused("unusable", str(error)))
            else:
                if observation is None:
                    break
                self.moments["observed"] += 1
                ready.append(observation)
            self._pending.popleft()
        return ready

    def wake_at(self) -> float | None:
        """When, by the steady clock, :meth:`poll` may have something new; None when never."""
        times = []
        if self._withheld is not None:
            times.append(self._withheld.arrival + self._pause)
        if self._pending:
            moment = self._pending[0]
            times.append(max(moment.arrival + self._patience(b) for b in self._buffers.values()))
        return min(times, default=None)

    def reset(self) -> None:
        """Forget all samples: the clock jumped. Instruction and counts stay."""
        for buffer in self._buffers.values():
            buffer.clear()
        self._pending.clear()
        self._withheld = None
        self._due_ns = None
        self._interval_ns = 0.0
        self._pictures.clear()
        self._instruction_ns = 0

    def waiting_for(self) -> tuple[str, ...]:
        """The streams that have not delivered yet; observations begin when there are none."""
        return tuple(name for name, s in self.statistics.items() if not s.delivered)

    # Samples.

    def _push(
        self, name: str, stamp_ns: int, now_ns: int, arrival: float, read: Callable[[], Any]
    ) -> None:
        buffer = self._buffers[name]
        statistics = buffer.statistics
        statistics.received += 1
        try:
            buffer.push(stamp_ns, now_ns, self.contract, read())
        except ObservationError as error:
            statistics.dropped[getattr(error, "reason", "unusable")] += 1
            statistics.last_error = str(error)
            raise
        if name == self._reference:
            self._consider(buffer, arrival)

    def _consider(self, buffer: StreamBuffer, arrival: float) -> None:
        """Whether the reference camera's newest picture is the next moment."""
        sample = buffer.newest()
        before = buffer.previous(sample)
        moment = _Moment(sample.stamp_ns, arrival, sample)
        early_ns = 0 if self._due_ns is None else self._due_ns - sample.stamp_ns
        if before is not None:
            interval_ns = min(sample.stamp_ns - before.stamp_ns, self._period_ns)
            smoothing = INTERVAL_SMOOTHING if self._interval_ns else 1.0
            self._interval_ns += smoothing * (interval_ns - self._interval_ns)
        if EARLY * self._interval_ns < early_ns <= self._period_ns:
            self._withheld = moment
        else:
            self._take(moment)

    def _take(self, moment: _Moment) -> None:
        late = self._due_ns is None or abs(moment.stamp_ns - self._due_ns) > self._period_ns
        self._due_ns = (moment.stamp_ns if late else self._due_ns or 0) + self._period_ns
        self._withheld = None
        if INSTRUCTION in self.waiting_for():
            self._refuse_moment(self._warming_up())
            return
        # A stream whose first sample is still on its way is waited for like a late one: where time
        # stands still until someone acts, there would never be a second moment.
        self._pending.append(moment)

    def _warming_up(self) -> Refused:
        return Refused("warming up", f"nothing yet from {', '.join(self.waiting_for())}")

    def _release_withheld(self, arrival: float) -> None:
        moment = self._withheld
        if moment is not None and arrival >= moment.arrival + self._pause:
            self._due_ns = None
            self._take(moment)

    # Moments.

    def _observe(self, moment: _Moment, arrival: float) -> Observation | None:
        """The observation of a moment; None while something may still arrive for it."""
        chosen: dict[str, Sample] = {}
        for name, buffer in self._buffers.items():
            if name == self._reference:
                chosen[name] = moment.sample
                continue
            sample, final = buffer.find(moment.stamp_ns)
            # The same sum as in wake_at: rounded otherwise, it would wake too early for ever.
            if not final and arrival < moment.arrival + self._patience(buffer):
                return None
            if not buffer.statistics.delivered:
                raise self._warming_up()
            chosen[name] = self._require(buffer, sample, moment.stamp_ns)
        return self._assemble(moment.stamp_ns, chosen)

    def _patience(self, buffer: StreamBuffer) -> float:
        if buffer.stream.policy == HOLD or not buffer.stream.waited_for:
            return 0.0
        return max(buffer.stream.tolerance, self.contract.moments.patience)

    @staticmethod
    def _require(buffer: StreamBuffer, sample: Sample | None, moment_ns: int) -> Sample:
        name, stream = buffer.name, buffer.stream
        if sample is None:
            raise Refused(f"{name} missing", f"{stream.topic}: no sample up to {moment_ns} ns")
        age = (moment_ns - sample.stamp_ns) / NANOSECONDS
        if stream.policy == ASOF and age > stream.tolerance:
            raise Refused(
                f"{name} stale",
                f"{stream.topic}: newest sample is {age:.3f} s old, expected at most "
                f"{stream.tolerance} s",
            )
        if stream.policy == DROP and sample.moments:
            raise Refused(f"{name} not new", f"{stream.topic}: no sample since the last moment")
        return sample

    def _assemble(self, moment_ns: int, chosen: dict[str, Sample]) -> Observation:
        images = {
            name: self._picture(name, camera, chosen[name])
            for name, camera in self.contract.cameras.items()
        }
        positions, velocities = self._joint_state(chosen[JOINT_STATES])
        arm = len(self._robot.joint_names)
        ee_position, ee_quaternion = self._kinematics.forward(positions[:arm])
        ages = {name: (moment_ns - s.stamp_ns) / NANOSECONDS for name, s in chosen.items()}
        ages[INSTRUCTION] = max(0.0, (moment_ns - self._instruction_ns) / NANOSECONDS)
        observation = Observation(
            stamp_ns=moment_ns,
            images=images,
            joint_names=self._robot.joint_names,
            joint_positions=positions[:arm],
            joint_velocities=velocities[:arm],
            ee_position=ee_position,
            ee_quaternion=ee_quaternion,
            ee_frame=self._robot.base_frame,
            gripper=self._opening(positions[arm:]),
            instruction=self._instruction,
            ages=ages,
        )
        for name, sample in chosen.items():
            sample.moments += 1
            self.statistics[name].used += sample.moments == 1
            self._buffers[name].settle(sample)
        for name, age in ages.items():
            self.statistics[name].age = age
        return observation

    def _picture(self, name: str, camera: CameraStream, sample: Sample) -> NDArray[np.uint8]:
        statistics = self.statistics[name]
        if callable(sample.payload):  # not decoded by an earlier moment
            try:
                image = resize(sample.payload(), camera.height, camera.width, camera.fit)
            except ObservationError as error:
                statistics.dropped["unusable"] += 1
                statistics.last_error = str(error)
                raise Refused(f"{name} unusable", str(error)) from error
            # What is still the message's own bytes cannot be written, of which PyTorch warns.
            sample.payload = image if image.flags.writeable else image.copy()
        image = sample.payload
        self._require_alive(name, camera, image, sample.stamp_ns)
        return image

    def _require_alive(
        self, name: str, camera: CameraStream, image: NDArray[np.uint8], stamp_ns: int
    ) -> None:
        if not camera.frozen_after:
            return
        checksum = zlib.crc32(image.tobytes())
        last = self._pictures.get(name)
        if last is None or last.checksum != checksum:
            self._pictures[name] = _Picture(checksum, stamp_ns)
            return
        unchanged = (stamp_ns - last.stamp_ns) / NANOSECONDS
        if unchanged >= camera.frozen_after:
            raise Refused(
                f"{name} frozen",
                f"{camera.topic}: the picture has not changed for {unchanged:.3f} s, expected "
                f"less than {camera.frozen_after} s",
            )

    def _joint_state(self, sample: Sample) -> tuple[FloatArray, FloatArray]:
        positions, velocities = sample.payload
        if not np.isnan(velocities).any():
            return positions, velocities
        before = self._buffers[JOINT_STATES].previous(sample)
        if before is None:
            raise Refused(
                "warming up", "velocities are differentiated and need two joint states, got one"
            )
        seconds = (sample.stamp_ns - before.stamp_ns) / NANOSECONDS
        return positions, (positions - before.payload[0]) / seconds

    def _opening(self, positions: FloatArray) -> float:
        gripper = self.contract.gripper
        if not len(positions):
            return 1.0
        return float((positions.mean() - gripper.closed) / (gripper.open - gripper.closed))

    def _refuse_moment(self, refusal: Refused) -> None:
        self.moments[refusal.reason] += 1
        self.last_error = str(refusal)
