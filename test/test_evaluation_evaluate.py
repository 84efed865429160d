import argparse
import json

import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms, evaluate
from vla_reasoner_ros.evaluation.closed_loop import run_episode
from vla_reasoner_ros.evaluation.runs import Case, EpisodeStore, Settings, run_cases
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import World


def parsed(*words):
    parser = argparse.ArgumentParser()
    evaluate.add_arguments(parser)
    return parser.parse_args(words)


def summary(case, success=True):
    return {
        "task": case.task,
        "seed": case.seed,
        "arm": case.arm,
        "success": success,
        "ending": "success",
        "decision_ms": [1.0],
        "world_model_calls": [0],
    }


CASES = [Case("lift_green", 0, "policy"), Case("lift_green", 1, "policy")]


def test_every_arm_meets_every_scene_seed_by_seed():
    cases = evaluate.plan("all", 2, 100, ["policy", "search"])
    assert len(cases) == 2 * len(TASKS) * 2
    assert {case.seed for case in cases[: len(cases) // 2]} == {100}
    assert cases[0].task == cases[1].task
    assert [case.arm for case in cases[:2]] == ["policy", "search"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("juggle", 1, 0, ["policy"]), "task 'juggle' is unknown"),
        (("lift_green,lift_green", 1, 0, ["policy"]), "tasks: a name stands twice"),
        (("all", 1, 0, ["guess"]), "arm 'guess' is unknown"),
        (("all", 1, 0, ["policy", "policy"]), "arms: a name stands twice"),
        (("all", 0, 0, ["policy"]), "at least 1 episode"),
        (("all", 1, -1, ["policy"]), "first seed of 0 or more"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigurationError, match=message):
        evaluate.plan(*given)


def test_settings_are_read_as_yaml():
    words = ["search.depth=3", "search.alpha=0.5", "planner.prior=kde", "search.reuse=true"]
    assert evaluate.parse_overrides(words) == {
        "search.depth": 3,
        "search.alpha": 0.5,
        "planner.prior": "kde",
        "search.reuse": True,
    }
    with pytest.raises(ConfigurationError, match=r"expected NAME=VALUE, got 'search\.depth'"):
        evaluate.parse_overrides(["search.depth"])


def test_a_wrong_setting_is_refused_before_anything_runs(tmp_path):
    words = parsed("--json", str(tmp_path / "out.json"), "--set", "search.dephts=3")
    with pytest.raises(ConfigurationError, match=r"did you mean search\.depth"):
        evaluate.run(words)
    assert list(tmp_path.iterdir()) == []


def test_an_arm_is_what_it_is_whatever_the_user_sets():
    overrides = {"search.method": "cem", "search.simulations": 32, "planner.value": "progress"}
    assert arms.search_parameters("best_of_n", overrides).method == "best_of_n"
    assert arms.search_parameters("search", overrides).method == "cem"
    assert arms.component_parameters("oracle", overrides).value == "privileged"
    assert arms.component_parameters("oracle", overrides).world_model == "simulator"


def test_the_true_simulator_is_never_hidden():
    assert any("true simulator" in note for note in arms.notes(["policy", "oracle"]))
    assert "true simulator" in arms.describe("search_simulator").description
    assert arms.notes(["policy"]) == []


def test_finished_episodes_are_kept_and_not_run_again(tmp_path):
    path = tmp_path / "out.episodes.jsonl"
    store = EpisodeStore(path, Settings())
    store.add(CASES[0], summary(CASES[0]))
    again = EpisodeStore(path, Settings())
    assert CASES[0] in again
    assert CASES[1] not in again
    assert again.finished(CASES) == [summary(CASES[0])]


def test_the_half_line_of_a_killed_run_is_forgotten(tmp_path):
    path = tmp_path / "out.episodes.jsonl"
    store = EpisodeStore(path, Settings())
    for case in CASES:
        store.add(case, summary(case))
    path.write_text(path.read_text()[:-20])
    again = EpisodeStore(path, Settings())
    assert again.finished(CASES) == [summary(CASES[0])]
    again.add(CASES[1], summary(CASES[1]))
    assert len(EpisodeStore(path, Settings()).finished(CASES)) == 2


def test_episodes_of_other_settings_are_not_mixed_in(tmp_path):
    path = tmp_path / "out.episodes.jsonl"
    EpisodeStore(path, Settings()).add(CASES[0], summary(CASES[0]))
    other = Settings(overrides={"search.depth": 3})
    with pytest.raises(ConfigurationError, match="made with other overrides"):
        EpisodeStore(path, other)
    assert CASES[0] not in EpisodeStore(path, other, fresh=True)


def test_the_same_seed_gives_the_same_episode():
    world = World()
    reasoner = arms.make_reasoner("oracle", {"search.simulations": 8})
    first, again = (
        run_episode(world, reasoner, task="lift_green", seed=5, arm="oracle", executed=4, limit=12)
        for _ in range(2)
    )
    world.close()
    assert len(first.decisions) == 3
    assert first.progress == again.progress
    for ours, theirs in zip(first.decisions, again.decisions, strict=True):
        for name in ("chosen_id", "chosen_value", "policy_value", "seed"):
            assert ours.statistics[name] == theirs.statistics[name]


@pytest.mark.slow
def test_processes_find_what_one_process_finds():
    settings = Settings(limit=8)
    cases = [Case(task, 7, "policy") for task in list(TASKS)[:3]]
    apart = dict(run_cases(cases, settings, jobs=2))
    alone = dict(run_cases(cases, settings, jobs=1))
    assert apart.keys() == alone.keys() == set(cases)
    for case in cases:
        assert apart[case]["progress"] == pytest.approx(alone[case]["progress"], abs=1e-6)


def test_an_evaluation_runs_to_its_table_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    words = ["--json", str(out), "--tasks", "push_blue_back", "--arms", "policy", "--jobs", "1"]
    assert evaluate.run(parsed(*words, "--episodes", "1", "--seed-start", "3")) == 0
    assert "push_blue_back    n = 1" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["overall"]["n"] == 1
    assert results["tasks"]["push_blue_back"]["success"]["policy"] in (0.0, 1.0)
    assert results["overall"]["decision_ms"]["policy"]["p50"] > 0.0

    def never(*_):
        raise AssertionError("a finished episode was run again")

    monkeypatch.setattr("vla_reasoner_ros.evaluation.runs.Worker.run", never)
    assert evaluate.run(parsed(*words, "--episodes", "1", "--seed-start", "3")) == 0
