"""Does the policy mean what robot, cameras and recordings mean? Asked before anything moves.

What can be compared by name is compared by name. What cannot, a unit, a sign, a frame, a flag that
says displacement where the numbers are positions, shows in the numbers: the policy answers recorded
observations, and its first actions are held against those demonstrated there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vla_reasoner_ros.control.robots import Robot, load_robot
from vla_reasoner_ros.data.contract import Contract
from vla_reasoner_ros.data.episode_sets import EpisodeSet
from vla_reasoner_ros.errors import ConfigurationError, VlaReasonerError
from vla_reasoner_ros.policies.base import Policy, PolicySpec
from vla_reasoner_ros.rotations import conjugate, product, to_rotation_vector
from vla_reasoner_ros.types import (
    MOTION_DIMENSIONS,
    ActionSpec,
    FloatArray,
    Observation,
    Representation,
)

SCALE_WARNS, SCALE_FAILS = 3.0, 10.0
"""Ratio of the policy's spread to the demonstrated one; a wrong unit is off by 57 or 1000."""
AGREES, CONTRADICTS = 0.2, -0.5
"""Correlation of an action's dimension with the demonstrated one."""
OFFSET_WARNS, OFFSET_FAILS = 1.5, 5.0
"""Distance of the means in demonstrated deviations."""
MOVES = {Representation.EE_DELTA: (1e-4, 1e-3), Representation.JOINT_DELTA: (1e-4, 1e-4)}
"""Demonstrated deviation (m and rad; rad) below which a dimension says nothing."""
FEWEST = 8
"""Replayed observations from which on distributions are compared."""


class Level(str, Enum):
    """How a check ended."""

    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """One row of the table.

    Attributes:
        check: what was asked.
        level: the answer.
        said: what was compared, in numbers.
    """

    check: str
    level: Level
    said: str


@dataclass(frozen=True)
class Replay:
    """What a policy answered and what was demonstrated, row by row.

    Attributes:
        observations: N of them.
        answered: (N, D) first actions of the policy's chunks.
        demonstrated: (N, D).
    """

    observations: Sequence[Observation]
    answered: FloatArray
    demonstrated: FloatArray


def check(
    policy: Policy,
    robot: Robot | None = None,
    contract: Contract | None = None,
    episodes: EpisodeSet | None = None,
    observations: int = 48,
    seed: int = 0,
) -> list[Finding]:
    """Hold a policy against everything that is given.

    Args:
        policy: it.
        robot: the arm that will move.
        contract: the streams that observations are made of.
        episodes: recordings of the same robot, of the task that the policy was trained on.
        observations: of them that are replayed.
        seed: chooses these.

    Returns:
        One finding a check; nothing is raised for what does not fit.
    """
    spec = policy.spec
    findings = [*_of_spec(spec)]
    if robot is not None:
        findings += _against_robot(spec, robot)
    if contract is not None:
        sizes = {name: (c.height, c.width) for name, c in contract.cameras.items()}
        findings += _cameras(spec, sizes, "contract")
    if episodes is None:
        findings.append(
            Finding("recorded actions", Level.WARN, "not compared: no recordings were given")
        )
        return findings
    findings += _against_recordings(spec, episodes)
    if any(f.level is Level.FAIL and f.check.startswith("recordings") for f in findings):
        return findings
    try:
        replay = replayed(policy, episodes, observations, seed)
    except Exception as error:  # A policy may fail in any way; that is a finding.
        return [*findings, Finding("replay", Level.FAIL, f"{type(error).__name__}: {error}")]
    findings.append(Finding("replay", Level.PASS, f"{len(replay.answered)} observations answered"))
    return [*findings, *compare(spec.action, replay)]


def require(findings: Iterable[Finding]) -> None:
    """Refuse to go on where a check failed.

    Raises:
        ConfigurationError: at least one failed; the message has them all.
    """
    failed = [f"{f.check}: {f.said}" for f in findings if f.level is Level.FAIL]
    if failed:
        raise ConfigurationError("convention self-check: " + "; ".join(failed))


def table(findings: Sequence[Finding]) -> str:
    """The findings as text, one a line."""
    width = max(len(finding.check) for finding in findings)
    return "\n".join(f"{f.level.value}  {f.check:<{width}}  {f.said}" for f in findings)


def replayed(policy: Policy, episodes: EpisodeSet, observations: int, seed: int) -> Replay:
    """Let a policy answer observations drawn from all steps of all episodes.

    Raises:
        VlaReasonerError: what the policy raises.
    """
    steps = [(episode, step) for episode in episodes for step in range(len(episode))]
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(steps), size=min(observations, len(steps)), replace=False)
    seen, answered, demonstrated = [], [], []
    previous = None
    for index in np.sort(chosen):
        episode, step = steps[index]
        if episode is not previous:
            policy.reset()
            previous = episode
        observation = episode.observation(step)
        seen.append(observation)
        answered.append(policy.propose(observation)[0].actions[0])
        demonstrated.append(np.asarray(episode.actions[step], np.float64))
    return Replay(seen, np.stack(answered), np.stack(demonstrated))


def compare(spec: ActionSpec, replay: Replay) -> list[Finding]:
    """Hold answered actions against demonstrated ones of the same convention."""
    motion = list(spec.motion_indices)
    own, shown = replay.answered[:, motion], replay.demonstrated[:, motion]
    names = [spec.names[i] for i in motion]
    findings = [_delta_or_absolute(spec, replay)]
    if spec.representation is Representation.EE_POSE:
        findings.append(_quaternion_order(own, replay))
    if len(own) < FEWEST:
        said = f"{len(own)} observations, at least {FEWEST} are needed"
        return [*findings, Finding("distributions", Level.WARN, said)]
    own, shown, names, groups = _comparable(spec, own, shown, names, replay)
    floors = _floors(spec, len(names))
    findings += [
        *_units(own, shown, groups, floors),
        _signs(own, shown, names, floors),
        _axes(own, shown, names, groups, floors),
        _offsets(own, shown, names, floors),
    ]
    if spec.gripper is not None:
        findings += _gripper(spec, replay)
    return findings


def _of_spec(spec: PolicySpec) -> Iterator[Finding]:
    action = spec.action
    said = f"{action.representation.value}, {action.dimensions} numbers, {spec.horizon} a chunk"
    said += f", {1.0 / action.dt:g} Hz"
    yield Finding("convention", Level.PASS, said)
    if action.frame and not spec.control_frame:
        yield Finding(
            "control frame", Level.WARN, "the policy does not say which link its actions move"
        )


def _against_robot(spec: PolicySpec, robot: Robot) -> Iterator[Finding]:
    action = spec.action
    names = tuple(action.names[i] for i in action.motion_indices)
    is_joint = action.representation in (Representation.JOINT_POSITION, Representation.JOINT_DELTA)
    if is_joint:
        level = Level.PASS if names == robot.joint_names else Level.FAIL
        said = f"policy {', '.join(names)}; robot {', '.join(robot.joint_names)}"
        yield Finding("robot: joints of actions", level, said)
    else:
        known = ("base", robot.base_frame)
        level = Level.PASS if action.frame in known else Level.FAIL
        said = f"policy {action.frame!r}; robot {' or '.join(map(repr, known))}"
        yield Finding("robot: frame", level, said)
        tcp = robot.tool_frames[-1].name if robot.tool_frames else ""
        if spec.control_frame:
            level = Level.PASS if spec.control_frame == tcp else Level.FAIL
            said = f"policy moves {spec.control_frame!r}; the robot's TCP is {tcp!r}"
            yield Finding("robot: control frame", level, said)
    moved = len(robot.joint_names) if is_joint else MOTION_DIMENSIONS[action.representation]
    width = moved + (action.gripper is not None)
    level = Level.PASS if action.dimensions == width else Level.FAIL
    yield Finding("robot: action width", level, f"policy {action.dimensions}, robot {width}")
    has = robot.gripper_opening is not None
    level = Level.PASS if has == (action.gripper is not None) else Level.WARN
    said = f"policy {'commands' if action.gripper else 'ignores'} a gripper; "
    yield Finding("robot: gripper", level, said + f"robot has {'one' if has else 'none'}")
    if spec.joint_names:
        missing = [name for name in spec.joint_names if name not in robot.joint_names]
        said = f"the policy reads {missing[0]!r}, which it lacks" if missing else "all there"
        yield Finding("robot: joints of the state", Level.FAIL if missing else Level.PASS, said)


def _cameras(spec: PolicySpec, found: dict[str, tuple[int, int]], where: str) -> Iterator[Finding]:
    for name, size in spec.cameras.items():
        if name not in found:
            said = f"the policy needs {name!r}; there are {', '.join(sorted(found)) or 'none'}"
            yield Finding(f"{where}: camera {name}", Level.FAIL, said)
            continue
        level = Level.PASS if tuple(found[name]) == tuple(size) else Level.FAIL
        said = f"policy {size[0]}x{size[1]}, {where} {found[name][0]}x{found[name][1]} pixels"
        yield Finding(f"{where}: camera {name}", level, said)


def _against_recordings(spec: PolicySpec, episodes: EpisodeSet) -> Iterator[Finding]:
    mine, theirs = spec.action, episodes.action_spec
    yield from _cameras(spec, episodes.cameras, "recordings")
    level = Level.PASS if mine.dimensions == theirs.dimensions else Level.FAIL
    said = f"policy {mine.dimensions}, recordings {theirs.dimensions}"
    yield Finding("recordings: action width", level, said)
    for part in ("representation", "names", "frame", "gripper"):
        own, other = getattr(mine, part), getattr(theirs, part)
        level = Level.PASS if own == other else Level.FAIL
        said = "same" if own == other else f"policy {own!r}, recordings {other!r}"
        yield Finding(f"recordings: {part}", level, said)
    level = Level.PASS if np.isclose(mine.dt, theirs.dt, rtol=1e-3) else Level.FAIL
    yield Finding("recordings: dt", level, f"policy {mine.dt:g} s, recordings {theirs.dt:g} s")
    missing = [n for n in spec.joint_names if n not in episodes[0].meta.joint_names]
    if missing:
        said = f"the policy reads {missing[0]!r}, which they lack"
        yield Finding("recordings: joints", Level.FAIL, said)


def _state(spec: ActionSpec, replay: Replay) -> FloatArray | None:
    """(N, M) where the arm was, in the coordinates of an absolute action; None without joints."""
    if spec.frame:
        return np.stack([np.append(o.ee_position, o.ee_quaternion) for o in replay.observations])
    names = [spec.names[i] for i in spec.motion_indices]
    rows = []
    for seen in replay.observations:
        positions = dict(zip(seen.joint_names, seen.joint_positions, strict=True))
        if any(name not in positions for name in names):
            return None
        rows.append([positions[name] for name in names])
    return np.array(rows)


def _delta_or_absolute(spec: ActionSpec, replay: Replay) -> Finding:
    """Displacements are small and not near the state; targets are near it."""
    title, motion = "delta or absolute", list(spec.motion_indices)
    state = _state(spec, replay)
    if state is None:
        return Finding(title, Level.WARN, "not compared: the recordings lack the action's joints")
    used = slice(0, 3) if spec.frame else slice(None)
    own, state = replay.answered[:, motion][:, used], state[:, used]
    shown = replay.demonstrated[:, motion][:, used]
    if spec.is_delta:
        near, other = _median(own - state), _median(own)
        wrong = near < 0.2 * other and other > 3.0 * max(_median(shown), 1e-6)
        said = f"median {other:.3g}, from the state {near:.3g}, demonstrated {_median(shown):.3g}"
        hint = "; displacements are declared, positions come" if wrong else ""
    else:
        near, wanted = _median(own - state), _median(shown - state)
        wrong = near > 5.0 * max(wanted, 1e-3) and _median(own) < 0.2 * _median(state)
        said = f"median distance from the state {near:.3g}, demonstrated {wanted:.3g}"
        hint = "; positions are declared, displacements come" if wrong else ""
    return Finding(title, Level.FAIL if wrong else Level.PASS, said + hint)


def _median(rows: FloatArray) -> float:
    return float(np.median(np.linalg.norm(rows, axis=1)))


def _quaternion_order(own: FloatArray, replay: Replay) -> Finding:
    state = np.stack([o.ee_quaternion for o in replay.observations])
    given = _angle(own[:, 3:], state)
    rolled = _angle(np.roll(own[:, 3:], -1, axis=1), state)
    norm = np.linalg.norm(own[:, 3:], axis=1)
    wrong = rolled < 0.3 * given or np.abs(norm - 1.0).max() > 0.05
    said = f"{given:.2f} rad from the state as x y z w, {rolled:.2f} as w x y z"
    said += f", norm {norm.min():.3f} to {norm.max():.3f}"
    return Finding("rotation form", Level.FAIL if wrong else Level.PASS, said)


def _angle(first: FloatArray, second: FloatArray) -> float:
    first = first / np.maximum(np.linalg.norm(first, axis=1, keepdims=True), 1e-9)
    turned = to_rotation_vector(product(first, conjugate(second)))
    return float(np.median(np.linalg.norm(turned, axis=1)))


def _comparable(
    spec: ActionSpec, own: FloatArray, shown: FloatArray, names: list[str], replay: Replay
) -> tuple[FloatArray, FloatArray, list[str], dict[str, slice]]:
    """Numbers whose spread means a motion: absolute actions become differences from the state."""
    if not spec.frame:
        state = None if spec.is_delta else _state(spec, replay)
        if state is not None:
            own, shown = own - state, shown - state
        return own, shown, names, {"joints": slice(0, len(names))}
    if spec.representation is Representation.EE_POSE:
        state = _state(spec, replay)
        assert state is not None
        own, shown = (
            np.concatenate(
                [
                    rows[:, :3] - state[:, :3],
                    to_rotation_vector(product(rows[:, 3:], conjugate(state[:, 3:]))),
                ],
                axis=1,
            )
            for rows in (own, shown)
        )
        names = ["x", "y", "z", "rx", "ry", "rz"]
    return own, shown, names, {"translation": slice(0, 3), "rotation": slice(3, 6)}


def _floors(spec: ActionSpec, count: int) -> FloatArray:
    if not spec.frame:
        return np.full(count, MOVES[Representation.JOINT_DELTA][0])
    return np.repeat(MOVES[Representation.EE_DELTA], 3).astype(float)


def _units(
    own: FloatArray, shown: FloatArray, groups: dict[str, slice], floors: FloatArray
) -> Iterator[Finding]:
    """A wrong unit, scale or normalisation multiplies all of a group."""
    suspects = {
        1000.0: "millimetres for metres?",
        100.0: "centimetres for metres?",
        180.0 / np.pi: "degrees for radians?",
    }
    for name, part in groups.items():
        spread = float(np.sqrt(np.mean(own[:, part] ** 2)))
        wanted = float(np.sqrt(np.mean(shown[:, part] ** 2)))
        if wanted < floors[part].max():
            said = f"demonstrations hardly move (root mean square {wanted:.2g})"
            yield Finding(f"units of {name}", Level.WARN, said)
            continue
        ratio = max(spread, 1e-12) / wanted
        off = max(ratio, 1.0 / ratio)
        level = _level(off, SCALE_WARNS, SCALE_FAILS)
        typical = _median(own[:, part]) / max(_median(shown[:, part]), 1e-12)
        if level is Level.FAIL and (typical > 1.0) is not (ratio > 1.0):
            level = Level.WARN  # a unit is wrong everywhere, not in a few large steps
        said = f"root mean square {spread:.3g}, demonstrated {wanted:.3g}: {ratio:.3g} times"
        if level is not Level.PASS:
            near = min(suspects, key=lambda factor: abs(np.log(off / factor)))
            plausible = abs(np.log(off / near)) < np.log(2.0)
            said += f"; {suspects[near]}" if plausible else "; another normalisation or scale?"
        yield Finding(f"units of {name}", level, said)


def _level(value: float, warns: float, fails: float) -> Level:
    if value >= fails:
        return Level.FAIL
    return Level.WARN if value >= warns else Level.PASS


def _correlations(own: FloatArray, shown: FloatArray) -> FloatArray:
    """(M, M) of each answered dimension with each demonstrated one; 0 where one is constant."""
    centred = [rows - rows.mean(axis=0) for rows in (own, shown)]
    norms = [np.linalg.norm(rows, axis=0) for rows in centred]
    scale = np.outer(norms[0], norms[1])
    product_ = centred[0].T @ centred[1]
    return np.divide(product_, scale, out=np.zeros_like(product_), where=scale > 1e-12)


def _moving(shown: FloatArray, floors: FloatArray) -> NDArray[np.bool_]:
    return shown.std(axis=0) > floors


def _signs(own: FloatArray, shown: FloatArray, names: list[str], floors: FloatArray) -> Finding:
    moving = _moving(shown, floors)
    own_way = np.diag(_correlations(own, shown))
    against = [
        f"{n} {c:.2f}"
        for n, c, m in zip(names, own_way, moving, strict=True)
        if m and c < CONTRADICTS
    ]
    weak = [
        f"{n} {c:.2f}" for n, c, m in zip(names, own_way, moving, strict=True) if m and c < AGREES
    ]
    if against:
        return Finding("signs", Level.FAIL, f"correlation with demonstrations {', '.join(against)}")
    if weak:
        said = f"hardly any correlation with demonstrations: {', '.join(weak)}"
        return Finding("signs", Level.WARN, said)
    if not moving.any():
        return Finding("signs", Level.WARN, "demonstrations hardly move")
    said = f"correlation with demonstrations at least {own_way[moving].min():.2f}"
    return Finding("signs", Level.PASS, said)


def _axes(
    own: FloatArray,
    shown: FloatArray,
    names: list[str],
    groups: dict[str, slice],
    floors: FloatArray,
) -> Finding:
    """A wrong frame or order makes one axis do what another was shown to do."""
    correlation, moving = _correlations(own, shown), _moving(shown, floors)
    swapped = []
    for part in groups.values():
        indices = [i for i in range(*part.indices(len(names))) if moving[i]]
        for index in indices:
            others = [i for i in indices if i != index]
            if not others:
                continue
            best = max(others, key=lambda i: abs(correlation[i, index]))
            strength = abs(correlation[best, index])
            # A demonstrated axis may follow another one by itself.
            own_link = abs(_correlations(shown, shown)[best, index])
            if strength > max(0.6, abs(correlation[index, index]) + 0.4) and own_link < 0.6:
                swapped.append(f"{names[best]} does what {names[index]} was shown to do")
    if swapped:
        return Finding("frame and axes", Level.FAIL, "; ".join(swapped))
    return Finding("frame and axes", Level.PASS, "no axis does another one's motion")


def _offsets(own: FloatArray, shown: FloatArray, names: list[str], floors: FloatArray) -> Finding:
    """Statistics of another dataset move the means."""
    deviation = np.maximum(shown.std(axis=0), floors)
    offset = np.abs(own.mean(axis=0) - shown.mean(axis=0)) / deviation
    worst = int(offset.argmax())
    said = f"largest offset of the mean {offset[worst]:.2g} deviations, of {names[worst]}"
    return Finding(
        "normalisation statistics", _level(float(offset[worst]), OFFSET_WARNS, OFFSET_FAILS), said
    )


def _gripper(spec: ActionSpec, replay: Replay) -> Iterator[Finding]:
    gripper = spec.gripper
    assert gripper is not None  # the caller looked
    own = gripper.opening(replay.answered[:, gripper.index])
    shown = gripper.opening(replay.demonstrated[:, gripper.index])
    inside = own.min() > -0.1 and own.max() < 1.1
    said = f"opening {own.min():.2f} to {own.max():.2f}, expected 0 to 1"
    yield Finding("gripper range", Level.PASS if inside else Level.FAIL, said)
    share = float(np.mean((own > 0.5) == (shown > 0.5)))
    closed = float(np.mean(shown <= 0.5))
    said = f"open or closed as demonstrated in {share:.0%} of {len(own)}"
    if min(closed, 1.0 - closed) < 0.1:
        level = Level.WARN if share < 0.5 else Level.PASS
        said += f"; demonstrations are closed in {closed:.0%}"
    else:
        level = Level.FAIL if share < 0.25 else Level.WARN if share < 0.7 else Level.PASS
    yield Finding("gripper sign", level, said)


def check_configured(policy: Policy, robot: str, data: str, observations: int) -> list[Finding]:
    """As :func:`check`, from a configuration; a failed one refuses to configure.

    Args:
        policy: it.
        robot: name or file of the robot; empty leaves it out.
        data: folder of recordings; empty leaves them out.
        observations: replayed.

    Raises:
        ConfigurationError: a check failed, or there is no such robot or folder.
    """
    try:
        episodes = EpisodeSet.open(Path(data)) if data else None
    except VlaReasonerError as error:
        raise ConfigurationError(f"convention self-check: {error}") from error
    findings = check(
        policy, load_robot(robot) if robot else None, None, episodes, observations=observations
    )
    require(findings)
    return findings
