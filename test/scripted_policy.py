"""A policy that does what a file says, so that a test can break it while planner_node runs it."""

import os
import time
from pathlib import Path

import numpy as np

from vla_reasoner_ros.errors import InstructionError
from vla_reasoner_ros.policies.base import PolicySpec
from vla_reasoner_ros.priors.space import DEFAULT_SPEC as SPEC
from vla_reasoner_ros.types import ActionChunk

WAYS = {"go left": 1.0, "go right": -1.0}  # m along y


def python_path(folder):
    """``PYTHONPATH`` of processes that know this policy as ``scripted``, as if it were installed.

    Args:
        folder: where to put what the installation of a package leaves behind.
    """
    metadata = folder / "packages" / "scripted_policy-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text("Name: scripted-policy\nVersion: 1.0\n")
    entry = "[vla_reasoner_ros.policy]\nscripted = scripted_policy:ScriptedPolicy\n"
    (metadata / "entry_points.txt").write_text(entry)
    paths = [str(metadata.parent), str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return os.pathsep.join(filter(None, paths))


class ScriptedPolicy:
    """Moves to the side that the instruction names.

    Args:
        script: a file with a word: ``raise``, ``hang`` until the word is another, ``long`` for
            chunks of many seconds; anything else is a good policy.
    """

    def __init__(self, script: str) -> None:
        self._script = Path(script)
        self.spec = PolicySpec("scripted", {"agent": (96, 96)}, SPEC, 8, "", "go left")

    def reset(self):
        pass

    def propose(self, observation, n=1):
        if observation.instruction not in WAYS:
            raise InstructionError(f"instruction {observation.instruction!r} is unknown")
        word = self._word()
        if word == "raise":
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        while word == "hang":
            Path(f"{self._script}.hangs").touch()
            time.sleep(0.02)
            word = self._word()
        actions = np.zeros((60 if word == "long" else 8, 7))
        actions[:, 1] = WAYS[observation.instruction] * (0.004 if word == "long" else 0.012)
        actions[:, 6] = 1.0
        return [ActionChunk(SPEC, actions, observation.stamp_ns)]

    def _word(self):
        return self._script.read_text() if self._script.exists() else ""
