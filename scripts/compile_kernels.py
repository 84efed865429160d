"""Compiles all kernels once, so that neither the first decision nor the first motion waits.

``make setup`` runs it after the build. Numba keeps what it compiles beside the modules, here those
of the installed package; a source tree beside it gets a copy.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import vla_reasoner_ros
from vla_reasoner_ros.components import ComponentParameters, load_components
from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.motion import MotionPlanner
from vla_reasoner_ros.control.parameters import MotionParameters
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.kernels import compiled
from vla_reasoner_ros.planner import warm_up
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.search.parameters import SearchParameters

SOURCE = Path(__file__).resolve().parent.parent / "vla_reasoner_ros"


def main() -> None:
    """Decide once with each world model, plan a motion, then share what was compiled."""
    installed = Path(vla_reasoner_ros.__file__).parent
    for world_model in ("simulator", "latent"):
        parts = load_components(ComponentParameters(world_model=world_model))
        reasoner = Reasoner(
            parts.policy, parts.world_model, parts.value, parts.prior, SearchParameters()
        )
        warm_up(reasoner, parts.policy, parts.world_model)
    robot = load_robot("fr3")
    MotionPlanner(robot, Kinematics(robot), MotionParameters())
    if installed != SOURCE:
        for path in compiled(installed):
            target = SOURCE / path.relative_to(installed)
            target.parent.mkdir(exist_ok=True)
            shutil.copy2(path, target)


if __name__ == "__main__":
    main()
