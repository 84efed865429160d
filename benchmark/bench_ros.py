"""What the ROS graph costs at 30 Hz of two 640x480 cameras, in JSON lines."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np

from benchmark.ros_load import Load

SETTLE_S = 5.0
"""Seconds at the start that are not measured."""


def report(name: str, value: float, unit: str, n: int, detail: str) -> None:
    """Print one line."""
    line = {"name": f"ros.{name}", "value": round(value, 3), "unit": unit, "n": n}
    print(json.dumps({**line, "detail": detail}), flush=True)


def percentiles(name: str, milliseconds: np.ndarray, detail: str) -> None:
    """Print median and 99th percentile."""
    for suffix, percent in (("", 50), ("_p99", 99)):
        value = float(np.percentile(milliseconds, percent)) if milliseconds.size else float("nan")
        report(name + suffix, value, "ms", milliseconds.size, detail)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--world-model", default="none")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        with Load(Path(folder), options.world_model) as load:
            load.start()
            load.run(SETTLE_S)
            for heard in (load.heard.observations, load.heard.chunks):
                heard.clear()
            load.run(options.seconds)
            load.stop()
        detail = f"two 640x480 cameras at 30 Hz for {options.seconds:g} s"
        report("frames_lost", load.frames_lost(), "1", 2 * load.sent, detail)
        report("trajectories_refused", load.refused, "1", len(load.heard.sent), detail)
        percentiles(
            "image_to_observation_ms",
            load.image_to_observation_ms(),
            f"image stamp to reception of the observation; {detail}",
        )
        percentiles(
            "image_to_command_overhead_ms",
            load.overhead_ms(),
            f"image stamp to trajectory sent, less the decision's own time; {detail}",
        )
        rate = len(load.heard.chunks) / options.seconds
        report("decisions_per_second", rate, "Hz", len(load.heard.chunks), detail)


if __name__ == "__main__":
    main()
