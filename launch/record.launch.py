"""Record what replay, training and reports need, until Ctrl-C; see ``vla-reasoner record --help``.

Example: ``ros2 launch vla_reasoner_ros record.launch.py contract:=sim out:=recordings/run1``
"""

import sys

from launch import LaunchContext, LaunchDescription
from launch.actions import ExecuteProcess, OpaqueFunction

from vla_reasoner_ros.ros import bringup
from vla_reasoner_ros.ros.startup import ends_launch


def launch_recorder(context: LaunchContext) -> list:
    if bringup.value(context, "seconds"):
        bringup.number(context, "seconds", float, above=True)
    command = [sys.executable, "-m", "vla_reasoner_ros.cli", "record"]
    for name in ("contract", "namespace", "out", "seconds"):
        text = bringup.value(context, name)
        if text:
            command += [f"--{name}", text]
    if bringup.is_true(context, "compress"):
        command.append("--compress")
    return [
        ExecuteProcess(
            cmd=command,
            name="recorder",
            output="screen",
            on_exit=ends_launch("the recorder", "recorded"),
        )
    ]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            bringup.argument("contract", "sim", "Contract by name, or the path of its YAML file."),
            bringup.argument("namespace", "", "Namespace of nodes and topics."),
            bringup.argument("out", "", "Folder to write; empty: recordings/ and the time."),
            bringup.argument("seconds", "", "End after so many seconds; empty: at Ctrl-C."),
            bringup.argument("compress", "false", "Compress by chunks.", bringup.TRUTH),
            OpaqueFunction(function=launch_recorder),
        ]
    )
