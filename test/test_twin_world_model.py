import dataclasses

import numpy as np
import pytest

from vla_reasoner_ros import plugins
from vla_reasoner_ros.errors import ConfigurationError, InstructionError, ModelError
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.privileged_value import PrivilegedValue
from vla_reasoner_ros.sim.twin import TwinWorldModel
from vla_reasoner_ros.sim.world import World

MACRO = 4


@pytest.fixture(scope="module")
def twin():
    twin = TwinWorldModel()
    twin.allocate(24)
    return twin


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def blind(observation):
    """An observation as a robot has it: no true state."""
    return dataclasses.replace(observation, simulator_state=None)


def at_the_grasp(world, task="lift_green", seed=5):
    """The expert's arm over the block, and the moments from there on."""
    world.reset(task, seed)
    expert = Expert(world)
    while not world.true_state().pinched:
        before = world.get_state()
        for _ in range(MACRO):
            world.apply(expert.act())
    world.set_state(before)
    return world.observation()


def expert_macro(world):
    """(1, M, 7) what the expert does next; the world is where it was."""
    state = world.get_state()
    expert = Expert(world)
    actions = []
    for _ in range(MACRO):
        actions.append(expert.act())
        world.apply(actions[-1])
    world.set_state(state)
    return np.array(actions, dtype=np.float32)[None]


def follow(world, actions):
    for action in actions[0]:
        world.apply(action)


ROOT, CHILD = np.array([0]), np.array([1])


def imagined_place(twin, slot, name):
    places = twin._layout.get(twin.latents(np.array([slot])), "object_position")[0]
    return places[twin._layout.objects.index(name)].double().numpy()


def test_it_starts_from_what_is_seen_never_from_the_true_state(twin, world):
    world.reset("lift_green", 5)
    seen = world.observation()
    twin.encode(blind(seen))
    first = twin.latents(ROOT).clone()
    lie = np.full_like(seen.simulator_state, 7.0)
    twin.encode(dataclasses.replace(seen, simulator_state=lie))
    assert (twin.latents(ROOT) == first).all()
    for name, true in world.true_state().blocks.items():
        assert np.linalg.norm(imagined_place(twin, 0, name) - true) < 0.02


@pytest.mark.parametrize(
    "wrong",
    [{}, {"friction": 0.7}, {"friction": 1.3}, {"mass": 0.7}, {"mass": 1.3}, {"size": 1.3}],
    ids=str,
)
def test_a_grasp_is_imagined_even_by_a_twin_that_is_wrong(wrong, world):
    twin = TwinWorldModel(**wrong)
    twin.allocate(4)
    seen = at_the_grasp(world)
    twin.encode(blind(seen))
    slot = 0
    for child in (1, 2, 3):
        actions = expert_macro(world)
        twin.step(np.array([slot]), actions, np.array([child]))
        follow(world, actions)
        slot = child
    truth = world.true_state()
    assert truth.blocks["green_block"][2] > 0.06
    assert imagined_place(twin, slot, "green_block")[2] > 0.05
    miss = np.linalg.norm(imagined_place(twin, slot, "green_block") - truth.blocks["green_block"])
    assert miss < 0.03
    arm = twin.ee_positions(np.array([slot]))[0] - truth.tcp
    assert np.linalg.norm(arm) < 0.01


@pytest.mark.parametrize("wrong", [{}, {"size": 0.7}, {"size": 1.3}, {"mass": 1.3}], ids=str)
def test_what_is_held_stays_held(wrong, world):
    twin = TwinWorldModel(**wrong)
    twin.allocate(2)
    at_the_grasp(world)
    follow(world, expert_macro(world))
    follow(world, expert_macro(world))
    assert "green_block" in world.true_state().pinched
    start = world.true_state().blocks["green_block"]
    twin.encode(blind(world.observation()))
    rise = np.zeros((1, MACRO, 7), np.float32)
    rise[..., 2] = 0.01
    twin.step(ROOT, rise, CHILD)
    assert imagined_place(twin, 1, "green_block")[2] - start[2] > 0.02


def test_what_the_arm_hides_is_where_it_was_seen_before(twin, world, monkeypatch):
    world.reset("lift_green", 5)
    seen = world.observation()
    latent = twin.encoder.encode([seen])[0]
    green = twin._layout.objects.index("green_block")
    hidden = latent.clone()
    twin._layout.get(hidden, "object_position")[green, :2] += 0.04
    twin._layout.get(hidden, "object_error")[green] = 0.05
    views = iter([latent[None], hidden[None]])
    monkeypatch.setattr(twin.encoder, "encode", lambda observations: next(views))
    twin.encode(blind(seen))
    first = imagined_place(twin, 0, "green_block")
    twin.encode(blind(dataclasses.replace(seen, stamp_ns=seen.stamp_ns + 400_000_000)))
    assert np.linalg.norm(imagined_place(twin, 0, "green_block") - first) < 0.005


def test_objects_stay_where_nothing_touches_them(twin, world):
    world.reset("red_on_green", 9)
    twin.encode(blind(world.observation()))
    still = np.zeros((1, MACRO, 7), np.float32)
    still[..., 6] = 1.0
    twin.step(ROOT, still, CHILD)
    assert twin.distance(CHILD)[0] < 0.015


def test_the_same_actions_give_the_same_future_wherever_they_stand_in_the_batch(twin, world):
    world.reset("push_blue_back", 3)
    twin.encode(blind(world.observation()))
    rng = np.random.default_rng(0)
    actions = rng.normal(0.0, 0.01, (6, MACRO, 7)).astype(np.float32)
    children = np.arange(1, 7)
    twin.step(np.zeros(6, np.int64), actions, children)
    batch = twin.latents(children).clone()
    order = np.array([3, 0, 5, 2, 4, 1])
    twin.step(np.zeros(6, np.int64), actions[order], children)
    np.testing.assert_allclose(twin.latents(children), batch[order], atol=1e-6)
    twin.step(ROOT, actions[2:3], np.array([20]))
    np.testing.assert_allclose(twin.latents(np.array([20]))[0], batch[2], atol=1e-6)


def test_copies_are_read_before_they_are_written(twin, world):
    world.reset("lift_green", 1)
    twin.encode(blind(world.observation()))
    rng = np.random.default_rng(1)
    twin.step(
        np.zeros(2, np.int64), rng.normal(0, 0.01, (2, MACRO, 7)).astype("f4"), np.array([1, 2])
    )
    before = twin.latents(np.array([1, 2])).clone()
    twin.copy(np.array([1, 2]), np.array([2, 1]))
    assert (twin.latents(np.array([2, 1])) == before).all()


def test_bad_input_is_named(twin):
    with pytest.raises(ModelError, match=r"expected actions \(1, 4, 7\), got \(1, 3, 7\)"):
        twin.step(ROOT, np.zeros((1, 3, 7), np.float32), CHILD)
    with pytest.raises(ModelError, match="slot 23 holds no state"):
        twin.latents(np.array([23]))
    with pytest.raises(ConfigurationError, match=r"size must be 0\.1 to 10, got 0\.0"):
        plugins.create("world_model", "twin", {"size": 0.0})
    with pytest.raises(ConfigurationError, match="substeps: expected at least 1"):
        TwinWorldModel(substeps=0)


def test_the_tasks_own_progress_values_what_was_imagined(twin, world):
    value = PrivilegedValue()
    value.bind(twin)
    seen = at_the_grasp(world)
    twin.encode(blind(seen))
    value.begin(blind(seen))
    actions = expert_macro(world)
    twin.step(ROOT, actions, CHILD)
    away = actions.copy()
    away[..., 2], away[..., 6] = 0.03, 1.0
    twin.step(ROOT, away, np.array([2]))
    follow(world, actions)
    toward, off = value.evaluate(np.array([1, 2]))[0]
    assert toward > off + 0.05
    assert toward == pytest.approx(world.progress(), abs=0.1)
    with pytest.raises(InstructionError, match="no simulated task is called 'juggle'"):
        value.begin(dataclasses.replace(seen, instruction="juggle"))
