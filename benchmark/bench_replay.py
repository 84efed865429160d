"""What reading and replaying bags costs beyond bare reading and the models: prints JSON lines."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rosbags.rosbag2 import Reader

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.bag_ingest import IMAGES, JOINT_STATE, STRING, BagIngest
from vla_reasoner_ros.data.bags import BagReader, BagWriter
from vla_reasoner_ros.data.contract import Contract, load_contract
from vla_reasoner_ros.data.images import decode_compressed, decode_image, encode_jpeg
from vla_reasoner_ros.data.message_types import standard_types
from vla_reasoner_ros.data.messages import image_fields
from vla_reasoner_ros.evaluation.replay import replay_bag
from vla_reasoner_ros.evaluation.replay_settings import read_settings

START, TENTH = 10**18, 10**8
FRAMES, REPEATS = 200, 5
DECIDED, LONG = 1_000, 20_000
"""Frames of the bag that is thought about, and of the one that memory is watched over."""


def report(name: str, value: float, unit: str, n: int, detail: str) -> None:
    """Print one figure."""
    line = {"name": f"replay.{name}", "value": round(value, 4), "unit": unit, "n": n}
    print(json.dumps({**line, "detail": detail}), flush=True)


def write_bag(
    path: Path, contract: Contract, frames: int, size: tuple[int, int], compress: bool
) -> Path:
    """A bag of 10 Hz: two cameras of a (height, width), joint states, an instruction."""
    robot = load_robot(contract.moments.robot)
    names = [*robot.joint_names, *contract.gripper.joints]
    home = [*robot.home, *([contract.gripper.open] * len(contract.gripper.joints))]
    rng = np.random.default_rng(0)
    shades = rng.integers(0, 255, (32, 1, 1, 3), dtype=np.uint8)
    pictures = [np.broadcast_to(s, (*size, 3)) for s in shades]
    with BagWriter(path, compress=compress) as bag:
        topics = {"/instruction": STRING, f"/{contract.joint_states.topic}": JOINT_STATE}
        topics |= {f"/{camera.topic}": IMAGES[camera.type] for camera in contract.cameras.values()}
        for topic, kind in topics.items():
            bag.add_topic(topic, kind)
        bag.write("/instruction", START, {"data": "lift the green block"})
        for frame in range(frames):
            stamp_ns = START + frame * TENTH
            joints = {"name": names, "position": home, "velocity": [0.0] * len(names)}
            bag.write("/joint_states", stamp_ns, {"header": {"stamp": stamp_ns}, **joints})
            for name in ("wrist", "agent"):
                picture, camera = pictures[frame % len(pictures)], contract.cameras[name]
                shown = image_fields(picture, stamp_ns, name)
                if camera.type == "compressed":
                    data = encode_jpeg(np.ascontiguousarray(picture), 90)
                    shown = {"header": {"stamp": stamp_ns}, "format": "jpeg", "data": data}
                bag.write(f"/{camera.topic}", stamp_ns + 1, shown)
    return path


def bare(path: Path) -> float:
    """CPU seconds of rosbags' own iteration with deserialization and decoding; nothing else."""
    started, types = time.process_time(), standard_types()
    with Reader(path) as reader:
        for connection, _, data in reader.messages():
            decode(types.deserialize_cdr(data, connection.msgtype), connection.msgtype)
    return time.process_time() - started


def read(path: Path) -> float:
    """CPU seconds of this package's reader for the same."""
    started = time.process_time()
    with BagReader(path) as bag:
        for message in bag.messages():
            decode(bag.deserialize(message), message.type)
    return time.process_time() - started


def observe(path: Path, contract: Contract, kinematics: Kinematics) -> float:
    """CPU seconds to every observation of a bag: aligned, with the end effector's pose, checked."""
    started = time.process_time()
    with BagReader(path) as bag:
        count = sum(1 for _ in BagIngest(bag, contract, kinematics=kinematics).moments())
    assert count == FRAMES
    return time.process_time() - started


def decode(message: object, kind: str) -> None:
    """Pixels of an image."""
    if kind == IMAGES["image"]:
        decode_image(message, kind)
    elif kind == IMAGES["compressed"]:
        decode_compressed(message, kind)


def resident() -> float:
    """Memory of this process, MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def main() -> None:
    """Run all."""
    contract = load_contract("sim")
    kinematics = Kinematics(load_robot(contract.moments.robot))
    for kind in ("image", "compressed"):
        cameras = {
            name: replace(camera, height=480, width=640, type=kind)
            for name, camera in contract.cameras.items()
        }
        large = replace(contract, cameras=cameras)
        with tempfile.TemporaryDirectory() as folder:
            path = write_bag(Path(folder, "bag"), large, FRAMES, (480, 640), compress=False)
            read(path), bare(path)
            if kind == "image":
                ratios = [read(path) / bare(path) for _ in range(REPEATS)]
                told = "messages with pixels / the same by bare rosbags"
                report("read_ratio", float(np.median(ratios)), "", REPEATS, f"640x480, {told}")
            ratios = [observe(path, large, kinematics) / bare(path) for _ in range(REPEATS)]
            told = f"640x480 {kind}: aligned observations / pixels by bare rosbags"
            report(f"observe_{kind}_ratio", float(np.median(ratios)), "", REPEATS, told)
    with tempfile.TemporaryDirectory() as folder:
        path = write_bag(Path(folder, "bag"), contract, DECIDED, (96, 96), compress=True)
        with BagReader(path) as bag, contextlib.redirect_stderr(io.StringIO()):
            settings = read_settings(bag, overrides={"planner.world_model": "latent"})
            replay = replay_bag(bag, settings, Path(folder, "replay"))
        report(
            "overhead_ratio",
            replay.info["wall_s"] / replay.info["models_s"],
            "",
            len(replay),
            "time of a whole replay / of its decisions, learned models, default search; what is "
            "written is written beside the decisions",
        )
        report(
            "overhead_cpu_ratio",
            replay.info["cpu_s"] / replay.info["models_cpu_s"],
            "",
            len(replay),
            "the same in time of all processor cores",
        )
    with tempfile.TemporaryDirectory() as folder:
        path = write_bag(Path(folder, "bag"), contract, LONG, (96, 96), compress=True)
        grown: list[float] = []
        with BagReader(path) as bag, contextlib.redirect_stderr(io.StringIO()):
            overrides = {"planner.world_model": "none", "search.executed": 8}
            settings = read_settings(bag, overrides=overrides)
            ingest = BagIngest(bag, contract, kinematics=kinematics)
            for number, _ in enumerate(ingest.moments()):
                if number in (500, LONG - 1):
                    grown.append(resident())
            before = resident()
            replay_bag(bag, settings, Path(folder, "replay"))
            after = resident()
        report(
            "rss_growth_mb",
            max(grown[1] - grown[0], after - before),
            "MB",
            LONG,
            "reading, and replaying with the policy: the larger of the two",
        )


if __name__ == "__main__":
    main()
