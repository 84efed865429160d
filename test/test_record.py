import argparse
import resource
import shutil
import time

import numpy as np
import pytest
import recordings
import yaml
from recordings import IMAGE, KINEMATICS, START

from vla_reasoner_ros.data import recording as recording_module
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.message_types import serialize, standard_types
from vla_reasoner_ros.data.recording import Recording, Traffic, recorded_topics
from vla_reasoner_ros.errors import BagError


def noise(rng, index):
    shown = recordings.picture(START + index, 0) | {"data": rng.bytes(24 * 32 * 3 * 30)}
    return serialize(IMAGE, shown)


def test_what_replay_training_and_reports_need_is_recorded():
    topics = recorded_topics(load_contract("sim"))
    assert {
        "agent/image_raw",
        "wrist/image_raw",
        "joint_states",
        "instruction",
        "observation",
        "action_chunk",
        "search_statistics",
        "joint_trajectory",
        "/clock",
    } <= set(topics)
    assert set(topics.values()) <= set(standard_types().fielddefs)
    assert recorded_topics(load_contract("ur"))["camera/agent/image_raw/compressed"].endswith(
        "CompressedImage"
    )


def test_sizes_are_said_before():
    traffic = Traffic()
    for _ in range(20):
        traffic.take("/camera", 1_000_000)
    traffic.take("/joint_states", 1000)
    lines = traffic.estimate(free=12_000_600_000, seconds=2.0)
    assert lines[0] == "/camera: 10.0 messages/s, 600.0 MB/min"
    assert lines[-1] == "together 600.0 MB/min before compression: room for 20 min"
    assert Traffic().estimate(1)[-1].endswith("nothing comes in yet")


def test_a_nearly_full_disk_ends_a_recording_cleanly(tmp_path, monkeypatch):
    monkeypatch.setattr(recording_module, "CHECKED_EVERY_S", 0.0)
    usage = shutil.disk_usage(tmp_path)
    left = [20 * 10**6]
    monkeypatch.setattr(
        recording_module.shutil, "disk_usage", lambda _: usage._replace(free=left[0])
    )
    made = Recording(tmp_path / "bag", reserve_mb=10)
    data = serialize(IMAGE, recordings.picture(START, 0))
    for index in range(10):
        left[0] -= 2 * 10**6
        made.take("/agent/image_raw", IMAGE, data, START + index)
    assert made.full == "only 10 MB are left on the disk"
    assert made.messages == 4
    made.close()
    with BagReader(tmp_path / "bag") as bag:
        assert bag.problems == []
        assert len(list(bag.messages())) == 4
    with pytest.raises(BagError, match="less than 10 MB are free"):
        Recording(tmp_path / "other", reserve_mb=10)


def test_what_was_written_before_the_disk_was_full_can_be_read(tmp_path):
    rng = np.random.default_rng(0)
    made = Recording(tmp_path / "bag", reserve_mb=0, split_mb=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for index in range(40):
        made.take("/agent/image_raw", IMAGE, noise(rng, index), START + index)
    try:  # no file may grow beyond this: the same error as a full disk, from the kernel
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, hard))
        for index in range(40, 100):
            made.take("/agent/image_raw", IMAGE, noise(rng, index), START + index)
        made.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in made.full
    assert made.messages < 100
    with BagReader(tmp_path / "bag") as bag:
        times = [message.time_ns - START for message in bag.messages()]
        for message in bag.messages():
            bag.deserialize(message)
    assert times == list(range(len(times)))
    assert len(times) >= 40


def test_a_recording_of_a_running_graph_replays(tmp_path, monkeypatch):
    """Publishers of every kind of quality of service, one of them latched before the recorder."""
    rclpy = pytest.importorskip("rclpy", reason="source a ROS 2 or run make setup")
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.serialization import deserialize_message

    from vla_reasoner_ros.ros import qos, record

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=87)
    robot = rclpy.create_node("planner_node", namespace="left", context=context)
    robot.declare_parameters("", [("search.depth", 3), ("search.simulations", 32)])
    node = rclpy.create_node("recorder", namespace="left", context=context)
    executor = SingleThreadedExecutor(context=context)
    for each in (robot, node):
        executor.add_node(each)
    profiles = {
        "/instruction": qos.LATCHED,
        "/joint_states": qos.STATE,
        "/agent/image_raw": qos.sensor("reliable", 50),
        "/wrist/image_raw": qos.sensor("best_effort", 50),
    }
    publishers = {}
    for topic, profile in profiles.items():
        kind = record.message_class(recordings.TOPICS[topic])
        publishers[topic] = kind, robot.create_publisher(kind, f"/left{topic}", profile)

    def publish(topic, message):
        kind, publisher = publishers[topic]
        publisher.publish(deserialize_message(serialize(recordings.TOPICS[topic], message), kind))

    waiting = recordings.events(2.0, start_ns=START)
    publish(waiting[0][0], waiting[0][2])
    sent = 1

    made = []
    monkeypatch.setattr(
        record, "Recording", lambda *a, **k: made.append(Recording(*a, **k)) or made[-1]
    )
    end = time.monotonic() + 60.0

    def stopped():
        """Publish the next one, once all is subscribed to; end when it was written."""
        nonlocal sent
        assert time.monotonic() < end, f"{made[0].messages} of {len(waiting)} were recorded"
        if not all(p.get_subscription_count() for _, p in publishers.values()):
            return False
        if made[0].messages < 2:
            return False  # beside the parameters: what was latched comes in its own time
        for topic, _, message in waiting[sent : sent + 1]:
            publish(topic, message)
        sent += 1
        # The first ones may be lost where a match is known on one side only.
        return sent > len(waiting) and made[0].messages >= len(waiting) - 5

    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    options = parser.parse_args(["--measure", "0", "--reserve-mb", "0", "--no-trees"])
    told = []
    topics = recorded_topics(recordings.contract())
    try:
        code = record.record(
            node, executor, topics, tmp_path / "bag", options, stopped, told.append
        )
    finally:
        executor.shutdown()
        for each in (robot, node):
            each.destroy_node()
        rclpy.shutdown(context=context)
    assert code == 0
    assert any("nobody publishes" in line for line in told)
    assert any("recording to" in line for line in told)
    with BagReader(tmp_path / "bag") as bag:
        (snapshot,) = bag.messages(["/left/parameters_snapshot"])
        parameters = yaml.safe_load(bag.deserialize(snapshot).data)
        assert parameters["/left/planner_node"]["ros__parameters"]["search.depth"] == 3
        ingest = BagIngest(bag, recordings.contract(), kinematics=KINEMATICS)
        stamps = [moment.observation.stamp_ns for moment in ingest.moments()]
        assert ingest.clock == "stamps", ingest.problems
    assert len(stamps) >= 14


def test_a_message_is_recorded_when_it_came_not_when_a_busy_recorder_took_it():
    """An executor takes one message of each topic in turn, whichever of them came first."""
    rclpy = pytest.importorskip("rclpy", reason="source a ROS 2 or run make setup")
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from vla_reasoner_ros.ros import qos, record

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=87)
    node = rclpy.create_node("recorder", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    first, second = (node.create_publisher(String, name, qos.STATE) for name in ("first", "second"))
    taken = []
    topics = {"first": recordings.STRING, "second": recordings.STRING}
    try:
        recorder = record.Recorder(
            node, topics, lambda topic, kind, data, time_ns: taken.append((time_ns, topic))
        )
        end = time.monotonic() + 60.0
        while not (first.get_subscription_count() and second.get_subscription_count()):
            assert time.monotonic() < end, recorder.missing
            executor.spin_once(timeout_sec=0.05)
        for publisher in (first, first, first, second):
            publisher.publish(String(data="x"))
        while len(taken) < 4:
            assert time.monotonic() < end, taken
            executor.spin_once(timeout_sec=0.05)
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    assert [topic for _, topic in sorted(taken)] == ["/first"] * 3 + ["/second"]


def test_what_waits_when_a_recording_is_ended_is_in_the_bag(tmp_path):
    """An executor takes one message of each topic in turn; a busy recorder is behind with some."""
    rclpy = pytest.importorskip("rclpy", reason="source a ROS 2 or run make setup")
    from rclpy.executors import SingleThreadedExecutor
    from std_msgs.msg import String

    from vla_reasoner_ros.ros import qos, record

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=87)
    node = rclpy.create_node("recorder", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    publisher = node.create_publisher(String, "many", qos.STATE)
    end = time.monotonic() + 60.0

    told = []
    sent = []

    def stopped():
        """As soon as it records: publish all at once, and end it."""
        assert time.monotonic() < end, "nobody subscribed"
        if publisher.get_subscription_count() and "recording to" in "".join(told) and not sent:
            sent.extend(str(index) for index in range(40))
            for word in sent:
                publisher.publish(String(data=word))
        return bool(sent)

    parser = argparse.ArgumentParser()
    record.add_arguments(parser)
    options = parser.parse_args(["--measure", "0", "--reserve-mb", "0", "--no-trees"])
    topics = {"many": recordings.STRING}
    try:
        bag = tmp_path / "bag"
        assert record.record(node, executor, topics, bag, options, stopped, told.append) == 0
    finally:
        executor.shutdown()
        node.destroy_node()
        rclpy.shutdown(context=context)
    with BagReader(bag) as reader:
        said = [reader.deserialize(message).data for message in reader.messages(["/many"])]
    assert said == sent


def test_a_bag_is_played_with_its_time_and_without_commands(tmp_path):
    rclpy = pytest.importorskip("rclpy", reason="source a ROS 2 or run make setup")
    from rclpy.executors import SingleThreadedExecutor
    from rosgraph_msgs.msg import Clock

    from vla_reasoner_ros.data.messages import ACTION_CHUNK
    from vla_reasoner_ros.ros import play, qos, record

    happened = recordings.events(0.4)
    chunk = {"header": {"stamp": START}}
    commanded = [*happened, ("/action_chunk", START + 1, chunk)]
    topics = {**recordings.TOPICS, "/action_chunk": ACTION_CHUNK}
    path = recordings.record(tmp_path / "bag", commanded, topics)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=87)
    node = rclpy.create_node("bag_player", namespace="replay", context=context)
    graph = rclpy.create_node("graph", namespace="replay", context=context)
    executor = SingleThreadedExecutor(context=context)
    for each in (node, graph):
        executor.add_node(each)
    came, told = [], []
    for topic, kind in recordings.TOPICS.items():
        profile = qos.LATCHED if topic == "/instruction" else qos.sensor("reliable", 100)
        graph.create_subscription(
            record.message_class(kind),
            topic.removeprefix("/"),
            lambda _, topic=topic: came.append(topic),
            profile,
        )
    graph.create_subscription(
        Clock, "/clock", lambda m: told.append(m.clock.sec * 10**9 + m.clock.nanosec), qos.CLOCK
    )
    try:
        with BagReader(path) as bag:
            ingest = BagIngest(bag, recordings.contract(), kinematics=KINEMATICS)
            player = play.Player(node, bag, ingest, rate=1000.0)
            end = time.monotonic() + 60.0
            while not player.listeners or not came:
                assert time.monotonic() < end, f"{len(came)} of {len(happened)} came"
                if player.listeners and not player.played:
                    player.play(lambda _: True)
                executor.spin_once(timeout_sec=0.05)
            while len(came) < len(happened) - 3:
                assert time.monotonic() < end, f"{len(came)} of {len(happened)} came"
                executor.spin_once(timeout_sec=0.05)
        publishers = {name for name, _ in graph.get_topic_names_and_types()}
    finally:
        executor.shutdown()
        for each in (node, graph):
            each.destroy_node()
        rclpy.shutdown(context=context)
    assert player.played == len(happened)
    assert not [name for name in publishers if "chunk" in name]
    assert told == sorted(told)
    assert all(START <= now_ns <= START + 10**9 for now_ns in told)
