"""Whether an arm comes too close to itself: capsules around its links, moved along a trajectory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pinocchio as pin

from vla_reasoner_ros.control.robots import Capsule, Robot
from vla_reasoner_ros.control.trajectory import JointTrajectory
from vla_reasoner_ros.types import FloatArray

STEP = 0.01  # s, the finest that a motion is looked at
SLACK = 1e-4  # m, for joints that turn back between two samples


@dataclass(frozen=True)
class Closest:
    """Two links that come too close.

    Attributes:
        links: their names.
        time: s from the start of the trajectory.
        distance: between their capsules, m; negative where they overlap.
        bound: what is allowed, m.
    """

    links: tuple[str, str]
    time: float
    distance: float
    bound: float


class SelfCollision:
    """Distances between the capsules of one robot's links, by Pinocchio (with Coal).

    The capsules hang on the robot file's own kinematics, also where a URDF replaces those of the
    TCP: a calibrated URDF differs by less than the capsules' padding.

    Args:
        robot: its ``capsules`` and ``collision_ignored`` say what is looked at. Without capsules
            nothing ever collides.
        model: the Pinocchio model of the robot file's table.
    """

    def __init__(self, robot: Robot, model: pin.Model) -> None:
        self._model = model
        self._data = model.createData()
        geometry = pin.GeometryModel()
        bodies = [_body(capsule) for capsule in robot.capsules]
        for index, capsule in enumerate(robot.capsules):
            name = f"{capsule.link}/{index}"
            geometry.addGeometryObject(
                pin.GeometryObject(name, capsule.joint, _placement(capsule), bodies[index])
            )
        self._pairs: list[tuple[str, str]] = []
        for second, b in enumerate(robot.capsules):
            for first, a in enumerate(robot.capsules[:second]):
                if a.joint != b.joint and not robot.ignores(a.link, b.link):
                    geometry.addCollisionPair(pin.CollisionPair(first, second))
                    self._pairs.append((a.link, b.link))
        self._geometry = geometry
        self._geometry_data = pin.GeometryData(geometry)
        self._leverage = _leverage(robot, model)

    def distance(self, joints: FloatArray) -> tuple[float, tuple[str, str]]:
        """The smallest distance between two links at joint positions (J,), m, and their names."""
        if not self._pairs:
            return np.inf, ("", "")
        index = pin.computeDistances(
            self._model, self._data, self._geometry, self._geometry_data, joints
        )
        found = self._geometry_data.distanceResults[index].min_distance
        return float(found), self._pairs[index]

    def closest(self, trajectory: JointTrajectory, margin: float) -> Closest | None:
        """Where two links first come closer than ``margin``; None when they never do.

        Between two looks no point of the arm can have moved farther than there was room
        (conservative advancement), so that a slow or open motion takes a few looks only. A motion
        that starts closer than the margin may not come closer still.

        Args:
            trajectory: the motion.
            margin: smallest distance allowed, m.
        """
        if not self._pairs:
            return None
        times = np.append(np.arange(0.0, trajectory.duration, STEP), trajectory.duration)
        joints = trajectory.sample_positions(times)
        moved = np.abs(np.diff(joints, axis=0, prepend=joints[:1])) @ self._leverage
        travelled = np.cumsum(moved)
        index, bound = 0, margin
        while index < len(times):
            distance, links = self.distance(joints[index])
            if index == 0:
                bound = min(margin, distance)
            elif distance < bound - SLACK:
                return Closest(links, float(times[index]), distance, bound)
            reach = travelled[index] + max(distance - bound - SLACK, 0.0)
            index = max(int(np.searchsorted(travelled, reach, side="right")), index + 1)
        return None


def _body(capsule: Capsule) -> pin.coal.Capsule:
    return pin.coal.Capsule(capsule.radius, float(np.linalg.norm(capsule.end - capsule.start)))


def _placement(capsule: Capsule) -> pin.SE3:
    """The pose of a capsule, whose axis is z, in the frame of its joint."""
    along = capsule.end - capsule.start
    turn = pin.Quaternion.FromTwoVectors(np.array([0.0, 0.0, 1.0]), along)
    return pin.SE3(turn.toRotationMatrix(), 0.5 * (capsule.start + capsule.end))


def _leverage(robot: Robot, model: pin.Model) -> FloatArray:
    """The farthest that a turn of each joint by 1 rad moves any point of the links, (J,) m.

    From a joint to a point behind it the way along the links is the longest possible.
    """
    lengths = [
        float(np.linalg.norm(model.jointPlacements[j].translation)) for j in range(1, model.njoints)
    ]
    leverage = np.zeros(robot.joints)
    for capsule in robot.capsules:
        far = max(np.linalg.norm(capsule.start), np.linalg.norm(capsule.end)) + capsule.radius
        for joint in range(capsule.joint, 0, -1):
            leverage[joint - 1] = max(leverage[joint - 1], far)
            far += lengths[joint - 1]
    return leverage
