"""What the planner's node takes."""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.components import ComponentParameters
from vla_reasoner_ros.control.parameters import ControllerParameters
from vla_reasoner_ros.parameters import group
from vla_reasoner_ros.ros.lifecycle import BaseParameters
from vla_reasoner_ros.ros.planning import DecisionThresholds
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.task_run import TaskParameters


@dataclass(frozen=True)
class PlannerParameters(ControllerParameters, BaseParameters):
    """The planner's components, its search and its tasks."""

    planner: ComponentParameters = group(ComponentParameters)
    search: SearchParameters = group(SearchParameters)
    task: TaskParameters = group(TaskParameters)
    diagnostics: DecisionThresholds = group(DecisionThresholds)
