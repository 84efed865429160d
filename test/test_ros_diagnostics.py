"""What the nodes report on /diagnostics, judged by thresholds; without processes."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")

import torch

from vla_reasoner_ros.components import Components, device
from vla_reasoner_ros.control.commands import ControllerState, ExecutorStatus
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.errors import InstructionError
from vla_reasoner_ros.ros.arm_diagnostics import ArmDiagnostics, ArmThresholds
from vla_reasoner_ros.ros.diagnostics import Level, summary, too_high, too_low
from vla_reasoner_ros.ros.ingest_diagnostics import IngestDiagnostics, StreamThresholds
from vla_reasoner_ros.ros.planning import DecisionRecord, DecisionThresholds
from vla_reasoner_ros.search.statistics import SearchStatistics, Status
from vla_reasoner_ros.types import Decision

ROOT = Path(__file__).resolve().parent.parent


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def test_the_worst_finding_gives_the_level_and_all_bad_ones_are_said():
    report = summary(
        [
            too_high("age", 0.2, 0.1, 0.5, " s"),
            too_low("rate", 3.0, 20.0, 10.0, " Hz"),
            too_high("dropped", 0.9, 0.0, 0.0),
            too_high("drift", float("nan"), 0.1, 0.2),
        ],
        "well",
        {},
    )
    assert report.level is Level.ERROR
    assert report.message == "rate 3 Hz, expected at least 10 Hz; age 0.2 s, expected at most 0.1 s"
    assert summary([], "well", {}).message == "well"


class Planned:
    def __init__(self, reason="", **thresholds):
        self.clock = Clock()
        components = Components(
            policy=torch.nn.Linear(1, 1), reason=reason, names={"policy": "linear"}
        )
        self.limits = DecisionThresholds(**thresholds)
        self.record = DecisionRecord(components, lambda: self.limits, self.clock)

    def decide(self, **fields):
        statistics = SearchStatistics(
            **{"time_ms": 50.0, "simulations": 64, "stage_ms": (5.0,) + (0.0,) * 6, **fields}
        )
        self.record.decided(Decision(chunk=None, policy_chunk=None, statistics=statistics))

    def report(self, paused=False):
        return self.record.decisions(unmatched=0, paused=paused)


def test_before_the_first_decision_the_planner_warns():
    assert Planned().report().message == "no decision yet"
    assert Planned().report().level is Level.WARN
    assert Planned().report(paused=True).level is Level.OK


def test_rates_are_taken_over_the_window():
    planned = Planned(window=4)
    planned.decide(deadline_missed=True)
    for deviated in (True, True, False, False):
        planned.decide(deviated=deviated, drift=0.02)
    report = planned.report()
    assert report.level is Level.OK
    assert report.values["deviated [share]"] == 0.5
    assert report.values["deadline missed [share]"] == 0.0
    assert report.values["simulations/s"] == pytest.approx(1280.0)
    assert report.values["drift"] == 0.02


@pytest.mark.parametrize(
    ("thresholds", "fields", "level", "said"),
    [
        ({}, {"status": Status.HOLD, "fallback_reason": "blind"}, Level.ERROR, "blind"),
        (
            {"fallback_error": 0.0},
            {"status": Status.POLICY, "fallback_reason": "late"},
            Level.WARN,
            "late",
        ),
        ({}, {"deadline_missed": True}, Level.ERROR, "deadlines missed"),
        ({"time_warn": 40.0}, {}, Level.WARN, "time p95 50 ms, expected at most 40 ms"),
        ({"time_error": 45.0}, {}, Level.ERROR, "expected at most 45 ms"),
        ({"drift_warn": 0.1}, {"drift": 0.2}, Level.WARN, "drift 0.2"),
        ({"drift_error": 0.1}, {"drift": 0.2}, Level.ERROR, "drift 0.2"),
        ({"drift_error": 0.1}, {}, Level.OK, "deciding"),
    ],
)
def test_thresholds_decide_the_level(thresholds, fields, level, said):
    planned = Planned(**thresholds)
    planned.decide(**fields)
    report = planned.report()
    assert report.level is level
    assert said in report.message


def test_a_planner_that_falls_silent_is_stale_unless_paused():
    planned = Planned(stale=2.0)
    planned.decide()
    planned.clock.now += 3.0
    assert planned.report().level is Level.STALE
    assert planned.report(paused=True).level is Level.OK
    planned.record.awaken()
    assert planned.report().level is Level.OK


def test_the_plain_policy_and_the_newest_error_are_said():
    planned = Planned(reason="the report card is red")
    said = planned.record.failed(InstructionError("bake a cake"))
    planned.decide()
    report = planned.report()
    assert "the plain policy drives: the report card is red" in report.message
    assert report.values["last error"] == "bake a cake"
    assert said == "no decision: bake a cake"


def test_models_say_their_device_and_their_latency():
    planned = Planned()
    for milliseconds in (4.0, 6.0):
        planned.decide(stage_ms=(milliseconds,) + (0.0,) * 6)
    values = planned.record.models().values
    assert values["policy"] == "linear on cpu"
    assert values["policy p50 [ms]"] == 5.0
    assert values["policy p95 [ms]"] == pytest.approx(5.9)


def test_a_components_device_is_where_its_network_lies():
    class Holder:
        def __init__(self):
            self.network = torch.nn.Linear(1, 1, device="meta")

    class Sayer:
        device = torch.device("cuda:1")

    assert [device(x) for x in (Holder(), Sayer(), object.__new__(Clock))] == [
        "meta",
        "cuda:1",
        "cpu",
    ]


class Watched:
    def __init__(self, **thresholds):
        self.clock = Clock()
        self.ingest = Ingest(load_contract("sim"), Kinematics(load_robot("fr3")))
        self.limits = StreamThresholds(**thresholds)
        self.diagnostics = IngestDiagnostics(self.ingest, lambda: self.limits, self.clock)

    def after(self, seconds, received, dropped=0, age=0.01):
        self.clock.now += seconds
        statistics = self.ingest.statistics["agent"]
        statistics.received += received
        statistics.dropped["late"] += dropped
        statistics.age = age
        statistics.last_error = "it came late"
        return self.diagnostics.stream("agent")


@pytest.mark.parametrize(
    ("thresholds", "received", "dropped", "level", "said"),
    [
        ({}, 30, 0, Level.OK, "receiving"),
        ({}, 30, 1, Level.WARN, "it came late"),
        ({}, 30, 20, Level.ERROR, "it came late"),
        ({"dropped_warn": 0.1}, 30, 1, Level.OK, "receiving"),
        ({"rate_warn": 29.0}, 15, 0, Level.WARN, "rate 15 Hz, expected at least 29 Hz"),
        ({"rate_error": 20.0}, 15, 0, Level.ERROR, "rate 15 Hz"),
        ({"age_warn": 0.005}, 30, 0, Level.WARN, "age 0.01 s"),
        ({"age_error": 0.005}, 30, 0, Level.ERROR, "age 0.01 s"),
    ],
)
def test_a_stream_is_judged_by_rate_age_and_drops(thresholds, received, dropped, level, said):
    report = Watched(**thresholds).after(1.0, received, dropped)
    assert report.level is level
    assert said in report.message
    assert report.values["rate [Hz]"] == received


def test_a_stream_is_stale_after_its_time_and_not_before():
    watched = Watched(stale=2.0)
    watched.after(1.0, 30)
    assert watched.after(1.5, 0).level is Level.OK
    assert watched.after(1.0, 0).level is Level.STALE
    assert watched.after(1.0, 30).level is Level.OK


def arm_status(state=ControllerState.EXECUTING, **fields):
    known = {
        **{"reason": "", "sequence": 1, "actions_consumed": 0, "chunks_accepted": 0},
        **{"chunks_rejected": 0, "last_rejection": "", "tracking_error": 0.01},
    }
    return ExecutorStatus(state, **known | fields)


@pytest.mark.parametrize(
    ("thresholds", "fields", "level", "said"),
    [
        ({}, {"chunks_accepted": 3}, Level.OK, "executing"),
        ({}, {"state": ControllerState.STOPPED, "reason": "estop"}, Level.ERROR, "estop"),
        (
            {},
            {"chunks_accepted": 3, "chunks_rejected": 1, "last_rejection": "joint limit"},
            Level.WARN,
            "rejected 0.25, expected at most 1e-06: joint limit",
        ),
        ({"rejected_error": 0.1}, {"chunks_rejected": 1}, Level.ERROR, "rejected 1, expected"),
        (
            {"rejected_warn": 0.5},
            {"chunks_accepted": 3, "chunks_rejected": 1},
            Level.OK,
            "executing",
        ),
        (
            {},
            {"state": ControllerState.HOLDING, "reason": "no chunk"},
            Level.WARN,
            "held 4 s, expected at most 1e-06 s: no chunk",
        ),
        ({"hold_error": 3.0}, {"state": ControllerState.HOLDING}, Level.ERROR, "held 4 s"),
        ({"hold_warn": 5.0}, {"state": ControllerState.HOLDING}, Level.OK, "holding"),
        ({"tracking_warn": 0.005}, {}, Level.WARN, "tracking error 0.01 rad"),
        ({"tracking_error": 0.005}, {}, Level.ERROR, "tracking error 0.01 rad"),
        ({"stale": 3.0}, {}, Level.STALE, "no chunk for 4.0 s"),
        ({"stale": 3.0}, {"chunks_accepted": 1}, Level.OK, "executing"),
    ],
)
def test_an_arm_is_judged_by_stops_holds_limits_and_tracking(thresholds, fields, level, said):
    seconds = [100.0]
    health = ArmDiagnostics(lambda: ArmThresholds(**thresholds), lambda: seconds[0])
    health.report(arm_status(), 0.1)
    seconds[0] += 4.0
    report = health.report(arm_status(**fields), 0.1)
    assert report.level is level
    assert said in report.message


def group_may_be_empty(group):
    return isinstance(group, dict) and group.get("num_items") == 0


def test_the_aggregator_has_a_group_for_every_node():
    tree = yaml.safe_load((ROOT / "config/diagnostics/aggregator.yaml").read_text())
    groups = tree["/**"]["ros__parameters"]
    prefixes = [
        p for group in groups.values() if isinstance(group, dict) for p in group["contains"]
    ]
    nodes = {path.stem for path in (ROOT / "vla_reasoner_ros/nodes").glob("*_node.py")}
    assert {prefix.removesuffix(": ") for prefix in prefixes} == nodes
    optional = {group["path"] for group in groups.values() if group_may_be_empty(group)}
    assert optional == {"Simulation", "View"}
    for file in ("bringup.py", "arm_bringup.py"):
        launched = re.findall(r'"(\w+_node)"', (ROOT / "vla_reasoner_ros/ros" / file).read_text())
        assert launched
        assert set(launched) <= nodes
    assert np.unique(prefixes).size == len(prefixes)
