"""Statistics and tree snapshots have every field of their messages, and agree with the tree."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from benchmark.double_integrator import DoubleIntegrator
from vla_reasoner_ros.parameter_text import to_markdown, to_yaml
from vla_reasoner_ros.parameters import build, declarations, dotted, flatten
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.search.decide import candidates_of, choose_root
from vla_reasoner_ros.search.lines import root_candidates
from vla_reasoner_ros.search.parameters import SearchParameters
from vla_reasoner_ros.search.render import to_picture, to_text
from vla_reasoner_ros.search.statistics import SearchStatistics, Status, record_tree, snapshot

ROOT = Path(__file__).resolve().parent.parent


def searched(**values):
    problem = DoubleIntegrator(SearchParameters(**values), axes=2)
    problem.decide()
    return problem.engine


def fields_of(message):
    text = (ROOT / "msg" / message).read_text()
    return re.findall(r"^\S+\s+([a-z_]+)(?=\s*(?:#|$))", text, flags=re.MULTILINE)


def test_statistics_have_every_field_of_the_message():
    named = set(fields_of("SearchStatistics.msg")) - {"header", "observation_stamp"}
    own = {f.name for f in dataclasses.fields(SearchStatistics)} - {"observation_stamp_ns"}
    assert own == named


def test_statuses_are_those_of_the_message():
    text = (ROOT / "msg" / "SearchStatistics.msg").read_text()
    constants = dict(re.findall(r"uint8 STATUS_(\w+)=(\d)", text))
    assert {status.name: str(status.value) for status in Status} == constants


def test_snapshots_have_every_array_of_the_message():
    named = set(fields_of("SearchTree.msg"))
    named -= {"header", "observation_stamp", "sequence", "macro_steps", "dimensions"}
    taken = snapshot(searched())
    assert all(hasattr(taken, name) for name in named)


def test_statistics_agree_with_the_tree():
    engine = searched(simulations=200, depth=3)
    root = candidates_of(engine.tree, 0, 1.0)
    statistics = SearchStatistics()
    record_tree(statistics, engine, root)
    taken = snapshot(engine)
    assert statistics.nodes == taken.nodes
    assert statistics.root_visits == taken.visits[0]
    assert statistics.max_depth == taken.depths.max() == 3
    assert statistics.candidate_visits == sorted(statistics.candidate_visits, reverse=True)
    children = np.flatnonzero(taken.parents == 0)
    assert sum(taken.visits[children]) == taken.visits[0] - 1
    assert 0.0 <= statistics.root_entropy <= np.log(len(children))
    assert taken.origins[0] == "root"
    assert set(taken.origins[1:]) == {"policy", "gaussian"}
    assert taken.actions.shape == (taken.nodes, 1, 2)
    assert (taken.depths[1:] == taken.depths[taken.parents[1:]] + 1).all()


def test_values_of_a_snapshot_are_those_that_candidates_are_compared_by():
    engine = searched(simulations=300, depth=3, discount=0.9)
    root = candidates_of(engine.tree, 0, 0.9)
    choice = choose_root(engine, root)
    statistics = SearchStatistics(
        chosen_id=choice.winner, chosen_value=choice.value, policy_value=choice.policy_value
    )
    record_tree(statistics, engine, root)
    taken = snapshot(engine)
    assert taken.values[0] == engine.tree.nodes["value"][0]
    found = root_candidates(vars(taken), vars(statistics))
    assert len(found) >= len(statistics.candidate_ids)
    for number, node in found.items():
        assert taken.slots[node] == root.children[number]
        assert taken.values[node] == root.values[number]


def test_a_tree_can_be_read_as_text_and_seen_as_a_picture(tmp_path):
    taken = snapshot(searched(simulations=60))
    assert len(to_text(taken, candidates=3, depth=1).splitlines()) == 4
    whole = to_text(taken, candidates=100)
    assert len(whole.splitlines()) == taken.nodes
    assert "policy  visits" in whole
    path = tmp_path / "tree.png"
    to_picture(taken, path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_the_default_file_is_the_declared_default():
    text = (share_directory() / "config" / "search" / "default.yaml").read_text()
    assert text.endswith(to_yaml(SearchParameters(), "search"))


@pytest.mark.parametrize("name", ["default", "paper"])
def test_parameter_files_are_valid(name):
    import yaml

    path = share_directory() / "config" / "search" / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())["/**"]["ros__parameters"]["search"]
    parameters = build(SearchParameters, dotted(values))
    assert flatten(parameters).items() >= dotted(values).items()
    parameters.require_chunk(8, 4)


def test_the_documented_table_is_the_declared_one():
    text = (ROOT / "docs" / "search.md").read_text()
    assert to_markdown(SearchParameters, "search.") in text
    assert all(d.description.endswith((".", ")")) for d in declarations(SearchParameters))
