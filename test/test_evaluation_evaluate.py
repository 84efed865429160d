import argparse
import ast
import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from vla_reasoner_ros.control.commands import Commands, TimedTrajectory
from vla_reasoner_ros.control.trajectory import JointTrajectory, MotionState
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms, evaluate, real_time, runs
from vla_reasoner_ros.evaluation.closed_loop import run_episode
from vla_reasoner_ros.evaluation.records import CommandCounts
from vla_reasoner_ros.evaluation.runs import Case, EpisodeStore, Job, Settings, run_cases
from vla_reasoner_ros.executor import EngineSettings
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.sim.joint_trajectory_controller import Rejection
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


@pytest.fixture(scope="module")
def plain_world():
    world = World()
    yield world
    world.close()


CHANGED = share_directory() / "config" / "scenes" / "changed.py"
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
    with pytest.raises(ConfigurationError, match="is a folder; name a file in it"):
        evaluate.run(parsed("--json", str(tmp_path)))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("first", "said"),
    [
        (49_998, ""),
        (49_999, "seeds 50000 to 50000 are of the range for tuning"),
        (100_000, "seeds 100000 to 100001 are of the range for training"),
    ],
)
def test_scenes_that_were_trained_or_tuned_on_are_said(first, said, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        evaluate, "run_cases", lambda jobs, engine: ((job, summary(job.case)) for job in jobs)
    )
    path = tmp_path / "out.json"
    words = ["--json", str(path), "--arms", "policy", "--tasks", "lift_green", "--episodes", "2"]
    assert evaluate.run(parsed(*words, "--seed-start", str(first))) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning: " in line]
    facts = json.loads(path.read_text())["facts"]
    report = path.with_suffix(".md").read_text()
    if said:
        assert warnings == [f"warning: {facts['warning']}"]
        assert said in facts["warning"]
        assert f"- warning: {said}" in report
    else:
        assert warnings == []
        assert "warning" not in facts
        assert "warning" not in report


@pytest.mark.parametrize("name", ["alpha_0.5", "results.md"])
def test_a_name_with_a_dot_is_a_name_as_others(name, tmp_path, monkeypatch):
    monkeypatch.setattr(
        evaluate, "run_cases", lambda jobs, engine: ((job, summary(job.case)) for job in jobs)
    )
    monkeypatch.setattr("sys.argv", ["vla-reasoner", "evaluate", "--json", "my results/out.json"])
    words = ["--arms", "policy,search", "--tasks", "lift_green", "--episodes", "1"]
    assert evaluate.run(parsed("--json", str(tmp_path / name), *words)) == 0
    made = [".episodes.jsonl", ".gain.svg", ".md", ".success.svg"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [name, *(name + end for end in made)]
    facts = json.loads((tmp_path / name).read_text())["facts"]
    assert facts["command"] == "vla-reasoner evaluate --json 'my results/out.json'"


def test_an_arm_is_what_it_is_whatever_the_user_sets():
    overrides = {"search.method": "cem", "search.simulations": 32, "planner.value": "progress"}
    assert arms.search_parameters("best_of_n", overrides).method == "best_of_n"
    assert arms.search_parameters("search", overrides).method == "cem"
    assert arms.component_parameters("oracle", overrides).value == "privileged"
    assert arms.component_parameters("oracle", overrides).world_model == "simulator"


def test_search_is_what_is_shipped_or_what_the_user_names(monkeypatch):
    red = SimpleNamespace(passed=False, reason="the card is red")
    monkeypatch.setattr(arms, "world_model_verdict", lambda: red)
    assert arms.component_parameters("search", {}).world_model == "none"
    assert "the policy alone: the card is red" in arms.notes(["search"])[0]
    named = {"planner.world_model": "simulator"}
    assert arms.component_parameters("best_of_n", named).world_model == "simulator"
    assert arms.component_parameters("search_learned", named).world_model == "latent"
    green = SimpleNamespace(passed=True, reason="")
    monkeypatch.setattr(arms, "world_model_verdict", lambda: green)
    assert arms.component_parameters("search", {}).world_model == "latent"
    assert arms.notes(["search"]) == []


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


def test_a_damaged_line_elsewhere_costs_no_episode(tmp_path):
    path = tmp_path / "out.episodes.jsonl"
    store = EpisodeStore(path, Settings())
    for case in CASES:
        store.add(case, summary(case))
    header, first, second = path.read_text().splitlines()
    for damaged, number in ((first[:9], 2), ("[1]", 2), ('{"task": "lift_green"}', 2)):
        written = f"{header}\n{damaged}\n{second}\n"
        path.write_text(written)
        with pytest.raises(ConfigurationError, match=rf"jsonl, line {number}: expected"):
            EpisodeStore(path, Settings())
        assert path.read_text() == written
    path.write_text("[1]\n")
    with pytest.raises(ConfigurationError, match=r"jsonl, line 1: expected a JSON object, got"):
        EpisodeStore(path, Settings())
    assert EpisodeStore(path, Settings(), fresh=True).finished(CASES) == []


def test_episodes_of_another_function_of_the_same_scene_hook_are_not_mixed_in(
    tmp_path, monkeypatch
):
    path = tmp_path / "out.episodes.jsonl"
    settings = Settings(scene_hook=f"{CHANGED}:dim_light")
    EpisodeStore(path, settings).add(CASES[0], summary(CASES[0]))
    assert CASES[0] in EpisodeStore(path, settings)
    with pytest.raises(ConfigurationError, match="made with other scene_hook; give another"):
        EpisodeStore(path, Settings(scene_hook=f"{CHANGED}:shifted_camera"))
    monkeypatch.setenv("HOME", str(CHANGED.parent))
    assert CASES[0] in EpisodeStore(path, Settings(scene_hook="~/changed.py:dim_light"))


@pytest.mark.parametrize("kind", ["folder", "stem"])
def test_episodes_of_other_models_that_options_name_are_not_mixed_in(kind, tmp_path):
    path, card = tmp_path / "out.episodes.jsonl", tmp_path / "mine" / "net.json"
    card.parent.mkdir()
    card.write_text('{"tensors_sha256": "1"}')
    named = str(card.parent if kind == "folder" else card.with_suffix(""))
    options = tmp_path / "options.yaml"
    options.write_text(f"options: {{kde: {{model: {named}}}}}")
    for settings in (
        Settings(options={"value": {"models_dir": named}}),
        Settings(overrides={"planner.prior_options": str(options)}),
    ):
        card.write_text('{"tensors_sha256": "1"}')
        EpisodeStore(path, settings, fresh=True).add(CASES[0], summary(CASES[0]))
        assert CASES[0] in EpisodeStore(path, settings)
        card.write_text('{"tensors_sha256": "2"}')
        with pytest.raises(ConfigurationError, match="made with other options_models; give"):
            EpisodeStore(path, settings)


def test_episodes_of_other_settings_are_not_mixed_in(tmp_path):
    path = tmp_path / "out.episodes.jsonl"
    EpisodeStore(path, Settings()).add(CASES[0], summary(CASES[0]))
    other = Settings(overrides={"search.depth": 3})
    with pytest.raises(ConfigurationError, match="made with other overrides"):
        EpisodeStore(path, other)
    assert CASES[0] not in EpisodeStore(path, other, fresh=True)


def test_episodes_of_another_options_file_are_not_mixed_in(tmp_path):
    options = tmp_path / "prior.yaml"
    options.write_text("bandwidth: 1.0")
    path = tmp_path / "out.episodes.jsonl"
    settings = Settings(overrides={"planner.prior_options": str(options)})
    EpisodeStore(path, settings).add(CASES[0], summary(CASES[0]))
    assert CASES[0] in EpisodeStore(path, settings)
    options.write_text("bandwidth: 2.0")
    with pytest.raises(ConfigurationError, match="made with other options_files; give another"):
        EpisodeStore(path, settings)
    options.unlink()
    with pytest.raises(ConfigurationError, match=r"prior\.yaml: No such file"):
        EpisodeStore(path, settings)


def test_episodes_of_other_defaults_or_another_version_are_not_mixed_in(tmp_path, monkeypatch):
    path = tmp_path / "out.episodes.jsonl"
    EpisodeStore(path, Settings()).add(CASES[0], summary(CASES[0]))
    written = path.read_text()
    header, episode = written.splitlines()
    for name, value in (("search.depth", 99), ("planner.prior", "kde")):
        known = json.loads(header)
        known["parameters"][name] = value
        path.write_text(f"{json.dumps(known)}\n{episode}\n")
        with pytest.raises(ConfigurationError, match="made with other parameters; give"):
            EpisodeStore(path, Settings())
    known = json.loads(header)
    del known["version"], known["parameters"], known["options_files"]
    path.write_text(f"{json.dumps(known)}\n{episode}\n")
    with pytest.raises(ConfigurationError, match="other version, parameters, options_files; give"):
        EpisodeStore(path, Settings())
    path.write_text(written)
    monkeypatch.setattr(runs, "__version__", "99.0.0")
    with pytest.raises(ConfigurationError, match="made with other version; give"):
        EpisodeStore(path, Settings())


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
    jobs = [Job(case, settings) for case in cases]

    def found(workers):
        results = run_cases(jobs, EngineSettings(workers=workers))
        return {job.case: episode for job, episode in results}

    apart, alone = found(2), found(1)
    assert apart.keys() == alone.keys() == set(cases)
    for case in cases:
        assert apart[case]["progress"] == pytest.approx(alone[case]["progress"], abs=1e-6)


class Slow:
    """The policy's decisions, each after a time that the test chooses."""

    def __init__(self, reasoner, wait_s):
        self.reasoner, self.wait_s = reasoner, wait_s
        self.parameters = reasoner.parameters
        self.reset = reasoner.reset
        self.stamps, self.consumed = [], []

    def decide(self, observation, actions_consumed):
        self.stamps.append(observation.stamp_ns * 1e-9)
        deadline = time.perf_counter() + self.wait_s
        while time.perf_counter() < deadline:
            time.sleep(0.01)
        decision = self.reasoner.decide(observation, actions_consumed=actions_consumed)
        self.consumed.append(decision.chunk.consumed)
        return decision


def test_time_does_not_wait_for_a_planner_that_thinks():
    world, policy = World(), arms.make_reasoner("policy", {})
    world.reset("lift_green", 5)
    policy.warm_up(world.observation())
    slow = Slow(policy, 0.45)
    record = real_time.run_episode(
        world, slow, task="lift_green", seed=5, arm="policy", executed=4, limit=20
    )
    world.close()
    # Longer than the four actions after which a decision is due: each begins where one ended.
    assert record.duration_s == pytest.approx(2.0)
    assert len(slow.stamps) <= 5
    gaps = [after - before for before, after in zip(slow.stamps, slow.stamps[1:], strict=False)]
    assert all(gap >= 0.45 for gap in gaps)
    # Nothing ran while the first decision was made; four actions or more during the others.
    assert slow.consumed[0] == 0
    assert all(consumed >= 4 for consumed in slow.consumed[1:])
    assert record.rejections <= len(slow.stamps)


UNSEEN = ("heavier", "lighter", "rough", "soft_arm")
"""Changes that no camera sees."""


def changed_world(name):
    world = World(f"{CHANGED}:{name}")
    world.reset("lift_green", 3)
    return world


def shipped_changes():
    functions = ast.parse(CHANGED.read_text(encoding="utf-8")).body
    names = [item.name for item in functions if isinstance(item, ast.FunctionDef)]
    return [name for name in names if not name.startswith("_")]


@pytest.mark.parametrize("name", shipped_changes())
def test_a_shipped_change_of_the_scene_is_seen_or_is_none_of_looks(name, plain_world):
    world = changed_world(name)
    plain_world.reset("lift_green", 3)
    seen = [
        np.abs(world.render(c).astype(int) - plain_world.render(c)).mean()
        for c in ("agent", "wrist")
    ]
    world.close()
    assert max(seen) < 0.5 if name in UNSEEN else max(seen) > 0.05


def test_shipped_changes_of_the_blocks_are_as_large_as_they_say(plain_world):
    for name, ratio in (("heavier", 1.3), ("lighter", 0.6), ("larger", 1.12**3)):
        world = changed_world(name)
        block = world.model.body("red_block").id
        usual = plain_world.model.body_mass[block]
        if name == "larger":
            size, plain = (w.model.geom("red_block").size for w in (world, plain_world))
            assert np.prod(size / plain) == pytest.approx(ratio)
        else:
            assert world.model.body_mass[block] / usual == pytest.approx(ratio)
        world.close()


def test_what_the_simulated_arm_would_reject_or_break_is_counted_by_episode(plain_world):
    world = plain_world
    world.reset("lift_green", 5)
    world.controller.rejections[Rejection.EMPTY] += 5  # of an episode before
    live = real_time.LiveArm(world)
    here = MotionState.at_rest(world.data.qpos[:7].copy())
    step = JointTrajectory(
        world.robot.joint_names,
        np.array([0.0, 0.01]),
        here.position + np.array([np.zeros(7), np.full(7, 0.1)]),
        *np.zeros((2, 2, 7)),
    )
    live._send(Commands(TimedTrajectory(world.time_ns, step)))
    live.pass_time(0.02)
    live._send(Commands(TimedTrajectory(world.time_ns - 10**9, step)))  # ends in the past
    counted = live.commands
    assert (counted.sent, counted.rejected) == (2, 1)
    assert counted.violations > 0


def test_an_upper_bound_thinks_in_no_time():
    assert arms.thinks_in_no_time("oracle")
    assert not arms.thinks_in_no_time("search_twin")
    world, policy = World(), arms.make_reasoner("policy", {})
    world.reset("lift_green", 5)
    policy.warm_up(world.observation())
    slow = Slow(policy, 0.3)
    real_time.run_episode(
        world, slow, task="lift_green", seed=5, arm="oracle", executed=4, limit=8, counted=False
    )
    world.close()
    assert slow.stamps == pytest.approx([0.0, 0.4])
    assert slow.consumed == [0, 0]


def test_a_planner_that_is_quick_decides_when_its_actions_are_used_up():
    world, policy = World(), arms.make_reasoner("policy", {})
    world.reset("lift_green", 5)
    policy.warm_up(world.observation())
    record = real_time.run_episode(
        world, policy, task="lift_green", seed=5, arm="policy", executed=4, limit=12
    )
    moved = world.true_state().tcp[2]
    world.reset("lift_green", 5)
    start = world.true_state().tcp[2]
    world.close()
    assert record.duration_s == pytest.approx(1.2)
    assert record.rejections == 0
    assert record.commands == CommandCounts(sent=3, rejected=0, violations=0)
    assert start - moved > 0.02  # the arm has come down to the block


def test_an_evaluation_runs_to_its_table_and_goes_on_where_it_was(tmp_path, capsys, monkeypatch):
    out = tmp_path / "out.json"
    words = ["--json", str(out), "--tasks", "push_blue_back", "--arms", "policy", "--jobs", "1"]
    assert evaluate.run(parsed(*words, "--episodes", "1", "--seed-start", "3")) == 0
    assert "push_blue_back    n = 1" in capsys.readouterr().out
    results = json.loads(out.read_text())
    assert results["overall"]["n"] == 1
    assert results["tasks"]["push_blue_back"]["success"]["policy"] in (0.0, 1.0)
    assert results["overall"]["decision_ms"]["policy"]["p50"] > 0.0
    report = out.with_suffix(".md").read_text()
    assert "| push_blue_back | 1 |" in report
    assert out.with_suffix(".success.svg").read_text().startswith("<?xml")

    def never(*_):
        raise AssertionError("a finished episode was run again")

    monkeypatch.setattr("vla_reasoner_ros.evaluation.runs.Worker.__call__", never)
    assert evaluate.run(parsed(*words, "--episodes", "1", "--seed-start", "3")) == 0
