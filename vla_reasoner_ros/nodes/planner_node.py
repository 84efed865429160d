"""Observations in, action chunks out: policy and search behind one deadline."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vla_reasoner_ros.components import Components, load_components
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.msg import ActionChunk as ActionChunkMessage
from vla_reasoner_ros.msg import ControllerStatus
from vla_reasoner_ros.msg import Observation as ObservationMessage
from vla_reasoner_ros.msg import SearchStatistics as SearchStatisticsMessage
from vla_reasoner_ros.msg import SearchTree as SearchTreeMessage
from vla_reasoner_ros.msg import SimulatorState as SimulatorStateMessage
from vla_reasoner_ros.planner import Planner, StateMatcher, warm_up
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.clock import to_nanoseconds
from vla_reasoner_ros.ros.conversions import (
    chunk_to_message,
    observation_from_message,
    status_from_message,
)
from vla_reasoner_ros.ros.lifecycle import LifecycleNode, run
from vla_reasoner_ros.ros.planner_parameters import PlannerParameters
from vla_reasoner_ros.ros.planning import DecisionRecord, tree_response
from vla_reasoner_ros.ros.reports import statistics_to_message, tree_to_message
from vla_reasoner_ros.ros.tasks import TaskServer
from vla_reasoner_ros.srv import GetSearchTree
from vla_reasoner_ros.types import Decision, Observation

DECISION_S = 10.0
"""Wall-clock seconds that the decision at hand may take to end on deactivation."""


class PlannerNode(LifecycleNode[PlannerParameters]):
    """Wires a :class:`Planner` to topics, services and diagnostics."""

    parameters_class = PlannerParameters

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._tasks = TaskServer(self, lambda: self.parameters.task)

    def configure(self) -> None:
        """Load the components, check that they fit, and decide once for warming up."""
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="models")
        self._components, reasoner = self.result_of(self._thread.submit(self._load))
        self._planner = Planner(
            reasoner,
            self._thread,
            self._components.policy.spec.action,
            self.parameters.search,
            self.now_ns,
            self._publish,
            self._failed,
        )
        self._matcher = StateMatcher(self._planner.offer)
        self._record = DecisionRecord(self._components, lambda: self.parameters.diagnostics)
        self._chunks = self.create_lifecycle_publisher(
            ActionChunkMessage, "action_chunk", qos.COMMAND
        )
        self._statistics = self.create_lifecycle_publisher(
            SearchStatisticsMessage, "search_statistics", qos.STATE
        )
        self._trees = self.create_lifecycle_publisher(SearchTreeMessage, "search_tree", qos.STATE)
        world_model = self._components.world_model
        self._needs_state = world_model is not None and world_model.needs_simulator_state
        self.create_subscription(
            ObservationMessage,
            "observation",
            self.guarded("observation", self._observed),
            qos.sensor("reliable", 1),
            callback_group=self.work,
        )
        if self._needs_state:
            self.create_subscription(
                SimulatorStateMessage,
                "simulator_state",
                self.guarded("simulator_state", self._state_came),
                qos.sensor("reliable", 10),
                callback_group=self.work,
            )
        self.create_subscription(
            ControllerStatus,
            f"{self.parameters.controller}/status",
            self.guarded("status", self._reported),
            qos.STATE,
            callback_group=self.work,
        )
        self.create_service(
            GetSearchTree, "~/get_search_tree", self._get_tree, callback_group=self.work
        )
        self._tasks.connect(self._planner, self._new_episode)
        self.diagnostics.add(
            "decisions",
            lambda: self._record.decisions(self._matcher.unmatched, self._planner.paused),
        )
        self.diagnostics.add("models", self._record.models)
        if self._components.reason:
            self.get_logger().warning(f"the plain policy drives: {self._components.reason}")

    def _load(self) -> tuple[Components, Reasoner]:
        parameters = self.parameters
        components = load_components(parameters.planner)
        reasoner = Reasoner(
            components.policy,
            components.world_model,
            components.value,
            components.prior,
            parameters.search,
        )
        warm_up(reasoner, components.policy, components.world_model)
        return components, reasoner

    def activate(self) -> None:
        """Begin an episode."""
        self._tasks.activate()
        self._record.awaken()
        self._planner.start()

    def deactivate(self) -> None:
        """End the task and the decision at hand and make no other."""
        self._tasks.deactivate()
        ended = self.finished(self._planner.stop(), DECISION_S)
        if not (ended or self.ending.is_set()):
            raise VlaReasonerError("the decision at hand does not end")

    def teardown(self) -> None:
        """Let go of the models."""
        self.diagnostics.keep("state")
        self._tasks.disconnect()
        thread = self.__dict__.pop("_thread", None)
        if thread is not None:
            self.end_thread(thread, self._unload)  # models end where they were made

    def _unload(self) -> None:
        for name in ("_planner", "_components", "_matcher", "_record"):
            self.__dict__.pop(name, None)
        # What failed to configure is held by its error, and models may refer to themselves: the
        # next ones would not fit beside them.
        gc.collect()

    def check_parameters(self, parameters: PlannerParameters) -> None:
        """What depends on the policy and the world model: how much of a chunk can be searched."""
        self._planner.check(parameters.search)

    def parameters_changed(self, parameters: PlannerParameters) -> None:
        """Search parameters take effect between two decisions."""
        self._planner.change(parameters.search)

    def clock_jumped_back(self, seconds: float) -> None:
        """A new episode begins."""
        self._tasks.clock_jumped_back(seconds)
        self._new_episode()

    def _new_episode(self) -> None:
        self._matcher.clear()
        self._planner.reset()

    def _observed(self, message: ObservationMessage) -> None:
        observation: Observation = observation_from_message(message)
        if not self._tasks.wanted(observation.instruction):
            return
        if self._needs_state:
            self._matcher.observation(observation)
        else:
            self._planner.offer(observation)

    def _state_came(self, message: SimulatorStateMessage) -> None:
        self._matcher.state(to_nanoseconds(message.header.stamp), np.array(message.state))

    def _reported(self, message: ControllerStatus) -> None:
        stamp_ns = to_nanoseconds(message.header.stamp)
        self._planner.reported(status_from_message(message), stamp_ns)

    def _publish(self, decision: Decision) -> None:
        now_ns = self.now_ns()
        self._record.decided(decision)
        self._tasks.decided(decision)
        self._chunks.publish(chunk_to_message(decision.chunk, now_ns))
        self._statistics.publish(statistics_to_message(decision.statistics, now_ns))
        if decision.tree is not None and self._trees.get_subscription_count():
            stamp_ns, sequence = decision.chunk.observation_stamp_ns, decision.chunk.sequence
            self._trees.publish(tree_to_message(decision.tree, stamp_ns, sequence, now_ns))

    def _failed(self, error: Exception) -> None:
        self.get_logger().error(self._record.failed(error), throttle_duration_sec=1.0)

    def _get_tree(
        self, request: GetSearchTree.Request, response: GetSearchTree.Response
    ) -> GetSearchTree.Response:
        return tree_response(self._record.newest, response, self.now_ns())


def main() -> None:
    """Run the node."""
    run(PlannerNode, "planner_node")


if __name__ == "__main__":
    main()
