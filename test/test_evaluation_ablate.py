import argparse
import json

import pytest

from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import ablate
from vla_reasoner_ros.evaluation.ablations import read_ablation
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.sim.tasks import TASKS

SHIPPED = sorted((share_directory() / "config" / "ablations").glob("*.yaml"))

EXAMPLE = """
title: Depth & budget
question: How deep?
reference: deep
arm: search_learned
set: {search.simulations: 32}
options: {prior: {weights: {gaussian: 1.0}}}
variants:
  shallow: {set: {search.depth: 1}}
  deep: {}
"""


def written(tmp_path, text):
    path = tmp_path / "example.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def parsed(*words):
    parser = argparse.ArgumentParser()
    ablate.add_arguments(parser)
    return parser.parse_args(words)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_ablation_can_be_run(path):
    ablation = read_ablation(path)
    assert len(ablation.variants) >= 3
    assert ablation.reference


def test_variants_take_what_is_common_and_change_it(tmp_path):
    ablation = read_ablation(written(tmp_path, EXAMPLE))
    shallow, deep = ablation.variants
    assert shallow.arm == deep.arm == "search_learned"
    assert shallow.overrides == {"search.simulations": 32, "search.depth": 1}
    assert deep.overrides == {"search.simulations": 32}
    assert deep.options == {"prior": {"weights": {"gaussian": 1.0}}}
    further = ablate.with_common(ablation, {"search.depth": 3, "search.alpha": 0.2})
    assert [v.overrides["search.depth"] for v in further.variants] == [1, 3]
    assert all(v.overrides["search.alpha"] == 0.2 for v in further.variants)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("search.depth: 1", "search.dept: 1", r"'shallow'.*did you mean search\.depth"),
        ("arm: search_learned", "arm: guess", "'shallow'.*arm 'guess' is unknown"),
        ("reference: deep", "reference: dep", "reference 'dep' is no variant"),
        ("title:", "name:", "missing title; unknown name"),
        ("options: {prior", "options: {priors", "expected policy, world_model.*got 'priors'"),
        ("deep: {}", "Shallow: {}", "names differ"),
        ("deep: {}", "Policy Alone: {}", "other than 'policy alone'.*'Policy Alone'"),
        ("deep: {}", "deep: 3", "expected a mapping, got int"),
        ("title: Depth", "title: [", "not valid YAML"),
    ],
)
def test_a_file_that_cannot_be_run_says_where_it_is_wrong(old, new, message, tmp_path):
    with pytest.raises(ConfigurationError, match=message):
        read_ablation(written(tmp_path, EXAMPLE.replace(old, new)))


def outcome(job):
    """Deep search succeeds always, shallow search on even seeds, the policy never."""
    depth = job.settings.overrides.get("search.depth")
    searched = job.case.arm != "policy"
    return {
        "task": job.case.task,
        "seed": job.case.seed,
        "arm": job.case.arm,
        "success": searched and (depth != 1 or job.case.seed % 2 == 0),
        "decision_ms": [10.0, 20.0],
        "world_model_calls": [4 if searched else 0],
    }


def test_every_variant_is_compared_on_the_same_scenes_and_nothing_is_run_twice(
    tmp_path, monkeypatch
):
    run = []

    def run_cases(jobs, engine):
        run.extend(jobs)
        return ((job, outcome(job)) for job in jobs)

    monkeypatch.setattr(ablate, "run_cases", run_cases)
    words = [str(written(tmp_path, EXAMPLE)), "--out", str(tmp_path / "out"), "--tasks"]
    words += ["lift_green,push_blue_back", "--episodes", "5", "--seed-start", "60"]
    assert ablate.run(parsed(*words)) == 0
    assert len(run) == 3 * 2 * 5
    results = json.loads((tmp_path / "out" / "example.json").read_text())
    base, shallow, deep = results["variants"]
    assert [base["success"], shallow["success"], deep["success"]] == [0.0, 0.6, 1.0]
    assert deep["over_policy"]["points"] == 100.0
    assert deep["over_policy"]["mcnemar_p"] == pytest.approx(2 / 2**10)
    assert shallow["over_reference"]["lost"] == 4
    assert deep["over_reference"] is None
    assert shallow["by_task"] == {"lift_green": 3, "push_blue_back": 3}
    report = (tmp_path / "out" / "example.md").read_text()
    assert "| shallow | 10 | 60 % (31 to 83) |" in report
    page = (tmp_path / "out" / "example.html").read_text()
    assert "Depth &amp; budget" in page
    assert "<svg" in page
    run.clear()
    assert ablate.run(parsed(*words)) == 0
    assert run == []
    with pytest.raises(ConfigurationError, match="made with other overrides"):
        ablate.run(parsed(*words, "--set", "search.alpha=0"))


def test_names_and_words_with_signs_are_kept_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(ablate, "run_cases", lambda jobs, engine: ((j, outcome(j)) for j in jobs))
    path = written(tmp_path, EXAMPLE.replace("shallow:", "'1 $ <&> \\foo$':"))
    words = [str(path), "--out", str(tmp_path / "out"), "--tasks", "lift_green", "--episodes", "1"]
    monkeypatch.setattr("sys.argv", ["vla-reasoner", "ablate", "my depth.yaml"])
    assert ablate.run(parsed(*words)) == 0
    facts = json.loads((tmp_path / "out" / "example.json").read_text())["facts"]
    assert facts["command"] == "vla-reasoner ablate 'my depth.yaml'"
    assert "1 $ <&> \\foo$" in (tmp_path / "out" / "example.md").read_text()
    assert "1 $ &lt;&amp;&gt; \\foo$" in (tmp_path / "out" / "example.html").read_text()


def ablated(tmp_path, monkeypatch, *words):
    """The jobs of an ablation, none of which is run, and its results."""
    run = []

    def run_cases(jobs, engine):
        run.extend(jobs)
        return ((job, outcome(job)) for job in jobs)

    monkeypatch.setattr(ablate, "run_cases", run_cases)
    out = tmp_path / "out"
    given = [str(written(tmp_path, EXAMPLE)), "--out", str(out), "--tasks", "lift_green"]
    assert ablate.run(parsed(*given, "--episodes", "2", *words)) == 0
    return run, json.loads((out / "example.json").read_text())


def test_what_is_set_for_all_is_set_for_the_policy_that_they_are_compared_with(
    tmp_path, monkeypatch
):
    run, results = ablated(tmp_path, monkeypatch, "--set", "search.executed=2")
    assert len(run) == 3 * 2
    assert all(job.settings.overrides["search.executed"] == 2 for job in run)
    assert results["variants"][0]["set"] == {"search.executed": 2}
    kept = (tmp_path / "out" / "policy.episodes.jsonl").read_text().splitlines()
    assert json.loads(kept[0])["overrides"] == {"search.executed": 2}
    with pytest.raises(ConfigurationError, match=r"policy.*made with other overrides"):
        ablated(tmp_path, monkeypatch)


def test_variants_are_compared_on_scenes_for_tuning_and_those_for_training_are_said(
    tmp_path, monkeypatch, capsys
):
    _, results = ablated(tmp_path / "tuning", monkeypatch, "--seed-start", "51000")
    assert "warning" not in results["facts"]
    assert "warning: " not in capsys.readouterr().err
    _, results = ablated(tmp_path / "training", monkeypatch, "--seed-start", "99999")
    said = "seeds 100000 to 100000 are of the range for training"
    assert said in results["facts"]["warning"]
    assert f"warning: {said}" in capsys.readouterr().err
    assert f"- warning: {said}" in (tmp_path / "training" / "out" / "example.md").read_text()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("search.dept=1", r"--set: parameter search\.dept: .*did you mean search\.depth"),
        ("planner.polic=pi0", r"--set: parameter planner\.polic: .*planner\.policy"),
        ("search.samples=0", r"--set: parameter search\.samples: expected at least 1"),
        ("search.reuse=true", "--set, ablation example: variant 'other': "),
    ],
)
def test_what_is_set_for_all_is_checked_before_anything_runs(setting, message, tmp_path):
    path = written(
        tmp_path, EXAMPLE.replace("deep: {}", "deep: {}\n  other: {set: {search.method: cem}}")
    )
    with pytest.raises(ConfigurationError, match=message):
        ablate.run(parsed(str(path), "--set", setting, "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()


def test_tasks_are_checked_before_anything_runs(tmp_path):
    path = written(tmp_path, EXAMPLE)
    with pytest.raises(ConfigurationError, match="task 'juggle' is unknown"):
        ablate.run(parsed(str(path), "--tasks", "juggle", "--out", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    assert "juggle" not in TASKS
