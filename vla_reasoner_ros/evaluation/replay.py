"""Replay a recorded bag through the same ingest and the same Reasoner as live, without ROS."""

from __future__ import annotations

from vla_reasoner_ros.evaluation.replay_record import Replay, read_replay

__all__ = ["Replay", "read_replay"]
