"""Write an HTML report of an evaluation or a replay: one file, all inside, readable offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

from vla_reasoner_ros.arguments import COUNT
from vla_reasoner_ros.data.cameras import FixedCamera, load_cameras
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.evaluation.page import assembly, sections
from vla_reasoner_ros.evaluation.page.moments import Recording, from_run
from vla_reasoner_ros.evaluation.page.packing import pack
from vla_reasoner_ros.evaluation.page.replays import from_replay, log_replay
from vla_reasoner_ros.evaluation.records import RunRecord
from vla_reasoner_ros.evaluation.replay_record import Replay, read_replay
from vla_reasoner_ros.evaluation.results import read_results
from vla_reasoner_ros.evaluation.views import RerunLog
from vla_reasoner_ros.files import beside, write_atomically
from vla_reasoner_ros.parameters import flatten
from vla_reasoner_ros.paths import share_directory
from vla_reasoner_ros.search.parameters import SearchParameters

EXPLORER_PICTURE_WIDTH = 640


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "results", type=Path, help="JSON file that `evaluate --json` wrote, or folder of a replay"
    )
    parser.add_argument(
        "--html", type=Path, help="report to write; default: beside the results, in the folder"
    )
    parser.add_argument("--camera", default="", help="whose pictures of a replay are shown")
    parser.add_argument(
        "--cameras",
        default="",
        help="calibration of a replay's cameras, a name in config/cameras or a YAML file; default: "
        "named as the contract",
    )
    parser.add_argument(
        "--picture-width",
        type=COUNT,
        default=EXPLORER_PICTURE_WIDTH,
        help=f"a replay's wider pictures are made smaller (default {EXPLORER_PICTURE_WIDTH})",
    )
    parser.add_argument(
        "--rerun", type=Path, help="write a replay as a Rerun recording (.rrd) too; extra rerun"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the report of a results file or of a replay."""
    if arguments.results.is_dir():
        path = arguments.html or arguments.results / "report.html"
        replay = read_replay(arguments.results)
        cameras = replay_cameras(replay, arguments.cameras)
        if arguments.rerun is not None:
            log = RerunLog(arguments.rerun)
            log_replay(replay, log, cameras)
            log.close()
            print(arguments.rerun)
        left_out = write_replay_report(
            path, replay, arguments.camera, cameras, arguments.picture_width
        )
    else:
        path = arguments.html or beside(arguments.results, ".html")
        left_out = write_report(path, read_results(arguments.results))
    if left_out:
        print(f"vla-reasoner report: {left_out}", file=sys.stderr)
    print(path)
    return 0


def replay_cameras(replay: Replay, cameras: str) -> dict[str, FixedCamera]:
    """The calibration by name or path; empty takes that of the contract's name if it exists.

    Raises:
        ConfigurationError: it cannot be read.
    """
    contract = replay.info["settings"]["contract"]
    named = share_directory() / "config" / "cameras" / f"{contract}.yaml"
    wanted = cameras or (named if named.is_file() else "")
    return load_cameras(wanted) if wanted else {}


def write_replay_report(
    path: str | Path,
    replay: Replay,
    camera: str,
    cameras: Mapping[str, FixedCamera],
    picture_width: int,
) -> str:
    """Write the report of a replayed bag, atomically.

    Args:
        path: the file.
        replay: it.
        camera: whose pictures are shown; empty chooses one.
        cameras: calibrations by name; see :func:`replay_cameras`.
        picture_width: wider pictures are made smaller, pixels.

    Returns:
        As :func:`write_page`.

    Raises:
        ConfigurationError: no decision, or the camera is unknown.
    """
    settings = replay.info["settings"]
    recordings = from_replay(replay, camera, cameras)
    if not recordings:
        raise ConfigurationError(f"replay {replay.path}: there is no decision in it")
    facts = [("bag", replay.info["bag"]), ("version", replay.info["version"])]
    facts += [(f"planner.{kind}", name) for kind, name in replay.info["components"].items()]
    facts += [(name, str(settings[name])) for name in ("contract", "seed", "models")]
    changed = flatten(SearchParameters(), "search.")
    facts += [
        (name, str(value))
        for name, value in replay.info["parameters"].items()
        if name in changed and changed[name] != value
    ]
    notes = [*replay.info.get("problems", ())]
    if replay.info.get("note"):
        notes.append(str(replay.info["note"]))
    if not replay.info["finished"]:
        notes.append("The replay is not finished: this is how far it came.")
    before = "".join(f'<p class="note">{escape(note)}</p>' for note in notes)
    above = [f"<section>{before}</section>"] if before else []
    title = f"Replay of {Path(replay.info['bag']).name}"
    after = [sections.facts_section(facts)]
    return write_page(path, title, above, recordings, picture_width, after)


def write_report(path: str | Path, record: RunRecord) -> str:
    """Write the report of a run, atomically.

    Returns:
        What had to be left out and why, in a sentence; empty when nothing was.
    """
    return write_page(
        path,
        record.title,
        sections.before_explorer(record),
        from_run(record),
        EXPLORER_PICTURE_WIDTH,
        sections.after_explorer(record),
    )


def write_page(
    path: str | Path,
    title: str,
    before: Sequence[str],
    recordings: Iterable[Recording],
    picture_width: int,
    after: Sequence[str] = (),
) -> str:
    """Write a page with the explorer between sections of HTML, atomically.

    Args:
        path: the file.
        title: of the page, plain text.
        before: sections above the explorer.
        recordings: what the explorer shows; without any decision it is left out.
        picture_width: pictures in the explorer that are wider are made smaller, pixels.
        after: sections below.

    Returns:
        What had to be left out and why, in a sentence; empty when nothing was.

    Raises:
        ConfigurationError: a recording is not what the explorer needs.
    """
    count, scripts = pack(recordings, picture_width)
    missing = ""
    middle = [assembly.explorer_section()] if count else []
    try:
        content = assembly.page(title, "\n".join([*before, *middle, *after]), scripts * bool(count))
    except assembly.MissingLibraryError as error:
        missing = f"The explorer of single decisions was left out: {error}."
        middle = [f'<section><p class="note">{escape(missing)}</p></section>']
        content = assembly.page(title, "\n".join([*before, *middle, *after]))
    write_atomically(path, content)
    return missing
