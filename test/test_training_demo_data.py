import argparse
import itertools
from dataclasses import replace

import numpy as np
import pytest

from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Episode, Kind
from vla_reasoner_ros.data.recordings import open_recordings
from vla_reasoner_ros.data.seeds import RANGES, require_seed, said_of_seeds
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training import demo_data
from vla_reasoner_ros.training.demo_data import Job, object_poses, plan, record, recorded_success
from vla_reasoner_ros.types import ActionChunk


@pytest.fixture(scope="module")
def world():
    made = World()
    yield made
    made.close()


class Still:
    """A policy that closes the gripper and waits, and counts its queries."""

    def __init__(self, spec):
        self.spec = spec
        self.queries = 0

    def reset(self):
        self.queries = 0

    def propose(self, observation, n=1):
        self.queries += 1
        return [ActionChunk(self.spec, np.zeros((8, 7)), observation.stamp_ns)]


def test_the_purposes_share_no_seed():
    assert all(a.stop == b.start for a, b in itertools.pairwise(RANGES.values()))
    assert require_seed(100_000, "training") == 100_000
    with pytest.raises(ConfigurationError, match="seed 49999: expected 50000 to 99999 for tuning"):
        require_seed(49_999, "tuning")


def test_it_is_said_which_seeds_are_of_another_purpose():
    assert said_of_seeds(range(50_000), ["tuning", "training"]) == ""
    assert said_of_seeds(range(50_000, 100_000), ["training"]) == ""
    said = said_of_seeds(range(49_990, 100_010), ["tuning", "training"])
    assert "seeds 50000 to 99999 are of the range for tuning; " in said
    assert "seeds 100000 to 100009 are of the range for training: " in said


def test_a_plan_balances_tasks_and_gives_each_kind_seeds_of_its_own(tmp_path):
    counts = {Kind.EXPERT: 4, Kind.NOISY_EXPERT: 4, Kind.POLICY: 2}
    jobs = plan(tmp_path, counts, ["lift_green", "red_on_plate"], 100_000)
    assert [job.task for job in jobs if job.kind is Kind.EXPERT] == [
        "lift_green",
        "red_on_plate",
    ] * 2
    assert len({job.seed for job in jobs}) == len({job.path for job in jobs}) == 10
    with pytest.raises(ConfigurationError, match="seed 7"):
        plan(tmp_path, counts, ["lift_green"], 7)
    with pytest.raises(ConfigurationError, match="no_such_task"):
        plan(tmp_path, counts, ["no_such_task"], 100_000)


def test_an_experts_episode_repeats_in_the_simulator(world, tmp_path):
    job = Job(Kind.EXPERT, "lift_green", 100_000, tmp_path / "a.safetensors")
    assert record(world, job)
    episode = Episode(job.path)
    assert episode.meta.success
    assert episode.meta.instruction == world.reset("lift_green", 100_000)
    assert episode.progress[-1] > episode.progress[0]
    np.testing.assert_allclose(episode["object_poses"][0], object_poses(world), atol=1e-6)
    for step, action in enumerate(episode.executed_actions[:5]):
        np.testing.assert_allclose(episode["joint_positions"][step], world.data.qpos[:7], atol=1e-4)
        world.apply(action)


@pytest.mark.parametrize("kind", [Kind.EXPERT, Kind.NOISY_EXPERT])
def test_an_episode_recorded_as_a_bag_has_the_same_arrays(world, tmp_path, kind):
    job = Job(kind, "lift_green", 200_001, tmp_path / "a.safetensors", limit=12)
    done = record(world, job)
    bag = replace(job, path=tmp_path / "bags" / "a", contract="sim")
    assert record(world, bag) == done == recorded_success(bag)
    assert [path.name for path in bag.path.parent.iterdir()] == ["a"]
    (again,) = open_recordings([bag.path.parent], cache=tmp_path / "cache")
    episode = Episode(job.path)
    assert again.meta == episode.meta
    exact = {"actions", "executed_actions", "progress", "simulator_state", "object_poses"}
    for name in episode._layout:
        tolerance = 0.0 if name in exact or name.startswith("image/") else 2e-6
        np.testing.assert_allclose(again[name], episode[name], atol=tolerance, err_msg=name)


def test_the_disturbed_expert_records_the_answer_beside_what_was_done(world, tmp_path):
    job = Job(Kind.NOISY_EXPERT, "lift_green", 200_000, tmp_path / "a.safetensors", limit=15)
    record(world, job)
    episode = Episode(job.path)
    difference = np.abs(episode.actions - episode.executed_actions)
    assert (difference[:, :3].max(axis=1) > 1e-4).all()
    again = Job(Kind.NOISY_EXPERT, "lift_green", 200_000, tmp_path / "b.safetensors", limit=15)
    record(world, again)
    assert Episode(again.path).content_hash == episode.content_hash


def test_a_policy_is_asked_again_after_part_of_its_chunk_and_may_fail(world, tmp_path):
    policy = Still(world.action_spec)
    path = tmp_path / "a.safetensors"
    job = Job(Kind.POLICY, "lift_green", 300_000, path, limit=10, execute=4)
    assert not record(world, job, policy)
    assert policy.queries == 3
    assert len(Episode(path)) == 10
    assert Episode(path).meta.kind is Kind.POLICY


def test_a_recording_goes_on_where_it_was_interrupted(tmp_path, capsys):
    parser = argparse.ArgumentParser()
    demo_data.add_arguments(parser)
    words = ["--out", str(tmp_path), "--tasks", "lift_green", "--limit", "3", "--jobs", "1"]
    assert demo_data.run(parser.parse_args([*words, "--expert", "1"])) == 0
    (first,) = tmp_path.iterdir()
    before = first.stat().st_mtime_ns
    assert demo_data.run(parser.parse_args([*words, "--expert", "2"])) == 0
    assert first.stat().st_mtime_ns == before
    assert len(EpisodeSet.open(tmp_path)) == 2
    assert "0 of    2 solved" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say how many"),
        (["--policy", "200000"], "at most 100000"),
    ],
)
def test_bad_counts_are_refused(words, message):
    parser = argparse.ArgumentParser()
    demo_data.add_arguments(parser)
    with pytest.raises(ConfigurationError, match=message):
        demo_data.run(parser.parse_args(words))
