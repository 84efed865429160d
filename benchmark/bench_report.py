"""A report of 10,000 decisions in headless Chromium: how fast it opens, scrolls and answers."""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "test"))
import chromium

from vla_reasoner_ros.data.cameras import load_cameras
from vla_reasoner_ros.data.images import encode_jpeg
from vla_reasoner_ros.evaluation import arms
from vla_reasoner_ros.evaluation.page.moments import Moment, Recording
from vla_reasoner_ros.evaluation.page.replays import TREE_FIELDS
from vla_reasoner_ros.evaluation.report import write_page
from vla_reasoner_ros.sim.world import World

DECISIONS = 10_000
REAL = 24
SIZE = (320, 240)
SCROLL = """new Promise((done) => {
  const list = document.querySelector('.list');
  const [times, work] = [[], []];
  let last = performance.now();
  const step = () => {
    const now = performance.now();
    times.push(now - last);
    last = now;
    list.scrollTop += 900;
    explorer.list.draw();
    work.push(performance.now() - now);
    if (times.length > 150) done([times.slice(1), work]); else requestAnimationFrame(step);
  };
  requestAnimationFrame(step);
})"""
STEPS = """(async () => {
  const times = [];
  for (let i = 0; i < 60; i++) {
    const begin = performance.now();
    explorer.selected = (i * 163) % explorer.session.count;
    await explorer.detail.show(explorer.selected);
    times.push(performance.now() - begin);
  }
  return times;
})()"""
FILTER = """(() => {
  const begin = performance.now();
  explorer.toggle('deviated');
  return performance.now() - begin;
})()"""


def moments() -> Iterator[Moment]:
    """Decisions of the search on the learned world model, repeated with their time moved on."""
    world = World()
    world.reset("red_on_plate", 3)
    reasoner = arms.make_reasoner("search_learned", {"search.simulations": 128})
    real = []
    for _ in range(REAL):
        decision = reasoner.decide(world.observation())
        assert decision.tree is not None
        tree = {name: getattr(decision.tree, name) for name in TREE_FIELDS}
        picture = encode_jpeg(world.render("overview", SIZE[1], SIZE[0]), 80)
        said = dataclasses.asdict(decision.statistics)
        real.append(Moment(world.time, said, tree, picture))
        for action in decision.chunk.actions[:4]:
            world.apply(action)
    world.close()
    for number in range(DECISIONS):
        yield dataclasses.replace(real[number % REAL], time_s=0.4 * number)


def line(name: str, value: float, unit: str, n: int, detail: str) -> None:
    """Print one result."""
    said = {"name": f"report.{name}", "value": round(value, 3), "unit": unit, "n": n}
    print(json.dumps({**said, "detail": detail}), flush=True)


def main() -> None:
    """Write the page, open it, use it."""
    if chromium.executable() is None:
        print(f"report: no Chromium ({', '.join(chromium.NAMES)})", file=sys.stderr)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        projection = load_cameras("sim")["overview"].projection(*SIZE)
        recording = Recording("bench", "", moments(), 0.0, projection, SIZE)
        begin = time.perf_counter()
        left_out = write_page(path, "Bench", [], [recording], SIZE[0])
        if left_out:
            raise SystemExit(left_out)
        line("write_s", time.perf_counter() - begin, "s", 1, f"{DECISIONS} decisions")
        size = f"{DECISIONS} decisions, {path.stat().st_size / 1e6:.0f} MB"
        browser = chromium.Chromium()
        try:
            opened = []
            for _ in range(3):
                browser.open(path)
                browser.until("document.querySelector('#explorer').dataset.decision")
                mark = "performance.getEntriesByName('decision shown')[0].startTime"
                opened.append(browser.run(mark) / 1000.0)
            line("open_s", float(np.median(opened)), "s", 3, f"to the first decision, {size}")
            frames, work = browser.run(SCROLL)
            line("scroll_frame_ms_p95", float(np.percentile(frames, 95)), "ms", len(frames), size)
            line("scroll_work_ms_p95", float(np.percentile(work, 95)), "ms", len(work), size)
            steps = browser.run(STEPS)
            line("show_decision_ms", float(np.median(steps)), "ms", len(steps), size)
            line("filter_ms", browser.run(FILTER), "ms", 1, size)
        finally:
            browser.close()


if __name__ == "__main__":
    main()
