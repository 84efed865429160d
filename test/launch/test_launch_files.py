"""What the launch files declare, refuse and hand over; nothing is started."""

import os
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

import rclpy
from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import LifecycleNode
from rclpy.node import Node

from vla_reasoner_ros.errors import BagError

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import recordings

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {path.name.split(".")[0]: path for path in sorted((ROOT / "launch").glob("*.launch.py"))}
COMMON = {"namespace", "use_sim_time", "params_file", "log_level"}
PLANNING = COMMON | {"policy"}
ARM = PLANNING | {"robot", "robot_ip", "enable_control", "start_driver", "planner", "rviz"}
EXPECTED = {
    "sim": PLANNING | {"enable_control", "rviz"},
    "planner": PLANNING,
    "franka": ARM,
    "ur": ARM,
    "replay": PLANNING | {"bag", "contract", "instruction", "rate", "player"},
    "record": {"contract", "namespace", "out", "seconds", "compress"},
}
TRUE_OR_FALSE = {"use_sim_time", "enable_control", "start_driver", "planner", "rviz", "compress"}


def description(name):
    return PythonLaunchDescriptionSource(str(FILES[name])).get_launch_description(LaunchContext())


def arguments(name):
    return {a.name: a for a in description(name).entities if isinstance(a, DeclareLaunchArgument)}


def entities(name, **given):
    """What a launch file would start with these arguments."""
    context = LaunchContext()
    found = []
    for entity in description(name).entities:
        if isinstance(entity, DeclareLaunchArgument):
            default = "".join(part.text for part in entity.default_value)
            context.launch_configurations[entity.name] = given.get(entity.name, default)
        elif isinstance(entity, OpaqueFunction):
            found += entity.execute(context)
    return found


@pytest.mark.parametrize("name", FILES)
def test_every_argument_is_described(name):
    for argument in arguments(name).values():
        assert re.search(r"\w{3,}.*[.:]", argument.description), argument.name
    assert FILES[name].read_text().count("Example") == 1


@pytest.mark.parametrize("name", EXPECTED)
def test_the_arguments_that_all_expect_are_there_with_their_choices(name):
    declared = arguments(name)
    assert EXPECTED[name] <= set(declared)
    for argument in TRUE_OR_FALSE & set(declared):
        assert declared[argument].choices == ["true", "false"], argument
    if "log_level" in declared:
        assert declared["log_level"].choices[0] == "debug"


@pytest.mark.parametrize("name", ["franka", "ur"])
def test_a_real_arm_is_not_commanded_unless_asked(name):
    assert arguments(name)["enable_control"].default_value[0].text == "false"


def test_nothing_is_ever_respawned():
    ros = ROOT / "vla_reasoner_ros" / "ros"
    assert "respawn=False" in (ros / "bringup.py").read_text()
    shared = (ros / "bringup.py", ros / "arm_bringup.py", ros / "startup.py")
    for path in (*FILES.values(), *shared):
        assert not re.search(r"respawn\w*=True", path.read_text()), path


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("franka", {}, "policy: an argument is expected"),
        ("planner", {}, "policy: an argument is expected"),
        ("franka", {"policy": "x", "params_file": "/no.yaml"}, "params_file: there is no file"),
        ("ur", {"policy": "x", "rviz": "true"}, "sudo apt install ros-jazzy-rviz2"),
        (
            "ur",
            {"policy": "x", "start_driver": "true", "robot_ip": "10.0.0.2"},
            "package ur_robot_driver is not installed; sudo apt install ros-jazzy-ur-robot-driver",
        ),
        (
            "ur",
            {"policy": "x", "start_driver": "true", "robot_ip": "10.0.0.2", "namespace": "left"},
            "controller:=/scaled_joint_trajectory_controller joint_states:=/joint_states "
            "speed_scaling:=/speed_scaling_state_broadcaster/speed_scaling",
        ),
        ("ur", {"policy": "x", "start_driver": "true"}, "robot_ip: an argument is expected"),
        (
            "franka",
            {"policy": "x", "start_driver": "true", "robot_ip": "10.0.0.2"},
            "package franka_bringup is not installed; build franka_ros2",
        ),
        (
            "franka",
            {"policy": "x", "start_driver": "true", "robot": "panda"},
            "start the driver of a Panda yourself",
        ),
        ("franka", {"policy": "x", "robot_description": "/no.urdf"}, "there is no file '/no.urdf'"),
        ("franka", {"policy": "x", "robot": "ur5e"}, "robot: expected fr3, panda or the path of"),
        ("ur", {"policy": "x", "robot": "/no.yaml"}, "no.yaml"),
        ("sim", {"seed": "first"}, "seed: expected a whole number of at least 0, got 'first'"),
        ("sim", {"seed": "-1"}, "seed: expected a whole number of at least 0, got '-1'"),
        ("sim", {"real_time_factor": "0"}, "real_time_factor: expected a number above 0, got '0'"),
        ("sim", {"startup_timeout": "nan"}, "startup_timeout: expected a number above 0"),
        ("record", {"seconds": "ten"}, "seconds: expected a number above 0, got 'ten'"),
        ("replay", {}, "bag: an argument is expected"),
        ("replay", {"bag": "/no.mcap"}, "bag /no.mcap: there is none"),
        ("replay", {"bag": "/no.mcap", "rate": "fast"}, "rate: expected a number above 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(name, given, said):
    with pytest.raises((RuntimeError, FileNotFoundError, BagError), match=re.escape(said)):
        entities(name, **given)


@pytest.fixture
def prefix(tmp_path, monkeypatch):
    """An installation that packages can be put into, before those that are there."""
    known = os.environ["AMENT_PREFIX_PATH"]
    monkeypatch.setenv("AMENT_PREFIX_PATH", f"{tmp_path}:{known}")

    def package(name, **files):
        index = tmp_path / "share" / "ament_index" / "resource_index" / "packages"
        index.mkdir(parents=True, exist_ok=True)
        (index / name).touch()
        for path, content in files.items():
            where = tmp_path / "share" / name / path
            where.parent.mkdir(parents=True)
            where.write_text(content)

    return package


def parameters(node):
    """The plain parameters that a node is given, later over earlier."""
    found = {}
    for layer in node._Node__parameters:
        if isinstance(layer, dict):
            found |= {"".join(p.text for p in name): value for name, value in layer.items()}
    return found


def nodes_of(found):
    return {e.node_executable: e for e in found if isinstance(e, LifecycleNode)}


def received(node, *names):
    """The parameters as the node reads them from its command line."""
    node._perform_substitutions(LaunchContext())
    command = ["--ros-args"]
    for text, is_file in node._Node__expanded_parameter_arguments:
        command += ["--params-file" if is_file else "-p", text]
    space, _, name = node.node_name.rpartition("/")
    context = rclpy.Context()
    rclpy.init(context=context)
    try:
        reader = Node(
            name,
            context=context,
            namespace=space,
            cli_args=command,
            automatically_declare_parameters_from_overrides=True,
        )
        return [reader.get_parameter(name).value for name in names]
    finally:
        rclpy.shutdown(context=context)


def described(found):
    nodes = nodes_of(found).items()
    return {name for name, node in nodes if "robot_description" in parameters(node)}


def test_without_the_makers_package_the_robot_file_is_used():
    assert described(entities("franka", policy="x")) == set()


def test_the_makers_description_goes_to_cameras_and_controller(prefix, monkeypatch):
    path = "robots/fr3/fr3.urdf.xacro"
    prefix("franka_description", **{path: "<robot/>"})
    monkeypatch.setitem(sys.modules, "xacro", None)
    with pytest.raises(RuntimeError, match="sudo apt install ros-jazzy-xacro"):
        entities("franka", policy="x")
    asked = []

    def process_file(file, mappings):
        asked.append((Path(file).name, mappings))
        return types.SimpleNamespace(toxml=lambda: "<robot name='fr3'/>")

    monkeypatch.setitem(sys.modules, "xacro", types.SimpleNamespace(process_file=process_file))
    assert described(entities("franka", policy="x")) == {"camera_node", "arm_controller_node"}
    assert asked == [("fr3.urdf.xacro", {"hand": "true"})]
    assert described(entities("franka", policy="x", robot_description="none")) == set()


def test_a_urdf_of_the_users_own_needs_no_xacro(tmp_path):
    (tmp_path / "arm.urdf").write_text("<robot/>")
    found = entities("ur", policy="x", robot_description=str(tmp_path / "arm.urdf"))
    assert described(found) == {"camera_node", "arm_controller_node"}


@pytest.fixture
def own_robot(tmp_path):
    """A robot file of the user's own: a UR5e with a calibration."""
    stock = (ROOT / "config" / "robots" / "ur5e.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text(stock.replace("0.1625", "0.1631"))
    return str(path)


def test_a_robot_file_of_the_users_own_goes_to_all_that_must_agree(own_robot, prefix):
    prefix("ur_description", **{"urdf/ur.urdf.xacro": "<robot/>"})
    found = entities("ur", policy="x", robot=own_robot)
    nodes = nodes_of(found)
    for name in ("camera_node", "arm_controller_node", "deadman_node"):
        assert received(nodes[name], "robot") == [own_robot]
    assert described(found) == set()


def test_beside_a_robot_file_of_the_users_own_a_urdf_that_is_named_counts(own_robot, tmp_path):
    (tmp_path / "arm.urdf").write_text("<robot/>")
    urdf = str(tmp_path / "arm.urdf")
    found = entities("ur", policy="x", robot=own_robot, robot_description=urdf)
    assert described(found) == {"camera_node", "arm_controller_node"}


def test_a_robot_file_that_is_broken_is_refused_with_the_stock_names(tmp_path):
    (tmp_path / "mine.yaml").write_text("name: mine\n")
    with pytest.raises(RuntimeError, match=r"mine\.yaml.*expected ur5e, ur10e or the path"):
        entities("ur", policy="x", robot=str(tmp_path / "mine.yaml"))


def test_a_driver_is_not_started_for_a_robot_file_of_the_users_own(own_robot, prefix):
    prefix("ur_robot_driver", **{"launch/ur_control.launch.py": "generate_launch_description = 0"})
    given = {"policy": "x", "robot": own_robot, "start_driver": "true", "robot_ip": "10.0.0.2"}
    with pytest.raises(RuntimeError, match="start the driver yourself"):
        entities("ur", **given)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("/**/camera_node:\n  ros__parameters: {robot: /my.yaml}", "/**/camera_node"),
        ("left:\n  deadman_node:\n    ros__parameters: {robot: fr3}", "/left/deadman_node"),
        ("/**:\n  ros__parameters: {robot: fr3}", "/**"),
    ],
)
def test_a_robot_in_the_parameter_file_is_refused(tmp_path, text, named):
    (tmp_path / "mine.yaml").write_text(text)
    given = {"policy": "x", "params_file": str(tmp_path / "mine.yaml")}
    with pytest.raises(RuntimeError, match="robot:=PATH") as refused:
        entities("ur", **given)
    assert f"robot is set for {named};" in str(refused.value)


@pytest.mark.parametrize("text", ["a: [", "- 1"])
def test_a_parameter_file_that_is_none_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(RuntimeError, match="params_file: "):
        entities("ur", policy="x", params_file=str(tmp_path / "mine.yaml"))


def test_other_nodes_may_have_a_robot_in_the_parameter_file(tmp_path):
    (tmp_path / "mine.yaml").write_text("/view:\n  ros__parameters: {robot: fr3}\n")
    assert entities("ur", policy="x", params_file=str(tmp_path / "mine.yaml"))


@pytest.fixture
def recording(tmp_path):
    recordings.record(tmp_path / "bag", recordings.events(0.5))
    return str(tmp_path / "bag")


EVERY_NAME = (
    "/**",
    "/**/arm_controller_node",
    "/*/arm_controller_node",
    "/arm/*",
    "/arm/arm_controller_node",
)


@pytest.mark.parametrize("name", ["franka", "sim"])
@pytest.mark.parametrize("pattern", EVERY_NAME)
def test_no_parameter_file_lets_an_arm_move_or_changes_its_time(name, pattern, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        f"{pattern}:\n  ros__parameters:\n"
        "    {enable_control: true, use_sim_time: true, motion: {speed_factor: 0.5}}\n"
    )
    given = {"policy": "x", "namespace": "arm", "params_file": str(tmp_path / "mine.yaml")}
    found = entities(name, **given, enable_control="false", use_sim_time="false")
    controller = nodes_of(found)["arm_controller_node"]
    names = ("enable_control", "use_sim_time", "motion.speed_factor")
    assert received(controller, *names) == [False, False, 0.5]


def test_a_parameter_file_overrides_the_arguments_for_the_node_that_it_names(tmp_path):
    for pattern, output in (("/**", "joint_trajectory"), ("/**/arm_controller_node", "twist")):
        (tmp_path / "mine.yaml").write_text(
            f"{pattern}:\n  ros__parameters: {{output: twist, limits: full}}\n"
        )
        found = entities("franka", policy="x", params_file=str(tmp_path / "mine.yaml"))
        controller = nodes_of(found)["arm_controller_node"]
        assert received(controller, "output", "limits") == [output, "full"]


def test_a_replay_commands_nothing_whatever_the_parameter_file_says(recording, tmp_path):
    (tmp_path / "mine.yaml").write_text(
        "/**/arm_controller_node:\n  ros__parameters:\n    enable_control: true\n"
        "    output: follow_joint_trajectory\n    gripper_output: gripper_command\n"
        "    command: {trajectory_action: /real/follow_joint_trajectory}\n"
    )
    found = entities("replay", bag=recording, params_file=str(tmp_path / "mine.yaml"))
    controller = nodes_of(found)["arm_controller_node"]
    names = ("enable_control", "output", "gripper_output")
    assert received(controller, *names) == [False, "joint_trajectory", "opening"]


@pytest.mark.parametrize("name", ["franka", "ur"])
def test_beside_the_robot_no_planner_and_no_policy_is_needed(name):
    with_planner = nodes_of(entities(name, policy="x"))
    without = nodes_of(entities(name, planner="false"))
    assert list(without) == ["camera_node", "arm_controller_node", "deadman_node"]
    assert list(with_planner) == [*without, "planner_node"]


@pytest.mark.parametrize("name", ["sim", "planner", "franka", "ur"])
def test_a_node_in_an_enclave_does_not_take_that_of_the_launch_process(name):
    for executable, node in nodes_of(entities(name, policy="x", enclave="/cell/")).items():
        command = ["".join(getattr(p, "text", "") for p in part) for part in node.cmd]
        assert command[command.index("--enclave") + 1] == f"/cell/{executable}"
        ((variable, emptied),) = node.additional_env
        assert variable[0].text == "ROS_SECURITY_ENCLAVE_OVERRIDE"
        assert "".join(part.text for part in emptied) == ""
    for node in nodes_of(entities(name, policy="x")).values():
        assert not node.additional_env


def test_a_replay_has_the_robot_of_the_contract(recording, tmp_path):
    contract = (ROOT / "config" / "contract" / "sim.yaml").read_text()
    assert "robot: fr3" in contract
    (tmp_path / "mine.yaml").write_text(contract.replace("robot: fr3", "robot: panda"))
    for given, robot in (({}, "fr3"), ({"contract": str(tmp_path / "mine.yaml")}, "panda")):
        nodes = nodes_of(entities("replay", bag=recording, **given))
        assert received(nodes["arm_controller_node"], "robot") == [robot]


def test_an_installed_driver_is_included(prefix):
    prefix("ur_robot_driver", **{"launch/ur_control.launch.py": "generate_launch_description = 0"})
    found = entities("ur", policy="x", start_driver="true", robot_ip="10.0.0.2")
    (driver,) = [e for e in found if isinstance(e, IncludeLaunchDescription)]
    assert dict(driver.launch_arguments)["robot_ip"] == "10.0.0.2"
    assert dict(driver.launch_arguments)["ur_type"] == "ur5e"
