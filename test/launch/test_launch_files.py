"""What the launch files declare, refuse and hand over; nothing is started."""

import os
import re
import sys
import types
from pathlib import Path

import pytest

pytest.importorskip("launch_ros", reason="needs the package launch_ros of a ROS 2")

from launch import LaunchContext
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription, OpaqueFunction
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch_ros.actions import LifecycleNode

from vla_reasoner_ros.errors import BagError

ROOT = Path(__file__).resolve().parent.parent.parent
FILES = {path.name.split(".")[0]: path for path in sorted((ROOT / "launch").glob("*.launch.py"))}
COMMON = {"namespace", "use_sim_time", "params_file", "log_level"}
PLANNING = COMMON | {"policy"}
ARM = PLANNING | {"robot", "robot_ip", "enable_control", "start_driver", "rviz"}
EXPECTED = {
    "sim": PLANNING | {"enable_control", "rviz"},
    "planner": PLANNING,
    "franka": ARM,
    "ur": ARM,
    "replay": PLANNING | {"bag", "contract", "instruction", "rate", "player"},
    "record": {"contract", "namespace", "out", "seconds", "compress"},
}
TRUE_OR_FALSE = {"use_sim_time", "enable_control", "start_driver", "rviz", "compress"}


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
    for path in (*FILES.values(), ros / "bringup.py", ros / "startup.py"):
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


def described(found):
    nodes = [e for e in found if isinstance(e, LifecycleNode)]
    return {n.node_executable for n in nodes if "robot_description" in parameters(n)}


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


def test_an_installed_driver_is_included(prefix):
    prefix("ur_robot_driver", **{"launch/ur_control.launch.py": "generate_launch_description = 0"})
    found = entities("ur", policy="x", start_driver="true", robot_ip="10.0.0.2")
    (driver,) = [e for e in found if isinstance(e, IncludeLaunchDescription)]
    assert dict(driver.launch_arguments)["robot_ip"] == "10.0.0.2"
    assert dict(driver.launch_arguments)["ur_type"] == "ur5e"
