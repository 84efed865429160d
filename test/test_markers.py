"""What the planner imagines, shown live: paths, markers, pictures, and the node that makes them."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
import yaml

from vla_reasoner_ros.data.cameras import load_cameras
from vla_reasoner_ros.data.overlay import Stroke, draw, enlarged
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms
from vla_reasoner_ros.evaluation.records import project
from vla_reasoner_ros.evaluation.views import ROLE_COLOURS, RerunLog, annotated, rgb, words
from vla_reasoner_ros.search.lines import imagined_paths, principal_path
from vla_reasoner_ros.sim.world import World


@pytest.fixture(scope="module")
def decided():
    """A real decision that deviates, and what it was made on."""
    world = World()
    world.reset("red_on_plate", 3)
    observation = world.observation(stamp_ns=1_500_000_000)
    world.close()
    reasoner = arms.make_reasoner(
        "search_learned", {"search.simulations": 24, "search.margin": 0.0}
    )
    return observation, reasoner.decide(observation)


@pytest.fixture(scope="module")
def paths(decided):
    _, decision = decided
    return imagined_paths(vars(decision.tree), vars(decision.statistics))


def test_every_listed_candidate_has_a_path_that_begins_at_the_hand(decided, paths):
    observation, decision = decided
    said, tree = decision.statistics, decision.tree
    assert {path.candidate for path in paths} >= {*said.candidate_ids, said.chosen_id, 0}
    for path in paths:
        assert path.points.shape[1] == 3
        assert 2 <= len(path.points) <= said.max_depth + 1
        np.testing.assert_allclose(path.points[0], tree.ee_positions[0])
        assert np.linalg.norm(path.points[0] - observation.ee_position) < 0.02
    values = dict(zip(said.candidate_ids, said.candidate_values, strict=True))
    for path in paths:
        if path.candidate in values:
            assert path.value == pytest.approx(values[path.candidate], abs=1e-6)


def test_what_matters_most_is_drawn_last(decided, paths):
    said = decided[1].statistics
    assert paths[-1].candidate == said.chosen_id
    assert paths[-1].role == "chosen"
    assert paths[-2].role == ("policy" if said.chosen_id else "rejected")
    assert max(path.shade for path in paths) == 1.0
    assert min(path.shade for path in paths) == 0.0


def test_a_world_model_without_positions_has_no_paths(decided):
    tree = dataclasses.replace(decided[1].tree, ee_positions=np.zeros((0, 3)))
    assert imagined_paths(vars(tree), vars(decided[1].statistics)) == ()


def test_the_picture_has_the_winner_where_the_camera_would_see_it(decided, paths):
    observation, decision = decided
    camera = load_cameras("sim")["agent"]
    picture = annotated(observation.images["agent"], paths, vars(decision.statistics), camera, 480)
    assert picture.shape == (480, 480, 3)
    end = project(camera.projection(480, 480), paths[-1].points)[-1]
    column, row = np.round(end).astype(int)
    np.testing.assert_allclose(picture[row, column], ROLE_COLOURS["chosen"], atol=40)
    plain = annotated(observation.images["agent"], paths, vars(decision.statistics), None, 480)
    changed = (picture != plain).any(axis=2)
    assert 0.001 < changed.mean() < 0.2
    assert (plain[100:] == enlarged(observation.images["agent"], 480)[100:]).all()


def test_the_words_say_what_the_arm_got(decided):
    said = vars(decided[1].statistics)
    first, second = words(said)
    assert f"candidate {said['chosen_id']} instead" in first
    assert f"{said['time_ms']:.0f} ms" in second
    late = said | {"deviated": False, "status": 3, "fallback_reason": "too late"}
    assert words(late)[0] == "the policy's own: too late"
    assert words(late | {"deadline_missed": True})[1].endswith("deadline missed")
    assert words(late | {"status": 4})[0].startswith("hold")


def test_a_line_behind_the_camera_is_left_out_and_dashes_have_gaps():
    picture = np.zeros((60, 100, 3), np.uint8)
    behind = np.array([[10.0, 10.0], [np.nan, np.nan]])
    draw(picture, [Stroke(behind, (255, 0, 0), 2)], [])
    assert not picture.any()
    across = np.array([[5.0, 30.0], [95.0, 30.0]])
    draw(picture, [Stroke(across, (255, 0, 0), 2, dashed=True)], [])
    row = picture[30, 5:90].any(axis=1)
    assert row.any()
    assert not row.all()


def test_value_colours_are_those_of_the_report():
    assert rgb(0.0) == (0, 34, 78)
    assert rgb(1.0) == (254, 232, 56)


def test_a_rerun_recording_has_every_decision(decided, paths, tmp_path):
    pytest.importorskip("rerun", reason="the extra rerun (rerun-sdk) is not installed")
    observation, decision = decided
    log = RerunLog(tmp_path / "run" / "decisions.rrd")
    said = vars(decision.statistics)
    picture = annotated(observation.images["agent"], paths, said, None, 96)
    log.add(observation, said, paths, picture)
    log.add(observation, said | {"simulations": 0}, (), None)
    log.close()
    assert (tmp_path / "run" / "decisions.rrd").read_bytes().startswith(b"RRF")


def test_without_the_extra_a_rerun_recording_is_refused_by_name(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "rerun", None)
    with pytest.raises(ConfigurationError, match="extra 'rerun'"):
        RerunLog(tmp_path / "x.rrd")


# As messages.


def test_markers_are_one_line_and_one_end_each_and_replace_the_last(paths):
    markers = pytest.importorskip("vla_reasoner_ros.ros.markers")
    array = markers.paths_to_markers(paths, "base", 7_000_000_003).markers
    kind = type(array[0])
    assert array[0].action == kind.DELETEALL
    lines = [m for m in array if m.type == kind.LINE_STRIP and m.action == kind.ADD]
    assert len(lines) == len(paths)
    for line, path in zip(lines, paths, strict=True):
        assert line.ns == path.role
        assert line.header.frame_id == "base"
        assert (line.header.stamp.sec, line.header.stamp.nanosec) == (7, 3)
        np.testing.assert_allclose([[p.x, p.y, p.z] for p in line.points], path.points)
        assert [line.color.r, line.color.g, line.color.b] == pytest.approx(
            np.array(rgb(path.shade)) / 255.0
        )
        assert line.color.a == 1.0
    thickness = {line.ns: line.scale.x for line in lines}
    assert thickness["chosen"] > thickness["rejected"] > 0.0
    named = [(m.ns, m.id) for m in array[1:]]
    assert len(set(named)) == len(named)
    assert any(m.text.startswith("chosen") for m in array)


def test_what_belongs_together_is_joined_in_any_order_and_forgotten():
    joiner = pytest.importorskip("vla_reasoner_ros.ros.markers").Joiner(kept=2)
    assert joiner.add(1, "tree", "t") == {"tree": "t"}
    assert joiner.add(1, "observation", "o") == {"tree": "t", "observation": "o"}
    joiner.forget(1)
    assert joiner.add(1, "tree", "u") == {"tree": "u"}
    for stamp in (2, 3):
        joiner.add(stamp, "tree", "t")
    assert joiner.add(1, "observation", "o") == {"observation": "o"}


@pytest.fixture(scope="module")
def shown(decided, tmp_path_factory):
    """What view_node publishes of the decision, and the client that heard it."""
    pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")
    from sensor_msgs.msg import Image
    from visualization_msgs.msg import MarkerArray

    from vla_reasoner_ros.msg import Observation, SearchStatistics, SearchTree
    from vla_reasoner_ros.ros import qos
    from vla_reasoner_ros.ros.conversions import observation_to_message
    from vla_reasoner_ros.ros.graph import GraphClient
    from vla_reasoner_ros.ros.processes import NodeProcess, ProcessGraph
    from vla_reasoner_ros.ros.reports import statistics_to_message, tree_to_message

    observation, decision = decided
    stamp_ns = observation.stamp_ns
    said = dataclasses.replace(decision.statistics, observation_stamp_ns=stamp_ns)
    with ProcessGraph(tmp_path_factory.mktemp("log")) as graph:
        graph.start(NodeProcess("view_node", "view_node", {"cameras": "sim"}))
        with GraphClient(graph) as client:
            node, markers, images = client.node, [], []
            listeners = [
                node.create_subscription(MarkerArray, "imagined_paths", markers.append, qos.STATE),
                node.create_subscription(
                    Image, "imagined_paths/image_raw", images.append, qos.STATE
                ),
            ]
            speakers = {
                "tree": node.create_publisher(SearchTree, "search_tree", qos.STATE),
                "statistics": node.create_publisher(
                    SearchStatistics, "search_statistics", qos.STATE
                ),
                "observation": node.create_publisher(Observation, "observation", qos.STATE),
            }
            client.wait(
                lambda: (
                    all(speaker.get_subscription_count() for speaker in speakers.values())
                    and all(listener.get_publisher_count() for listener in listeners)
                ),
                60.0,
                "the view node's topics",
            )
            messages = {
                "tree": tree_to_message(decision.tree, stamp_ns, 1, stamp_ns),
                "statistics": statistics_to_message(said, stamp_ns),
                "observation": observation_to_message(observation),
            }

            def heard():
                for name, message in messages.items():
                    speakers[name].publish(message)
                client.spin(0.5)
                return markers and images

            client.wait(heard, 120.0, "markers and a picture")
            yield markers[-1], images[-1]


def test_the_node_shows_what_the_planner_imagined(shown, paths):
    markers, image = shown
    assert sum(marker.type == marker.LINE_STRIP for marker in markers.markers) == len(paths)
    assert {marker.header.frame_id for marker in markers.markers} == {"base"}
    assert (image.height, image.width, image.encoding) == (480, 480, "rgb8")
    picture = np.frombuffer(bytes(image.data), np.uint8).reshape(480, 480, 3)
    blue = np.abs(picture.astype(int) - ROLE_COLOURS["chosen"]).max(axis=2) < 12
    assert blue.sum() > 50


# Layouts.

ROOT = Path(__file__).resolve().parent.parent
LAYOUTS = [
    ROOT / "config" / path
    for path in (
        "rviz/vla_reasoner.rviz",
        "foxglove/vla_reasoner.json",
        "plotjuggler/vla_reasoner.xml",
    )
]
OURS = {
    "search_statistics": "SearchStatistics",
    "action_chunk": "ActionChunk",
    "arm_controller_node/status": "ControllerStatus",
}


def parsed(layout):
    """Everything that a layout says, read by the format's own reader."""
    text = layout.read_text()
    if layout.suffix == ".json":
        return json.dumps(json.loads(text))
    if layout.suffix == ".xml":
        return ElementTree.tostring(ElementTree.fromstring(text), encoding="unicode")
    return json.dumps(yaml.safe_load(text))


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda path: path.suffix)
def test_a_layout_shows_topics_and_fields_that_exist(layout):
    said = parsed(layout)
    pages = (ROOT / "docs" / "interfaces.md").read_text()
    named = set(re.findall(r'"/([a-z_]+(?:/[a-z_]+)?)', said)) - {"robot_description"}
    assert named
    for name in named:
        topic, *rest = name.split("/")
        if topic in OURS and layout.suffix == ".xml":
            fields = (ROOT / "msg" / f"{OURS[topic]}.msg").read_text()
            assert re.search(rf"^\S+ {rest[0]}\b", fields, re.M), name
        elif name != "arm_controller_node/status":
            assert f"`{name}`" in pages or f"`/{name}`" in pages, name
    for topic, field in re.findall(r'"/([a-z_/]+)\.([a-z_]+)"', said):
        fields = (ROOT / "msg" / f"{OURS[topic]}.msg").read_text()
        assert re.search(rf"^\S+ {field}\b", fields, re.M), f"{topic}.{field}"


def published():
    """What the nodes publish: topic to message type, from the table that is held to the code."""
    pages = (ROOT / "docs" / "interfaces.md").read_text()
    rows = re.findall(r"^\| `?([\w ]+)`? \| out \| `([^`]+)` \| `([^`]+)` \|", pages, re.M)
    return {"/" + topic.replace("~", node).lstrip("/"): kind for node, topic, kind in rows}


def displayed(layout):
    """Topic and message type of every display that takes one type alone."""
    if layout.suffix == ".rviz":
        kinds = {"MarkerArray": "visualization_msgs/MarkerArray", "Image": "sensor_msgs/Image"}
        for display in yaml.safe_load(layout.read_text())["Visualization Manager"]["Displays"]:
            kind = kinds.get(display["Class"].rpartition("/")[2])
            if kind:
                assert display["Topic"]["Reliability Policy"] in ("Reliable", "Best Effort")
                assert display["Topic"]["Durability Policy"] == "Volatile"  # fits every publisher
                yield display["Topic"]["Value"], kind
        return
    for name, panel in json.loads(layout.read_text())["configById"].items():
        if name.startswith("3D!"):
            yield from ((topic, "visualization_msgs/MarkerArray") for topic in panel["topics"])
        elif name.startswith("Image!"):
            yield panel["imageMode"]["imageTopic"], "sensor_msgs/Image"
        elif name.startswith("DiagnosticSummary!"):
            yield panel["topicToRender"], "diagnostic_msgs/DiagnosticArray"


@pytest.mark.parametrize("layout", LAYOUTS[:2], ids=lambda path: path.suffix)
def test_a_display_is_given_the_messages_that_it_can_show(layout):
    shown = list(displayed(layout))
    assert len(shown) >= 2
    assert {topic: published().get(topic) for topic, _ in shown} == dict(shown)


def test_a_path_goes_on_along_the_best_children():
    tree = {
        "parents": [-1, 0, 0, 1, 1, 4],
        "visits": [9, 5, 3, 4, 1, 0],
        "values": [0.5, 0.9, 0.2, 0.1, 0.9, 1.0],
    }
    assert principal_path(tree, 1) == [0, 1, 4]
    assert principal_path(tree, 2) == [0, 2]


def test_a_line_to_a_point_far_outside_of_the_picture_is_left_out():
    picture = np.zeros((48, 64, 3), dtype=np.uint8)
    far = np.array([[0.0, 0.0], [1e300, 5.0]])
    draw(picture, [Stroke(far, (255, 0, 0), 3, dashed=True)], [])
    assert not picture.any()


def test_a_very_wide_picture_is_not_enlarged_beyond_what_memory_holds():
    assert enlarged(np.zeros((1, 9216, 3), dtype=np.uint8), 480).shape == (1, 9216, 3)
    assert enlarged(np.zeros((16, 2048, 3), dtype=np.uint8), 480).shape == (32, 4096, 3)
