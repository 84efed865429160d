"""The arm, the table and the cameras behind the ROS benchmarks' load: simulated, in real time.

Physics and what the policy sees are real, so that the chunks and the trajectories are those of an
arm at work. Pictures are rendered small and made large, as rendering 640x480 would take the
processor that is measured.
"""

from __future__ import annotations

import threading

import cv2
import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.sim.world import World

TASK = "lift_green"
SCENE_NS = 8_000_000_000
"""So long lie the things as they are, before they lie as in another episode."""
SMALL = (96, 128)
LARGE = (480, 640)
NOISE = 2
"""Grey values by which a pixel differs from picture to picture, as a camera's do."""


class Cell:
    """A world that follows the wall clock; every method may be called from any thread.

    Pictures must all be taken in one thread, to which their OpenGL context belongs.

    Args:
        start_ns: the node's clock when the world's time is 0.

    Attributes:
        world: of the simulator.
        start_ns: as given.
    """

    def __init__(self, start_ns: int) -> None:
        self.world = World()
        self.world.reset(TASK, 0)
        self.start_ns = start_ns
        self.lock = threading.RLock()
        self._elsewhere = World()
        self._scene = 0
        self._noise = np.random.default_rng(0)

    def advance(self, now_ns: int) -> None:
        """Let time pass until now; every ``SCENE_NS`` the things lie elsewhere."""
        with self.lock:
            time_ns = now_ns - self.start_ns
            step_s = self.world.model.opt.timestep
            steps = max(0, int((time_ns - self.world.time_ns) * 1e-9 / step_s))
            self.world.advance(steps * step_s)
            if time_ns // SCENE_NS > self._scene:
                self._scene = time_ns // SCENE_NS
                self._rearrange()

    def _rearrange(self) -> None:
        """Blocks, plate and tray of another episode; the arm stays where it is."""
        self._elsewhere.reset(TASK, self._scene)
        here, there = self.world.data, self._elsewhere.data
        arm = len(self.world.robot.joint_names) + 2  # and its fingers
        here.qpos[arm:] = there.qpos[arm:]
        here.qvel[arm:] = 0.0
        here.mocap_pos[:] = there.mocap_pos

    def picture(self, camera: str) -> NDArray[np.uint8]:
        """(480, 640, 3) uint8 RGB."""
        with self.lock:
            small = self.world.render(camera, *SMALL)
        noise = self._noise.integers(0, NOISE + 1, small.shape, dtype=np.uint8)
        noisy = np.minimum(small, 255 - NOISE) + noise
        return cv2.resize(noisy, LARGE[::-1], interpolation=cv2.INTER_NEAREST)
