"""The sections of HTML that tell of an evaluation: success, decisions, some episodes."""

from __future__ import annotations

import base64
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import cv2
import numpy as np

from vla_reasoner_ros.evaluation import summary, svg
from vla_reasoner_ros.evaluation.records import (
    DecisionRecord,
    EpisodeRecord,
    RunRecord,
    project,
)
from vla_reasoner_ros.evaluation.statistics import Proportion
from vla_reasoner_ros.search.lines import principal_path, root_candidates

SHOWN_CANDIDATES = 8
STRIP_PICTURES = 6
THUMBNAIL_WIDTH = 320


def before_explorer(record: RunRecord) -> list[str]:
    """What was compared, success, decision times, and what the arm says of its commands."""
    written = [_opening, _success_section, _time_section, _command_section]
    return [section for write in written if (section := write(record))]


def after_explorer(record: RunRecord) -> list[str]:
    """The kept episodes, one section for each scene, and how to repeat the run."""
    episodes = [_episode_section(record, episodes) for episodes in _shown_cases(record)]
    return [*episodes, facts_section(record.facts)]


def facts_section(facts: Sequence[tuple[str, str]]) -> str:
    """Names and what they were, as a table."""
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td><code>{escape(text)}</code></td></tr>"
        for name, text in facts
    )
    return f"<section><h2>How to repeat this</h2><table>{rows}</table></section>"


def _opening(record: RunRecord) -> str:
    arms = "".join(
        f"<tr><td><svg width='18' height='18' aria-hidden='true'>{svg.mark(i, 9, 9)}</svg></td>"
        f"<td><b>{escape(arm.label)}</b></td><td>{escape(arm.description)}</td></tr>"
        for i, arm in enumerate(record.arms)
    )
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in record.notes)
    return f"<section><h2>What was compared</h2><table>{arms}</table>{notes}</section>"


def _success_section(record: RunRecord) -> str:
    names = [arm.name for arm in record.arms]
    cases = summary.paired(record.episodes, names)
    episodes = [case[name] for case in cases.values() for name in names]
    tasks = sorted({task for task, _ in cases})
    groups = [(task, [e for e in episodes if e["task"] == task]) for task in tasks]
    groups.append(("all tasks", episodes))
    rows, plot = [], []
    for title, group in groups:
        rates = [summary.success(group, name) for name in names]
        plot.append((title, [_percent(rate) for rate in rates]))
        cells = "".join(
            f"<td class='r'>{rate.successes} / {rate.n}</td><td class='soft'>{_range(rate)}</td>"
            for rate in rates
        )
        css = " class='total'" if title == "all tasks" else ""
        rows.append(f"<tr{css}><td>{escape(title)}</td>{cells}</tr>")
    heads = "".join(
        f"<th class='r'>{escape(arm.label)}</th><th>95 % interval</th>" for arm in record.arms
    )
    labels = [arm.label for arm in record.arms]
    return (
        "<section><h2>Success</h2>"
        f"<p class='soft'>{len(cases)} scenes; every arm met each of them once. Bars are Wilson "
        "95 % intervals: with few scenes they are wide, and that is meant to be seen.</p>"
        + svg.legend(labels)
        + svg.interval_plot(plot, low=0, high=100, unit=" %", label="success by task")
        + f"<table><tr><th>task</th>{heads}</tr>{''.join(rows)}</table>"
        + _differences(record, episodes)
        + "</section>"
    )


def _differences(record: RunRecord, episodes: Sequence[Mapping[str, Any]]) -> str:
    base = record.arms[0]
    rows = []
    for arm in record.arms[1:]:
        found = summary.difference(episodes, base.name, arm.name)
        if found is not None:
            rows.append(
                f"<tr><td>{escape(arm.label)} against {escape(base.label)}</td>"
                f"<td class='r'>{100 * found.difference:+.0f} points</td>"
                f"<td>{100 * found.low:+.0f} to {100 * found.high:+.0f}</td>"
                f"<td class='r'>{found.gained}</td><td class='r'>{found.lost}</td>"
                f"<td class='r'>{found.mcnemar_p:.3g}</td></tr>"
            )
    if not rows:
        return ""
    return (
        "<h3>Differences on the same scenes</h3><table><tr><th>arms</th>"
        "<th class='r'>difference</th><th>95 % interval</th><th class='r'>gained</th>"
        f"<th class='r'>lost</th><th class='r'>McNemar's p</th></tr>{''.join(rows)}</table>"
    )


def _time_section(record: RunRecord) -> str:
    rows = []
    for index, arm in enumerate(record.arms):
        times = summary.decision_times(record.episodes, arm.name)
        own = [e for e in record.episodes if e["arm"] == arm.name]
        decisions = sum(len(e["decision_ms"]) for e in own)
        deviated = sum(e["deviated"] for e in own)
        simulations = [s for e in own for s in e["simulations"]]
        rows.append(
            f"<tr><td><svg width='18' height='18' aria-hidden='true'>{svg.mark(index, 9, 9)}</svg> "
            f"</td><td>{escape(arm.label)}</td><td class='r'>{decisions}</td>"
            f"<td class='r'>{_milliseconds(times['p50'])}</td>"
            f"<td class='r'>{_milliseconds(times['p95'])}</td>"
            f"<td class='r'>{np.mean(simulations) if simulations else 0:.0f}</td>"
            f"<td class='r'>{100 * deviated / max(decisions, 1):.0f} %</td>"
            f"<td>{_fallbacks(own) if any(simulations) else ''}</td></tr>"
        )
    return (
        "<section><h2>Decisions</h2><table><tr><th></th><th>arm</th><th class='r'>decisions</th>"
        "<th class='r'>time, median</th><th class='r'>time, 95th percentile</th>"
        "<th class='r'>simulations</th><th class='r'>deviated</th><th>fell back because</th></tr>"
        f"{''.join(rows)}</table>{_stages(record)}</section>"
    )


def _command_section(record: RunRecord) -> str:
    """What the simulated arm's controller counted; empty where it was not commanded."""
    rows = []
    for arm in record.arms:
        found = summary.command_counts(record.episodes, arm.name)
        if found is not None:
            cells = "".join(f"<td class='r'>{count}</td>" for count in found.values())
            rows.append(f"<tr><td>{escape(arm.label)}</td>{cells}</tr>")
    if not rows:
        return ""
    return (
        "<section><h2>What the simulated arm says of its commands</h2><table><tr><th>arm</th>"
        "<th class='r'>trajectories sent</th><th class='r'>rejected</th>"
        f"<th class='r'>samples at 1 kHz beyond a limit</th></tr>{''.join(rows)}</table></section>"
    )


def _fallbacks(episodes: Sequence[Mapping[str, Any]]) -> str:
    return escape("; ".join(sorted({reason for e in episodes for reason in e["fallbacks"]})))


def _stages(record: RunRecord) -> str:
    """Where the time of a decision goes, from the episodes whose decisions were kept."""
    rows: list[tuple[str, list[float]]] = []
    names: list[str] = []
    for arm in record.arms:
        decisions = [d for e in record.shown if e.arm == arm.name for d in e.decisions]
        if not decisions:
            continue
        for decision in decisions:
            names += [n for n in decision.statistics["stage_names"] if n not in names]
        sizes = []
        for name in names:
            found = [
                dict(zip(d.statistics["stage_names"], d.statistics["stage_ms"], strict=True)).get(
                    name, 0.0
                )
                for d in decisions
            ]
            sizes.append(float(np.mean(found)))
        rows.append((arm.label, sizes))
    if not names:
        return ""
    padded = [(label, sizes + [0.0] * (len(names) - len(sizes))) for label, sizes in rows]
    picture = svg.stacked_bars(padded, names, unit="ms", label="mean time of each stage")
    return f"<h3>Where the time goes, mean of the decisions shown below</h3>{picture}"


def _shown_cases(record: RunRecord) -> list[list[EpisodeRecord]]:
    cases: dict[tuple[str, int], list[EpisodeRecord]] = {}
    for episode in record.shown:
        cases.setdefault((episode.task, episode.seed), []).append(episode)
    return list(cases.values())


def _episode_section(record: RunRecord, episodes: Sequence[EpisodeRecord]) -> str:
    first = episodes[0]
    parts = [
        f"<section><h2>“{escape(first.instruction)}”</h2>"
        f"<p class='soft'>task {escape(first.task)}, seed {first.seed}</p>"
    ]
    labels = {arm.name: (index, arm.label) for index, arm in enumerate(record.arms)}
    for episode in episodes:
        index, label = labels[episode.arm]
        css = "yes" if episode.success else "no"
        word = "success" if episode.success else f"failed: {episode.ending}"
        parts.append(
            f"<h3><svg width='16' height='16' style='display:inline' aria-hidden='true'>"
            f"{svg.mark(index, 8, 9)}</svg> {escape(label)} "
            f"<span class='verdict {css}'>{escape(word)} after {episode.duration_s:.1f} s</span>"
            f"</h3>{_strip(episode)}"
        )
        decision = _most_telling(episode)
        if decision is not None:
            parts.append(_decision(record, decision))
    return "".join(parts) + "</section>"


def _strip(episode: EpisodeRecord) -> str:
    """The scene over time."""
    seen = [d for d in episode.decisions if d.picture]
    if not seen:
        return ""
    picked = np.unique(np.linspace(0, len(seen) - 1, STRIP_PICTURES).round().astype(int))
    figures = []
    for index in picked:
        moment = seen[index]
        uri = _data_uri(_thumbnail(moment.picture or b""))
        figures.append(
            f"<figure><img src='{uri}' alt='the scene at {moment.time_s:.1f} s'>"
            f"<figcaption>{moment.time_s:.1f} s{_source(moment)}</figcaption></figure>"
        )
    return f"<div class='strip'>{''.join(figures)}</div>"


def _thumbnail(picture: bytes) -> bytes:
    image = cv2.imdecode(np.frombuffer(picture, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert image is not None  # the picture was made by this program
    height = round(image.shape[0] * THUMBNAIL_WIDTH / image.shape[1])
    small = cv2.resize(image, (THUMBNAIL_WIDTH, height), interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 85])[1])


def _source(decision: DecisionRecord) -> str:
    if not decision.statistics["simulations"]:
        return ""
    return ", search decided" if decision.statistics["deviated"] else ", policy kept"


def _most_telling(episode: EpisodeRecord) -> DecisionRecord | None:
    """The decision with a tree in which the search gained most over the policy."""
    told = [d for d in episode.decisions if d.tree and d.picture]
    return max(told, key=lambda d: (d.statistics["deviated"], d.statistics["margin"]), default=None)


def _decision(record: RunRecord, decision: DecisionRecord) -> str:
    statistics, tree = decision.statistics, decision.tree
    assert tree is not None
    assert decision.picture is not None
    roots = root_candidates(tree, statistics)
    chosen, policy = statistics["chosen_id"], 0
    nodes = [
        svg.TreeNode(int(p), int(n), float(v), str(o))
        for p, n, v, o in zip(
            tree["parents"], tree["visits"], tree["values"], tree["origins"], strict=True
        )
    ]
    picture = _imagined(record, decision, roots)
    drawn = svg.tree(nodes, roots.get(chosen, -1), roots.get(policy, -1))
    verdict = escape(_verdict(statistics))
    return (
        f"<details open><summary>At {decision.time_s:.1f} s the search {verdict}</summary>"
        f"<div class='two'><div>{picture}<p class='soft'>Imagined paths of the end effector: "
        f"<b style='color:{svg.CHOSEN}'>chosen, solid</b>, <b style='color:{svg.POLICY}'>policy's "
        "own, dashed</b>, rejected in grey.</p></div>"
        f"<div>{drawn}<p class='soft'>{len(nodes)} nodes, {statistics['simulations']} simulations, "
        f"deepest {statistics['max_depth']}; area by visits, from dark blue for the "
        f"lowest value, {min(tree['values']):.3f}, to yellow for the highest, "
        f"{max(tree['values']):.3f}. {statistics['world_model_calls']} batched "
        f"calls of the world model, {statistics['time_ms']:.0f} ms in all.</p>"
        f"{_candidate_table(statistics)}</div></div></details>"
    )


def _verdict(statistics: Mapping[str, Any]) -> str:
    """Which chunk the search took, and by how much, as the end of a sentence."""
    own, needed = statistics["policy_value"], f"{statistics['margin_required']:.3f} needed"
    if statistics["deviated"]:
        return (
            f"chose candidate {statistics['chosen_id']} over the policy's own: value "
            f"{statistics['chosen_value']:.3f} against {own:.3f} (margin "
            f"{statistics['margin']:.3f}, {needed}), alpha {statistics['alpha']:.2f}"
        )
    # The margin is the winner's, and that may be the policy's own: it says nothing of the others.
    ids, values = statistics["candidate_ids"], statistics["candidate_values"]
    others = [v for i, v in zip(ids, values, strict=True) if i != 0 and math.isfinite(v)]
    if not others:
        return "kept the policy's own chunk: no other was imagined"
    best = max(others)
    return (
        f"kept the policy's own chunk: value {own:.3f} against {best:.3f} of the best other "
        f"(margin {best - own:+.3f}, {needed})"
    )


def _imagined(record: RunRecord, decision: DecisionRecord, roots: Mapping[int, int]) -> str:
    """The picture with the path to each root candidate and on along its best children."""
    tree = decision.tree or {}
    points = np.asarray(tree["ee_positions"], dtype=float).reshape(-1, 3)
    uri = _data_uri(decision.picture or b"")
    paths = []
    if record.projection is not None and len(points) == len(tree["parents"]):
        for candidate, node in roots.items():
            line = project(record.projection, points[principal_path(tree, node)])
            if np.isfinite(line).all():
                chosen = candidate == decision.statistics["chosen_id"]
                role = "chosen" if chosen else "policy" if candidate == 0 else "rejected"
                title = (
                    f"candidate {candidate} ({tree['origins'][node]}): value "
                    f"{tree['values'][node]:.3f}, {tree['visits'][node]} visits"
                )
                paths.append((line, role, title))
    return svg.paths_over_image(uri, record.picture_size, paths)


def _candidate_table(statistics: Mapping[str, Any]) -> str:
    rows = []
    columns = ("ids", "origins", "visits", "values", "priors")
    listed = zip(*(statistics[f"candidate_{name}"] for name in columns), strict=True)
    for place, (number, origin, visits, value, prior) in enumerate(listed):
        chosen = number == statistics["chosen_id"]
        if place >= SHOWN_CANDIDATES and not chosen and number != 0:
            continue
        css = "chosen" if chosen else "policy" if number == 0 else ""
        verdict = "chosen" if chosen else "the policy's own" if number == 0 else "rejected"
        rows.append(
            f"<tr class='{css}'><td class='r'>{number}</td><td>{escape(origin)}</td>"
            f"<td class='r'>{visits}</td><td class='r'>{_number(value)}</td>"
            f"<td class='r'>{_number(prior)}</td><td>{verdict}</td></tr>"
        )
    return (
        "<table><tr><th class='r'>candidate</th><th>drawn by</th><th class='r'>visits</th>"
        f"<th class='r'>value</th><th class='r'>prior</th><th></th></tr>{''.join(rows)}</table>"
    )


def _percent(rate: Proportion) -> svg.Interval | None:
    if rate.n == 0:
        return None
    return svg.Interval(100 * rate.rate, 100 * rate.low, 100 * rate.high)


def _range(rate: Proportion) -> str:
    return f"{100 * rate.low:.0f} to {100 * rate.high:.0f} %"


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "–"


def _milliseconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f} ms"


def _data_uri(picture: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(picture).decode()
