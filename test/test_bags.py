import shutil
import sqlite3
import zlib
from functools import partial

import numpy as np
import pytest
import recordings
import yaml
from recordings import IMAGE, JOINT_STATE, KINEMATICS, SECOND, START, STRING, TOPICS
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from vla_reasoner_ros.data import message_types
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader, BagWriter
from vla_reasoner_ros.errors import BagError

FIRST = START + SECOND // 10


def read(path, contract=None, **options):
    """What comes of a bag: observations, and everything that was said against it."""
    with BagReader(path) as bag:
        ingest = BagIngest(bag, contract or recordings.contract(), kinematics=KINEMATICS, **options)
        seen = [moment.observation for moment in ingest.moments()]
        return seen, [*bag.problems, *ingest.problems], ingest


def said(problems, *words):
    return any(all(word in problem for word in words) for problem in problems)


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return recordings.record(tmp_path_factory.mktemp("usual") / "bag")


@pytest.fixture
def bag(usual, tmp_path):
    return shutil.copytree(usual, tmp_path / "bag")


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("options", [{}, {"compress": True}, {"split_bytes": 20_000}])
def test_what_is_written_comes_back(tmp_path, storage, options):
    happened = recordings.events()
    path = recordings.record(
        tmp_path / "bag", happened, storage=storage, custom={"a": "b"}, **options
    )
    with BagReader(path) as reader:
        assert reader.problems == []
        assert reader.custom == {"a": "b"}
        assert {name: topic.type for name, topic in reader.topics.items()} == TOPICS
        assert reader.topics["/joint_states"].count == 50
        messages = list(reader.messages())
        assert [(m.topic, m.time_ns) for m in messages] == [(t, n) for t, n, _ in happened]
        fields = reader.deserialize(messages[1])
        assert list(fields.name) == recordings.JOINTS
        assert message_types.to_nanoseconds(fields.header.stamp) == START
        window = list(reader.messages(["/joint_states"], (FIRST, FIRST + SECOND // 10)))
        assert [m.time_ns for m in window] == [FIRST + i * SECOND // 50 + 10**6 for i in range(5)]
    assert (len(list(path.glob(f"*.{'mcap' if storage == 'mcap' else 'db3'}"))) > 1) == (
        "split_bytes" in options
    )


@pytest.mark.parametrize("mode", [CompressionMode.FILE, CompressionMode.MESSAGE])
@pytest.mark.parametrize("plugin", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_bags_of_others_are_read_whatever_their_compression(tmp_path, mode, plugin):
    writer = Writer(tmp_path / "bag", version=8, storage_plugin=plugin)
    writer.set_compression(mode, CompressionFormat.ZSTD)
    types = message_types.standard_types()
    with writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=types)
            for topic, kind in TOPICS.items()
        }
        for topic, time_ns, message in recordings.events():
            data = message_types.serialize(TOPICS[topic], message)
            writer.write(connections[topic], time_ns, data)
    seen, problems, _ = read(tmp_path / "bag")
    assert len(seen) == 10
    assert problems == []


def test_observations_of_a_bag_are_complete(bag):
    seen, problems, ingest = read(bag)
    assert problems == []
    assert [o.stamp_ns for o in seen] == [START + i * SECOND // 10 for i in range(10)]
    assert seen[3].instruction == "lift the green block"
    assert seen[3].gripper == pytest.approx(0.5)
    assert seen[3].images["wrist"].shape == (24, 32, 3)
    assert seen[3].images["agent"][0, 0, 0] == 3 * 15 + 100
    np.testing.assert_allclose(seen[3].joint_positions, np.array(KINEMATICS.robot.home) + 0.015)
    assert ingest.clock == "recorder"
    assert ingest.ingest.moments == {"observed": 10}


def test_topics_are_found_in_a_namespace(tmp_path):
    moved = {f"/left{topic}": kind for topic, kind in TOPICS.items()}
    happened = [(f"/left{topic}", *rest) for topic, *rest in recordings.events()]
    path = recordings.record(tmp_path / "one", happened, moved)
    assert len(read(path)[0]) == 10
    both = {f"/{arm}{topic}": kind for arm in ("left", "right") for topic, kind in TOPICS.items()}
    path = recordings.record(tmp_path / "two", happened, both)
    with pytest.raises(BagError, match="/left/joint_states or /right/joint_states; name the"):
        read(path)
    assert len(read(path, namespace="left")[0]) == 10


def test_foreign_types_are_read_by_their_own_definition(tmp_path):
    text = "float32 force\nstring[] labels\n"
    types = get_types_from_msg(text, "their_msgs/msg/Grip")
    store = message_types.get_typestore(message_types.Stores.ROS2_JAZZY)
    store.register(types)
    name = "their_msgs/msg/Grip"
    definition = store.generate_msgdef(name, ros_version=2)[0], store.hash_rihs01(name)
    message = store.types["their_msgs/msg/Grip"](force=2.5, labels=["left", "right"])
    with BagWriter(tmp_path / "bag") as writer:
        for topic, kind in TOPICS.items():
            writer.add_topic(topic, kind)
        writer.add_topic("/grip", "their_msgs/msg/Grip", definition=definition)
        data = bytes(store.serialize_cdr(message, "their_msgs/msg/Grip"))
        writer.write("/grip", START, data)
        for topic, time_ns, fields in recordings.events():
            writer.write(topic, time_ns, fields)
    with BagReader(tmp_path / "bag") as reader:
        (grip,) = reader.messages(["/grip"])
        assert reader.deserialize(grip).force == 2.5
        assert reader.deserialize(grip).labels == ["left", "right"]
    assert len(read(tmp_path / "bag")[0]) == 10


def test_stamps_of_a_simulator_are_judged_by_its_recorded_clock(tmp_path):
    clock = "rosgraph_msgs/msg/Clock"
    happened = []
    for topic, time_ns, message in recordings.events(start_ns=5 * SECOND):
        happened.append(("/clock", START + 3 * time_ns, {"clock": time_ns - 2_000_000}))
        happened.append((topic, START + 3 * time_ns + 1, message))
    path = recordings.record(tmp_path / "told", happened, {**TOPICS, "/clock": clock})
    seen, _, ingest = read(path)
    assert (len(seen), ingest.clock) == (10, "/clock")
    untold = [event for event in happened if event[0] != "/clock"]
    seen, _, ingest = read(recordings.record(tmp_path / "untold", untold))
    assert (len(seen), ingest.clock) == (10, "stamps")


def test_a_clock_that_jumps_back_begins_anew(tmp_path):
    happened = []
    for part in range(2):
        for topic, time_ns, message in recordings.events(0.5, start_ns=5 * SECOND):
            recorded = START + part * 10 * SECOND + time_ns
            happened.append((topic, recorded, message))
    restarts = []
    with BagReader(recordings.record(tmp_path / "bag", happened)) as reader:
        ingest = BagIngest(reader, recordings.contract(), kinematics=KINEMATICS)
        reset = partial(restarts.append, "again")
        stamps = [m.observation.stamp_ns for m in ingest.moments(restarted=reset)]
    assert restarts == []  # half a second is a stream's delay, not a new beginning
    assert len(stamps) >= 5


# What becomes of damaged bags: each gives what is whole, and says what is not.


def cut(path, share):
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def only_file(bag):
    (file,) = [path for path in bag.iterdir() if path.suffix in (".mcap", ".db3")]
    return file


def long_bag(tmp_path, **options):
    """Noise that no compression shrinks: many chunks."""
    rng = np.random.default_rng(0)
    happened = []
    for topic, time_ns, message in recordings.events(4.0):
        if "image_raw" in topic:
            message = message | {"data": rng.bytes(24 * 32 * 3 * 30), "height": 24 * 30}
        happened.append((topic, time_ns, message))
    return recordings.record(tmp_path / "long", happened, **options)


@pytest.mark.parametrize("compress", [False, True])
def test_a_file_that_was_cut_off_gives_what_is_whole(tmp_path, compress):
    bag = long_bag(tmp_path, compress=compress)
    cut(only_file(bag), 0.5)
    seen, problems, _ = read(bag)
    assert 10 <= len(seen) < 30
    assert said(problems, "long_0.mcap", "cut off")


def test_a_bag_without_metadata_is_read_and_it_is_said(bag):
    (bag / "metadata.yaml").unlink()
    seen, problems, _ = read(bag)
    assert len(seen) == 10
    assert said(problems, "there is no metadata.yaml")


def test_metadata_that_cannot_be_read_is_said(bag):
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: [1,")
    seen, problems, _ = read(bag)
    assert len(seen) == 10
    assert said(problems, "metadata.yaml cannot be read")


def test_a_file_that_metadata_names_and_is_missing(tmp_path):
    bag = recordings.record(tmp_path / "bag", split_bytes=40_000)
    files = sorted(bag.glob("*.mcap"))
    files[1].unlink()
    seen, problems, _ = read(bag)
    assert 2 <= len(seen) < 10
    assert said(problems, files[1].name, "is missing")


def test_a_file_that_metadata_does_not_name_yet(tmp_path):
    bag = recordings.record(tmp_path / "bag", split_bytes=40_000)
    metadata = yaml.safe_load((bag / "metadata.yaml").read_text())
    metadata["rosbag2_bagfile_information"]["relative_file_paths"].pop()
    (bag / "metadata.yaml").write_text(yaml.safe_dump(metadata))
    seen, problems, _ = read(bag)
    assert len(seen) == 10
    assert said(problems, "does not name", "as after a crash")


def test_a_writer_that_died_leaves_what_it_had_written(tmp_path):
    rng = np.random.default_rng(0)
    writer = BagWriter(tmp_path / "bag")
    writer.add_topic("/picture", IMAGE)
    for index in range(200):
        shown = recordings.picture(START + index, 0) | {"data": rng.bytes(24 * 32 * 3 * 30)}
        writer.write("/picture", START + index, shown)
    # Neither closed nor flushed; only what the operating system was given is there.
    with BagReader(shutil.copytree(tmp_path / "bag", tmp_path / "copy")) as reader:
        assert 100 < len(list(reader.messages())) < 200
        assert said(reader.problems, "there is no metadata.yaml")
    writer.close()


def test_a_broken_chunk_is_left_out_and_the_rest_is_read(tmp_path):
    bag = long_bag(tmp_path, compress=True)
    whole = len(read(bag)[0])
    file = only_file(bag)
    content = bytearray(file.read_bytes())
    chunk = content.index(b"zstd", len(content) // 2)
    content[chunk + 12 : chunk + 40] = bytes(28)  # where the compressed frame begins
    file.write_bytes(content)
    seen, problems, _ = read(bag)
    assert whole - 12 <= len(seen) < whole
    stamps = [o.stamp_ns for o in seen]
    assert stamps == sorted(set(stamps))
    assert said(problems, "long_0.mcap", "what is whole of it is read")
    assert said(problems, "long_0.mcap", "the chunk at byte")


def test_an_sqlite_file_that_was_cut_off_gives_its_rows(tmp_path):
    bag = long_bag(tmp_path, storage="sqlite3")
    cut(only_file(bag), 0.6)
    seen, problems, _ = read(bag)
    assert 10 <= len(seen) < 40
    assert said(problems, "long_0.db3")


def test_an_sqlite_file_without_its_tables_is_no_bag(bag):
    shutil.rmtree(bag)
    bag.mkdir()
    sqlite3.connect(bag / "bag_0.db3").execute("CREATE TABLE cats (name TEXT)").connection.close()
    with pytest.raises(BagError, match=r"bag_0\.db3: no topic in it can be read"):
        BagReader(bag)


def test_an_empty_file_and_a_bag_without_messages(tmp_path):
    bag = recordings.record(tmp_path / "empty", [])
    with BagReader(bag) as reader:
        assert said(reader.problems, "it has no messages")
        assert list(reader.messages()) == []
    only_file(bag).write_bytes(b"")
    with BagReader(bag) as reader:
        assert said(reader.problems, "empty_0.mcap is empty")
    with pytest.raises(BagError, match="topic joint_states is missing; it has none"):
        read(bag)


def test_what_is_no_bag_is_refused(tmp_path):
    with pytest.raises(BagError, match="there is none"):
        BagReader(tmp_path / "nothing")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BagError, match=r"no \.mcap or \.db3 file in it"):
        BagReader(tmp_path / "folder")
    (tmp_path / "text.mcap").write_text("not a recording")
    with pytest.raises(BagError, match="is no MCAP file"):
        BagReader(tmp_path / "text.mcap")
    (tmp_path / "bag.zip").write_text("not a recording")
    with pytest.raises(BagError, match=r"expected \.mcap or \.db3"):
        BagReader(tmp_path / "bag.zip")


def test_messages_out_of_order_are_read_by_the_time_of_recording(tmp_path):
    happened = recordings.events(2.0)
    shuffled = [happened[i] for i in np.random.default_rng(1).permutation(len(happened))]
    seen, problems, _ = read(recordings.record(tmp_path / "bag", shuffled))
    assert len(seen) == 20
    assert problems == []


def test_a_missing_topic_is_named_with_those_that_are_there(tmp_path):
    topics = {topic: kind for topic, kind in TOPICS.items() if "wrist" not in topic}
    happened = [event for event in recordings.events() if event[0] in topics]
    bag = recordings.record(tmp_path / "bag", happened, topics)
    with pytest.raises(BagError, match=r"wrist/image_raw is missing; it has /agent/image_raw"):
        read(bag)


def test_a_topic_of_another_type_is_refused(tmp_path):
    topics = TOPICS | {"/wrist/image_raw": STRING}
    happened = [event for event in recordings.events() if "wrist" not in event[0]]
    bag = recordings.record(tmp_path / "bag", happened, topics)
    with pytest.raises(BagError, match=f"has type {STRING}, the contract expects {IMAGE}"):
        read(bag)


def test_an_unknown_type_without_definition_is_said_when_it_is_read(tmp_path):
    with BagWriter(tmp_path / "bag") as writer:
        other = ("their_msgs/Part[] parts\n", "RIHS01_0")
        writer.add_topic("/strange", "their_msgs/msg/Thing", definition=other)
        writer.write("/strange", START, b"\x00\x01\x00\x00abcd")
    with BagReader(tmp_path / "bag") as reader:
        (message,) = reader.messages()
        with pytest.raises(BagError, match="their_msgs/msg/Thing"):
            reader.deserialize(message)


def test_a_stamp_that_comes_twice_is_used_once(tmp_path):
    happened = [event for event in recordings.events() for _ in range(2)]
    seen, problems, _ = read(recordings.record(tmp_path / "bag", happened))
    assert len(seen) == 10
    assert said(problems, "joint_states", "50 repeated")
    assert said(problems, "agent", "10 repeated")


def replaced(topic, change, every=3):
    """The usual events, with every third message of a topic changed."""
    happened, index = [], 0
    for name, time_ns, message in recordings.events():
        if name == topic:
            index += 1
            if index % every == 0:
                message = change(message)
        happened.append((name, time_ns, message))
    return happened


@pytest.mark.parametrize(
    ("topic", "change", "words"),
    [
        (
            "/joint_states",
            lambda m: b"\x00\x01\x00\x00" + bytes([255] * 60),
            ("is no", JOINT_STATE),
        ),
        ("/joint_states", lambda m: b"", ("is no", JOINT_STATE)),
        ("/agent/image_raw", lambda m: b"\x00\x01", ("has no header",)),
        ("/joint_states", lambda m: m | {"position": [float("nan")] * 9}, ("finite number",)),
        ("/joint_states", lambda m: m | {"name": ["a"] * 9}, ("named twice",)),
        ("/joint_states", lambda m: m | {"header": {"stamp": START}}, ("16 backward",)),
        ("/wrist/image_raw", lambda m: m | {"step": 7}, ("step is 7 bytes",)),
        ("/wrist/image_raw", lambda m: m | {"encoding": "bayer_wow"}, ("bayer_wow",)),
        ("/agent/image_raw", lambda m: m | {"header": {"stamp": 0}}, ("old on arrival",)),
        (
            "/agent/image_raw",
            lambda m: m | {"header": {"stamp": START + 60 * SECOND}},
            ("ahead of the clock",),
        ),
    ],
    ids=[
        "wrong bytes",
        "empty message",
        "half a header",
        "NaN",
        "joints named twice",
        "a stamp of the past",
        "wrong step",
        "unknown encoding",
        "stamp zero",
        "stamp in the future",
    ],
)
def test_a_bad_message_is_left_out_and_said(tmp_path, topic, change, words):
    bag = recordings.record(tmp_path / "bag", replaced(topic, change))
    seen, problems, ingest = read(bag)
    assert 6 <= len(seen) <= 10
    assert said(problems, *words), problems
    stream = {"/joint_states": "joint_states"}.get(topic, topic.split("/")[1])
    dropped = sum(ingest.ingest.statistics[stream].dropped.values())
    assert dropped + ingest.unreadable[topic] >= 3


def test_without_an_instruction_there_is_no_observation_and_it_is_said(tmp_path):
    topics = {topic: kind for topic, kind in TOPICS.items() if topic != "/instruction"}
    bag = recordings.record(tmp_path / "bag", recordings.events(instruction=""), topics)
    seen, problems, _ = read(bag)
    assert seen == []
    assert said(problems, "there is no instruction")
    seen, problems, _ = read(bag, instruction="push the red block")
    assert {o.instruction for o in seen} == {"push the red block"}
    assert len(seen) == 10


def test_a_stream_that_never_delivers_is_named(tmp_path):
    happened = [event for event in recordings.events() if "wrist" not in event[0]]
    seen, problems, _ = read(recordings.record(tmp_path / "bag", happened))
    assert seen == []
    assert said(problems, "no observation", "wrist")


def test_any_byte_of_a_file_may_be_wrong(tmp_path):
    """No damage ends in anything but a named error or whole messages."""
    bag = recordings.record(tmp_path / "bag", recordings.events(0.3), compress=True)
    file, rng = only_file(bag), np.random.default_rng(2)
    content = file.read_bytes()
    whole = {zlib.crc32(m.data) for m in BagReader(bag).messages()}
    for _ in range(80):
        broken = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            broken[place] = rng.integers(0, 256)
        file.write_bytes(broken[: rng.integers(len(content) // 2, len(content) + 1)])
        try:
            with BagReader(bag) as reader:
                found = list(reader.messages())
        except BagError:
            continue
        assert len(found) <= len(whole) + 1


def test_a_bag_is_gone_on_with_and_its_last_files_taken_away(tmp_path):
    path = tmp_path / "bag"
    with BagWriter(path) as writer:
        writer.add_topic("/text", STRING)
        for number in range(3):
            writer.write("/text", START + number, {"data": str(number)})
            if number < 2:
                writer.split()
    with BagWriter(path, keep=2) as writer:
        writer.add_topic("/text", STRING)
        writer.write("/text", START + 7, {"data": "7"})
    with BagReader(path) as reader:
        texts = [reader.deserialize(message).data for message in reader.messages()]
        assert reader.problems == []
    assert texts == ["0", "1", "7"]
    information = yaml.safe_load((path / "metadata.yaml").read_text())
    assert information["rosbag2_bagfile_information"]["message_count"] == 3


def test_writing_refuses_what_cannot_be(tmp_path):
    bag = recordings.record(tmp_path / "bag", [])
    with pytest.raises(BagError, match="exists already"):
        BagWriter(bag)
    (tmp_path / "file").write_text("")
    with pytest.raises(BagError, match="Not a directory"):
        BagWriter(tmp_path / "file" / "bag")
    with BagWriter(tmp_path / "new") as writer, pytest.raises(BagError, match="not declared"):
        writer.write("/nothing", 0, b"")
