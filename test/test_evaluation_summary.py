import json

import pytest

from vla_reasoner_ros.evaluation.markdown import write_markdown
from vla_reasoner_ros.evaluation.summary import summarise


def episode(task, seed, arm, success, times=(10.0,)):
    return {
        "task": task,
        "seed": seed,
        "arm": arm,
        "success": success,
        "decision_ms": list(times),
        "world_model_calls": [2] * len(times),
    }


@pytest.fixture
def episodes():
    """Ten scenes of two tasks: the search gains 4 of the lift scenes and loses one push scene."""
    cases = [("lift", seed, seed < 1, seed < 5) for seed in range(5)]
    cases += [("push", seed, seed < 3, seed < 2) for seed in range(5)]
    return [
        episode(task, seed, arm, outcome, times)
        for task, seed, base, search in cases
        for arm, outcome, times in (("policy", base, [5.0]), ("search", search, [40.0, 60.0]))
    ]


def test_success_differences_and_times_are_told_overall_and_by_task(episodes):
    numbers = summarise(episodes, ["policy", "search"])
    overall = numbers["overall"]
    assert overall["n"] == 10
    assert overall["success"] == {"policy": 0.4, "search": 0.7}
    assert overall["difference_points"] == pytest.approx(30.0)
    low, high = overall["difference_interval"]
    assert low < 30.0 < high
    assert overall["differences"]["search"]["gained"] == 4
    assert overall["differences"]["search"]["lost"] == 1
    assert overall["mcnemar_p"] == pytest.approx(0.375)
    assert overall["decision_ms"]["search"] == {"p50": 50.0, "p95": 60.0}
    assert numbers["tasks"]["push"]["difference_points"] == pytest.approx(-20.0)
    json.dumps(numbers, allow_nan=False)


def test_what_the_arm_says_of_its_commands_adds_up_and_is_told(episodes, tmp_path):
    for index, found in enumerate(episodes):
        counts = {"sent": 10, "rejected": index % 2, "violations": 0}
        found["commands"] = counts if found["arm"] == "search" else None
    numbers = summarise(episodes, ["policy", "search"])
    assert numbers["overall"]["commands"] == {
        "policy": None,
        "search": {"sent": 100, "rejected": 10, "violations": 0},
    }
    page = tmp_path / "out.md"
    named = [{"name": name, "label": name, "description": ""} for name in ("policy", "search")]
    write_markdown(page, numbers | {"arms": named, "facts": {}, "notes": []})
    assert "| search | 100 | 10 | 0 |" in page.read_text()


def test_a_scene_that_one_arm_has_not_met_is_not_counted(episodes):
    unfinished = [e for e in episodes if (e["task"], e["seed"], e["arm"]) != ("lift", 0, "search")]
    assert summarise(unfinished, ["policy", "search"])["overall"]["n"] == 9


def test_the_headline_is_the_arm_called_search_wherever_it_stands(episodes):
    more = [
        *episodes,
        *(episode(e["task"], e["seed"], "oracle", True) for e in episodes if e["arm"] == "policy"),
    ]
    numbers = summarise(more, ["policy", "oracle", "search"])["overall"]
    assert numbers["difference_points"] == pytest.approx(30.0)
    assert numbers["differences"]["oracle"]["points"] == pytest.approx(60.0)


def test_without_the_base_there_is_no_difference(episodes):
    numbers = summarise(episodes, ["search"])["overall"]
    assert numbers["difference_points"] is None
    assert numbers["differences"] == {}


def test_nothing_finished_is_no_error():
    numbers = summarise([], ["policy", "search"])
    assert numbers["overall"]["n"] == 0
    json.dumps(numbers, allow_nan=False)
