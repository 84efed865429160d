import argparse
import base64
import copy
import html.parser
import json
import math

import numpy as np
import pytest

from vla_reasoner_ros.data.images import encode_jpeg
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms, report, svg
from vla_reasoner_ros.evaluation.page import sections
from vla_reasoner_ros.evaluation.records import (
    CommandCounts,
    DecisionRecord,
    EpisodeRecord,
    RunRecord,
    camera_projection,
    project,
)
from vla_reasoner_ros.evaluation.results import EPISODE, FILE
from vla_reasoner_ros.search.lines import root_candidates
from vla_reasoner_ros.search.statistics import SearchStatistics
from vla_reasoner_ros.sim.world import World

ARMS = ["policy", "search_simulator"]


class Page(html.parser.HTMLParser):
    """What a page holds: its text, its images, and whether its tags are closed."""

    VOID = ("meta", "img", "br", "image", "line", "rect", "circle", "polygon", "polyline")

    def __init__(self, text):
        super().__init__()
        self.text, self.images, self.links, self.open = "", [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.images += [v for k, v in found.items() if k in ("src", "href") and v]
        self.links += [v for k, v in found.items() if k in ("src", "href") and "data:" not in v]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.images += [v for k, v in attributes if k in ("src", "href") and v]

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def decided():
    """One real decision with its tree, and the picture of the moment."""
    world = World()
    world.reset("red_on_plate", 3)
    reasoner = arms.make_reasoner("oracle", {"search.simulations": 12})
    decision = reasoner.decide(world.observation())
    tree = {
        name: np.asarray(getattr(decision.tree, name)).ravel().tolist()
        for name in (
            "parents",
            "visits",
            "values",
            "leaf_values",
            "priors",
            "origins",
            "ee_positions",
        )
    }
    picture = encode_jpeg(world.render("overview", 300, 400), 80)
    world.close()
    return vars(decision.statistics), tree, picture


@pytest.fixture
def record(decided):
    statistics, tree, picture = decided
    episodes = []
    for arm, success in zip(ARMS, (False, True), strict=True):
        episode = EpisodeRecord("red_on_plate", 3, arm, "put red <on> the plate", success)
        searched = arm != "policy"
        episode.ending = "success" if success else "time limit"
        episode.commands = CommandCounts(sent=25, rejected=0, violations=3) if searched else None
        own = statistics if searched else vars(SearchStatistics(time_ms=5.0))
        episode.decisions = [DecisionRecord(0.0, own, tree if searched else None, picture)]
        episodes.append(episode)
    return RunRecord(
        title="Search & policy",
        facts=[("command", "make demo")],
        notes=arms.notes(ARMS),
        arms=[arms.describe(name) for name in ARMS],
        episodes=[episode.summary() for episode in episodes],
        shown=episodes,
        projection=camera_projection(np.array([1.0, 0, 1]), np.eye(3), 0.8, 400, 300),
        picture_size=(400, 300),
    )


def test_the_page_stands_alone_and_says_what_was_found(record, decided, tmp_path):
    path = tmp_path / "report.html"
    report.write_report(path, record)
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    assert page.links == []
    pictures = [i for i in page.images if i.startswith("data:image/jpeg;base64,")]
    assert len(pictures) == 3
    for picture in pictures:
        assert base64.b64decode(picture.partition(",")[2]).startswith(b"\xff\xd8")
    statistics, tree, _ = decided
    assert "put red <on> the plate" in page.text
    assert "true simulator, which no real robot has" in page.text
    assert f"{len(tree['parents'])} nodes, {statistics['simulations']} simulations" in page.text
    assert f"{statistics['policy_value']:.3f}" in page.text
    assert "1 / 1" in page.text
    assert page.text.count("samples at 1 kHz beyond a limit") == 1
    assert "0 / 1" in page.text


def test_a_kept_chunk_is_held_against_the_best_of_the_others():
    kept = {"deviated": False, "chosen_id": 0, "policy_value": 0.4, "margin": 0.0}
    kept |= {"margin_required": 0.02, "candidate_ids": [0, 1, 2, 3]}
    kept["candidate_values"] = [0.4, 0.25, 0.375, math.nan]
    assert sections._verdict(kept) == (
        "kept the policy's own chunk: value 0.400 against 0.375 of the best other "
        "(margin -0.025, 0.020 needed)"
    )
    kept |= {"candidate_ids": [0], "candidate_values": [0.4]}
    assert sections._verdict(kept) == "kept the policy's own chunk: no other was imagined"


def test_every_listed_candidate_is_found_in_the_tree(decided):
    statistics, tree, _ = decided
    roots = root_candidates(tree, statistics)
    assert set(roots) == set(statistics["candidate_ids"])
    assert len(set(roots.values())) == len(roots)
    for number, value in zip(
        statistics["candidate_ids"], statistics["candidate_values"], strict=True
    ):
        assert tree["values"][roots[number]] == pytest.approx(value)
    if 0 in roots:
        assert tree["origins"][roots[0]] == "policy"


def test_the_verb_writes_the_report_of_a_results_file(record, tmp_path, capsys):
    results = {
        "facts": {"command": "vla-reasoner evaluate"},
        "notes": ["a note"],
        "arms": [vars(arm) for arm in record.arms],
        "episodes": record.episodes,
    }
    path = tmp_path / "out.json"
    path.write_text(json.dumps(results))
    parser = argparse.ArgumentParser()
    report.add_arguments(parser)
    assert report.run(parser.parse_args([str(path)])) == 0
    assert "a note" in (tmp_path / "out.html").read_text()
    assert "out.html" in capsys.readouterr().out


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"facts": 3}'])
def test_a_file_that_is_no_result_is_refused(content, tmp_path):
    path = tmp_path / "out.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="not what `evaluate --json` writes"):
        report.run(argparse.Namespace(results=path, html=None))


GOOD = {
    "facts": {},
    "notes": [],
    "arms": [{"name": "policy", "label": "policy alone", "description": "It alone."}],
    "episodes": [
        {
            "task": "lift_green", "seed": 0, "arm": "policy", "success": True, "decision_ms": [1.5],
            "simulations": [0], "deviated": 0, "fallbacks": [],
            "commands": {"sent": 1, "rejected": 0, "violations": 0},
        }
    ],
}  # fmt: skip
CHANGES = [
    ("arms", [], r"arms: expected one or more, got none"),
    ("arms", [{"name": "policy"}], r"arms\[0\]\.label: expected a text, there is none"),
    ("notes", "none", r"notes: expected a list of texts, got 'none'"),
    ("episodes", [3], r"episodes: expected a list of objects, got \[3\]"),
    ("seed", "1", r"episodes\[0\]\.seed: expected a whole number, got '1'"),
    ("decision_ms", [None], r"episodes\[0\]\.decision_ms: expected a list of numbers"),
    ("commands", {"sent": 1}, r"episodes\[0\]\.commands\.rejected: expected a whole number"),
    *((name, ..., rf"{name}: expected .*, there is none") for name in FILE | EPISODE),
]


@pytest.mark.parametrize(("field", "value", "message"), CHANGES)
def test_a_result_that_lacks_something_is_refused_by_the_name_of_it(
    field, value, message, tmp_path
):
    results = copy.deepcopy(GOOD)
    path = tmp_path / "out.json"
    path.write_text(json.dumps(results))
    assert report.run(argparse.Namespace(results=path, html=None)) == 0
    changed = results if field in FILE else results["episodes"][0]
    changed[field] = value
    if value is ...:
        del changed[field]
    path.write_text(json.dumps(results))
    with pytest.raises(ConfigurationError, match=rf"out\.json: .*{message}"):
        report.run(argparse.Namespace(results=path, html=None))


def test_a_point_ahead_of_the_camera_is_in_the_middle_and_right_is_right():
    # At (0, 0, 1) looking down: x of the image is x of the world, y of the image is -y.
    matrix = camera_projection(np.array([0.0, 0.0, 1.0]), np.eye(3), math.radians(90), 200, 100)
    pixels = project(matrix, np.array([[0.0, 0, 0], [0.5, 0, 0], [0, 0.5, 0], [0, 0, 2.0]]))
    assert pixels[:3] == pytest.approx(np.array([[100.0, 50], [125, 50], [100, 25]]))
    assert np.isnan(pixels[3]).all()


def test_the_projection_agrees_with_the_renderer():
    world = World()
    world.reset("red_on_plate", 3)
    camera = world.model.camera("overview").id
    matrix = camera_projection(
        world.model.cam_pos[camera],
        world.model.cam_mat0[camera].reshape(3, 3),
        math.radians(world.model.cam_fovy[camera]),
        640,
        480,
    )
    image = world.render("overview", 480, 640).astype(int)
    centre = world.true_state().blocks["red_block"]
    x, y = project(matrix, centre[None])[0].round().astype(int)
    world.close()
    red, green, blue = image[y - 3 : y + 4, x - 3 : x + 4].reshape(-1, 3).mean(axis=0)
    assert red > 2 * max(green, blue)


def test_value_colours_grow_lighter_and_unknown_is_grey():
    def lightness(value):
        colour = svg.value_colour(value)
        return sum(int(colour[i : i + 2], 16) for i in (1, 3, 5))

    shades = [lightness(value) for value in np.linspace(0, 1, 21)]
    assert shades[0] < shades[10] < shades[20]
    assert svg.value_colour(math.nan) == "#DDDDDD"


def test_leaves_of_a_tree_do_not_overlap():
    children = [[1, 2], [3, 4, 5], [6], [], [], [], []]
    columns = svg._columns(children)
    assert [columns[i] for i in (3, 4, 5, 6)] == [0, 1, 2, 3]
    assert columns[1] == 1.0
    assert columns[0] == 2.0
