"""The Markdown report of an evaluation: its command, tables and plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vla_reasoner_ros.evaluation.plots import Measured, Series, plot_rows
from vla_reasoner_ros.files import write_atomically


def write_markdown(path: Path, results: Mapping[str, Any]) -> None:
    """Write the report and, beside it, its plots ``NAME.success.svg`` and ``NAME.gain.svg``.

    Args:
        path: the Markdown file, NAME.md.
        results: what ``vla-reasoner evaluate --json`` writes.
    """
    arms = [arm["name"] for arm in results["arms"]]
    blocks = {**results["tasks"], "all": results["overall"]}
    plots = [path.with_suffix(f".{kind}.svg") for kind in ("success", "gain")]
    rates = [Series(arm, [_rate(block, arm) for block in blocks.values()]) for arm in arms]
    plot_rows(plots[0], list(blocks), rates, "success, % with 95 % interval")
    lines = ["# Evaluation", ""]
    lines += [f"- {name}: {_code(name, text)}" for name, text in results["facts"].items()]
    if results["notes"]:
        lines += ["", *(f"> {note}" for note in results["notes"])]
    lines += ["", "## Success", "", f"![Success by task and arm]({plots[0].name})", ""]
    lines += table(
        ["task", "n", *arms],
        [
            [task, block["n"], *(_percent(block, arm) for arm in arms)]
            for task, block in blocks.items()
        ],
    )
    others = list(results["overall"]["differences"])
    if others:
        gains = [Series(arm, [_gain(block, arm) for block in blocks.values()]) for arm in others]
        plot_rows(plots[1], list(blocks), gains, "points gained over the policy", zero=True)
        lines += ["", "## Against the policy on the same scenes", ""]
        lines += [f"![Points gained over the policy]({plots[1].name})", ""]
        lines += table(
            ["task", "arm", "points", "95 % interval", "gained", "lost", "McNemar's p"],
            [
                [task, arm, *_difference(block["differences"][arm])]
                for task, block in blocks.items()
                for arm in others
                if arm in block["differences"]
            ],
        )
    lines += ["", "## Decisions", ""]
    lines += table(
        ["arm", "p50, ms", "p95, ms", "world-model calls"],
        [
            [
                arm,
                _number(results["overall"]["decision_ms"][arm]["p50"]),
                _number(results["overall"]["decision_ms"][arm]["p95"]),
                results["overall"]["world_model_calls"][arm],
            ]
            for arm in arms
        ],
    )
    judged = {arm: found for arm, found in results["overall"]["commands"].items() if found}
    if judged:
        lines += ["", "## What the simulated arm says of its commands", ""]
        lines += table(
            ["arm", "trajectories sent", "rejected", "samples at 1 kHz beyond a limit"],
            [[arm, *found.values()] for arm, found in judged.items()],
        )
    lines += ["", "## Arms", ""]
    lines += [
        f"- **{arm['name']}** ({arm['label']}): {arm['description']}" for arm in results["arms"]
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table."""
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    lines = [f"| {' | '.join(row)} |" for row in cells]
    return [lines[0], "|" + "---|" * len(head), *lines[1:]]


def _rate(block: Mapping[str, Any], arm: str) -> Measured:
    rate = block["success"][arm]
    if rate is None:
        return Measured(None)
    low, high = block["success_interval"][arm]
    return Measured(100 * rate, 100 * low, 100 * high)


def _gain(block: Mapping[str, Any], arm: str) -> Measured:
    found = block["differences"].get(arm)
    return Measured(found["points"], *found["interval"]) if found else Measured(None)


def _percent(block: Mapping[str, Any], arm: str) -> str:
    rate = _rate(block, arm)
    return "–" if rate.value is None else f"{rate.value:.0f} % ({rate.low:.0f} to {rate.high:.0f})"


def _difference(found: Mapping[str, Any]) -> list[object]:
    low, high = found["interval"]
    return [
        f"{found['points']:+.1f}",
        f"{low:+.1f} to {high:+.1f}",
        found["gained"],
        found["lost"],
        f"{found['mcnemar_p']:.3g}",
    ]


def _code(name: str, text: str) -> str:
    return f"`{text}`" if name == "command" else text


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
