"""Decisions as they were made when a bag was recorded, and what the arm was doing then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from vla_reasoner_ros.control.commands import ControllerState, ExecutorStatus
from vla_reasoner_ros.data import messages
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.message_types import to_nanoseconds
from vla_reasoner_ros.errors import VlaReasonerError
from vla_reasoner_ros.running_chunks import RunningChunks
from vla_reasoner_ros.search.statistics import SearchStatistics
from vla_reasoner_ros.types import ActionChunk, FloatArray

CONTROLLER_STATUS = "vla_reasoner_ros/msg/ControllerStatus"


@dataclass
class Live:
    """A decision as it was made when the bag was recorded.

    Attributes:
        statistics: what it said about itself.
        recorded_ns: when that was recorded, by the recorder's clock.
        actions: (H, D) of its chunk; None when that was not recorded.
        consumed: actions that fell due while it was made.
        source: of its chunk.
        controlled: whether a controller had told how far the arm is.
        frozen: actions of the running chunk that were executed whatever was decided; None where
            nothing ran.
    """

    statistics: SearchStatistics
    recorded_ns: int
    actions: FloatArray | None = None
    consumed: int = 0
    source: str = ""
    controlled: bool = False
    frozen: ActionChunk | None = None

    @property
    def begun_ns(self) -> int:
        """When it was begun, by the recorder's clock."""
        return self.recorded_ns - int(self.statistics.time_ms * 1e6)


def recorded_decisions(bag: BagReader, ingest: BagIngest) -> dict[int, Live]:
    """The live decisions of a bag, by the stamp of the observation decided on."""
    found: dict[int, Live] = {}
    told, chunks = ingest.find("search_statistics"), ingest.find("action_chunk")
    status = ingest.find("arm_controller_node/status")
    kinds = {
        told: messages.SEARCH_STATISTICS,
        chunks: messages.ACTION_CHUNK,
        status: CONTROLLER_STATUS,
    }
    topics = {t for t, kind in kinds.items() if t is not None and bag.topics[t].type == kind}
    if told not in topics:
        return found
    published: dict[int, tuple[int, ActionChunk]] = {}
    reports: list[tuple[int, int, ExecutorStatus]] = []
    for message in bag.messages(topics):
        try:
            fields = bag.deserialize(message)
            if message.topic == told:
                said = messages.statistics_from_message(fields)
                found[said.observation_stamp_ns] = Live(said, message.time_ns)
            elif message.topic == chunks:
                chunk = messages.chunk_from_message(fields)
                published[chunk.observation_stamp_ns] = message.time_ns, chunk
            else:
                stamp_ns = to_nanoseconds(fields.header.stamp)
                reports.append((message.time_ns, stamp_ns, _status(fields)))
        except (VlaReasonerError, ValueError) as error:
            bag.problems.append(f"{message.topic}: {error}")
    for stamp_ns, live in found.items():
        if stamp_ns in published:
            chunk = published[stamp_ns][1]
            live.actions, live.consumed = chunk.actions, chunk.consumed
            live.source = chunk.source.value
    _freeze(found, published, reports)
    return found


def _freeze(
    found: dict[int, Live],
    published: dict[int, tuple[int, ActionChunk]],
    reports: list[tuple[int, int, ExecutorStatus]],
) -> None:
    """Ask, as the planner did when each decision was begun, what the controller had frozen."""
    running = RunningChunks()
    # At the same time the planner hears the controller before it publishes, and publishes before it
    # begins anew.
    events: list[tuple[int, int, Any]] = [(time_ns, 0, told) for time_ns, *told in reports]
    events += [(time_ns, 1, chunk) for time_ns, chunk in published.values()]
    events += [(live.begun_ns, 2, live) for live in found.values()]
    for _, kind, event in sorted(events, key=lambda event: event[:2]):
        if kind == 0:
            stamp_ns, status = event
            running.reported(status, stamp_ns)
        elif kind == 1:
            running.published(event)
        else:
            if event.statistics.sequence == 1:
                running.clear()
            event.controlled = running.known
            event.frozen = running.frozen(event.statistics.observation_stamp_ns)


def _status(fields: Any) -> ExecutorStatus:
    """What a recorded ``ControllerStatus`` says; bags of before have no ``actions_frozen``."""
    return ExecutorStatus(
        state=ControllerState(fields.state),
        reason=fields.reason,
        sequence=fields.sequence,
        actions_consumed=fields.actions_consumed,
        chunks_accepted=fields.chunks_accepted,
        chunks_rejected=fields.chunks_rejected,
        last_rejection=fields.last_rejection,
        tracking_error=fields.tracking_error,
        actions_frozen=getattr(fields, "actions_frozen", 0),
    )
