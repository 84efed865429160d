"""What the planner tells of its decisions: diagnostics and the search tree."""

from __future__ import annotations

from dataclasses import dataclass

from vla_reasoner_ros.components import Components
from vla_reasoner_ros.ros.diagnostics import Level, Report
from vla_reasoner_ros.ros.reports import tree_to_message
from vla_reasoner_ros.srv import GetSearchTree
from vla_reasoner_ros.types import Decision


@dataclass(frozen=True)
class Faults:
    """What went wrong since configure.

    Attributes:
        errors: decisions that failed.
        last: text of the newest.
        unmatched: observations without a simulator state of the same stamp.
    """

    errors: int
    last: str
    unmatched: int


def report(components: Components, newest: Decision | None, faults: Faults, paused: bool) -> Report:
    """The newest decision; a fallback or a missed deadline is a warning."""
    values: dict[str, object] = {
        **components.names,
        "errors": faults.errors,
        "last error": faults.last,
        "unmatched observations": faults.unmatched,
    }
    level, text = Level.OK, "deciding"
    if newest is None:
        level, text = Level.WARN, "no decision yet"
    else:
        said = newest.statistics
        values |= {
            "sequence": said.sequence,
            "status": said.status.name,
            "time ms": said.time_ms,
            "simulations": said.simulations,
            "deviated": said.deviated,
            "deadline missed": said.deadline_missed,
            "fallback": said.fallback_reason,
        }
        if said.fallback_reason or said.deadline_missed:
            level, text = Level.WARN, said.fallback_reason or "deadline missed"
    if components.reason:
        level, text = Level.WARN, f"the plain policy drives: {components.reason}"
    return Report(level, "paused" if paused else text, values)


def tree_response(
    newest: Decision | None, response: GetSearchTree.Response, now_ns: int
) -> GetSearchTree.Response:
    """The tree of the newest decision, or why there is none."""
    if newest is None or newest.tree is None:
        response.message = (
            "no decision yet" if newest is None else "the newest decision made no search"
        )
        return response
    chunk = newest.chunk
    response.success = True
    response.tree = tree_to_message(newest.tree, chunk.observation_stamp_ns, chunk.sequence, now_ns)
    return response
