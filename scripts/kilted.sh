#!/usr/bin/env bash
# Builds and tests the package under ROS 2 Kilted from PyPI, in out/environments/kilted. Arguments
# are pytest's; by default the tests of what touches ROS most. Kilted is not a platform of ours yet:
# docs/troubleshooting.md says how far it is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly ENVIRONMENT="$PWD/out/environments/kilted"
readonly TESTS=(test/test_ros_parameters.py test/test_ros_lifecycle.py test/test_ros_endpoints.py
  test/test_conversions.py test/test_camera_node.py test/test_arm_controller_node.py
  test/test_sim_node.py test/test_planner_node.py)

[ -x "$ENVIRONMENT/bin/python" ] || python3 -m venv "$ENVIRONMENT"
pip_install() { "$ENVIRONMENT/bin/python" -m pip install -qq --disable-pip-version-check "$@"; }

# Jazzy's own packages are pinned; what Kilted needs of the same names is newer.
constraints="$(mktemp)"
trap 'rm -f "$constraints"' EXIT
grep -v '^ros-' requirements/constraints.txt >"$constraints"
# Three build tools have no wheel under Kilted's name; theirs without a name serve all distributions.
# What Kilted has split off one of them comes by its own name.
pip_install --constraint "$constraints" \
  --requirement <(sed -E 's/^ros-jazzy-/ros-kilted-/
    s/^ros-kilted-(fastrtps-cmake-module|python-cmake-module|pybind11-vendor)/ros-\1/' \
    requirements/ros.txt) \
  ros-kilted-ament-cmake-ros-core \
  --requirement requirements/runtime.txt --requirement requirements/development.txt
"$ENVIRONMENT/bin/python" scripts/fix_wheel_paths.py

set +u
# shellcheck disable=SC1091
source "$ENVIRONMENT/bin/activate"
export AMENT_PREFIX_PATH="$ENVIRONMENT" CMAKE_PREFIX_PATH="$ENVIRONMENT" ROS_DISTRO=kilted
export ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST
colcon --log-base out/kilted/log --log-level error build --symlink-install \
  --build-base out/kilted/build --install-base out/kilted/install \
  --event-handlers console_cohesion- \
  --cmake-args "-DPython3_EXECUTABLE=$ENVIRONMENT/bin/python" --no-warn-unused-cli
# shellcheck disable=SC1091
source out/kilted/install/setup.bash
set -u
[ "$#" -gt 0 ] || set -- "${TESTS[@]}"
exec python -m pytest "$@"
