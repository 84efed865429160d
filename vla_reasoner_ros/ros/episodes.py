"""Episodes through the running graph, one after another, seen from outside as a user would.

The simulator runs in lockstep, so that how fast the planner thinks does not change what happens.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from typing import Any

from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage
from std_msgs.msg import String

from vla_reasoner_ros.evaluation.records import DecisionRecord, EpisodeRecord
from vla_reasoner_ros.msg import ControllerStatus, SearchStatistics, SimulatorState
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import NANOSECONDS, to_nanoseconds
from vla_reasoner_ros.ros.graph import ACTIVATE, ACTIVE, DEACTIVATE, GraphClient, GraphError
from vla_reasoner_ros.srv import GetSearchTree, ResetEpisode

SIMULATOR, PLANNER, CONTROLLER = "sim_node", "planner_node", "arm_controller_node"
STALL_S = 60.0
"""Wall-clock seconds without simulated time passing after which an episode is given up."""


class EpisodeRunner:
    """Runs episodes on a configured graph and records what its topics say.

    Args:
        client: of the graph.
        limit_s: simulated seconds after which an episode is over.
        picture_topic: compressed images for the record.
    """

    def __init__(
        self,
        client: GraphClient,
        limit_s: float = 10.0,
        picture_topic: str = "overview/image_raw/compressed",
    ) -> None:
        self._client = client
        self._limit_ns = round(limit_s * NANOSECONDS)
        self._picture_topic = picture_topic
        node = client.node
        self._instruction = node.create_publisher(String, "instruction", qos.LATCHED)
        self._subscriptions = [
            node.create_subscription(kind, topic, callback, qos.STATE)
            for kind, topic, callback in (
                (SearchStatistics, "search_statistics", self._decided),
                (SimulatorState, "simulator_state", self._moved),
                (ControllerStatus, f"{CONTROLLER}/status", self._told),
            )
        ]
        self._statistics: list[SearchStatistics] = []
        self._trees: dict[int, Mapping[str, Any]] = {}
        self._pictures: dict[int, bytes] = {}
        self._state: SimulatorState | None = None
        self._rejected, self._rejected_before = 0, 0

    def run(
        self, task: str, seed: int, arm: str, *, timeout: float = 120.0, show: bool = False
    ) -> EpisodeRecord:
        """Run one episode.

        Args:
            task: the task's name.
            seed: of its scene.
            arm: name for the record; the planner was set up by the caller.
            timeout: wall-clock seconds.
            show: keep pictures and search trees too.

        Raises:
            GraphError: a node refused a transition or does not answer.
            ProcessDiedError: a process of the graph ended.
        """
        instruction = self._prepare(task, seed)
        record = EpisodeRecord(task, seed, arm, instruction, ending="time limit")
        with self._pictures_kept() if show else contextlib.nullcontext():
            self._client.change(SIMULATOR, ACTIVATE)
            start_ns = self._follow(record, timeout, show)
            if show:
                self._await_pictures()
        record.decisions += decisions_until(
            record.duration_s, start_ns, self._statistics, self._trees, self._pictures
        )
        record.rejections = self._rejected - self._rejected_before
        return record

    def _prepare(self, task: str, seed: int) -> str:
        """Bring the scene to its start while nothing runs; the instruction is there first."""
        for name in (PLANNER, CONTROLLER, SIMULATOR):
            if self._client.state(name) == ACTIVE:
                self._client.change(name, DEACTIVATE)
        request = ResetEpisode.Request(task=task, seed=seed)
        answer = self._client.call(ResetEpisode, f"{SIMULATOR}/reset", request, 30.0)
        if not answer.success:
            raise GraphError(f"{SIMULATOR} cannot reset to {task}, seed {seed}: {answer.message}")
        self._client.wait(self._connected, 30.0, "discovery of the nodes' topics")
        self._instruction.publish(String(data=answer.instruction))
        self._instruction.wait_for_all_acked(Duration(seconds=30))
        for name in (CONTROLLER, PLANNER):
            self._client.change(name, ACTIVATE)
        self._client.spin(0.0)
        self._statistics, self._trees, self._pictures, self._state = [], {}, {}, None
        self._rejected_before = self._rejected
        return str(answer.instruction)

    def _connected(self) -> bool:
        """Whether nothing of an episode would be missed."""
        heard = all(s.get_publisher_count() for s in self._subscriptions)
        return heard and self._instruction.get_subscription_count() > 0

    def _follow(self, record: EpisodeRecord, timeout: float, show: bool) -> int:
        """Watch until the episode is over; the stamp of its start, nanoseconds."""
        first = self._client.wait(lambda: self._state, STALL_S, "first state of the simulator")
        start_ns = to_nanoseconds(first.header.stamp)
        end = time.monotonic() + timeout
        newest_ns, moved, told = start_ns, time.monotonic(), 0

        def news() -> bool:
            state = self._state
            assert state is not None
            return len(self._statistics) > told or to_nanoseconds(state.header.stamp) > newest_ns

        while True:
            stalled = moved + STALL_S - time.monotonic()
            try:
                self._client.wait(news, max(stalled, 0.01), "the simulator")
            except GraphError:
                record.ending = f"no motion for {STALL_S:g} s"
                break
            if show and len(self._statistics) > told:
                self._fetch_tree()
            told = len(self._statistics)
            state = self._state
            stamp_ns = to_nanoseconds(state.header.stamp)
            if stamp_ns > newest_ns:
                newest_ns, moved = stamp_ns, time.monotonic()
            record.duration_s = (stamp_ns - start_ns) / NANOSECONDS
            record.progress = float(state.progress)
            if state.success:
                record.success, record.ending = True, "success"
                break
            if stamp_ns - start_ns >= self._limit_ns:
                break
            if time.monotonic() > end:
                record.ending = f"not over after {timeout:g} s of the wall clock"
                break
        return start_ns

    def _fetch_tree(self) -> None:
        answer = self._client.call(
            GetSearchTree, f"{PLANNER}/get_search_tree", GetSearchTree.Request()
        )
        if answer.success:
            self._trees[answer.tree.sequence] = plain(answer.tree)

    @contextlib.contextmanager
    def _pictures_kept(self) -> Any:
        node = self._client.node
        subscription = node.create_subscription(
            CompressedImage, self._picture_topic, self._pictured, qos.STATE
        )
        try:
            self._client.wait(
                lambda: subscription.get_publisher_count() > 0, 30.0, self._picture_topic
            )
            yield
        finally:
            node.destroy_subscription(subscription)

    def _await_pictures(self) -> None:
        """Those of the last decisions may be still on their way."""

        def complete() -> bool:
            decided = (to_nanoseconds(s.observation_stamp) for s in self._statistics)
            return all(stamp_ns in self._pictures for stamp_ns in decided)

        with contextlib.suppress(GraphError):
            self._client.wait(complete, 2.0, self._picture_topic)

    def _decided(self, message: SearchStatistics) -> None:
        self._statistics.append(message)

    def _moved(self, message: SimulatorState) -> None:
        self._state = message

    def _told(self, message: ControllerStatus) -> None:
        self._rejected = message.chunks_rejected

    def _pictured(self, message: CompressedImage) -> None:
        self._pictures[to_nanoseconds(message.header.stamp)] = bytes(message.data)


def plain(message: Any) -> dict[str, Any]:
    """A message's own fields by name, arrays as lists; header and stamps are left out."""
    fields: dict[str, Any] = {}
    for name in message.get_fields_and_field_types():
        value = getattr(message, name)
        if hasattr(value, "get_fields_and_field_types"):
            continue
        fields[name] = value.tolist() if hasattr(value, "tolist") else value
    return fields


def decisions_until(
    end_s: float,
    start_ns: int,
    statistics: Sequence[SearchStatistics],
    trees: Mapping[int, Mapping[str, Any]],
    pictures: Mapping[int, bytes],
) -> list[DecisionRecord]:
    """The decisions of an episode; one that was made while its last pictures came is not.

    Args:
        end_s: how long the episode lasted, s.
        start_ns: the stamp of its start.
        statistics: of all decisions, in their order.
        trees: sequence to the search's tree, as far as it was asked for.
        pictures: stamp, ns, to the compressed picture, as far as it came.
    """
    found = []
    for said in statistics:
        stamp_ns = to_nanoseconds(said.observation_stamp)
        time_s = (stamp_ns - start_ns) / NANOSECONDS
        if time_s <= end_s:
            tree, picture = trees.get(said.sequence), pictures.get(stamp_ns)
            found.append(DecisionRecord(time_s, plain(said), tree, picture))
    return found
