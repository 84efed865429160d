"""Record branched decisions: many candidate macro-actions tried out from the same state.

A value is of use to a search only if it ranks the candidates of one decision, and a world model
only if it imagines their outcomes; correlation over all states says nothing about either. Here a
pilot (the scripted expert, disturbed, a policy, or the search itself) drives; now and then the
state is saved and candidates are simulated from it: the pilot's own actions, the undisturbed
expert's, Gaussians around the pilot's, and unrelated bold moves. Each goes on for a second
macro-action.
"""

from __future__ import annotations

import argparse
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from vla_reasoner_ros import executor, plugins
from vla_reasoner_ros.arguments import SHARE, WHOLE
from vla_reasoner_ros.components import LEARNED, ComponentParameters, load_components
from vla_reasoner_ros.errors import ConfigurationError
from vla_reasoner_ros.files import digest, write_atomically
from vla_reasoner_ros.paths import MODELS_VARIABLE
from vla_reasoner_ros.reasoner import Reasoner
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import World
from vla_reasoner_ros.training.pilots import (
    MACRO_STEPS,
    ExpertPilot,
    Pilot,
    PolicyPilot,
    SearchPilot,
    expert_macro,
)
from vla_reasoner_ros.training.progress import Progress
from vla_reasoner_ros.world_models.encoder import LatentLayout

TRAINING_SEED = 200_000
TUNING_SEED = 60_000
CANDIDATES = 16
HORIZONS = 2
EPISODE_ACTIONS = 100
GRIPPER_FLIP = 0.15
TRANSLATION_SIGMA = 0.012
"""Standard deviation of a candidate's translation per action around the pilot's, m."""
ROTATION_SIGMA = 0.04
"""The same for its rotation, rad."""
BOLD_TRANSLATION = 0.02
"""Typical translation per action of a bold move, m."""
NEAR = 0.07
"""Distance from the fingers to a block's centre at which a decision is about touching it, m."""
PILOT, EXPERT = 0, 1
"""Places of the pilot's own actions and of the undisturbed expert's among the candidates."""


@dataclass(frozen=True)
class Branches:
    """D decisions with C candidates each, followed for H macro-actions of M actions.

    Attributes:
        scene: (D,) seed of the scene, which decides training or held out.
        task: (D,) task name.
        instruction: (D,) sentence.
        actions: (D, C, H * M, 7), SI units.
        progress: (D,) true progress at the decision.
        agent, wrist: (D, 96, 96, 3) uint8, what was seen at the decision.
        ee_position, ee_quaternion, gripper, joint_velocity, positions, rotations, held: the true
            state at the decision: (D, 3) m, (D, 4) x y z w, (D,), (D, 7), (D, K, 3) m,
            (D, K, 3, 3), (D, N).
        outcome_agent, outcome_wrist: (D, C, 96, 96, 3) after the first macro-action.
        outcome_progress: (D, C, H) true progress after each macro-action.
        outcome_ee_position, and so on: (D, C, H, ...) the true state after each macro-action.
        simulator_state: (D, S) the full state at the decision.
        outcome_state: (D, C, H, S) the full state after each macro-action.
    """

    scene: NDArray[np.int64]
    task: NDArray[np.str_]
    instruction: NDArray[np.str_]
    actions: NDArray[np.float32]
    progress: NDArray[np.float32]
    agent: NDArray[np.uint8]
    wrist: NDArray[np.uint8]
    ee_position: NDArray[np.float32]
    ee_quaternion: NDArray[np.float32]
    gripper: NDArray[np.float32]
    joint_velocity: NDArray[np.float32]
    positions: NDArray[np.float32]
    rotations: NDArray[np.float32]
    held: NDArray[np.bool_]
    outcome_agent: NDArray[np.uint8]
    outcome_wrist: NDArray[np.uint8]
    outcome_progress: NDArray[np.float32]
    outcome_ee_position: NDArray[np.float32]
    outcome_ee_quaternion: NDArray[np.float32]
    outcome_gripper: NDArray[np.float32]
    outcome_joint_velocity: NDArray[np.float32]
    outcome_positions: NDArray[np.float32]
    outcome_rotations: NDArray[np.float32]
    outcome_held: NDArray[np.bool_]
    simulator_state: NDArray[np.float64]
    outcome_state: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.scene)

    @classmethod
    def stack(cls, decisions: list[dict[str, Any]]) -> Branches:
        """Decisions as :func:`branch` returns them, put together."""
        return cls(**{f.name: np.stack([d[f.name] for d in decisions]) for f in fields(cls)})

    def save(self, path: Path) -> None:
        """Write an uncompressed ``.npz`` atomically."""
        stream = io.BytesIO()
        np.savez(stream, **{f.name: getattr(self, f.name) for f in fields(self)})
        write_atomically(path, stream.getvalue())

    @classmethod
    def load(cls, path: Path) -> Branches:
        """Read one scene's file.

        Raises:
            ConfigurationError: it is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                return cls(**{f.name: file[f.name] for f in fields(cls)})
        except (OSError, ValueError, KeyError) as error:
            raise ConfigurationError(
                f"branches {path}: not a file of branched decisions: {error}"
            ) from error


def branch_files(folder: Path) -> list[Path]:
    """The scenes of a folder, by seed.

    Raises:
        ConfigurationError: there are none.
    """
    paths = sorted(folder.glob("*.npz"))
    if not paths:
        raise ConfigurationError(f"branches: no *.npz in {folder}; record them first")
    return paths


def branches_hash(folders: Sequence[Path]) -> str:
    """A short hash of the training and held-out scenes of some folders.

    Raises:
        ConfigurationError: there are none, or one cannot be read.
    """
    parts = (folder / part for folder in folders for part in ("train", "held_out"))
    return digest([path for part in parts for path in branch_files(part)])


def scenes_of(folder: Path) -> set[int]:
    """Seeds of the scenes in a folder of branched decisions; of one that has none, none.

    Raises:
        ConfigurationError: a file there is none of branched decisions.
    """
    files = sorted(folder.glob("*.npz"))
    return {int(seed) for path in files for seed in np.unique(Branches.load(path).scene)}


def relabelled(branches: Branches, world: World) -> Branches:
    """The same decisions with the progress that the tasks give their states now.

    Args:
        branches: recorded decisions.
        world: of the same scene; its state is overwritten.
    """

    def progress_of(states: NDArray[np.float64]) -> NDArray[np.float32]:
        found = np.empty(states.shape[:-1], dtype=np.float32)
        for index in np.ndindex(found.shape):
            world.set_state(states[index])
            found[index] = world.progress()
        return found

    return replace(
        branches,
        progress=progress_of(branches.simulator_state),
        outcome_progress=progress_of(branches.outcome_state),
    )


def _relabel(folders: list[Path]) -> None:
    """Label every recorded scene of some folders again; a scene is written when a label changed."""
    paths = [path for folder in folders for path in branch_files(folder)]
    world, changed = World(), 0
    progress = Progress("labels", len(paths), "scenes")
    for done, path in enumerate(paths, start=1):
        recorded = Branches.load(path)
        labelled = relabelled(recorded, world)
        differ = labelled.outcome_progress != recorded.outcome_progress
        if differ.any() or (labelled.progress != recorded.progress).any():
            changed += int(differ.sum())
            labelled.save(path)
        progress.update(done, f"{changed} outcomes are worth something else")


def candidates(
    pilot: NDArray[np.float64], expert: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """(C, M, 7): the pilot's, the expert's, Gaussians around the pilot's, and bold moves."""
    actions = np.repeat(pilot[None], CANDIDATES, axis=0)
    actions[EXPERT] = expert
    around = slice(2, CANDIDATES - 3)
    count = CANDIDATES - 5
    # One displacement for the whole macro-action, so that it does not average out, and a little
    # of its own for each action; some candidates stay close, others go far.
    reach = rng.choice([0.5, 1.0], size=(count, 1, 1))
    for part, sigma in ((slice(0, 3), TRANSLATION_SIGMA), (slice(3, 6), ROTATION_SIGMA)):
        common = rng.normal(0.0, sigma, (count, 1, 3)) * reach
        actions[around, :, part] += common + rng.normal(0.0, 0.25 * sigma, (count, MACRO_STEPS, 3))
    bold = slice(CANDIDATES - 3, CANDIDATES)
    direction = rng.normal(0.0, 1.0, (3, 1, 3))
    direction *= BOLD_TRANSLATION / np.linalg.norm(direction, axis=-1, keepdims=True)
    actions[bold, :, :3] = direction * rng.uniform(0.5, 1.5, (3, 1, 1))
    actions[bold, :, 3:6] = rng.normal(0.0, 0.03, (3, 1, 3))
    flips = rng.random(CANDIDATES) < GRIPPER_FLIP
    flips[[PILOT, EXPERT]] = False
    flips[bold] = rng.random(3) < 0.4
    for candidate in np.flatnonzero(flips):
        # The fingers may turn round in the middle, as they do in a grasp.
        since = rng.integers(MACRO_STEPS)
        actions[candidate, since:, 6] = 1.0 - actions[candidate, since:, 6]
    return actions


def true_state(world: World, layout: LatentLayout) -> dict[str, NDArray]:
    """The labels of the world as it is now, named as in :class:`Branches`."""
    data, state = world.data, world.true_state()
    bodies = [world.model.body(name).id for name in layout.objects]
    hand = data.site("tcp").xmat.reshape(3, 3)
    return {
        "ee_position": state.tcp.astype(np.float32),
        "ee_quaternion": Rotation.from_matrix(hand).as_quat().astype(np.float32),
        "gripper": np.float32(state.opening),
        "joint_velocity": data.qvel[:7].astype(np.float32),
        "positions": data.xpos[bodies].astype(np.float32),
        "rotations": data.xmat[bodies].reshape(-1, 3, 3).astype(np.float32),
        "held": np.array([name in state.pinched for name in layout.objects[: layout.blocks]]),
    }


def branch(
    world: World, pilot: NDArray[np.float64], layout: LatentLayout, rng: np.random.Generator
) -> dict[str, Any]:
    """Try candidates from the world's state, which is restored afterwards.

    Args:
        world: at the decision.
        pilot: (M, 7) the pilot's own actions.
        layout: names the objects.
        rng: draws the candidates.

    Returns:
        One decision, by the names of :class:`Branches`.
    """
    root = world.get_state()
    decision: dict[str, Any] = {
        "scene": np.int64(world.seed),
        "task": np.array(world.task, dtype="U32"),
        "instruction": np.array(world.instruction, dtype="U96"),
        "progress": np.float32(world.progress()),
        "agent": world.render("agent"),
        "wrist": world.render("wrist"),
        "simulator_state": root,
        **true_state(world, layout),
    }
    first = candidates(pilot, expert_macro(world), rng)
    rows: list[dict[str, Any]] = []
    for actions in first:
        world.set_state(root)
        row: dict[str, Any] = {"actions": [], "progress": [], "states": []}
        for horizon in range(HORIZONS):
            if horizon:
                actions = _next_macro(world, actions, rng)
            for action in actions:
                world.apply(action)
            row["actions"].append(actions)
            row["progress"].append(world.progress())
            row["states"].append({"state": world.get_state(), **true_state(world, layout)})
            if horizon == 0:
                row["agent"], row["wrist"] = world.render("agent"), world.render("wrist")
        rows.append(row)
    world.set_state(root)
    decision["actions"] = np.stack([np.concatenate(row["actions"]) for row in rows]).astype("f4")
    decision["outcome_progress"] = np.array([row["progress"] for row in rows], dtype=np.float32)
    for camera in ("agent", "wrist"):
        decision[f"outcome_{camera}"] = np.stack([row[camera] for row in rows])
    for name in rows[0]["states"][0]:
        decision[f"outcome_{name}"] = np.stack(
            [np.stack([state[name] for state in row["states"]]) for row in rows]
        )
    return decision


def _next_macro(
    world: World, last: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.float64]:
    """What follows a candidate: the expert's answer, or more of the same, disturbed."""
    actions = expert_macro(world) if rng.random() < 0.5 else last.copy()
    actions[:, :3] += rng.normal(0.0, 0.5 * TRANSLATION_SIGMA, 3)
    if rng.random() < GRIPPER_FLIP:
        actions[:, 6] = 1.0 - actions[:, 6]
    return actions


def record_scene(
    world: World,
    task: str,
    seed: int,
    share: float,
    share_near: float,
    driver: Any = None,
    most: int = EPISODE_ACTIONS // MACRO_STEPS,
) -> Branches | None:
    """Drive one episode and branch on some of its decisions.

    Args:
        world: reset here.
        task: task name.
        seed: of scene, pilot and candidates.
        share: of the macro-actions that are branched.
        share_near: the same while the fingers are within :data:`NEAR` of a block, where little
            differences decide.
        driver: a policy or a Reasoner that drives instead of the disturbed expert.
        most: decisions after which the episode is left.

    Returns:
        The decisions, or None when the episode ended before there was one.
    """
    rng = np.random.default_rng([seed, list(TASKS).index(task), 7])
    layout = LatentLayout()
    world.reset(task, seed)
    pilot: Pilot
    if driver is None:
        pilot = ExpertPilot(world, rng)
    elif isinstance(driver, Reasoner):
        pilot = SearchPilot(world, driver, seed)
    else:
        pilot = PolicyPilot(world, driver)
    decisions = []
    for _ in range(EPISODE_ACTIONS // MACRO_STEPS):
        actions = pilot.macro()
        state = world.true_state()
        gaps = [np.linalg.norm(state.tcp - place) for place in state.blocks.values()]
        if rng.random() < (share_near if min(gaps) < NEAR else share):
            decisions.append(branch(world, actions, layout, rng))
        for action in actions:
            world.apply(action)
        if world.success() or len(decisions) == most:
            break
    return Branches.stack(decisions) if decisions else None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--output", type=Path, default=Path("data/branches"), help="folder to write to"
    )
    parser.add_argument("--scenes", type=WHOLE, default=420, help="scenes for training")
    parser.add_argument("--held-out", type=WHOLE, default=90, help="scenes for judging")
    parser.add_argument("--share", type=SHARE, default=0.35, help="share of decisions branched")
    parser.add_argument("--share-near", type=SHARE, default=0.35, help="the same near a block")
    parser.add_argument("--policy", default="", help="registered policy that drives; empty: expert")
    parser.add_argument(
        "--search", action="store_true", help="the search over the learned models drives the policy"
    )
    parser.add_argument("--models", default="", help="folder of the driver's weights; the shipped")
    parser.add_argument("--seed", type=WHOLE, default=0, help="added to the first scene's seed")
    parser.add_argument(
        "--relabel",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="give the decisions of these folders the present labels, and record none",
    )
    executor.add_arguments(parser)


@dataclass(frozen=True)
class Driver:
    """Who drives.

    Attributes:
        policy: its registered name; empty is the expert, or with ``search`` the default policy.
        search: whether the search over the learned models drives it.
        models: folder of the weights; empty takes the shipped ones.
    """

    policy: str = ""
    search: bool = False
    models: str = ""

    @property
    def name(self) -> str:
        """What the files are called."""
        return "search" if self.search else self.policy or "expert"

    def make(self) -> Any:
        """The Reasoner, the policy, or None for the expert."""
        if self.models:
            os.environ[MODELS_VARIABLE] = self.models
        if self.search:
            parameters = ComponentParameters(world_model=LEARNED)
            if self.policy:
                parameters = replace(parameters, policy=self.policy)
            found = load_components(parameters)
            return Reasoner(found.policy, found.world_model, found.value, found.prior)
        return plugins.create("policy", self.policy) if self.policy else None


@dataclass(frozen=True)
class SceneJob:
    """One scene to record.

    Attributes:
        path: the file to write.
        task: task name.
        seed: of the scene.
        share: of its decisions that are branched.
        share_near: the same near a block.
    """

    path: Path
    task: str
    seed: int
    share: float
    share_near: float


class Brancher:
    """What a worker needs to record scenes: a world and a driver."""

    def __init__(self, driver: Driver) -> None:
        import torch

        torch.set_num_threads(1)  # the workers share the cores already
        self._world = World()
        self._driver = driver.make()

    def __call__(self, job: SceneJob) -> int:
        """Record one scene; the number of its decisions."""
        shares = job.share, job.share_near
        # A scene whose pilot was done before the first branch is tried again with more branches.
        while True:
            found = record_scene(self._world, job.task, job.seed, *shares, self._driver)
            if found is not None:
                break
            shares = 1.0, 1.0
        found.save(job.path)
        return len(found)


def plan(arguments: argparse.Namespace, driver: Driver) -> list[SceneJob]:
    """Every scene of a recording; tasks take turns.

    Raises:
        ConfigurationError: a share that is none, or nothing to record.
    """
    shares = arguments.share, arguments.share_near
    if not all(0.0 <= share <= 1.0 for share in shares) or not any(shares):
        raise ConfigurationError(
            f"--share, --share-near: expected 0 to 1, not both 0, got {shares}"
        )
    tasks = list(TASKS)
    return [
        SceneJob(
            arguments.output / part / f"{driver.name}_{first + arguments.seed + index:06d}.npz",
            tasks[index % len(tasks)],
            first + arguments.seed + index,
            *shares,
        )
        for part, first, count in (
            ("held_out", TUNING_SEED, arguments.held_out),
            ("train", TRAINING_SEED, arguments.scenes),
        )
        for index in range(count)
    ]


def run(arguments: argparse.Namespace) -> int:
    """Record what is missing, one file a scene; or label anew what was recorded."""
    if arguments.relabel:
        _relabel(arguments.relabel)
        return 0
    driver = Driver(arguments.policy, arguments.search, arguments.models)
    jobs = plan(arguments, driver)
    missing = [job for job in jobs if not job.path.exists()]
    done = len(jobs) - len(missing)
    progress = Progress("branches", len(jobs), "scenes", done)
    decisions = 0
    engine = executor.settings_of(arguments)
    for _, count in executor.run_jobs(Brancher, (driver,), missing, engine):
        done, decisions = done + 1, decisions + count
        progress.update(done, f"{decisions} decisions")
    return 0
