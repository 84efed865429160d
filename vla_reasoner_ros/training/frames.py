"""Labelled frames for the encoder: random scenes and arm poses, rendered, without physics.

A perception network learns from variety, not from time: a frame costs a few milliseconds when arm
and objects are simply put somewhere. Blocks stand on the table, on the plate, in the tray, on one
another, lie tilted, or are held; the arm hovers anywhere or close to an object.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_reasoner_ros import executor
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.data.episodes import Episode
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import write_atomically
from vla_reasoner_ros.sim import scene
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.training.appearance import Appearance, Looks
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.world_models.encoder import SYMMETRY, LatentLayout

SHARD = 500
"""Frames a file; the unit that an interrupted run loses at most."""
IMAGE_SIZE = 96
WORKSPACE = np.array([[0.36, -0.27], [0.68, 0.27]])
"""Where objects are put: x and y from and to, m."""


@dataclass(frozen=True)
class Frames:
    """F labelled frames; K objects of which the first N are blocks.

    Attributes:
        agent, wrist: (F, 96, 96, 3) uint8.
        ee_position, ee_quaternion, gripper: (F, 3) m, (F, 4) x y z w, (F,) fraction.
        positions: (F, K, 3) object centres, m, base frame.
        rotations: (F, K, 3, 3).
        held: (F, N) whether both fingers touch the block.
        agent_points, wrist_points: (F, K, 2) centres in the images, -1..1; NaN when not in view.
    """

    agent: NDArray[np.uint8]
    wrist: NDArray[np.uint8]
    ee_position: NDArray[np.float32]
    ee_quaternion: NDArray[np.float32]
    gripper: NDArray[np.float32]
    positions: NDArray[np.float32]
    rotations: NDArray[np.float32]
    held: NDArray[np.bool_]
    agent_points: NDArray[np.float32]
    wrist_points: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.gripper)

    @classmethod
    def join(cls, parts: list[Frames]) -> Frames:
        """Put several sets together."""
        return cls(
            **{f.name: np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(cls)}
        )

    def save(self, path: Path) -> None:
        """Write an uncompressed ``.npz`` atomically."""
        stream = io.BytesIO()
        np.savez(stream, **{f.name: getattr(self, f.name) for f in fields(self)})
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, folder: Path, shards: int | None = None) -> Frames:
        """Read the frames of a folder, or its first shards.

        Raises:
            ConfigurationError: there are none.
        """
        paths = sorted(folder.glob("*.npz"))[:shards]
        if not paths:
            raise ConfigurationError(f"frames: no *.npz in {folder}")
        parts = []
        for path in paths:
            with np.load(path, allow_pickle=False) as file:
                parts.append(cls(**{f.name: file[f.name] for f in fields(cls)}))
        return cls.join(parts)


class FrameSource:
    """Makes random scenes and renders them.

    Args:
        layout: names the objects whose poses become labels.
        looks: how far scenes look other than the simulator's; None leaves them as they are.
    """

    def __init__(self, layout: LatentLayout | None = None, looks: Looks | None = None) -> None:
        self.layout = layout or LatentLayout()
        self._robot = load_robot(scene.ROBOT)
        self.model = scene.compile_scene()
        self.data = mujoco.MjData(self.model)
        self._appearance = None if looks is None else Appearance(self.model, looks)
        self._renderer = mujoco.Renderer(self.model, IMAGE_SIZE, IMAGE_SIZE)
        names = self.layout.objects
        self._bodies = [self.model.body(name).id for name in names]
        self._blocks = names[: self.layout.blocks]
        self._fingers = [
            self.model.joint(name).qposadr[0] for name in ("left_finger", "right_finger")
        ]
        self._arm_geoms = {i for i in range(self.model.ngeom) if self.model.geom_contype[i] == 1}

    def close(self) -> None:
        """Release the renderer."""
        self._renderer.close()

    def frames(self, count: int, rng: np.random.Generator) -> Frames:
        """``count`` random frames."""
        # Numbers of its own, so that scenes are the same whatever they look like.
        looks = rng.spawn(1)[0]
        rows = [self._frame(rng, looks) for _ in range(count)]
        return Frames(**{f.name: np.stack([row[f.name] for row in rows]) for f in fields(Frames)})

    def label_episode(self, episode: Episode, steps: NDArray[np.int64]) -> Frames:
        """Frames of recorded steps, their labels from the recorded poses.

        Whether a block is held follows from where it is between the fingers and from the opening.
        """
        order = [episode.meta.object_names.index(name) for name in self.layout.objects]
        poses = episode["object_poses"][steps][:, order]
        positions = poses[..., :3]
        quaternions = episode["ee_quaternion"][steps]
        held = is_held(
            episode["ee_position"][steps],
            Rotation.from_quat(quaternions).as_matrix(),
            episode["gripper"][steps] * self._robot.gripper_opening,
            positions[:, : len(self._blocks)],
        )
        points: dict[str, list[NDArray]] = {"agent": [], "wrist": []}
        for joints, places in zip(episode["joint_positions"][steps], positions, strict=True):
            self.data.qpos[:7] = joints
            mujoco.mj_kinematics(self.model, self.data)
            mujoco.mj_camlight(self.model, self.data)
            for camera, rows in points.items():
                rows.append(project(self.model, self.data, camera, places))
        count = len(steps), len(self.layout.objects)
        return Frames(
            agent=episode.images["agent"][steps],
            wrist=episode.images["wrist"][steps],
            ee_position=episode["ee_position"][steps],
            ee_quaternion=quaternions,
            gripper=episode["gripper"][steps],
            positions=positions,
            rotations=Rotation.from_quat(poses[..., 3:].reshape(-1, 4))
            .as_matrix()
            .reshape(*count, 3, 3)
            .astype(np.float32),
            held=held,
            agent_points=np.stack(points["agent"]),
            wrist_points=np.stack(points["wrist"]),
        )

    def _frame(self, rng: np.random.Generator, looks: np.random.Generator) -> dict[str, NDArray]:
        if self._appearance is not None:
            self._appearance.draw(looks)
        while True:
            self._place_supports(rng)
            held = rng.integers(len(self._blocks)) if rng.random() < 0.4 else None
            self._place_blocks(rng, held)
            if not self._place_arm(rng, held):
                continue
            if held is not None:
                self._grasp(rng, self._blocks[held])
            mujoco.mj_forward(self.model, self.data)
            if not self._arm_collides(held):
                return self._label(held)

    def _place_supports(self, rng: np.random.Generator) -> None:
        """Plate and tray, apart from one another, often where the tasks put them."""
        while True:
            if rng.random() < 0.5:
                places = np.array([[0.5, -0.21], [0.5, 0.21]]) + rng.uniform(-0.06, 0.06, (2, 2))
            else:
                places = rng.uniform(WORKSPACE[0], WORKSPACE[1], (2, 2))
            if np.linalg.norm(places[0] - places[1]) > 0.17:
                break
        for name, place in zip(("plate", "tray"), places, strict=True):
            mocap = self.model.body(name).mocapid[0]
            self.data.mocap_pos[mocap] = [*place, 0.0]
            self.data.mocap_quat[mocap] = _yaw(0.0)

    def _place_blocks(self, rng: np.random.Generator, held: int | None) -> None:
        model, mocap = self.model, self.data.mocap_pos
        supports = {name: mocap[model.body(name).mocapid[0]] for name in ("plate", "tray")}
        half = scene.BLOCK_HALF
        placed: list[NDArray] = []
        for index in rng.permutation(len(self._blocks)):
            if index == held:
                continue
            while True:
                mode = rng.choice(["table", "plate", "tray", "stack", "tilted"],
                                  p=[0.55, 0.12, 0.12, 0.11, 0.10])  # fmt: skip
                quaternion = _yaw(rng.uniform(-np.pi, np.pi))
                if mode == "stack" and placed:
                    below = placed[rng.integers(len(placed))]
                    place = below + np.array([*rng.normal(0.0, 0.007, 2), 2.0 * half])
                elif mode == "plate":
                    offset = rng.uniform(-0.045, 0.045, 2)
                    place = supports["plate"] + [*offset, scene.PLATE_TOP + half]
                elif mode == "tray":
                    offset = rng.uniform(-0.04, 0.04, 2)
                    place = supports["tray"] + [*offset, scene.TRAY_FLOOR + half]
                elif mode == "tilted":
                    quaternion = rng.normal(size=4)
                    quaternion /= np.linalg.norm(quaternion)
                    rotation = np.empty(9)
                    mujoco.mju_quat2Mat(rotation, quaternion)
                    reach = half * np.abs(rotation[6:]).sum()
                    place = np.array(
                        [*rng.uniform(*WORKSPACE), reach + rng.exponential(0.03) * rng.integers(2)]
                    )
                else:
                    place = np.array([*rng.uniform(*WORKSPACE), half])
                apart = all(np.linalg.norm(place - other) > 2.0 * half for other in placed)
                clear = mode in ("plate", "tray") or place[2] > 0.03 or all(
                    np.linalg.norm(place[:2] - support[:2]) > 0.09
                    for support in supports.values()
                )  # fmt: skip
                if apart and clear:
                    break
            placed.append(place)
            self._set_block(self._blocks[index], place, quaternion)

    def _place_arm(self, rng: np.random.Generator, held: int | None) -> bool:
        """Solve for a random pose of the fingers; False when the arm does not reach it."""
        near = rng.random() < 0.6
        if near:
            names = [n for i, n in enumerate(self.layout.objects) if i != held]
            name = names[rng.integers(len(names))]
            body = self.model.body(name)
            base = (
                self.data.mocap_pos[body.mocapid[0]]
                if body.mocapid[0] >= 0
                else self.data.qpos[self.model.joint(name).qposadr[0] :][:3]
            )
            target = base + np.array([*rng.normal(0.0, 0.025, 2), rng.uniform(-0.01, 0.15)])
        else:
            low, high = [0.30, -0.28, 0.01], [0.68, 0.28, 0.50]
            target = rng.uniform(low, high)
        target[2] = max(target[2], 0.008)
        yaw = rng.normal(0.0, 0.4) if rng.random() < 0.7 else rng.uniform(-1.2, 1.2)
        turn = np.zeros(3)
        turn[2] = yaw
        tilt = rng.normal(0.0, 0.05, 3) * [1.0, 1.0, 0.0]
        down = np.diag([1.0, -1.0, -1.0])
        rotation = _rotation(tilt) @ _rotation(turn) @ down
        opening = rng.choice([0.0, 1.0, rng.random()], p=[0.2, 0.5, 0.3])
        self._set_gripper(float(opening))
        self.data.qpos[:7] = self._robot.home + rng.normal(0.0, 0.1, 7)
        return self._solve(target, rotation)

    def _solve(self, position: NDArray, rotation: NDArray) -> bool:
        """Damped least squares on the site ``tcp``."""
        model, data = self.model, self.data
        site = model.site("tcp").id
        jacobian = np.zeros((6, model.nv))
        quaternion, error = np.empty(4), np.empty(6)
        mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        now, inverse, difference = np.empty(4), np.empty(4), np.empty(4)
        for _ in range(40):
            mujoco.mj_kinematics(model, data)
            mujoco.mj_comPos(model, data)
            error[:3] = position - data.site_xpos[site]
            mujoco.mju_mat2Quat(now, data.site_xmat[site])
            mujoco.mju_negQuat(inverse, now)
            mujoco.mju_mulQuat(difference, quaternion, inverse)
            mujoco.mju_quat2Vel(error[3:], difference, 1.0)
            if np.abs(error).max() < 1e-3:
                limits = model.jnt_range[:7]
                return bool(((data.qpos[:7] > limits[:, 0]) & (data.qpos[:7] < limits[:, 1])).all())
            mujoco.mj_jacSite(model, data, jacobian[:3], jacobian[3:], site)
            part = jacobian[:, :7]
            step = part.T @ np.linalg.solve(part @ part.T + 1e-4 * np.eye(6), error)
            data.qpos[:7] += np.clip(step, -0.3, 0.3)
        return False

    def _grasp(self, rng: np.random.Generator, block: str) -> None:
        """Close the fingers on a block, put between them as grasps leave it."""
        mujoco.mj_kinematics(self.model, self.data)
        site = self.data.site("tcp")
        hand = site.xmat.reshape(3, 3)
        offset = np.array([rng.normal(0.0, 0.006), 0.0, rng.uniform(-0.012, 0.016)])
        turn = np.array([0.0, rng.normal(0.0, 0.08), 0.0])
        rotation = hand @ _rotation(turn)
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, rotation.ravel())
        place = site.xpos + hand @ offset
        place[2] = max(place[2], scene.BLOCK_HALF)
        self._set_block(block, place, quaternion)
        self._set_gripper(2.0 * scene.BLOCK_HALF / self._robot.gripper_opening)

    def _set_gripper(self, opening: float) -> None:
        travel = self._robot.gripper_opening * scene.FINGER_TRAVEL
        self.data.qpos[self._fingers] = opening * travel

    def _set_block(self, name: str, place: NDArray, quaternion: NDArray) -> None:
        start = self.model.joint(name).qposadr[0]
        self.data.qpos[start : start + 7] = [*place, *quaternion]

    def _arm_collides(self, held: int | None) -> bool:
        """Whether the arm is inside the table or an object that it does not hold."""
        own = -1 if held is None else self.model.geom(self._blocks[held]).id
        for contact in self.data.contact[: self.data.ncon]:
            pair = {int(contact.geom1), int(contact.geom2)}
            if contact.dist < -0.004 and pair & self._arm_geoms and own not in pair:
                return True
        return False

    def _label(self, held: int | None) -> dict[str, NDArray]:
        data = self.data
        positions = data.xpos[self._bodies].astype(np.float32)
        site = data.site("tcp")
        quaternion = np.empty(4)
        mujoco.mju_mat2Quat(quaternion, site.xmat)
        images, points = {}, {}
        for camera in ("agent", "wrist"):
            self._renderer.update_scene(data, camera)
            images[camera] = self._renderer.render().copy()
            points[camera] = project(self.model, data, camera, positions)
        opening = data.qpos[self._fingers].sum() / self._robot.gripper_opening
        return {
            **images,
            "ee_position": site.xpos.astype(np.float32),
            "ee_quaternion": np.roll(quaternion, -1).astype(np.float32),
            "gripper": np.float32(opening),
            "positions": positions,
            "rotations": data.xmat[self._bodies].reshape(-1, 3, 3).astype(np.float32),
            "held": np.arange(len(self._blocks)) == (-1 if held is None else held),
            "agent_points": points["agent"],
            "wrist_points": points["wrist"],
        }


def project(
    model: mujoco.MjModel, data: mujoco.MjData, camera: str, positions: NDArray
) -> NDArray[np.float32]:
    """(K, 3) points, m, to (K, 2) image positions -1..1 (x right, y down); NaN when not in view."""
    view = data.camera(camera)
    rotation = view.xmat.reshape(3, 3)
    local = (positions - view.xpos) @ rotation
    reach = np.tan(np.radians(model.camera(camera).fovy[0]) / 2.0)
    depth = np.maximum(-local[:, 2], 1e-6)
    points = np.stack([local[:, 0], -local[:, 1]], axis=-1) / (depth * reach)[:, None]
    seen = (local[:, 2] < 0.0) & (np.abs(points) < 1.0).all(axis=-1)
    return np.where(seen[:, None], points, np.nan).astype(np.float32)


def upright(rotations: NDArray) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """How a cube lies, whichever of its faces is down.

    Args:
        rotations: (..., 3, 3).

    Returns:
        (..., 2) cosine and sine of four times the yaw, and (...,) the vertical component of the
        most upright axis.
    """
    vertical = np.abs(rotations[..., 2, :])
    up = vertical.max(axis=-1)
    # Any axis but the most upright one tells the yaw; they differ by quarter turns.
    side = (vertical.argmax(axis=-1) + 1) % 3
    axis = np.take_along_axis(rotations, side[..., None, None], axis=-1)[..., 0]
    angle = SYMMETRY * np.arctan2(axis[..., 1], axis[..., 0])
    yaw = np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return yaw.astype(np.float32), up.astype(np.float32)


def is_held(
    ee_position: NDArray, ee_rotation: NDArray, opening: NDArray, blocks: NDArray
) -> NDArray[np.bool_]:
    """Whether the fingers hold each block, from geometry alone.

    Args:
        ee_position: (F, 3), m.
        ee_rotation: (F, 3, 3).
        opening: (F,) distance between the fingers, m.
        blocks: (F, N, 3) centres, m.

    Returns:
        (F, N).
    """
    edge = 2.0 * scene.BLOCK_HALF
    local = np.einsum("fji,fnj->fni", ee_rotation, blocks - ee_position[:, None])
    between = (np.abs(local) < [edge / 2 + 0.006, 0.008, edge / 2 + 0.010]).all(axis=-1)
    tight = (opening > edge - 0.004) & (opening < edge + 0.003)
    return between & tight[:, None]


@dataclass(frozen=True)
class ShardJob:
    """One file of frames to render: where, from which seed, how many, and how they look."""

    path: Path
    seed: int
    count: int
    looks: Looks


def make_frames(
    folder: Path,
    count: int,
    seed: int,
    looks: Looks,
    engine: executor.EngineSettings | None = None,
) -> None:
    """Write ``count`` frames in shards; those already there are kept.

    Args:
        folder: where the shards go.
        count: frames, rounded up to full shards of :data:`SHARD`; fewer than that are one shard.
        seed: of the first shard; each shard has the next one.
        looks: how far scenes look other than the simulator's.
        engine: where they are rendered; None takes this machine's cores.

    Raises:
        ConfigurationError: the folder has frames of other looks.
    """
    size = min(SHARD, count)
    _claim(folder, looks)
    jobs = [
        ShardJob(folder / f"{seed + number:06d}.npz", seed + number, size, looks)
        for number in range(-(-count // size))
    ]
    missing = [job for job in jobs if not job.path.exists()]
    done = len(jobs) - len(missing)
    progress = Progress(f"frames {folder.name}", len(jobs), f"times {size} frames", done)
    for _ in executor.run_jobs(_shard_maker, (), missing, engine):
        done += 1
        progress.update(done)


def _claim(folder: Path, looks: Looks) -> None:
    """Note what the frames of a folder look like, or hold it against what was noted."""
    path, wanted = folder / "looks.json", asdict(looks)
    if not path.exists():
        if any(folder.glob("*.npz")):
            raise ConfigurationError(f"frames: {folder} does not say what its frames look like")
        write_atomically(path, json.dumps(wanted, indent=2).encode())
    elif json.loads(path.read_text()) != wanted:
        raise ConfigurationError(
            f"frames: those in {folder} have other looks ({path.name}); choose another folder"
        )


def _shard_maker() -> Callable[[ShardJob], None]:
    return _make_shard


def _make_shard(job: ShardJob) -> None:
    # A source of its own for each, so that a shard is the same whatever was rendered before it.
    source = FrameSource(looks=job.looks)
    try:
        source.frames(job.count, np.random.default_rng(job.seed)).save(job.path)
    finally:
        source.close()


def _yaw(angle: float) -> NDArray[np.float64]:
    return np.array([np.cos(angle / 2), 0.0, 0.0, np.sin(angle / 2)])


def _rotation(vector: NDArray) -> NDArray[np.float64]:
    """(3, 3) matrix of a rotation vector, rad."""
    quaternion, matrix = np.empty(4), np.empty(9)
    angle = float(np.linalg.norm(vector))
    axis = vector / angle if angle > 1e-9 else np.array([0.0, 0.0, 1.0])
    mujoco.mju_axisAngle2Quat(quaternion, axis, angle)
    mujoco.mju_quat2Mat(matrix, quaternion)
    return matrix.reshape(3, 3)
