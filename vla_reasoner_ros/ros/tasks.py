"""The planner's tasks in ROS: the action ``~/run_task``, and services for those without actions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from std_msgs.msg import Bool, String
from std_srvs.srv import SetBool, Trigger

from vla_reasoner_ros.action import RunTask
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.planner import Planner
from vla_reasoner_ros.ros import qos
from vla_reasoner_ros.ros.lifecycle import ACTIVE, LifecycleNode
from vla_reasoner_ros.task_run import Ending, TaskParameters, TaskRun
from vla_reasoner_ros.types import Decision

CHECK_S = 0.1
"""Wall-clock seconds between two looks at what may have ended a task."""
FEEDBACK_S = 0.5
"""Wall-clock seconds between two feedback messages."""


class TaskServer:
    """Serves RunTask goals, one at a time, by starting and pausing a :class:`Planner`.

    The action server lives as long as the node, so that a result under way is never cut off; a
    goal is refused unless the node is active. All else is made by :meth:`connect`.

    Args:
        node: the planner's node.
        parameters: gives the newest parameters.
    """

    def __init__(self, node: LifecycleNode[Any], parameters: Callable[[], TaskParameters]) -> None:
        self._node = node
        self._parameters = parameters
        self._planner: Planner | None = None
        self._new_episode: Callable[[], None] = lambda: None
        self._run: TaskRun | None = None
        self._accepted: dict[bytes, TaskRun] = {}
        self._server = ActionServer(
            node,
            RunTask,
            "~/run_task",
            self._execute,
            # A goal waits for its end in a thread of the executor, and others must be heard.
            callback_group=ReentrantCallbackGroup(),
            goal_callback=self._goal_came,
            handle_accepted_callback=self._take,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )

    def connect(self, planner: Planner, new_episode: Callable[[], None]) -> None:
        """Serve a planner; part of the node's configure.

        Args:
            planner: told to pause and to go on.
            new_episode: forgets what was gathered for the last episode.
        """
        self._planner, self._new_episode = planner, new_episode
        node = self._node
        self._instructions = node.create_lifecycle_publisher(String, "instruction", qos.LATCHED)
        stop = node.guarded("estop", self._emergency_stop)
        for profile in qos.STOPS:
            node.create_subscription(Bool, "estop", stop, profile, callback_group=node.work)
        for kind, name, answer in (
            (Trigger, "~/start", self._start),
            (Trigger, "~/reset", self._reset),
            (SetBool, "~/pause", self._pause),
        ):
            node.create_service(kind, name, answer, callback_group=node.work)

    def activate(self) -> None:
        """Begin to decide, or wait to be asked; before the planner is started."""
        self._new_episode()
        self._pause_planner(self._parameters().wait)

    def deactivate(self) -> None:
        """End the task at hand."""
        self._end(Ending.DEACTIVATED, "the planner was deactivated")

    def disconnect(self) -> None:
        """Let go of the planner; part of the node's teardown."""
        self._planner, self._new_episode = None, lambda: None

    def wanted(self, instruction: str) -> bool:
        """Whether an observation with this instruction is to be decided on now."""
        run = self._run
        return run is None or run.observed(instruction)

    def decided(self, decision: Decision) -> None:
        """Count a decision."""
        run = self._run
        if run is not None:
            run.decided(decision.statistics, self._node.now_ns(), time.monotonic())

    def clock_jumped_back(self, seconds: float) -> None:
        """End the task at hand: it belongs to an episode that is over.

        Args:
            seconds: the jump, negative.
        """
        run = self._run
        if run is not None:
            run.clock_jumped(seconds)
            run.end(Ending.RESET, f"the clock jumped back by {-seconds:.3g} s")

    # The action, in threads of the executor.

    def _goal_came(self, goal: RunTask.Goal) -> GoalResponse:
        try:
            if self._node.state != ACTIVE:
                raise ConfigurationError(f"the planner is {self._node.state}")
            self._make(goal)
        except ConfigurationError as error:
            self._node.drop("run_task", str(error))
            return GoalResponse.REJECT
        return GoalResponse.ACCEPT

    def _make(self, goal: RunTask.Goal) -> TaskRun:
        return TaskRun(
            goal.instruction,
            goal.time_limit,
            goal.success_value,
            self._parameters(),
            self._node.now_ns(),
            time.monotonic(),
        )

    def _take(self, handle: ServerGoalHandle) -> None:
        run = self._make(handle.request)
        self._accepted[bytes(handle.goal_id.uuid)] = run
        with self._node.exclusive:
            self._end(Ending.PREEMPTED, f"by {run.instruction!r}")
            if self._node.state == ACTIVE:
                self._run = run
                self._new_episode()
                self._pause_planner(False)
                self._instructions.publish(String(data=run.instruction))
            else:
                run.end(Ending.DEACTIVATED, f"the planner is {self._node.state}")
        handle.execute()

    def _execute(self, handle: ServerGoalHandle) -> RunTask.Result:
        run = self._accepted.pop(bytes(handle.goal_id.uuid))
        next_feedback = 0.0
        while not run.ended.wait(CHECK_S):
            wall_s = time.monotonic()
            planner = self._planner
            paused = planner is not None and planner.paused
            if paused:
                run.paused(wall_s)
            if handle.is_cancel_requested:
                run.end(Ending.CANCELED, "the client cancelled it")
            run.check(self._node.now_ns(), wall_s)
            if wall_s >= next_feedback:
                handle.publish_feedback(self._feedback(run, paused))
                next_feedback = wall_s + FEEDBACK_S
        with self._node.exclusive:
            if self._run is run:
                self._run = None
                if self._node.state == ACTIVE:
                    self._pause_planner(True)
        return self._result(handle, run)

    def _feedback(self, run: TaskRun, paused: bool) -> RunTask.Feedback:
        progress = run.progress(self._node.now_ns())
        active = "waiting" if run.waiting else "deciding"
        return RunTask.Feedback(
            state="paused" if paused else active,
            time=progress.time_s,
            progress=progress.value,
            decisions=progress.decisions,
            deviations=progress.deviations,
            fallbacks=progress.fallbacks,
            fallback_reason=progress.fallback_reason,
        )

    def _result(self, handle: ServerGoalHandle, run: TaskRun) -> RunTask.Result:
        assert run.end_reason is not None
        ending, message = run.end_reason
        if ending is Ending.SUCCEEDED:
            handle.succeed()
        elif ending is Ending.CANCELED:
            handle.canceled()
        else:
            handle.abort()
        self._node.get_logger().info(f"{run.instruction!r}: {ending.name.lower()}: {message}")
        progress = run.progress(self._node.now_ns())
        return RunTask.Result(
            reason=ending.value,
            reason_name=ending.name.lower(),
            message=message,
            time=progress.time_s,
            progress=progress.value,
            decisions=progress.decisions,
            deviations=progress.deviations,
            fallbacks=progress.fallbacks,
        )

    def _pause_planner(self, paused: bool) -> None:
        if self._planner is not None:
            self._planner.pause(paused)

    def _end(self, ending: Ending, message: str) -> bool:
        run = self._run
        if run is None:
            return False
        run.end(ending, message)
        return True

    # Topics and services.

    def _emergency_stop(self, message: Bool) -> None:
        if message.data:
            self._end(Ending.EMERGENCY_STOP, "true came on the topic estop")

    def _start(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._node.exclusive:
            if self._node.state == ACTIVE:
                self._new_episode()
                self._pause_planner(False)
                response.success, response.message = True, "deciding"
            else:
                response.message = f"the planner is {self._node.state}"
        return response

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._node.exclusive:
            ended = self._end(Ending.RESET, "~/reset was called")
            self._new_episode()
        response.success = True
        response.message = "the task was ended" if ended else "a new episode begins"
        return response

    def _pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._pause_planner(request.data)
        response.success = True
        response.message = "paused" if request.data else "deciding"
        return response
