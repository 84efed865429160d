"""``vla-reasoner <verb>``: all work away from the robot, from one table of verbs.

A verb is a module with ``add_arguments(parser)`` and ``run(arguments) -> int``, the exit code. It
is imported when its verb is typed, so that one verb never pays for another's libraries.
"""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import re
import select
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vla_reasoner_ros import __version__
from vla_reasoner_ros.arguments import Parser
from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError

EXIT_ERROR = 2
EXIT_INTERRUPTED = 128 + signal.SIGINT
EXIT_BROKEN_PIPE = 128 + signal.SIGPIPE


@dataclass(frozen=True)
class Verb:
    """One verb: the line that ``--help`` shows and the module that does it."""

    help: str
    module: str


VERBS: dict[str, Verb] = {
    "recipe": Verb(
        "make everything that is shipped again, from nothing; goes on where it was",
        "vla_reasoner_ros.recipe",
    ),
    "demo-data": Verb(
        "record demonstrations and failures in the simulator",
        "vla_reasoner_ros.training.demo_data",
    ),
    "import-bags": Verb(
        "recorded bags to episodes that can be trained on", "vla_reasoner_ros.data.bag_episodes"
    ),
    "export-bags": Verb(
        "episodes to rosbag2 (MCAP) recordings", "vla_reasoner_ros.data.episode_bags"
    ),
    "lerobot": Verb("LeRobot datasets (v3) to episodes and back", "vla_reasoner_ros.data.lerobot"),
    "branches": Verb(
        "record branched decisions: many candidates from the same state",
        "vla_reasoner_ros.training.branches",
    ),
    "train policy": Verb(
        "behaviour cloning of the small policy", "vla_reasoner_ros.training.policy"
    ),
    "train prior": Verb("density over demonstrated actions", "vla_reasoner_ros.training.prior"),
    "train encoder": Verb(
        "image encoder of the value and the world model", "vla_reasoner_ros.training.encoder"
    ),
    "train views": Verb(
        "what tells a moved camera or a changed light", "vla_reasoner_ros.training.views"
    ),
    "train value": Verb("progress toward the instruction", "vla_reasoner_ros.training.value"),
    "train world-model": Verb("latent dynamics", "vla_reasoner_ros.training.world_model"),
    "train decoder": Verb(
        "pictures of what was imagined, for people", "vla_reasoner_ros.training.decoder"
    ),
    "train vision-model": Verb(
        "predictor of world model vjepa2_ac, on a frozen V-JEPA 2 or DINOv2 encoder",
        "vla_reasoner_ros.training.vision_model",
    ),
    "train vision-value": Verb(
        "progress on the same encoder's latents", "vla_reasoner_ros.training.vision_value"
    ),
    "report-card": Verb(
        "judge the models on held-out branched decisions",
        "vla_reasoner_ros.training.report_card",
    ),
    "evaluate": Verb(
        "closed-loop success with and without search on paired seeds",
        "vla_reasoner_ros.evaluation.evaluate",
    ),
    "record": Verb("record what replay, training and reports need", "vla_reasoner_ros.ros.record"),
    "play": Verb(
        "play a bag into a running graph, with its time on /clock", "vla_reasoner_ros.ros.play"
    ),
    "replay": Verb(
        "a recorded bag through the same ingest and planner as live",
        "vla_reasoner_ros.evaluation.replay",
    ),
    "ablate": Verb(
        "many variants of the search on the same scenes", "vla_reasoner_ros.evaluation.ablate"
    ),
    "check": Verb(
        "hold a policy's conventions against robot, cameras and recordings",
        "vla_reasoner_ros.check",
    ),
    "calibrate": Verb(
        "recommend the search's parameters from recorded bags",
        "vla_reasoner_ros.evaluation.calibrate",
    ),
    "memory": Verb(
        "what a configuration takes in memory, and whether it fits", "vla_reasoner_ros.memory"
    ),
    "imagine": Verb(
        "draw what the learned world model imagines of a recorded episode",
        "vla_reasoner_ros.evaluation.imagined",
    ),
    "report": Verb(
        "write an HTML report of an evaluation or a replay", "vla_reasoner_ros.evaluation.report"
    ),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb.

    Args:
        arguments: the command line without the program's name; ``sys.argv`` when None.

    Returns:
        The verb's exit code; 2 for an error, told in one line on stderr; 130 after Ctrl-C; 141
        when whoever reads the output has enough, as ``head``.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of files may be no text at all
            stream.reconfigure(errors="backslashreplace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()
    except BrokenPipeError:
        if not _nobody_reads_the_output():
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
    return code


def _run(words: list[str]) -> int:
    """Run one verb, or list them; errors of ours and of files become one line and an exit code."""
    if not words or (words[-1] in ("-h", "--help") and " ".join(words[:-1]) in ("", "train")):
        print(_overview(" ".join(words[:-1])))
        return 0
    if words == ["--version"]:
        print(__version__)
        return 0
    try:
        name, rest = _find(words)
        module = importlib.import_module(VERBS[name].module)
        parser = Parser(prog=f"vla-reasoner {name}", description=_first_paragraph(module))
        module.add_arguments(parser)
        return int(module.run(parser.parse_args(rest)))
    except VlaReasonerError as error:
        print(f"vla-reasoner: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except OSError as error:
        print(f"vla-reasoner: {_fault_of_a_file(error)}", file=sys.stderr)
        return EXIT_ERROR
    except ImportError as error:
        print(f"vla-reasoner: {_missing(error)}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        print("vla-reasoner: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _nobody_reads_the_output() -> bool:
    """Whether it goes into a pipe whose other end is closed."""
    try:
        descriptor = sys.stdout.fileno()
    except OSError:  # no file of the system
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))


def _fault_of_a_file(error: OSError) -> str:
    """What a file or folder refused, in one line.

    Raises:
        OSError: ``error`` itself where it names no file, so that nobody could know what to mend.
    """
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        # Files are written whole or not at all, so what is there can be relied on.
        where = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{where}; what is finished is kept"
    if not error.filename or not error.strerror:
        raise error
    return f"{os.fsdecode(error.filename)}: {error.strerror}"


def _missing(error: ImportError) -> str:
    """What cannot be imported, in one line, and where it comes from."""
    said = str(error).splitlines()[0]
    name = error.name or ""
    if re.match(r"rclpy|vla_reasoner_ros\.(msg|srv|action)\b", name) or "librcl" in said:
        return f"{said}; this verb needs ROS 2: source it and the workspace's setup.bash"
    if name.startswith("vla_reasoner_ros"):
        return f"{said}; the installed package is not whole: build it again"
    return f"{said}; is the extra that brings it installed?"


def _find(words: list[str]) -> tuple[str, list[str]]:
    """The verb that the words begin with, and the rest.

    Raises:
        ConfigurationError: no verb begins so; the message suggests the nearest.
    """
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in VERBS:
            return name, words[length:]
    typed = " ".join(words[:2] if words[0] in {v.split()[0] for v in VERBS} else words[:1])
    near = difflib.get_close_matches(typed, VERBS, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ConfigurationError(f"there is no verb {typed!r}{hint} (vla-reasoner --help lists them)")


def _overview(prefix: str = "") -> str:
    """The verbs that begin with ``prefix``, one a line."""
    lines = [f"  {name:<20}{verb.help}" for name, verb in VERBS.items() if name.startswith(prefix)]
    return "\n".join(
        [
            "usage: vla-reasoner VERB [OPTION ...]",
            "",
            *lines,
            "",
            "vla-reasoner VERB --help tells a verb's options.",
        ]
    )


def _first_paragraph(module: Any) -> str:
    return (module.__doc__ or "").strip().split("\n\n")[0]


if __name__ == "__main__":
    sys.exit(main())
