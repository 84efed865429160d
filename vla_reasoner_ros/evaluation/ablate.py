"""Run ablations: many variants of the search on the same scenes and seeds, and their tables.

Each file under config/ablations asks one question and lists variants. All their episodes go through
one queue on all cores; what is finished is kept, and the same command goes on with what is missing.
For each file a Markdown and an HTML report, a plot and the numbers as JSON are written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from html import escape
from pathlib import Path
from typing import Any

from vla_reasoner_ros import __version__, executor
from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import arms as arm_table
from vla_reasoner_ros.evaluation.ablations import (
    BASE,
    Ablation,
    Variant,
    read_ablation,
    require_parameters,
)
from vla_reasoner_ros.evaluation.evaluate import parse_overrides, plan, warn_of_seeds
from vla_reasoner_ros.evaluation.markdown import table
from vla_reasoner_ros.evaluation.plots import Measured, Series, plot_rows
from vla_reasoner_ros.evaluation.runs import Case, EpisodeStore, Job, Settings, run_cases
from vla_reasoner_ros.evaluation.statistics import PairedDifference
from vla_reasoner_ros.evaluation.summary import decision_times, difference, success
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.paths import MODELS_VARIABLE, share_directory
from vla_reasoner_ros.training.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        help="ablations to run (default: all of config/ablations)",
    )
    parser.add_argument("--out", type=Path, default=Path("out/ablations"), help="folder to write")
    parser.add_argument("--tasks", default="all", help="all, or names with commas between")
    parser.add_argument("--episodes", type=COUNT, default=10, help="seeds per task (default 10)")
    parser.add_argument(
        "--seed-start", type=WHOLE, default=51000, help="first seed (default 51000)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of the policy alone and of all variants that do not set it themselves; "
        "may be repeated",
    )
    parser.add_argument(
        "--latency-true",
        action="store_true",
        help="the arm and the world go on while the planner thinks, by its measured time",
    )
    parser.add_argument("--models", default="", help="folder of the weights (default: the shipped)")
    parser.add_argument("--fresh", action="store_true", help="forget episodes finished before")
    executor.add_arguments(parser)


@dataclass(frozen=True)
class Row:
    """A variant, the settings of its episodes, and where they are kept."""

    variant: Variant
    settings: Settings
    store: EpisodeStore
    cases: tuple[Case, ...]

    @property
    def episodes(self) -> list[dict[str, Any]]:
        """What is finished of it, under the variant's name."""
        found = self.store.finished(self.cases)
        return [episode | {"arm": self.variant.name} for episode in found]


def run(arguments: argparse.Namespace) -> int:
    """Run what is missing, then write every report."""
    engine = executor.settings_of(arguments)
    if arguments.models:
        os.environ[MODELS_VARIABLE] = arguments.models
    files = arguments.files or sorted((share_directory() / "config" / "ablations").glob("*.yaml"))
    common = parse_overrides(arguments.set)
    # The policy that searching is compared with is set as the policy that searches.
    baseline = replace(BASE, overrides=common)
    require_parameters(baseline, "--set")
    ablations = [with_common(read_ablation(path), common) for path in files]
    if len({ablation.name for ablation in ablations}) != len(ablations):
        raise ConfigurationError("ablations: two files have the same name")
    plan(arguments.tasks, arguments.episodes, arguments.seed_start, ["policy"])
    seeds = range(arguments.seed_start, arguments.seed_start + arguments.episodes)
    # Choosing among variants is tuning, so the seeds for tuning are the right ones.
    warned = warn_of_seeds(seeds, ["training"])

    def row(variant: Variant, path: Path) -> Row:
        settings = Settings(
            overrides=variant.overrides,
            options=variant.options,
            latency_true=arguments.latency_true,
        )
        cases = plan(arguments.tasks, arguments.episodes, arguments.seed_start, [variant.arm])
        path.parent.mkdir(parents=True, exist_ok=True)
        return Row(variant, settings, EpisodeStore(path, settings, arguments.fresh), tuple(cases))

    base = row(baseline, arguments.out / "policy.episodes.jsonl")
    rows = {
        ablation.name: [
            row(variant, arguments.out / ablation.name / f"{variant.slug}.episodes.jsonl")
            for variant in ablation.variants
        ]
        for ablation in ablations
    }
    everything = [base, *(one for found in rows.values() for one in found)]
    work(everything, engine)
    facts = {
        "command": shlex.join(["vla-reasoner", *sys.argv[1:]]),
        "date": datetime.date.today().isoformat(),
        "version": __version__,
        "seeds": f"{seeds.start} to {seeds.stop - 1} of each task ({arguments.tasks})",
        "models": base.settings.fingerprint()["models"],
    } | warned
    for ablation in ablations:
        results = summarise_ablation(ablation, base, rows[ablation.name]) | {"facts": facts}
        path = arguments.out / f"{ablation.name}.md"
        write_reports(path, results)
        print(f"{ablation.title}: {path}, {path.with_suffix('.html')}")
    return 0


def with_common(ablation: Ablation, overrides: Mapping[str, Any]) -> Ablation:
    """The ablation with parameters for all variants, under those that each sets itself.

    Raises:
        ConfigurationError: a name is unknown, or a value does not go with a variant's own.
    """
    variants = tuple(
        replace(variant, overrides=dict(overrides) | dict(variant.overrides))
        for variant in ablation.variants
    )
    for variant in variants:
        require_parameters(variant, f"--set, ablation {ablation.name}: variant {variant.name!r}")
    return replace(ablation, variants=variants)


def work(rows: Sequence[Row], engine: executor.EngineSettings) -> None:
    """Run the episodes that are missing, variant by variant, on all workers."""
    jobs: list[Job] = []
    owners: dict[int, Row] = {}
    for row in rows:
        for case in row.cases:
            if case not in row.store:
                job = Job(case, row.settings)
                jobs.append(job)
                owners[id(job)] = row
    total = sum(len(row.cases) for row in rows)
    done = total - len(jobs)
    progress = Progress("ablate", total, "episodes", done=done)
    for job, episode in run_cases(jobs, engine):
        row = owners[id(job)]
        row.store.add(job.case, episode)
        done += 1
        progress.update(done, f"{row.variant.name} {job.case.task} {job.case.seed}")


def summarise_ablation(ablation: Ablation, base: Row, rows: Sequence[Row]) -> dict[str, Any]:
    """The published numbers of an ablation, one entry a variant, the policy alone first."""
    by_name = {row.variant.name: row for row in rows}
    reference = by_name.get(ablation.reference)
    entries = []
    for row in (base, *rows):
        episodes = row.episodes
        rate = success(episodes, row.variant.name)
        calls = [call for episode in episodes for call in episode["world_model_calls"]]
        entries.append(
            {
                "variant": row.variant.name,
                "arm": asdict(arm_table.describe(row.variant.arm, row.variant.overrides)),
                "set": dict(row.variant.overrides),
                "options": dict(row.variant.options),
                "n": rate.n,
                "success": rate.rate if rate.n else None,
                "success_interval": [rate.low, rate.high],
                "over_policy": _compared(base, row),
                "over_reference": _compared(reference, row) if reference else None,
                "decision_ms": decision_times(episodes, row.variant.name),
                "world_model_calls": sum(calls) / len(calls) if calls else 0.0,
                "by_task": {
                    task: sum(e["success"] for e in episodes if e["task"] == task)
                    for task in sorted({case.task for case in row.cases})
                },
            }
        )
    return {
        "title": ablation.title,
        "question": ablation.question,
        "reference": ablation.reference,
        "variants": entries,
    }


def _compared(other: Row, row: Row) -> dict[str, Any] | None:
    if other is row:
        return None
    found: PairedDifference | None = difference(
        [*other.episodes, *row.episodes], other.variant.name, row.variant.name
    )
    if found is None:
        return None
    return {
        "n": found.n,
        "points": 100.0 * found.difference,
        "interval": [100.0 * found.low, 100.0 * found.high],
        "gained": found.gained,
        "lost": found.lost,
        "mcnemar_p": found.mcnemar_p,
    }


def write_reports(path: Path, results: Mapping[str, Any]) -> None:
    """Write NAME.md, NAME.html, NAME.svg and NAME.json."""
    plot = path.with_suffix(".svg")
    entries = results["variants"]
    plot_rows(
        plot,
        [entry["variant"] for entry in entries],
        [Series("success", [_rate(entry) for entry in entries])],
        "success, % with 95 % interval",
    )
    head = ["variant", "n", "success", "over the policy", "p"]
    head += [f"over {results['reference']}", "p"] if results["reference"] else []
    head += ["p50, ms", "p95, ms", "calls"]
    body = [_cells(entry, bool(results["reference"])) for entry in entries]
    facts = [f"{name}: {text}" for name, text in results["facts"].items()]
    lines = [f"# {results['title']}", "", results["question"], "", f"![Success]({plot.name})", ""]
    lines += [*table(head, body), "", *(f"- {fact}" for fact in facts)]
    write_atomically(path, ("\n".join(lines) + "\n").encode())
    write_atomically(path.with_suffix(".json"), (json.dumps(results, indent=1) + "\n").encode())
    drawing = plot.read_text(encoding="utf-8")
    page = [
        "<!doctype html>",
        f'<html lang="en"><meta charset="utf-8"><title>{escape(results["title"])}</title>',
        "<style>body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;"
        "padding:0 1rem}table{border-collapse:collapse}td,th{border-bottom:1px solid #ccc;"
        "padding:.2rem .8rem;text-align:left;font-variant-numeric:tabular-nums}</style>",
        f"<h1>{escape(results['title'])}</h1><p>{escape(results['question'])}</p>",
        drawing[drawing.index("<svg") :],
        "<table>" + _html_row("th", head) + "".join(_html_row("td", row) for row in body),
        "</table><ul>" + "".join(f"<li>{escape(fact)}</li>" for fact in facts) + "</ul></html>",
    ]
    write_atomically(path.with_suffix(".html"), "\n".join(page).encode())


def _html_row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _rate(entry: Mapping[str, Any]) -> Measured:
    if entry["success"] is None:
        return Measured(None)
    low, high = entry["success_interval"]
    return Measured(100 * entry["success"], 100 * low, 100 * high)


def _cells(entry: Mapping[str, Any], with_reference: bool) -> list[str]:
    rate = _rate(entry)
    share = "–" if rate.value is None else f"{rate.value:.0f} % ({rate.low:.0f} to {rate.high:.0f})"
    cells = [entry["variant"], str(entry["n"]), share, *_points(entry["over_policy"])]
    if with_reference:
        cells += _points(entry["over_reference"])
    times = entry["decision_ms"]
    cells += ["–" if times[p] is None else f"{times[p]:.0f}" for p in ("p50", "p95")]
    return [*cells, f"{entry['world_model_calls']:.1f}"]


def _points(found: Mapping[str, Any] | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    low, high = found["interval"]
    return [f"{found['points']:+.1f} ({low:+.1f} to {high:+.1f})", f"{found['mcnemar_p']:.3g}"]
