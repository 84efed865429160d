"""The live graph fed by a recorded bag, with its time on /clock; no arm can move.

Everything lives in a namespace of its own, the controller computes and checks but sends nothing,
and what it would send has another name. ``vla-reasoner replay`` does the same without a graph,
faster, and keeps what came of it.

Example: ``ros2 launch vla_reasoner_ros replay.launch.py bag:=recordings/run1 policy:=small_vla``
"""

import sys

from ament_index_python.packages import PackageNotFoundError, get_package_prefix
from launch import LaunchContext, LaunchDescription
from launch.actions import ExecuteProcess, OpaqueFunction, RegisterEventHandler
from launch_ros.event_handlers import OnStateTransition

from vla_reasoner_ros.data.bag_ingest import RECORDED, TOLD, BagIngest
from vla_reasoner_ros.data.bags import BagReader
from vla_reasoner_ros.data.contract import load_contract
from vla_reasoner_ros.ros import bringup
from vla_reasoner_ros.ros.startup import ends_launch

DRY = {name: f"replay/{name}" for name in ("joint_trajectory", "gripper_command", "action_chunk")}
"""Commands by the names that nobody else takes."""
OUTPUTS = {"output": "joint_trajectory", "gripper_output": "opening"}
"""Those whose topics are among them; an action may have the name of a real controller's."""


def launch_nodes(context: LaunchContext) -> list:
    contract = bringup.value(context, "contract")
    remappings = list(DRY.items())
    robot = load_contract(contract).moments.robot
    camera = bringup.node(
        context,
        "camera_node",
        parameters={"contract": contract, "instruction": bringup.value(context, "instruction")},
    )
    controller = bringup.node(
        context,
        "arm_controller_node",
        parameters={"robot": robot},
        decided={"enable_control": False, **OUTPUTS},
        remappings=remappings,
    )
    planner = bringup.planner_node(context, remappings=remappings)
    playing = RegisterEventHandler(
        OnStateTransition(
            target_lifecycle_node=planner,
            start_state="activating",
            goal_state="active",
            entities=[player(context, contract)],
        )
    )
    return [*bringup.startup(context, [camera, controller, planner]), playing]


def player(context: LaunchContext, contract: str) -> ExecuteProcess:
    """rosbag2's player where it is installed and can give the time, else ours."""
    bag = bringup.required(context, "bag", "it is played")
    rate = f"{bringup.number(context, 'rate', float, above=True):g}"
    namespace = bringup.value(context, "namespace")
    with BagReader(bag) as reader:
        ingest = BagIngest(reader, load_contract(contract))
        names = [contract_.topic for contract_ in ingest.contract.streams.values()]
        names += [ingest.contract.moments.instruction, "simulator_state"]
        topics = {ingest.find(name): name for name in names if ingest.find(name)}
    command = [sys.executable, "-m", "vla_reasoner_ros.cli", "play", bag]
    command += ["--contract", contract, "--namespace", namespace, "--rate", rate]
    chosen = bringup.value(context, "player")
    rosbag2 = chosen == "rosbag2" or (chosen == "auto" and has_rosbag2())
    if rosbag2 and ingest.clock in (RECORDED, TOLD):
        command = ["ros2", "bag", "play", bag, "--rate", rate, "--topics", *topics]
        command += ["/clock"] if ingest.clock == TOLD else ["--clock", "100"]
        command += ["--remap"]
        command += [f"{topic}:=/{namespace}/{name}" for topic, name in topics.items()]
    return ExecuteProcess(
        cmd=command,
        name="player",
        output="screen",
        on_exit=ends_launch("the player", "the bag is over"),
    )


def has_rosbag2() -> bool:
    try:
        get_package_prefix("ros2bag")
    except PackageNotFoundError:
        return False
    return True


def generate_launch_description() -> LaunchDescription:
    return LaunchDescription(
        [
            *bringup.common_arguments(use_sim_time="true", namespace="replay"),
            *bringup.planner_arguments(policy="small_vla", world_model="auto"),
            bringup.argument("bag", "", "Folder of the bag, or one of its files."),
            bringup.argument("contract", "sim", "Contract by name, or the path of its YAML file."),
            bringup.argument("instruction", "", "What to do, where the bag has none."),
            bringup.argument("rate", "1.0", "Times as fast as it was recorded."),
            bringup.argument(
                "player",
                "auto",
                "rosbag2's where it is installed, or ours.",
                ("auto", "ours", "rosbag2"),
            ),
            OpaqueFunction(function=launch_nodes),
        ]
    )
