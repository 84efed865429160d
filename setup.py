"""For pip, without ROS; colcon builds by CMakeLists.txt. All settings: setup.cfg."""

from pathlib import Path

from setuptools import setup


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """What the package reads at run time, to the place where colcon puts it as well."""
    files: dict[str, list[str]] = {}
    for path in sorted(path for folder in folders for path in Path(folder).rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts:
            files.setdefault(f"share/vla_reasoner_ros/{path.parent}", []).append(str(path))
    return list(files.items())


setup(data_files=shared("config", "resource"))
