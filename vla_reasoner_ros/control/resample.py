"""A joint trajectory as a Cartesian controller takes it: pose and velocity of a link over time."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.trajectory import MotionState
from vla_reasoner_ros.types import FloatArray


class LinkSampler:
    """The motion of one link that is fixed to the TCP.

    Args:
        kinematics: the arm's.
        link: the link's name.

    Raises:
        ConfigurationError: the arm has no such link, or it is not fixed to the TCP.
    """

    def __init__(self, kinematics: Kinematics, link: str) -> None:
        self._kinematics = kinematics
        self._offset, self._turn = kinematics.fixed_to_tcp(link)

    def pose(self, state: MotionState) -> tuple[FloatArray, FloatArray]:
        """Position (3,), m, and quaternion (4,) x y z w of the link in the robot's base frame."""
        position, quaternion = self._kinematics.forward(state.position)
        turn = Rotation.from_quat(quaternion)
        return position + turn.apply(self._offset), (turn * self._turn).as_quat()

    def twist(self, state: MotionState, in_link: bool) -> FloatArray:
        """Velocity (6,) of the link: its origin's, m/s, over its angular velocity, rad/s.

        Args:
            state: the arm's.
            in_link: along the axes of the link; else of the robot's base frame.
        """
        _, quaternion = self._kinematics.forward(state.position)
        turn = Rotation.from_quat(quaternion)
        _, twists = self._kinematics.twists(state.position[None], state.velocity[None])
        linear, angular = twists[0, :3], twists[0, 3:]
        linear = linear + np.cross(angular, turn.apply(self._offset))
        if in_link:
            axes = (turn * self._turn).inv()
            linear, angular = axes.apply(linear), axes.apply(angular)
        return np.concatenate([linear, angular])
