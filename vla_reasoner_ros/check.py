"""Hold a policy's conventions against a robot, its cameras and recordings; print a table.

Each line is ``pass``, ``warn`` or ``fail``. The exit code is 1 when a check failed.
"""

from __future__ import annotations

import argparse

from vla_reasoner_ros import plugins
from vla_reasoner_ros.arguments import COUNT, WHOLE
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.self_check import Level, check, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's arguments."""
    parser.add_argument("--policy", default="small_vla", help="registered name")
    parser.add_argument("--options", default="", help="YAML file with the policy's options")
    parser.add_argument("--robot", default="", help="name or file of the robot")
    parser.add_argument("--contract", default="", help="name or file of the contract of streams")
    parser.add_argument("--data", nargs="+", default=[], help="folders of recorded episodes")
    parser.add_argument("--observations", type=COUNT, default=48, help="recorded ones to replay")
    parser.add_argument("--seed", type=WHOLE, default=0, help="chooses these")


def run(arguments: argparse.Namespace) -> int:
    """Print the table; 1 when a check failed."""
    findings = check(
        plugins.create("policy", arguments.policy, plugins.read_options(arguments.options)),
        load_robot(arguments.robot) if arguments.robot else None,
        load_contract(arguments.contract) if arguments.contract else None,
        EpisodeSet.open(*arguments.data) if arguments.data else None,
        arguments.observations,
        arguments.seed,
    )
    print(table(findings))
    return int(any(finding.level is Level.FAIL for finding in findings))
