"""``metadata.yaml``, which says of a recording's files what is in them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from vla_reasoner_ros.files import write_atomically

METADATA = "metadata.yaml"
INFORMATION = "rosbag2_bagfile_information"


def load_metadata(path: Path) -> dict[str, Any]:
    """What ``metadata.yaml`` says; by libyaml where it is there, which is ten times as fast."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return dict(yaml.load(path.read_text(encoding="utf-8"), Loader=loader)[INFORMATION])


def write_metadata(folder: Path, information: Mapping[str, Any]) -> None:
    """Write ``metadata.yaml`` into a bag's folder, atomically."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text = yaml.dump({INFORMATION: dict(information)}, Dumper=dumper, sort_keys=False)
    write_atomically(folder / METADATA, text.encode())


def merge_metadata(parts: list[dict[str, Any]]) -> dict[str, Any]:
    """One ``metadata.yaml`` of several files' own."""
    merged = dict(parts[0])
    full = [part for part in parts if part["message_count"]] or parts
    start = min(part["starting_time"]["nanoseconds_since_epoch"] for part in full)
    end = max(
        part["starting_time"]["nanoseconds_since_epoch"] + part["duration"]["nanoseconds"]
        for part in full
    )
    counts: dict[str, dict[str, Any]] = {}
    for part in parts:
        for topic in part["topics_with_message_count"]:
            name = topic["topic_metadata"]["name"]
            known = counts.setdefault(name, dict(topic, message_count=0))
            known["message_count"] += topic["message_count"]
    merged |= {
        "relative_file_paths": [path for part in parts for path in part["relative_file_paths"]],
        "files": [file for part in parts for file in part["files"]],
        "starting_time": {"nanoseconds_since_epoch": start},
        "duration": {"nanoseconds": end - start},
        "message_count": sum(part["message_count"] for part in parts),
        "topics_with_message_count": list(counts.values()),
    }
    return merged
