from dataclasses import replace

import pytest
import yaml
from example_settings import Settings
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros import parameters as core
from vla_reasoner_ros.errors import ConfigurationError

# Declarations.


def test_names_join_the_groups_with_dots():
    assert [d.name for d in core.declarations(Settings)] == [
        "enabled",
        "policy",
        "cameras",
        "weights",
        "search.simulations",
        "search.alpha",
        "search.rule",
        "search.deadline",
    ]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"enabled": 1}, "parameter enabled: expected bool, got 1"),
        ({"search.simulations": True}, "parameter search.simulations: expected int, got True"),
        ({"search.simulations": 1.0}, "expected int, got 1.0"),
        ({"search.simulations": 0}, "expected at least 1, got 0"),
        ({"search.alpha": 1.01}, "parameter search.alpha: expected at most 1.0, got 1.01"),
        ({"search.alpha": float("nan")}, "expected a finite number, got nan"),
        ({"search.alpha": "0.5"}, "expected float, got '0.5'"),
        ({"search.deadline": -1.0}, "expected at least 0.0 s, got -1.0"),
        ({"search.rule": "luck"}, "expected one of ucb, puct, got 'luck'"),
        ({"cameras": "agent"}, "parameter cameras: expected a list of str, got 'agent'"),
        ({"weights": [0.5, -0.5]}, "parameter weights: expected at least 0.0, got -0.5"),
        ({"search.alfa": 0.5}, "search.alfa: there is none of this name; did you mean search.alp"),
        ({"weights": [0.5, 0.5]}, "weights: expected 1, one per camera, got 2"),
    ],
)
def test_a_bad_value_is_refused_by_name(values, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        core.build(Settings, values)


def test_changes_are_taken_all_or_none():
    before = Settings()
    with pytest.raises(ConfigurationError, match="simulations"):
        core.replace(before, {"search.alpha": 0.1, "search.simulations": 0})
    after = core.replace(before, {"search.alpha": 1, "cameras": ["a", "b"]})
    assert after == replace(before, cameras=("a", "b"), search=replace(before.search, alpha=1.0))
    assert before == Settings()


@given(st.floats(0, 1), st.integers(1, 1000), st.lists(st.text(max_size=5), max_size=3))
def test_values_survive_the_way_through_yaml(alpha, simulations, cameras):
    values = {"search.alpha": alpha, "search.simulations": simulations, "cameras": cameras}
    settings = core.build(Settings, values)
    text = yaml.safe_dump(core.nested(core.flatten(settings)))
    assert core.build(Settings, core.dotted(yaml.safe_load(text))) == settings
