import errno
import os
from dataclasses import replace

import numpy as np
import pytest
import recordings
from recordings import KINEMATICS, SECOND, START

from vla_reasoner_ros import cli
from vla_reasoner_ros.data import bag_episodes, episode_bags
from vla_reasoner_ros.data.bag_episodes import ImportOptions, bags_in, episodes_from_bag
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import Gripper, load_contract
from vla_reasoner_ros.data.episode_bags import write_episode
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.data.episodes import Episode, EpisodeWriter
from vla_reasoner_ros.data.messages import ACTION_CHUNK, SIMULATOR_STATE, chunk_fields
from vla_reasoner_ros.data.recordings import open_recordings
from vla_reasoner_ros.errors import BagError, ConfigurationError, EpisodeError
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.types import (
    ActionChunk,
    ActionSpec,
    GripperSpec,
    Observation,
    Representation,
)

SPEC = ActionSpec(
    Representation.EE_DELTA,
    ("x", "y", "z", "rx", "ry", "rz", "gripper"),
    "base",
    0.1,
    GripperSpec(6),
)
CHUNKS = recordings.TOPICS | {"/action_chunk": ACTION_CHUNK}


def imported(bag, folder, text=recordings.CONTRACT, **options):
    files, problems = episodes_from_bag(
        bag, recordings.contract(text), folder, ImportOptions(**options), KINEMATICS
    )
    return [Episode(file) for file in files], problems


@pytest.fixture
def simulated(tmp_path):
    """An episode as demo-data writes them."""
    rng = np.random.default_rng(3)
    writer = EpisodeWriter(SPEC, ("red_block", "plate"))
    for step in range(6):
        joints = np.array(KINEMATICS.robot.home) + rng.normal(size=7) * 0.05
        joints = joints.astype(np.float32).astype(np.float64)
        position, quaternion = KINEMATICS.forward(joints)
        observation = Observation(
            stamp_ns=step * SECOND // 10,
            images={
                camera: rng.integers(0, 256, (96, 96, 3), dtype=np.uint8)
                for camera in ("agent", "wrist")
            },
            joint_names=KINEMATICS.robot.joint_names,
            joint_positions=joints,
            joint_velocities=rng.normal(size=7),
            ee_position=position,
            ee_quaternion=quaternion,
            gripper=0.25 * (step % 5),
            instruction="put the red block on the plate",
            simulator_state=rng.normal(size=11),
        )
        action = rng.normal(size=7)
        writer.append(observation, action, step / 6, rng.normal(size=(2, 7)), action + 0.1)
    path = tmp_path / "episodes" / "one.safetensors"
    writer.write(path, task="red_on_plate", seed=100_007, success=False, kind="noisy_expert")
    return Episode(path)


def test_an_episode_survives_the_way_through_a_bag(simulated, tmp_path):
    contract = load_contract("sim")
    bag = write_episode(tmp_path / "bag", simulated, contract)
    (file,), problems = episodes_from_bag(bag, contract, tmp_path / "again", None, KINEMATICS)
    again = Episode(file)
    assert problems == []
    assert again.meta == simulated.meta
    for name in simulated._layout:
        np.testing.assert_allclose(again[name], simulated[name], atol=1e-6, err_msg=name)
    np.testing.assert_array_equal(again.images["wrist"], simulated.images["wrist"])
    np.testing.assert_array_equal(again.actions, simulated.actions)
    np.testing.assert_array_equal(again["simulator_state"], simulated["simulator_state"])


def test_what_does_not_fit_the_contract_is_not_exported(simulated, tmp_path):
    with pytest.raises(ConfigurationError, match="10 Hz, the contract has 20"):
        write_episode(
            tmp_path / "bag",
            simulated,
            recordings.contract(recordings.CONTRACT.replace("rate: 10.0", "rate: 20.0")),
        )


def test_a_latency_of_the_contract_is_in_the_stamps_of_an_exported_bag(simulated, tmp_path):
    plain = load_contract("sim")
    late = {n: replace(c, latency=0.04 + 0.3 * (n == "wrist")) for n, c in plain.cameras.items()}
    contract = replace(plain, cameras=late)
    bag = write_episode(tmp_path / "bag", simulated, contract)
    (file,), problems = episodes_from_bag(bag, contract, tmp_path / "again", None, KINEMATICS)
    assert problems == []
    for name in simulated._layout:
        np.testing.assert_allclose(Episode(file)[name], simulated[name], atol=1e-6, err_msg=name)


def test_a_gripper_without_joints_in_the_contract_is_not_lost_in_silence(simulated, tmp_path):
    contract = replace(load_contract("sim"), gripper=Gripper())
    with pytest.raises(ConfigurationError, match="gripper has no joints to say so"):
        write_episode(tmp_path / "bag", simulated, contract)
    assert not (tmp_path / "bag").exists()


def test_an_export_that_was_interrupted_leaves_no_bag(simulated, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(episode_bags, "encode_png", interrupted)
        patch.setattr(episode_bags, "image_fields", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_episode(tmp_path / "bags" / "one", simulated, load_contract("sim"))
    assert list((tmp_path / "bags").iterdir()) == []
    export = ["export-bags", str(simulated.path.parent), "--out", str(tmp_path / "bags")]
    assert cli.main(export) == 0
    (episode,) = open_recordings([tmp_path / "bags"], cache=tmp_path / "cache")
    assert len(episode) == len(simulated)


def test_an_export_keeps_only_what_it_would_write_again(simulated, tmp_path, capsys):
    export = ["export-bags", str(simulated.path.parent), "--out", str(tmp_path / "bags")]
    assert cli.main(export) == 0
    assert cli.main(export) == 0
    assert "0 bags written, 1 in" in capsys.readouterr().out
    contract = tmp_path / "other.yaml"
    contract.write_text(recordings.CONTRACT.replace("tolerance: 0.05", "tolerance: 0.06"))
    assert cli.main([*export, "--contract", str(contract)]) == cli.EXIT_ERROR
    assert "one: exists already with contract_sha256" in capsys.readouterr().err
    simulated.path.write_bytes(made_with_another_seed(simulated).read_bytes())
    assert cli.main(export) == cli.EXIT_ERROR
    assert "one: exists already with episode_sha256" in capsys.readouterr().err


def made_with_another_seed(episode):
    writer = EpisodeWriter(SPEC)
    for step in range(len(episode)):
        observation = replace(episode.observation(step), simulator_state=None)
        writer.append(observation, episode.actions[step])
    path = episode.path.parent.parent / "another" / episode.path.name
    return writer.write(path, task="red_on_plate", seed=100_008, success=True, kind="expert")


def test_episodes_of_one_name_are_not_exported_over_one_another(simulated, tmp_path, capsys):
    other = tmp_path / "others" / simulated.path.name
    other.parent.mkdir()
    other.write_bytes(simulated.path.read_bytes())
    folders = [str(simulated.path.parent), str(other.parent)]
    assert cli.main(["export-bags", *folders, "--out", str(tmp_path / "bags")]) == cli.EXIT_ERROR
    said = capsys.readouterr().err
    assert str(simulated.path) in said
    assert str(other) in said
    assert not (tmp_path / "bags").exists()


def test_where_no_action_was_recorded_the_motion_is_taken(tmp_path):
    bag = recordings.record(tmp_path / "bag")
    (episode,), _ = imported(bag, tmp_path / "out", task="mine")
    assert len(episode) == 9
    assert episode.meta.action_spec == SPEC
    assert (episode.meta.task, episode.meta.success) == ("mine", True)
    assert episode.meta.seed >= 100_000
    for step in range(8):
        moved = episode["ee_position"][step + 1] - episode["ee_position"][step]
        np.testing.assert_allclose(episode.actions[step][:3], moved, atol=1e-6)
        assert np.linalg.norm(episode.actions[step][3:6]) > 1e-4
    assert set(episode.actions[:, 6]) == {0.0}  # half open counts as closed


@pytest.mark.parametrize("representation", ["joint_position", "joint_delta", "end_effector_pose"])
def test_a_motion_becomes_actions_of_any_convention(tmp_path, representation):
    bag = recordings.record(tmp_path / "bag")
    text = recordings.CONTRACT + f"actions: {{representation: {representation}}}\n"
    (episode,), _ = imported(bag, tmp_path / "out", text)
    after, before = episode["joint_positions"][1], episode["joint_positions"][0]
    expected = {
        "joint_position": after,
        "joint_delta": after - before,
        "end_effector_pose": [*episode["ee_position"][1], *episode["ee_quaternion"][1]],
    }[representation]
    np.testing.assert_allclose(episode.actions[0][:-1], expected, atol=1e-6)
    assert episode.meta.action_spec.names[-1] == "gripper"


def with_chunks(chunks):
    happened = recordings.events()
    for stamp_ns, published_ns, actions in chunks:
        fields = chunk_fields(ActionChunk(SPEC, actions, stamp_ns), published_ns)
        happened.append(("/action_chunk", published_ns, fields))
    return happened


def test_published_chunks_are_the_actions_and_hold_when_they_run_out(tmp_path):
    first, second = np.full((4, 7), 1.0), np.full((2, 7), 2.0)
    first[:, 0], second[:, 0] = np.arange(4), 10 + np.arange(2)
    tenth = SECOND // 10
    chunks = [
        (START + tenth, START + tenth + tenth // 2, first),  # thought about for half an action
        (START + 4 * tenth, START + 5 * tenth, second),
    ]
    bag = recordings.record(tmp_path / "bag", with_chunks(chunks), CHUNKS)
    (episode,), _ = imported(bag, tmp_path / "out")
    # Nothing runs at 0 and 1; the second chunk is published at 5, when its first action has passed.
    assert episode.actions[:, 0].tolist() == [1.0, 2.0, 3.0, 11.0, 0.0, 0.0, 0.0, 0.0]
    assert episode.actions[:, 6].tolist() == [1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0]


def test_chunks_that_were_asked_for_and_are_missing(tmp_path):
    bag = recordings.record(tmp_path / "bag")
    with pytest.raises(BagError, match="topic action_chunk with action chunks is missing"):
        imported(bag, tmp_path / "out", recordings.CONTRACT + "actions: {source: chunks}\n")


def test_a_gap_or_another_instruction_begins_another_episode(tmp_path):
    gap = range(START + 300_000_000, START + 500_000_000)
    happened = [event for event in recordings.events(2.0) if event[1] not in gap]
    happened.append(("/instruction", START + 1_250_000_000, {"data": "push the red block"}))
    episodes, problems = imported(recordings.record(tmp_path / "bag", happened), tmp_path / "out")
    assert [len(episode) for episode in episodes] == [2, 7, 6]
    assert [e.meta.instruction for e in episodes][-1] == "push the red block"
    first, rest, other = episodes
    assert first.meta.seed == rest.meta.seed != other.meta.seed
    assert [e.meta.success for e in episodes] == [False, True, True]
    (problem,) = problems
    assert problem.startswith("1 gaps within demonstrations")
    assert "0.300 s apart, expected 0.100 s" in problem


STATES = CHUNKS | {"/simulator_state": SIMULATOR_STATE}


def with_states(successes, missing=()):
    happened = [e for e in recordings.events(2.0) if e[1] // 10**8 - START // 10**8 not in missing]
    for step, success in enumerate(successes):
        stamp_ns = START + step * SECOND // 10
        state = {"header": {"stamp": stamp_ns}, "task": "t", "episode": 1, "success": success}
        happened.append(("/simulator_state", stamp_ns + 1, state))
    return sorted(happened, key=lambda event: event[1])


@pytest.mark.parametrize(
    ("successes", "missing", "expected"),
    [
        ([False] * 19, (), [False]),  # the last state was lost
        ([False] * 18 + [True] * 2, (10,), [False, True]),
        ([False] * 12, (5,), [False, False, False]),  # the states of the end were lost
        ([False] * 18 + [True], (), [True]),
    ],
)
def test_a_simulators_newest_verdict_counts(tmp_path, successes, missing, expected):
    bag = recordings.record(tmp_path / "bag", with_states(successes, missing), STATES)
    episodes, _ = imported(bag, tmp_path / "out")
    assert [e.meta.success for e in episodes] == expected
    assert len({e.meta.seed for e in episodes}) == 1


def test_actions_stay_with_the_run_of_their_time(tmp_path):
    topics = CHUNKS | {"/clock": "rosgraph_msgs/msg/Clock"}
    happened = []
    for run, value in enumerate((1.0, 2.0)):
        for topic, time_ns, fields in recordings.events(1.0, 10 * SECOND):
            recorded_ns = START + run * 20 * SECOND + time_ns
            happened.append(("/clock", recorded_ns - 1000, {"clock": time_ns}))
            happened.append((topic, recorded_ns, fields))
            if topic == "/agent/image_raw":
                stamp_ns = fields["header"]["stamp"]
                chunk = ActionChunk(SPEC, np.full((4, 7), value), stamp_ns)
                told = chunk_fields(chunk, stamp_ns)
                happened.append(("/action_chunk", recorded_ns + 1000, told))
    bag = recordings.record(tmp_path / "bag", happened, topics)
    episodes, _ = imported(bag, tmp_path / "out")
    assert [set(e.actions[:, 0]) for e in episodes] == [{1.0}, {2.0}]


def test_bags_are_found_once_and_not_in_hidden_folders(tmp_path):
    """A part that was not finished lies within its recording's folder."""
    for name in ("day/run", "day/run/part_1", "day/.cache/run"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "part.mcap").touch()
    assert bags_in([tmp_path]) == [tmp_path / "day" / "run"]


def test_a_changed_robot_file_is_another_reading(tmp_path):
    file = tmp_path / "cell.yaml"
    text = (share_directory() / "config" / "robots" / "fr3.yaml").read_text()
    bag = recordings.record(tmp_path / "bag")
    contract = recordings.contract(recordings.CONTRACT.replace("fr3\n", f"{file}\n", 1))
    heights = []
    for tool in ("0.1034", "0.2034", "0.2034"):
        file.write_text(
            text.replace("translation: [0.0, 0.0, 0.1034]", f"translation: [0, 0, {tool}]")
        )
        (path,), _ = episodes_from_bag(bag, contract, tmp_path / "out")
        heights.append(float(Episode(path)["ee_position"][0, 2]))
    assert abs(heights[1] - heights[0]) > 0.05
    assert heights[2] == heights[1]
    assert len(EpisodeSet.open(tmp_path / "out")) == 1


def test_a_bag_with_two_action_conventions_is_refused(tmp_path, capsys):
    turned = replace(SPEC, gripper=GripperSpec(6, open=0.0, closed=1.0))
    happened = with_chunks([(START, START, np.zeros((4, 7)))])
    chunk = ActionChunk(turned, np.zeros((4, 7)), START + SECOND // 2)
    happened.append(
        ("/action_chunk", START + SECOND // 2, chunk_fields(chunk, START + SECOND // 2))
    )
    bag = recordings.record(tmp_path / "bags" / "two", happened, CHUNKS)
    with pytest.raises(BagError, match=r"two: action conventions differ; gripper"):
        imported(bag, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_bad_message_is_said_and_the_rest_is_taken(tmp_path):
    nothing = chunk_fields(ActionChunk(SPEC, np.zeros((1, 7)), START), START)
    nothing["actions"] = np.full(7, np.nan)
    happened = [
        *with_chunks([(START, START, np.ones((9, 7)))]),
        ("/action_chunk", START + 1, b"\x00\x01\x00\x00\x01\x02\x03"),
        ("/executed_action", START + 2, nothing),
        ("/cell/episode", START + 3, {"data": "take 3"}),
        ("/cell/episode", START + 4, {"data": "3"}),
    ]
    topics = CHUNKS | {"/executed_action": ACTION_CHUNK, "/cell/episode": recordings.STRING}
    bag = recordings.record(tmp_path / "bag", happened, topics)
    (episode,), problems = imported(bag, tmp_path / "out")
    assert len(episode) == 10
    assert episode.actions[0, 0] == 1.0
    for topic, count in (("/action_chunk", 1), ("/executed_action", 1), ("/cell/episode", 2)):
        assert any(p.startswith(f"{topic}: {count} messages not used") for p in problems), topic


def test_steps_that_lack_what_others_have_part_an_episode(simulated, tmp_path):
    contract = load_contract("sim")
    bag = write_episode(tmp_path / "bag", simulated, contract)
    whole = messages_of(bag)
    lost = [n for n, (topic, *_) in enumerate(whole) if topic == "/executed_action"][2]
    with BagReader(bag) as reader:
        topics = {topic.name: topic.type for topic in reader.topics.values()}
    other = recordings.record(tmp_path / "other", whole[:lost] + whole[lost + 1 :], topics)
    files, problems = episodes_from_bag(other, contract, tmp_path / "out", None, KINEMATICS)
    assert sum(len(Episode(file)) for file in files) == len(simulated) - 1
    assert any(problem.startswith("2 gaps") for problem in problems)


def messages_of(bag):
    with BagReader(bag) as reader:
        return [(m.topic, m.time_ns, bytes(m.data)) for m in reader.messages()]


def test_cameras_of_another_rhythm_than_the_contracts_are_named(tmp_path):
    happened = [e for e in recordings.events(4.0) if "image" not in e[0]]
    for number in range(60):
        stamp_ns = START + number * SECOND // 15
        for offset, camera in enumerate(("wrist", "agent")):
            shown = recordings.picture(stamp_ns, number)
            happened.append((f"/{camera}/image_raw", stamp_ns + 2_000_000 + offset, shown))
    bag = recordings.record(tmp_path / "bag", sorted(happened, key=lambda event: event[1]))
    with pytest.raises(BagError) as error:
        imported(bag, tmp_path / "out")
    assert "0.133 s apart, expected 0.100 s within 25%" in str(error.value)
    assert "pictures of agent must come at a multiple of the contract's 10 Hz" in str(error.value)
    assert str(error.value).count("too few") == 1


def test_a_bag_is_read_once_and_nothing_half_written_counts(tmp_path, monkeypatch):
    bag = recordings.record(tmp_path / "bag")
    folder = tmp_path / "out"
    write = bag_episodes.write_atomically

    def killed(path, content):
        raise KeyboardInterrupt

    monkeypatch.setattr(bag_episodes, "write_atomically", killed)
    with pytest.raises(KeyboardInterrupt):
        imported(bag, folder)
    monkeypatch.setattr(bag_episodes, "write_atomically", write)
    (episode,), _ = imported(bag, folder)
    made = episode.path.stat().st_mtime_ns
    monkeypatch.setattr(bag_episodes, "BagIngest", None)  # is not asked again
    (again,), _ = imported(bag, folder)
    assert (again.path, again.path.stat().st_mtime_ns) == (episode.path, made)
    monkeypatch.undo()
    (other,), _ = imported(bag, folder, task="another")
    assert other.path != episode.path
    assert len(EpisodeSet.open(folder)) == 2


def test_the_verbs(simulated, tmp_path, capsys):
    bags, out = str(tmp_path / "bags"), str(tmp_path / "out")
    assert cli.main(["export-bags", str(simulated.path.parent), "--out", bags]) == 0
    (tmp_path / "bags" / "broken.mcap").write_text("no bag")
    assert cli.main(["import-bags", bags, "--out", out]) == 0
    said = capsys.readouterr()
    assert "1 episodes of 1 bags" in said.out
    assert "is no MCAP file" in said.err
    assert EpisodeSet.open(out)[0].meta.task == "red_on_plate"
    assert cli.main(["import-bags", str(tmp_path / "none")]) == cli.EXIT_ERROR


def test_trainers_read_bags_and_episodes_alike(simulated, tmp_path):
    bag = tmp_path / "bags" / "one"
    write_episode(bag, simulated, load_contract("sim"))
    cache = tmp_path / "cache"
    (again,) = open_recordings([tmp_path / "bags"], cache=cache)
    (episode,) = open_recordings([tmp_path / "episodes"], cache=cache)
    assert again.meta == episode.meta
    for name in episode._layout:
        np.testing.assert_allclose(again[name], episode[name], atol=1e-6, err_msg=name)
    assert isinstance(again.images["agent"], np.memmap)
    assert again.path.parent == cache
    both = open_recordings([tmp_path / "bags", tmp_path / "episodes"], cache=cache)
    assert len(both) == 2


def test_a_cache_within_the_folder_is_no_recording_of_its_own(simulated, tmp_path):
    write_episode(tmp_path / "bags" / "one", simulated, load_contract("sim"))
    cache = tmp_path / "bags" / "cache"
    for _ in range(2):
        assert len(open_recordings([tmp_path / "bags"], cache=cache)) == 1
    assert len(open_recordings([cache], cache=cache)) == 1  # asked for by name


def test_a_bag_is_read_once_and_again_when_it_is_read_otherwise(simulated, tmp_path):
    contract, cache = load_contract("sim"), tmp_path / "cache"
    bag = write_episode(tmp_path / "bags" / "one", simulated, contract)
    (first,) = open_recordings([tmp_path / "bags"], cache=cache)
    written = first.path.stat().st_mtime_ns
    bag.rename(tmp_path / "bags" / "moved")
    (second,) = open_recordings([tmp_path / "bags"], cache=cache)
    assert (second.path, second.path.stat().st_mtime_ns) == (first.path, written)
    (third,) = open_recordings(
        [tmp_path / "bags"], cache=cache, options=ImportOptions(namespace="/")
    )
    assert third.path != first.path


def test_bags_that_are_unusable_are_left_out_and_none_left_is_an_error(simulated, tmp_path, capsys):
    broken = tmp_path / "bags" / "broken"
    broken.mkdir(parents=True)
    (broken / "broken.mcap").write_bytes(b"nothing of the kind")
    with pytest.raises(EpisodeError, match="none of its 1 bags is usable"):
        open_recordings([tmp_path / "bags"], cache=tmp_path / "cache")
    write_episode(tmp_path / "bags" / "one", simulated, load_contract("sim"))
    assert len(open_recordings([tmp_path / "bags"], cache=tmp_path / "cache")) == 1
    assert "left out" in capsys.readouterr().err
    with pytest.raises(EpisodeError, match="there is none"):
        open_recordings([tmp_path / "no_such"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(EpisodeError, match="no bag in it"):
        open_recordings([tmp_path / "empty"])


def test_a_full_disk_while_caching_is_named_and_leaves_nothing(simulated, tmp_path, monkeypatch):
    write_episode(tmp_path / "bags" / "one", simulated, load_contract("sim"))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EpisodeError, match=r"cache .*: No space left on device"):
        open_recordings([tmp_path / "bags"], cache=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
