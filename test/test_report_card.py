import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from vla_reasoner_ros import cli
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import models_fingerprint
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training import report_card
from vla_reasoner_ros.training.branches import (
    CANDIDATES,
    EXPERT,
    PILOT,
    Branches,
    branch,
    branch_files,
    candidates,
    expert_macro,
    record_scene,
)
from vla_reasoner_ros.training.encoder import outcome_frames
from vla_reasoner_ros.training.latents import BranchLatents, true_latents
from vla_reasoner_ros.training.measures import (
    calibration_error,
    chance_above,
    choice,
    cluster_interval,
    dynamics_measures,
    failure_measures,
    rank_correlations,
    ranking_measures,
)
from vla_reasoner_ros.training.report_card import closed_loop_measures, judge
from vla_reasoner_ros.world_models.encoder import LatentLayout

LAYOUT = LatentLayout()


@pytest.fixture
def true():
    return np.random.default_rng(0).uniform(0.0, 1.0, (20, 16))


def test_perfect_reversed_and_constant_values(true):
    assert np.allclose(rank_correlations(true, true), 1.0)
    assert np.allclose(rank_correlations(-true, true), -1.0)
    assert np.allclose(rank_correlations(np.zeros_like(true), true), 0.0)


def test_candidates_without_a_true_order_are_not_ranked():
    flat = np.full((1, 16), 0.5)
    assert np.isnan(rank_correlations(np.arange(16.0)[None], flat)).all()


def test_a_perfect_value_gains_what_is_possible_and_regrets_nothing(true):
    found = choice(true, true)
    assert np.allclose(found["gain"], found["possible"])
    assert np.allclose(found["regret"], 0.0)
    assert (choice(-true, true)["gain"] <= 0.0).all()


def test_a_value_that_prefers_the_pilot_gains_nothing(true):
    values = np.zeros_like(true)
    values[:, PILOT] = 1.0
    assert np.allclose(choice(values, true)["gain"], 0.0)


def test_calibration_error_is_the_offset_of_the_values(true):
    assert calibration_error(true, true) == pytest.approx(0.0)
    assert calibration_error(true + 0.1, true) == pytest.approx(0.1)


def test_chance_above_is_the_area_under_the_curve():
    assert chance_above(np.array([0.9, 0.8]), np.array([0.1, 0.2])) == 1.0
    assert chance_above(np.array([0.5, 0.5]), np.array([0.5])) == 0.5


def test_intervals_know_that_decisions_of_one_scene_are_alike():
    rng = np.random.default_rng(0)
    scene = np.repeat(np.arange(10), 20)
    measure = rng.normal(0.3, 0.1, 10)[scene]
    low, high = cluster_interval(measure, scene, np.random.default_rng(1))
    naive_low, naive_high = cluster_interval(measure, np.arange(200), np.random.default_rng(1))
    assert low < measure.mean() < high
    assert high - low > 2.0 * (naive_high - naive_low)
    measure[3] = np.nan
    assert np.isfinite(cluster_interval(measure, scene, rng)).all()


def test_a_mark_that_is_missed_is_named_and_one_not_measured_is_not_judged():
    marks = ("rank_correlation", "gain_low", "monotonicity")
    good = judge({"rank_correlation": 0.6, "gain_low": 0.01}, marks)
    assert good["passed"]
    assert good["failures"] == []
    assert [mark["measure"] for mark in good["marks"]] == ["rank_correlation", "gain_low"]
    bad = judge({"rank_correlation": 0.3, "gain_low": 0.0}, marks)
    assert not bad["passed"]
    assert bad["failures"] == [
        "within-decision rank correlation: 0.300, expected at least 0.5",
        "lower 95 % bound of the true gain over the pilot's own: 0.000, expected above 0",
    ]
    assert not judge({"rank_correlation": np.nan}, marks)["passed"]


def test_a_world_model_does_not_pass_before_it_has_driven(tmp_path):
    marks = ("rank_correlation", "closed_loop_low")
    found = judge({"rank_correlation": 0.9}, marks)
    assert not found["passed"]
    assert found["failures"] == [
        "lower 95 % bound of the success gained over the policy, in points: not measured"
    ]
    measures = {"rank_correlation": 0.9} | closed_loop_measures(results(tmp_path), tmp_path)
    assert measures["closed_loop_points"] == 25.0
    assert judge(measures, marks)["passed"]


def results(folder, n=120, **facts):
    """A file as an evaluation of the models in a folder writes it."""
    path = folder / "loop" / "results.json"
    path.parent.mkdir(exist_ok=True)
    overall = {
        "n": n,
        "success": {"policy": 0.5, "search_learned": 0.75},
        "differences": {"search_learned": {"points": 25.0, "interval": [15.0, 34.0]}},
    }
    facts = {"models": models_fingerprint(folder)} | facts
    path.write_text(json.dumps({"overall": overall, "facts": facts}))
    return path


@pytest.mark.parametrize("content", ["{}", "[]", "no JSON", '{"overall": {"n": 120}}'])
def test_what_is_no_evaluation_is_no_closed_loop(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(ConfigurationError, match="expected results of vla-reasoner evaluate"):
        closed_loop_measures(path, tmp_path)


def test_episodes_of_other_models_are_no_closed_loop(tmp_path):
    (tmp_path / "latent_dynamics.json").write_text("first")
    path = results(tmp_path)
    (tmp_path / "report_card.json").write_text("judged before")
    assert closed_loop_measures(path, tmp_path)["closed_loop_episodes"] == 120
    (tmp_path / "latent_dynamics.json").write_text("trained again")
    with pytest.raises(ConfigurationError, match=r"driven by others, \w+: evaluate again"):
        closed_loop_measures(path, tmp_path)


def test_a_few_episodes_are_no_closed_loop(tmp_path):
    assert closed_loop_measures(results(tmp_path, n=100), tmp_path)["closed_loop_episodes"] == 100
    with pytest.raises(ConfigurationError, match=r"at least 100 scenes .* got 99: evaluate more"):
        closed_loop_measures(results(tmp_path, n=99), tmp_path)


def test_the_closed_loop_is_checked_before_anything_is_measured(tmp_path, capsys):
    words = ["report-card", "--models", tmp_path, "--closed-loop", results(tmp_path, n=3)]
    assert cli.main([str(word) for word in words]) == cli.EXIT_ERROR
    assert "closed loop" in capsys.readouterr().err
    assert not (tmp_path / "report_card.json").exists()


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def test_recorded_decisions_are_labelled_again_from_their_states(branches, tmp_path):
    zeros = replace(branches, outcome_progress=np.zeros_like(branches.outcome_progress))
    zeros.save(tmp_path / "a.npz")
    assert cli.main(["branches", "--relabel", str(tmp_path)]) == 0
    again = Branches.load(tmp_path / "a.npz")
    np.testing.assert_array_equal(again.progress, branches.progress)
    np.testing.assert_array_equal(again.outcome_progress, branches.outcome_progress)
    assert again.outcome_progress.max() > 0.0


@pytest.fixture(scope="module")
def branches(world):
    return record_scene(world, "red_on_plate", 65_001, 0.3, 0.3, most=3)


def test_episodes_of_scenes_that_were_trained_on_judge_nothing(branches, tmp_path):
    """The scene of decisions for training shows a pilot that the models know."""
    all_of_them = [SimpleNamespace(meta=SimpleNamespace(seed=s), contract={}) for s in range(200)]
    episodes = EpisodeSet(all_of_them)
    held_out = {episode.meta.seed for episode in episodes.split(0.1)[1]}
    trained, other = sorted(held_out)[:2]
    folder = tmp_path / "train"
    folder.mkdir()
    replace(branches, scene=np.full_like(branches.scene, trained)).save(folder / "a.npz")
    kept = report_card.unseen(episodes, [tmp_path / "held_out"])
    seeds = {episode.meta.seed for episode in kept}
    assert seeds == held_out - {trained}
    assert other in seeds


def as_latents(branches, encoded_root=None):
    """Branches whose encoder makes no error, unless told its roots."""
    names = ("ee_position", "ee_quaternion", "gripper", "joint_velocity", "positions",
             "rotations", "held")  # fmt: skip
    root = true_latents(LAYOUT, *[getattr(branches, name) for name in names])
    outcomes = true_latents(LAYOUT, *[getattr(branches, f"outcome_{name}") for name in names])
    count = len(branches)
    return BranchLatents(
        scene=branches.scene,
        task=branches.task,
        sentence=np.zeros((count, 384), dtype=np.float32),
        actions=branches.actions.reshape(count, CANDIDATES, 2, 4, 7),
        progress=branches.progress,
        outcome_progress=branches.outcome_progress,
        root=root,
        outcomes=outcomes[:, :, 0],
        true_root=root,
        true_outcomes=outcomes,
    )


def test_a_perfect_world_model_beats_copying_and_depends_on_its_actions(branches):
    latents = as_latents(branches)
    shuffled = np.roll(latents.true_outcomes, 1, axis=1)
    noisy = latents.true_outcomes.copy()
    noisy[..., LAYOUT.slices["ee_position"]] += 0.001
    found = dynamics_measures(LAYOUT, noisy, shuffled, latents)
    assert found["object_error_ratio"] == pytest.approx(0.0, abs=1e-6)
    assert found["object_error_last_m"] == pytest.approx(0.0, abs=1e-6)
    assert found["arm_error_ratio"] < 0.5
    assert found["action_sensitivity"] > 5.0
    assert found["arm_error_m"][0] == pytest.approx(0.001 * np.sqrt(3), rel=1e-3)


def test_a_world_model_that_copies_is_no_better_than_copying(branches):
    latents = as_latents(branches)
    copied = np.broadcast_to(latents.root[:, None, None], latents.true_outcomes.shape)
    found = dynamics_measures(LAYOUT, copied, copied, latents)
    assert found["object_error_ratio"] == pytest.approx(1.0)
    assert found["arm_error_ratio"] == pytest.approx(1.0)
    assert found["action_sensitivity"] == pytest.approx(1.0)
    assert found["drift_of_untouched_objects_m"][0] == 0.0


def test_ranking_measures_of_the_truth_are_perfect(branches):
    latents = as_latents(branches)
    truth = latents.outcome_progress[:, :, 0].astype(float)
    found = ranking_measures(truth, latents, np.random.default_rng(0))
    assert found["rank_correlation"] == pytest.approx(1.0)
    assert found["gain"] == pytest.approx(found["possible_gain"])
    assert found["harmed"] == 0.0
    assert found["error_within_decision"] == pytest.approx(0.0)


def test_candidates_that_lead_to_the_same_cannot_be_ranked(branches):
    latents = as_latents(branches)
    flat = replace(latents, outcome_progress=np.full_like(latents.outcome_progress, 0.5))
    with pytest.raises(ConfigurationError, match="do the candidates truly differ"):
        ranking_measures(np.zeros((len(flat), CANDIDATES)), flat, np.random.default_rng(0))


def test_harm_must_be_imagined_as_harm(branches):
    latents = as_latents(branches)
    change = np.linspace(-0.2, 0.2, latents.outcome_progress[:, :, 0].size)
    outcome = latents.outcome_progress.copy()
    outcome[:, :, 0] = latents.progress[:, None] + change.reshape(outcome[:, :, 0].shape)
    latents = replace(latents, outcome_progress=outcome)
    now = latents.progress.astype(float)
    truth = outcome[:, :, 0].astype(float)
    found = failure_measures(truth, now, latents)
    assert found["setbacks_recognised"] == 1.0
    assert found["setbacks_imagined_as_such"] == 1.0
    # One that never saw a failure: whatever is done, all goes well.
    hopeful = failure_measures(np.full(truth.shape, 0.1), np.zeros(len(now)), latents)
    assert hopeful["setbacks_recognised"] == 0.5
    assert hopeful["setbacks_imagined_as_such"] == 0.0
    # Nothing went wrong in these: nothing to judge.
    good = replace(latents, outcome_progress=outcome.clip(min=latents.progress.max()))
    assert "setbacks_recognised" not in failure_measures(truth, now, good)


def test_branching_leaves_the_world_as_it_was(world):
    world.reset("push_blue_back", 65_002)
    before = world.get_state()
    branch(world, expert_macro(world), LAYOUT, np.random.default_rng(0))
    assert np.array_equal(world.get_state(), before)


def test_the_recorded_outcome_is_what_the_actions_lead_to(world, branches):
    world.set_state(branches.simulator_state[0])
    for action in branches.actions[0, EXPERT, :4]:
        world.apply(action.astype(np.float64))
    assert world.progress() == pytest.approx(branches.outcome_progress[0, EXPERT, 0], abs=1e-3)
    assert np.allclose(
        world.true_state().tcp, branches.outcome_ee_position[0, EXPERT, 0], atol=1e-4
    )


def test_a_scene_is_recorded_the_same_twice(world, branches):
    again = record_scene(world, "red_on_plate", 65_001, 0.3, 0.3, most=3)
    assert np.array_equal(again.actions, branches.actions)
    assert np.array_equal(again.outcome_agent, branches.outcome_agent)


def test_candidates_keep_the_pilots_and_the_experts_own():
    pilot, expert = np.full((4, 7), 0.01), np.full((4, 7), -0.01)
    pilot[:, 6], expert[:, 6] = 1.0, 0.0
    drawn = candidates(pilot, expert, np.random.default_rng(0))
    assert drawn.shape == (CANDIDATES, 4, 7)
    assert np.array_equal(drawn[PILOT], pilot)
    assert np.array_equal(drawn[EXPERT], expert)
    assert set(np.unique(drawn[..., 6])) == {0.0, 1.0}
    spread = (drawn[2:-3, :, :3].mean(axis=1) - 0.01).std()
    assert 0.004 < spread < 0.016


def test_outcomes_make_labelled_frames(world, branches):
    frames = outcome_frames(branches, world, 2, np.random.default_rng(0))
    assert len(frames) == 2 * len(branches)
    assert np.isfinite(frames.agent_points).all(axis=-1).mean() > 0.8


def test_what_fell_off_the_table_is_no_frame_and_not_deep_down(world, branches):
    fallen = replace(branches, outcome_positions=branches.outcome_positions.copy())
    fallen.outcome_positions[..., 0, 2] = -3.0
    assert len(outcome_frames(fallen, world, 1, np.random.default_rng(0))) == 0
    heights = as_latents(fallen).true_outcomes[..., LAYOUT.slices["object_position"]][..., 2::3]
    assert heights.min() == pytest.approx(-0.05)


def test_branches_come_back_from_their_file(branches, tmp_path):
    branches.save(tmp_path / "expert_065001.npz")
    (path,) = branch_files(tmp_path)
    loaded = Branches.load(path)
    assert np.array_equal(loaded.outcome_progress, branches.outcome_progress)
    assert str(loaded.instruction[0]) == str(branches.instruction[0])
    assert str(loaded.task[0]) in TASKS


def test_files_that_are_no_branches_are_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="record them first"):
        branch_files(tmp_path)
    (tmp_path / "x.npz").write_bytes(b"no zip file")
    with pytest.raises(ConfigurationError, match="not a file of branched decisions"):
        Branches.load(tmp_path / "x.npz")


def test_every_mark_has_a_meaning():
    assert {*report_card.VALUE_MARKS, *report_card.WORLD_MODEL_MARKS} == set(report_card.MARKS)
    for relation, mark, meaning in report_card.MARKS.values():
        assert relation in ("at least", "above", "below")
        assert np.isfinite(mark)
        assert meaning
