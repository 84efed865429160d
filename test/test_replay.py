import dataclasses
import re
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import recordings
import yaml
from recordings import KINEMATICS, SECOND, START, assert_same

from vla_reasoner_ros import cli
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.ingest import Ingest
from vla_reasoner_ros.data.message_types import standard_types
from vla_reasoner_ros.data.messages import (
    ACTION_CHUNK,
    SEARCH_STATISTICS,
    SIMULATOR_STATE,
    chunk_fields,
    statistics_fields,
)
from vla_reasoner_ros.errors import BagError, ConfigurationError
from vla_reasoner_ros.evaluation import replay_record
from vla_reasoner_ros.evaluation.replay import read_replay, replay_bag
from vla_reasoner_ros.evaluation.replay_record import COLUMNS, ReplayWriter
from vla_reasoner_ros.evaluation.replay_settings import read_settings, recorded_parameters
from vla_reasoner_ros.evaluation.shadow import agreement
from vla_reasoner_ros.planner import Planner
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.schedule import is_due
from vla_reasoner_ros.search.parameters import SearchParameters

ROOT = Path(__file__).resolve().parent.parent
LATENT = {"planner.world_model": "latent", "search.simulations": 8, "search.wave": 4}
POLICY = {"planner.world_model": "none"}
TOPICS = recordings.TOPICS | {"/simulator_state": SIMULATOR_STATE}


def fields_of(message):
    """The bytes of a live message, as a recorder gets them."""
    return bytes(pytest.importorskip("rclpy.serialization").serialize_message(message))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Two seconds of the simulated robot: the messages of sim_node as they are, and their bag."""
    pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")
    from std_msgs.msg import String

    from vla_reasoner_ros.ros.conversions import image_to_message
    from vla_reasoner_ros.ros.simulation import joints_to_message, state_to_message
    from vla_reasoner_ros.sim.world import World

    world = World()
    instruction = world.reset("lift_green", 50_007)
    messages = [("/instruction", START, String(data=instruction))]
    fingers = ("fr3_finger_joint1", "fr3_finger_joint2")
    for tick in range(200):
        stamp_ns = START + tick * 10_000_000
        told = [("/joint_states", joints_to_message(world, fingers, stamp_ns))]
        if tick % 10 == 0:
            told.append(("/simulator_state", state_to_message(world, 1, stamp_ns)))
            for camera in ("wrist", "agent"):
                shown = image_to_message(world.render(camera), stamp_ns, camera)
                told.append((f"/{camera}/image_raw", shown))
        messages += [(t, stamp_ns + 1000 * i, m) for i, (t, m) in enumerate(told)]
        if tick % 10 == 0:
            world.apply(np.array([0.02, 0.01, -0.02, 0.0, 0.0, 0.05, float(tick < 100)]))
    world.close()
    happened = [(topic, time_ns, fields_of(m)) for topic, time_ns, m in messages]
    path = recordings.record(
        tmp_path_factory.mktemp("run") / "bag", happened, TOPICS, compress=True
    )
    return messages, happened, path


def live_observations(messages):
    """What camera_node makes of these messages."""
    from rclpy.serialization import deserialize_message
    from sensor_msgs.msg import JointState

    from vla_reasoner_ros.ros.clock import to_nanoseconds
    from vla_reasoner_ros.ros.conversions import image_from_bytes, stamp_from_bytes

    ingest, seen = Ingest(load_contract("sim"), KINEMATICS), []
    for topic, time_ns, message in messages:
        data, arrival = fields_of(message), time_ns * 1e-9
        if topic == "/instruction":
            ingest.set_instruction(message.data, time_ns)
        elif topic == "/joint_states":
            received = deserialize_message(data, JointState)
            ingest.push_joints(received, to_nanoseconds(received.header.stamp), time_ns, arrival)
        elif "image_raw" in topic:
            camera = topic.split("/")[1]
            decode = partial(image_from_bytes, data, "image", camera)
            ingest.push_picture(camera, decode, stamp_from_bytes(data, camera), time_ns, arrival)
        seen += ingest.poll(arrival)
    return seen


def bag_observations(path):
    with BagReader(path) as bag:
        ingest = BagIngest(bag, load_contract("sim"), kinematics=KINEMATICS)
        return [moment.observation for moment in ingest.moments()]


def replayed(path, folder, overrides, **options):
    fresh = options.pop("fresh", False)
    with BagReader(path) as bag:
        settings = read_settings(bag, overrides=overrides, **options)
        return replay_bag(bag, settings, folder, fresh=fresh)


def test_a_recorded_run_gives_the_observations_that_were_seen_live_bit_for_bit(run):
    messages, _, path = run
    live, again = live_observations(messages), bag_observations(path)
    assert len(live) == len(again) == 20
    for one, other in zip(live, again, strict=True):
        assert_same(one, other)


@pytest.fixture(scope="module")
def planned(run):
    """The planner of the live graph, fed with these observations one after another."""
    components = load_components(ComponentParameters(world_model="latent"))
    parameters = SearchParameters(simulations=8, wave=4)
    reasoner = Reasoner(
        components.policy, components.world_model, components.value, components.prior, parameters
    )
    decisions, failures = [], []
    thread = ThreadPoolExecutor(max_workers=1)
    spec = components.policy.spec.action
    planner = Planner(
        reasoner, thread, spec, parameters, lambda: 0, decisions.append, failures.append
    )
    planner.start()
    decided_ns = None
    for observation in live_observations(run[0]):
        planner.offer(observation)
        # The next one must not come while this one waits: the planner takes the newest.
        if is_due(observation.stamp_ns, decided_ns, parameters.executed, spec.dt):
            decided_ns, count = observation.stamp_ns, len(decisions)
            wait_until(lambda n=count: len(decisions) > n or failures)
    assert planner.stop()
    thread.shutdown()
    assert failures == []
    return decisions


def wait_until(condition, timeout=60.0):
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "the planner does not decide"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def searched(run, tmp_path_factory):
    return replayed(run[2], tmp_path_factory.mktemp("searched") / "replay", LATENT)


def test_a_replay_makes_the_decisions_that_the_planner_makes_live(planned, searched):
    rows = searched.rows()
    assert len(rows) == len(planned) == 5
    for row, decision in zip(rows, planned, strict=True):
        said = decision.statistics
        assert row["stamp_ns"] == said.observation_stamp_ns
        assert row["sequence"] == said.sequence
        assert row["seed"] == said.seed
        assert row["source"] == decision.chunk.source.value
        assert row["actions"] == decision.chunk.actions.ravel().tolist()
        assert row["policy_actions"] == decision.policy_chunk.actions.ravel().tolist()
        assert row["candidate_values"] == said.candidate_values
        assert row["value_chosen"] == said.chosen_value
        assert row["margin"] == said.margin
        tree = searched.tree(row["stamp_ns"])
        np.testing.assert_array_equal(tree.values, decision.tree.values)
        np.testing.assert_array_equal(tree.actions, decision.tree.actions)


def test_a_replay_keeps_what_was_seen_and_imagined(run, searched):
    seen = {o.stamp_ns: o for o in bag_observations(run[2])}
    stamps = [row["stamp_ns"] for row in searched.rows()]
    assert stamps == [START + i * 4 * SECOND // 10 for i in range(5)]
    for stamp_ns in stamps:
        assert_same(searched.observation(stamp_ns), seen[stamp_ns])
    assert [stamp_ns for stamp_ns, _ in searched.trees()] == stamps
    assert [o.stamp_ns for o in searched.observations()] == stamps
    assert searched.tree(START + 1) is None
    assert searched.observation(START + 1) is None


def test_the_demonstrated_action_is_found_among_the_candidates(searched):
    rows = searched.rows()
    assert [row["demonstrated"] is None for row in rows] == [False] * 4 + [True]
    moved = np.array(rows[0]["demonstrated"]).reshape(4, 7)
    assert np.isfinite(moved).all()
    assert set(moved[:, 6]) <= {0.0, 1.0}
    for row in rows[:4]:
        assert 0 <= row["demonstrated_rank"] < row["candidates"] <= row["nodes"]
        assert row["demonstrated_distance"] <= row["policy_distance"]
        assert row["demonstrated_distance"] <= row["winner_distance"]
    assert rows[4]["demonstrated_rank"] is None


def test_the_same_seed_gives_the_same_replay_and_another_does_not(run, searched, tmp_path):
    again = replayed(run[2], tmp_path / "again", LATENT)
    timing = {"decision_ms", "stage_ms", "deadline_missed"}
    for one, other in zip(searched.rows(), again.rows(), strict=True):
        assert {k: v for k, v in one.items() if k not in timing} == {
            k: v for k, v in other.items() if k not in timing
        }
    other = replayed(run[2], tmp_path / "other", LATENT, seed=1)
    assert other.column("seed").tolist() != searched.column("seed").tolist()


def test_truth_and_faults_stand_in_the_table(run, tmp_path):
    _, happened, _ = run
    gap = (START + SECOND // 2, START + 9 * SECOND // 10)
    kept = [e for e in happened if not (gap[0] <= e[1] < gap[1] and e[0] == "/joint_states")]
    path = recordings.record(tmp_path / "bag", kept, TOPICS)
    rows = replayed(path, tmp_path / "replay", POLICY).rows()
    assert rows[0]["progress"] is not None
    assert rows[0]["success"] is False
    assert rows[0]["margin"] is None
    assert rows[0]["nodes"] == 0
    assert rows[0]["status"] == "skipped"
    assert [f for row in rows for f in row["faults"] if "joint_states stale" in f]


def test_a_simulator_as_world_model_gets_the_recorded_states(run, tmp_path):
    simulated = {"planner.world_model": "simulator", "search.simulations": 4, "search.wave": 2}
    replay = replayed(run[2], tmp_path / "replay", simulated)
    assert [row["source"] for row in replay.rows()].count("hold") == 0
    assert replay.tree(replay.rows()[0]["stamp_ns"]).nodes > 1
    stateless = [event for event in run[1] if event[0] != "/simulator_state"]
    path = recordings.record(tmp_path / "bag", stateless)
    with pytest.raises(BagError, match="topic simulator_state is missing"):
        replayed(path, tmp_path / "other", simulated)


# Decisions that were recorded.


@pytest.fixture
def recorded(run, planned, tmp_path):
    """A bag with the live decisions in it, the third of which was never made."""
    happened = list(run[1])
    for index, decision in enumerate(planned):
        if index == 2:
            continue
        stamp_ns = decision.chunk.observation_stamp_ns + 60_000_000
        said = dataclasses.replace(decision.statistics, time_ms=7.5)
        chunk = dataclasses.replace(decision.chunk, consumed=1)
        happened.append(("/action_chunk", stamp_ns, chunk_fields(chunk, stamp_ns)))
        happened.append(("/search_statistics", stamp_ns, statistics_fields(said, stamp_ns)))
    parameters = {"/planner_node": {"ros__parameters": {"search": {"simulations": 6, "wave": 3}}}}
    happened.append(("/parameters_snapshot", START, {"data": yaml.safe_dump(parameters)}))
    topics = {
        **TOPICS,
        "/action_chunk": ACTION_CHUNK,
        "/search_statistics": SEARCH_STATISTICS,
        "/parameters_snapshot": recordings.STRING,
    }
    return recordings.record(tmp_path / "recorded", happened, topics)


def test_what_was_decided_on_live_is_decided_on_again(recorded, planned, tmp_path):
    replay = replayed(recorded, tmp_path / "replay", LATENT)
    rows = replay.rows()
    stamps = [d.chunk.observation_stamp_ns for i, d in enumerate(planned) if i != 2]
    assert [row["stamp_ns"] for row in rows] == stamps
    assert [row["consumed"] for row in rows] == [1] * 4
    assert {row["live_ms"] for row in rows} == {7.5}
    assert [row["live_equal"] for row in rows[:2]] == [True, True]
    assert len(replayed(recorded, tmp_path / "planner", POLICY, moments="planner").rows()) == 5
    assert len(replayed(recorded, tmp_path / "every", POLICY, moments="every").rows()) == 20


@pytest.mark.parametrize("candidates", [2, 5])
def test_a_rank_by_chance_is_a_half_the_best_none_and_the_worst_all(candidates):
    def rank(*ranks):
        rows = [
            {"margin": 0.0, "would_deviate": False, "demonstrated_rank": r}
            | {"candidates": candidates, "winner_distance": 1.0, "policy_distance": 1.0}
            for r in ranks
        ]
        return agreement(rows).rank

    assert rank(*range(candidates)) == pytest.approx(0.5)
    assert (rank(0), rank(candidates - 1)) == (0.0, 1.0)


def test_each_namespace_has_the_parameters_of_its_own_planner(tmp_path):
    topics, happened = {}, []
    for space, budget in (("left", 11), ("right", 22)):
        topics[f"/{space}/parameters_snapshot"] = recordings.STRING
        told = {f"/{space}/planner_node": {"ros__parameters": {"search.simulations": budget}}}
        happened.append((f"/{space}/parameters_snapshot", START, {"data": yaml.safe_dump(told)}))
    with BagReader(recordings.record(tmp_path / "both", happened, topics)) as bag:
        for space, budget in (("left", 11), ("/right", 22)):
            assert read_settings(bag, namespace=space).search.simulations == budget
        assert recorded_parameters(bag, "middle") == {}


def test_parameters_come_from_the_bag_a_file_or_the_command_line(recorded, run, tmp_path):
    with BagReader(recorded) as bag:
        settings = read_settings(bag)
        assert (settings.search.simulations, settings.source) == (6, "the bag")
        assert read_settings(bag, overrides={"search.wave": 2}).search.wave == 2
        file = tmp_path / "mine.yaml"
        file.write_text("/**: {ros__parameters: {search: {depth: 1, executed: 2}}}")
        settings = read_settings(bag, params=file)
        assert (settings.search.depth, settings.search.simulations) == (1, 64)
        file.write_text("/**: {ros__parameters: {search: {dept: 1}}}")
        with pytest.raises(ConfigurationError, match=r"search\.dept: there is none"):
            read_settings(bag, params=file)
        with pytest.raises(ConfigurationError, match="begins with planner"):
            read_settings(bag, overrides={"depth": 1})
        with pytest.raises(ConfigurationError, match="No such file"):
            read_settings(bag, params=tmp_path / "none.yaml")
    with BagReader(run[2]) as bag:
        assert read_settings(bag).source == "the defaults"
        with pytest.raises(ConfigurationError, match="no decision was recorded"):
            replay_bag(bag, read_settings(bag, moments="recorded"), tmp_path / "replay")


# Interruptions.


class Killed(BaseException):
    """Stands for a kill: nothing is cleaned up after it."""


@pytest.mark.parametrize("dies_at", [1, 2, 4])
def test_an_interrupted_replay_goes_on_to_the_same_result(
    run, searched, tmp_path, monkeypatch, dies_at
):
    monkeypatch.setattr("vla_reasoner_ros.evaluation.replay_run.PART", 2)
    add, added = ReplayWriter.add, []

    def dying(self, *arguments):
        if len(added) == dies_at:
            raise Killed
        added.append(1)
        add(self, *arguments)

    monkeypatch.setattr(ReplayWriter, "add", dying)
    monkeypatch.setattr(ReplayWriter, "abandon", lambda self: None)
    with pytest.raises(Killed):
        replayed(run[2], tmp_path / "replay", LATENT)
    half = read_replay(tmp_path / "replay") if dies_at > 1 else None
    assert half is None or (len(half) == dies_at // 2 * 2 and not half.info["finished"])
    monkeypatch.setattr(ReplayWriter, "add", add)
    whole = replayed(run[2], tmp_path / "replay", LATENT)
    assert whole.info["finished"]
    for name in ("stamp_ns", "episode", "sequence", "actions", "candidate_values", "demonstrated"):
        assert whole.table[name].to_pylist() == searched.table[name].to_pylist(), name
    stamps = [o.stamp_ns for o in whole.observations()]
    assert stamps == [row["stamp_ns"] for row in whole.rows()]


def test_a_finished_replay_is_not_made_again_and_other_settings_are_refused(run, tmp_path):
    first = replayed(run[2], tmp_path / "replay", POLICY)
    made = (tmp_path / "replay" / replay_record.TABLE).stat().st_mtime_ns
    again = replayed(run[2], tmp_path / "replay", POLICY)
    assert again.table.equals(first.table)
    assert (tmp_path / "replay" / replay_record.TABLE).stat().st_mtime_ns == made
    with pytest.raises(ConfigurationError, match="was made with other seed"):
        replayed(run[2], tmp_path / "replay", POLICY, seed=3)
    assert len(replayed(run[2], tmp_path / "replay", POLICY, seed=3, fresh=True)) == 5


def test_a_broken_replay_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="No such file"):
        read_replay(tmp_path)
    (tmp_path / "replay.json").write_text("{")
    with pytest.raises(ConfigurationError, match="is broken"):
        read_replay(tmp_path)
    (tmp_path / "replay.json").write_text('{"format": 99}')
    with pytest.raises(ConfigurationError, match="expected format 1, got 99"):
        read_replay(tmp_path)


def test_the_verb_says_what_came_of_it(run, tmp_path, capsys):
    out = str(tmp_path / "replay")
    words = ["replay", str(run[2]), "--out", out, "--set", "planner.world_model=none"]
    assert cli.main(words) == 0
    said = capsys.readouterr().out
    assert "5 decisions of 20 observations in 1 episodes" in said
    assert "decisions.parquet" in said
    assert cli.main(["replay", str(tmp_path / "none")]) == cli.EXIT_ERROR
    assert "there is none" in capsys.readouterr().err


def test_the_documentation_has_every_column():
    page = (ROOT / "docs" / "replay.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| `(\w+)` \| ([^|]+) \| (.+) \|$", page, re.M)
    said = {name: (kind, meaning) for name, kind, meaning in table}
    for name, (kind, meaning) in COLUMNS.items():
        assert said[name] == (str(kind).replace("element: ", ""), meaning)


def test_our_messages_are_those_of_the_bag():
    for path in (ROOT / "msg").glob("*.msg"):
        assert f"vla_reasoner_ros/msg/{path.stem}" in standard_types().fielddefs
