"""From a recorded bag to observations, through the ingest that the live camera node uses.

The recorder's time of reception takes the place of the steady clock. The node's clock, against
which stamps are judged, is taken from ``/clock`` where that was recorded and the stamps are far
from the recorder's own clock (a simulator's time), from the newest stamp where they are far and
nothing was recorded, and is the recorder's clock otherwise.
"""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.bags import BagMessage, BagReader
from vla_reasoner_ros.data.contract import JOINT_STATES, Contract
from vla_reasoner_ros.data.images import DECODERS, RgbImage
from vla_reasoner_ros.data.ingest import ForwardKinematics, Ingest
from vla_reasoner_ros.data.message_types import NANOSECONDS, to_nanoseconds
from vla_reasoner_ros.errors import BagError, ObservationError
from vla_reasoner_ros.types import Observation

CLOCK_TOPIC, CLOCK = "/clock", "rosgraph_msgs/msg/Clock"
JOINT_STATE, STRING = "sensor_msgs/msg/JointState", "std_msgs/msg/String"
IMAGES = {"image": "sensor_msgs/msg/Image", "compressed": "sensor_msgs/msg/CompressedImage"}
RECORDED, TOLD, STAMPS = "recorder", CLOCK_TOPIC, "stamps"
PROBED = 20
"""Stamped messages that are compared with the recorder's clock."""

Listener = Callable[[BagMessage], None]


@dataclass(frozen=True)
class Moment:
    """An observation of a bag.

    Attributes:
        observation: it.
        recorded_ns: when it was complete, by the recorder's clock.
        refused: moments since the one before that made no observation, by reason.
    """

    observation: Observation
    recorded_ns: int
    refused: Mapping[str, int]


class BagIngest:
    """The observations of a bag.

    Args:
        bag: the bag.
        contract: what an observation is made of; its topics are looked for in the bag with and
            without a namespace.
        instruction: taken until the bag has another; empty takes what the bag has.
        namespace: of the contract's topics, where the bag has several.
        kinematics: of the contract's robot; None loads it.

    Attributes:
        ingest: with the counts of what became of samples and moments.
        topics: stream of the contract to topic of the bag.
        clock: where the node's clock comes from: ``recorder``, ``/clock`` or ``stamps``.
        unreadable: topic to the number of messages whose bytes are not of their type.
        problems: what is wrong with the bag for this contract, one sentence each.

    Raises:
        BagError: a stream of the contract is not in the bag, has another type, or its topic is not
            clear.
        ConfigurationError: the contract's robot cannot be loaded.
    """

    def __init__(
        self,
        bag: BagReader,
        contract: Contract,
        instruction: str = "",
        namespace: str = "",
        kinematics: ForwardKinematics | None = None,
    ) -> None:
        self._bag = bag
        if kinematics is None:
            kinematics = Kinematics(load_robot(contract.moments.robot))
        robot = kinematics.robot
        contract = replace(contract, moments=replace(contract.moments, robot=robot.name))
        self.contract = contract
        self.ingest = Ingest(contract, kinematics)
        self.unreadable: Counter[str] = Counter()
        self.problems: list[str] = []
        self.namespace = namespace.strip("/")
        self.topics = {JOINT_STATES: self._require(contract.joint_states.topic, JOINT_STATE)}
        for name, camera in contract.cameras.items():
            self.topics[name] = self._require(camera.topic, IMAGES[camera.type])
        self._instruction_topic = self.find(contract.moments.instruction)
        self.clock = self._choose_clock()
        self._start_instruction = instruction
        if not instruction and self._instruction_topic is None:
            self._start_instruction = self._recorded_instruction()
        self._now_ns = 0

    def find(self, topic: str) -> str | None:
        """The bag's name of a topic, None when it has none.

        Raises:
            BagError: several namespaces have one.
        """
        if topic.startswith("/"):
            return topic if topic in self._bag.topics else None
        if self.namespace:
            name = f"/{self.namespace}/{topic}"
            return name if name in self._bag.topics else None
        if f"/{topic}" in self._bag.topics:
            return f"/{topic}"
        found = [name for name in self._bag.topics if name.endswith(f"/{topic}")]
        if len(found) > 1:
            raise BagError(
                f"bag {self._bag.path}: {topic} may be {' or '.join(sorted(found))}; name the "
                "namespace"
            )
        return found[0] if found else None

    def moments(
        self,
        listeners: Mapping[str, Listener] | None = None,
        restarted: Callable[[], None] | None = None,
        keep_going: Callable[[int], bool] | None = None,
    ) -> Iterator[Moment]:
        """Every observation, in the order of recording.

        Args:
            listeners: take further topics' messages, by the bag's name of the topic, in the order
                of recording.
            restarted: called when the node's clock jumps back, before what comes then.
            keep_going: asked with the recorder's time of every message whether to go on.
        """
        ingest, readers = self.ingest, self._readers()
        listeners = dict(listeners or {})
        refused = Counter(ingest.moments)
        arrival, recorded_ns = 0.0, 0
        if self._start_instruction:
            ingest.set_instruction(self._start_instruction, 0)

        def ready(at: float) -> Iterator[Moment]:
            nonlocal refused
            for observation in ingest.poll(at):
                news = {}
                if len(ingest.moments) > 1:  # something beside "observed"
                    news = dict(ingest.moments - refused)
                    refused = Counter(ingest.moments)
                    news.pop("observed", None)
                yield Moment(observation, recorded_ns, news)

        wanted = {*readers, *listeners, *([CLOCK_TOPIC] if self.clock == TOLD else [])}
        for message in self._bag.messages(wanted):
            if keep_going is not None and not keep_going(message.time_ns):
                break
            arrival = message.time_ns / NANOSECONDS
            # What the live node's timer does between two messages.
            while (wake_at := ingest.wake_at()) is not None and wake_at <= arrival:
                yield from ready(wake_at)
                if ingest.wake_at() == wake_at:
                    break
            recorded_ns = message.time_ns
            if message.topic in listeners:
                try:
                    listeners[message.topic](message)
                except BagError as error:
                    self.unreadable[message.topic] += 1
                    self._say(str(error))
            if message.topic in readers or message.topic == CLOCK_TOPIC:
                before = self._now_ns
                try:
                    readers.get(message.topic, self._take_clock)(message, arrival)
                except BagError as error:
                    self.unreadable[message.topic] += 1
                    self._say(str(error))
                except ObservationError:
                    pass  # counted by the ingest
                if self._now_ns < before:
                    ingest.reset()
                    if restarted is not None:
                        restarted()
            yield from ready(arrival)
        while (wake_at := ingest.wake_at()) is not None:
            yield from ready(max(wake_at, arrival))
            if ingest.wake_at() == wake_at:
                break
        self._conclude()

    # Streams.

    def _readers(self) -> dict[str, Callable[[BagMessage, float], None]]:
        readers: dict[str, Callable[[BagMessage, float], None]] = {
            self.topics[JOINT_STATES]: self._take_joints
        }
        for name, camera in self.contract.cameras.items():
            readers[self.topics[name]] = partial(self._take_picture, name, DECODERS[camera.type])
        if self._instruction_topic is not None:
            readers[self._instruction_topic] = self._take_instruction
        return readers

    def _take_clock(self, message: BagMessage, arrival: float) -> None:
        self._now_ns = to_nanoseconds(self._bag.deserialize(message).clock)

    def _take_joints(self, message: BagMessage, arrival: float) -> None:
        fields = self._bag.deserialize(message)
        stamp_ns = to_nanoseconds(fields.header.stamp)
        self.ingest.push_joints(fields, stamp_ns, self._now(message, stamp_ns), arrival)

    def _take_picture(
        self,
        camera: str,
        decoder: Callable[[Any, str], RgbImage],
        message: BagMessage,
        arrival: float,
    ) -> None:
        def decode() -> RgbImage:
            try:
                return decoder(self._bag.deserialize(message), camera)
            except BagError as error:
                self.unreadable[message.topic] += 1
                self._say(str(error))
                raise ObservationError(str(error)) from error

        stamp_ns = stamp_of(message)
        now_ns = self._now(message, stamp_ns)
        self.ingest.push_picture(camera, decode, stamp_ns, now_ns, arrival)

    def _take_instruction(self, message: BagMessage, arrival: float) -> None:
        self.ingest.set_instruction(
            self._bag.deserialize(message).data, self._now(message, self._now_ns)
        )

    def _now(self, message: BagMessage, stamp_ns: int) -> int:
        if self.clock == RECORDED:
            self._now_ns = message.time_ns
        elif self.clock == STAMPS:
            # A stamp far in the past is another beginning; a little is one stream's delay.
            limit_ns = round(self.contract.moments.max_age * NANOSECONDS)
            if stamp_ns > self._now_ns or self._now_ns - stamp_ns > limit_ns:
                self._now_ns = stamp_ns
        return self._now_ns

    # What the bag has.

    def _require(self, topic: str, type_name: str) -> str:
        found = self.find(topic)
        if found is None:
            there = ", ".join(sorted(self._bag.topics)) or "none"
            raise BagError(f"bag {self._bag.path}: topic {topic} is missing; it has {there}")
        kind = self._bag.topics[found].type
        if kind != type_name:
            raise BagError(
                f"bag {self._bag.path}: topic {found} has type {kind}, the contract expects "
                f"{type_name}"
            )
        return found

    def _choose_clock(self) -> str:
        """The recorder's own clock, unless the stamps are far from it."""
        limits = self.contract.moments
        far = near = 0
        for message in self._bag.messages(set(self.topics.values())):
            try:
                lag = (message.time_ns - stamp_of(message)) / NANOSECONDS
            except BagError:
                continue
            plausible = -limits.future_tolerance <= lag <= limits.max_age
            near, far = near + plausible, far + (not plausible)
            if near + far == PROBED:
                break
        if near >= far:
            return RECORDED
        told = self._bag.topics.get(CLOCK_TOPIC)
        return TOLD if told is not None and told.type == CLOCK else STAMPS

    def _recorded_instruction(self) -> str:
        """From the observations that the live node made, where the bag has them."""
        topic = self.find("observation")
        if topic is not None:
            for message in self._bag.messages([topic]):
                try:
                    return str(self._bag.deserialize(message).instruction)
                except (BagError, AttributeError):
                    break
        self._say(
            f"there is no instruction: no topic {self.contract.moments.instruction} in it, and "
            "none was given"
        )
        return ""

    def _say(self, problem: str) -> None:
        if problem not in self.problems and len(self.problems) < 20:
            self.problems.append(problem)

    def _conclude(self) -> None:
        for name, statistics in self.ingest.statistics.items():
            if statistics.dropped:
                reasons = ", ".join(f"{n} {why}" for why, n in sorted(statistics.dropped.items()))
                self._say(
                    f"{name}: {statistics.received} samples, not used: {reasons}; the last: "
                    f"{statistics.last_error}"
                )
        refused = {why: n for why, n in self.ingest.moments.items() if why != "observed"}
        if refused:
            reasons = ", ".join(f"{n} {why}" for why, n in sorted(refused.items()))
            self._say(f"moments without an observation: {reasons}; {self.ingest.last_error}")
        if not self.ingest.moments["observed"]:
            waiting = ", ".join(self.ingest.waiting_for())
            self._say("no observation" + (f": nothing usable from {waiting}" if waiting else ""))


def stamp_of(message: BagMessage) -> int:
    """The header's stamp, ns, of a message that begins with a header; the rest stays as it is.

    Raises:
        BagError: too short to be such a message.
    """
    if len(message.data) < 12:  # four bytes of encapsulation, sec, nanosec
        raise BagError(f"{message.topic}: a message of {len(message.data)} bytes has no header")
    order = "<" if message.data[1] & 1 else ">"
    seconds, nanoseconds = struct.unpack_from(order + "iI", message.data, 4)
    return int(seconds) * NANOSECONDS + int(nanoseconds)
