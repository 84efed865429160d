"""For `pip install .` without ROS; colcon builds by CMakeLists.txt. All settings: setup.cfg."""

from setuptools import setup

setup()
