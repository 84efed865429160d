# Bash: `source scripts/environment.sh` puts ROS 2, the Python environment and this package on the
# paths of the shell. Needs `make setup` first.
_vla_root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck disable=SC1091
source "$_vla_root/.venv/bin/activate"
if [ -d "$_vla_root/.venv/share/rclpy" ]; then # ROS 2 from PyPI lies in the environment itself
  export AMENT_PREFIX_PATH="$_vla_root/.venv" CMAKE_PREFIX_PATH="$_vla_root/.venv" ROS_DISTRO=jazzy
  # Nothing leaves this machine unless the user says otherwise; an installed ROS keeps its own rule.
  export ROS_AUTOMATIC_DISCOVERY_RANGE="${ROS_AUTOMATIC_DISCOVERY_RANGE:-LOCALHOST}"
fi
if [ -f "$_vla_root/install/setup.bash" ]; then
  source "$_vla_root/install/setup.bash"
fi
if [ -z "${FASTRTPS_DEFAULT_PROFILES_FILE:-}${FASTDDS_DEFAULT_PROFILES_FILE:-}" ]; then
  export FASTRTPS_DEFAULT_PROFILES_FILE="$_vla_root/config/fastdds.xml" # the file says why
fi
unset _vla_root
