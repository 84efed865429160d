"""A simulated Franka with cameras, planner with search, and arm controller.

The search imagines with the learned world model while its report card is green, and simulated time
stops while it thinks; ``lockstep:=false`` is what a robot would have.

Example: ``ros2 launch vla_reasoner_ros sim.launch.py task:=lift_green seed:=3``
"""

from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction

from vla_reasoner_ros.ros import bringup
from vla_reasoner_ros.sim.tasks import TASKS

STANDSTILL = {True: 0.0, False: 2.0}
"""Seconds of real time for which the simulated clock may stand; in lockstep that is how it is."""
PATIENCE = {"controller_timeout": 1.0, "controller_wall_timeout": 3.0}
"""The simulation may run on a small machine beside everything else."""


def launch_nodes(context: LaunchContext) -> list:
    time = [("/clock", bringup.value(context, "clock"))]
    sim = bringup.node(
        context,
        "sim_node",
        parameters={
            "task": bringup.value(context, "task"),
            "seed": bringup.number(context, "seed", int),
            "real_time_factor": bringup.number(context, "real_time_factor", float, above=True),
            "lockstep": bringup.is_true(context, "lockstep"),
            "scene_hook": bringup.value(context, "scene_hook"),
        },
        remappings=time,
    )
    camera = bringup.node(
        context,
        "camera_node",
        parameters={"instruction": instruction(context)},
        remappings=time,
    )
    controller = bringup.node(
        context,
        "arm_controller_node",
        parameters={
            "watchdog.max_clock_standstill": STANDSTILL[bringup.is_true(context, "lockstep")],
        },
        decided={"enable_control": bringup.is_true(context, "enable_control")},
        remappings=time,
    )
    deadman = bringup.node(context, "deadman_node", parameters=PATIENCE, remappings=time)
    nodes = [sim, camera, controller, deadman, bringup.planner_node(context, time)]
    if bringup.is_true(context, "view"):
        nodes.append(
            bringup.node(context, "view_node", parameters={"cameras": "sim"}, remappings=time)
        )
    return [*bringup.startup(context, nodes), *bringup.rviz(context)]


def instruction(context: LaunchContext) -> str:
    task = bringup.value(context, "task")
    return bringup.value(context, "instruction") or TASKS[task].instructions[0]


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *bringup.common_arguments(use_sim_time="true"),
            *bringup.planner_arguments(policy="small_vla", world_model="auto"),
            bringup.argument("task", "lift_green", "Task of the first episode.", list(TASKS)),
            bringup.argument("seed", "0", "Seed of the first episode."),
            bringup.argument(
                "instruction",
                "",
                "What to do, instead of the task's own; the topic of this name replaces it.",
            ),
            bringup.argument(
                "clock",
                "/clock",
                "Topic of the simulated time. Two simulators in one graph need one each, as "
                "/left/clock.",
            ),
            bringup.argument("real_time_factor", "1.0", "Simulated seconds per second at most."),
            bringup.argument(
                "lockstep",
                "true",
                "Stop the simulated time while the planner thinks.",
                bringup.TRUTH,
            ),
            bringup.argument(
                "scene_hook", "", "FILE.py:FUNCTION that changes the MjSpec before it is compiled."
            ),
            bringup.argument(
                "enable_control",
                "true",
                "Send commands: true here because only a simulation can move. No params_file "
                "overrides it.",
                bringup.TRUTH,
            ),
            bringup.argument(
                "view",
                "false",
                "Start view_node too, which shows what the planner imagines; RViz needs it.",
                bringup.TRUTH,
            ),
            bringup.rviz_argument(),
            OpaqueFunction(function=launch_nodes),
        ]
    )
