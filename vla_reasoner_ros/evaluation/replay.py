"""Replay a recorded bag through the same ingest and the same Reasoner as live, without ROS.

Writes a table with one row a decision, and a bag with the decisions, their statistics, their trees
and what was seen. Interrupted, the same command goes on: finished episodes are kept, the episode at
hand is thought through again from its beginning, so that the result is the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

from vla_reasoner_ros import __version__
from vla_reasoner_ros.arguments import WHOLE
from vla_reasoner_ros.components import load_components
from vla_reasoner_ros.data.bag_ingest import BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.message_types import prepare
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation import shadow
from vla_reasoner_ros.evaluation.evaluate import parse_overrides
from vla_reasoner_ros.evaluation.replay_live import recorded_decisions
from vla_reasoner_ros.evaluation.replay_record import TOPICS, Replay, ReplayWriter, read_replay
from vla_reasoner_ros.evaluation.replay_run import ReplayRun
from vla_reasoner_ros.evaluation.replay_settings import (
    MOMENTS,
    PLANNER,
    RECORDED,
    ReplaySettings,
    read_settings,
)
from vla_reasoner_ros.planner import warm_up
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.stages import STAGES

__all__ = ["Replay", "read_replay"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("bag", type=Path, help="folder of the bag, or one of its files")
    parser.add_argument("--out", type=Path, default=Path("out/replay"), help="folder to write")
    parser.add_argument("--contract", default="sim", help="contract by name, or its YAML file")
    parser.add_argument("--namespace", default="", help="of the topics, where the bag has several")
    parser.add_argument("--instruction", default="", help="where the bag has none")
    parser.add_argument(
        "--params", type=Path, help="ROS parameter file (default: what the bag was recorded with)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter, as search.depth=2 or planner.world_model=latent; may be repeated",
    )
    parser.add_argument("--seed", type=WHOLE, default=0, help="of all random numbers (default 0)")
    parser.add_argument(
        "--moments",
        choices=MOMENTS,
        default=MOMENTS[0],
        help="decide on what the planner decided on when it was recorded, on what it would decide "
        "on, or on every observation (default: recorded where it was, else planner)",
    )
    parser.add_argument(
        "--deadline", action="store_true", help="keep to search.deadline_ms; not repeatable then"
    )
    parser.add_argument("--fresh", action="store_true", help="forget a replay that is there")


def run(arguments: argparse.Namespace) -> int:
    """Replay, and say what came of it."""
    with BagReader(arguments.bag) as bag:
        settings = read_settings(
            bag,
            contract=arguments.contract,
            namespace=arguments.namespace,
            instruction=arguments.instruction,
            params=arguments.params,
            overrides=parse_overrides(arguments.set),
            seed=arguments.seed,
            moments=arguments.moments,
            keep_deadline=arguments.deadline,
        )
        replay = replay_bag(bag, settings, arguments.out, fresh=arguments.fresh)
    for problem in replay.info["problems"]:
        print(f"note: {problem}", file=sys.stderr)
    for line in summary(replay):
        print(line)
    return 0


def summary(replay: Replay) -> list[str]:
    """A replay in a few lines."""
    info, rows = replay.info, replay.rows()
    lines = [
        f"{len(rows)} decisions of {info['observations']} observations in "
        f"{info['episodes']} episodes",
    ]
    if rows:
        times = replay.column("decision_ms")
        median, high = np.percentile(times, [50, 95])
        lines.append(
            f"decision time {median:.1f} ms, 95th percentile {high:.1f} ms; fell back in "
            f"{sum(row['status'] in ('policy', 'hold') for row in rows)}, deviated in "
            f"{sum(row['deviated'] for row in rows)}"
        )
        compared = [row["live_equal"] for row in rows if row["live_equal"] is not None]
        if compared:
            lines.append(
                f"{sum(compared)} of {len(compared)} decisions are those that were made live"
            )
        lines += shadow.agreement(rows).lines()
    return [*lines, f"table: {replay.path / 'decisions.parquet'}"]


def replay_bag(
    bag: BagReader, settings: ReplaySettings, folder: Path, *, fresh: bool = False
) -> Replay:
    """Replay a bag into a folder, or go on with that.

    Raises:
        BagError: the bag does not fit the contract.
        ConfigurationError: the components or parameters do not fit, or another replay is there.
    """
    ingest = BagIngest(
        bag, load_contract(settings.contract), settings.instruction, settings.namespace
    )
    live = recorded_decisions(bag, ingest)
    moments = settings.moments
    if moments == MOMENTS[0]:
        moments = RECORDED if live else PLANNER
    elif moments == RECORDED and not live:
        raise ConfigurationError(f"bag {bag.path}: no decision was recorded in it")
    components = load_components(settings.components)
    spec = components.policy.spec.action
    info = {
        "bag": str(bag.path),
        "version": __version__,
        "settings": settings.fingerprint() | {"moments": moments},
        "parameters": settings.parameters(),
        "parameters_from": settings.source,
        "components": dict(components.names),
        "note": components.reason,
        "spec": spec.to_mapping(),
        "stages": list(STAGES),
        "clock": ingest.clock,
    }
    writer = ReplayWriter(folder, info, fresh)
    if writer.finished:
        return read_replay(folder)
    reasoner = Reasoner(
        components.policy,
        components.world_model,
        components.value,
        components.prior,
        settings.search if settings.keep_deadline else settings.without_deadline(),
        settings.seed,
    )
    warm_up(reasoner, components.policy, components.world_model)
    prepare({*TOPICS.values(), *(bag.topics[topic].type for topic in ingest.topics.values())})
    run_ = ReplayRun(bag, ingest, components, reasoner, settings, moments, live, writer)
    try:
        run_.all()
    except BaseException:
        writer.abandon()
        raise
    writer.finish(
        observations=ingest.ingest.moments["observed"],
        episodes=run_.episode + 1,
        errors=run_.errors,
        problems=[*bag.problems, *ingest.problems],
        wall_s=round(run_.wall_s, 3),
        models_s=round(run_.models_s, 3),
        cpu_s=round(run_.cpu_s, 3),
        models_cpu_s=round(run_.models_cpu_s, 3),
        ingest={
            name: {"received": s.received, "used": s.used, "dropped": dict(s.dropped)}
            for name, s in ingest.ingest.statistics.items()
        },
        refused=dict(ingest.ingest.moments),
    )
    return read_replay(folder)
