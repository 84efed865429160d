import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vla_reasoner_ros.sim import tasks
from vla_reasoner_ros.sim.experts import SPEED, Expert
from vla_reasoner_ros.sim.scene import BLOCK_HALF, BLOCKS, PLATE_RADIUS, PLATE_TOP, TRAY_HALF
from vla_reasoner_ros.sim.world import World

LIMIT = 100
OPEN_HAND = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture(scope="module")
def world():
    return World()


def run_expert(world, task, seed, limit=LIMIT):
    """Progress before each action and after the last; the joints commanded."""
    world.reset(task, seed)
    expert = Expert(world)
    progress, joints = [world.progress()], [world.commanded_joints]
    for _ in range(limit):
        world.apply(expert.act())
        progress.append(world.progress())
        joints.append(world.commanded_joints)
        if world.success():
            break
    return np.array(progress), np.array(joints)


def drive_closed(world, offset, below=0.0, limit=40):
    """Go with closed fingers to a place relative to the pushed block's, or below a height."""
    for _ in range(limit):
        state = world.true_state()
        way = state.blocks["blue_block"] + offset - state.tcp
        length = np.linalg.norm(way)
        if length < 0.008 or state.tcp[2] < below:
            return
        world.apply(np.array([*(way * min(1.0, 0.02 / length)), 0, 0, 0, 0.0]))


def make_state(**changes):
    state = tasks.TrueState(
        tcp=np.array([0.45, 0.0, 0.25]),
        opening=1.0,
        blocks={
            "red_block": np.array([0.45, -0.1, BLOCK_HALF]),
            "green_block": np.array([0.50, 0.0, BLOCK_HALF]),
            "blue_block": np.array([0.55, 0.1, BLOCK_HALF]),
        },
        yaws=dict.fromkeys(BLOCKS, 0.0),
        plate=np.array([0.5, -0.215, 0.0]),
        tray=np.array([0.5, 0.215, 0.0]),
        pinched=frozenset(),
        touched=frozenset(),
        held_s=0.0,
    )
    return dataclasses.replace(state, **changes)


def with_block(name, position, **changes):
    state = make_state()
    return dataclasses.replace(state, blocks={**state.blocks, name: np.array(position)}, **changes)


ON_PLATE = (0.5, -0.215, PLATE_TOP + BLOCK_HALF)


class TestTable:
    def test_there_are_enough_words_to_learn_from_and_to_test_with(self):
        assert len(tasks.TASKS) >= 6
        for task in tasks.TASKS.values():
            assert len(task.instructions) >= 4
            assert len(task.held_out) >= 2

    def test_no_sentence_stands_for_two_tasks(self):
        sentences = [s for t in tasks.TASKS.values() for s in (*t.instructions, *t.held_out)]
        assert len(sentences) == len(set(sentences))

    def test_all_names_are_those_of_the_scene(self):
        for task in tasks.TASKS.values():
            assert task.block in BLOCKS
            assert task.target in (*BLOCKS, "plate", "tray", "")


class TestStart:
    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_nothing_overlaps_and_nothing_is_done_yet(self, name):
        task = tasks.TASKS[name]
        for seed in range(200):
            start = tasks.sample_scene(task, np.random.default_rng(seed))
            places = np.array([place[:2] for place in start.blocks.values()])
            gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(3, 1)]
            diagonal = BLOCK_HALF * np.sqrt(2.0)
            assert gaps.min() > 2 * diagonal
            assert np.linalg.norm(places - start.plate, axis=1).min() > PLATE_RADIUS + diagonal
            assert np.abs(places - start.tray).max(axis=1).min() > TRAY_HALF + diagonal

    def test_the_pushed_block_has_its_way_free(self):
        task = tasks.TASKS["push_blue_back"]
        for seed in range(100):
            start = tasks.sample_scene(task, np.random.default_rng(seed))
            y = start.blocks["blue_block"][1]
            others = [start.blocks[name][1] for name in ("red_block", "green_block")]
            assert min(abs(other - y) for other in others) > 2 * BLOCK_HALF


class TestGoals:
    def test_placed_means_resting_there_and_let_go(self):
        task = tasks.TASKS["red_on_plate"]
        assert tasks.achieved(task, with_block("red_block", ON_PLATE))
        held = with_block("red_block", ON_PLATE, touched=frozenset({"red_block"}))
        assert not tasks.achieved(task, held)
        above = with_block("red_block", np.add(ON_PLATE, (0, 0, 0.02)))
        assert not tasks.achieved(task, above)
        beside = with_block("red_block", np.add(ON_PLATE, (0.06, 0, 0)))
        assert not tasks.achieved(task, beside)

    def test_another_block_on_the_plate_does_not_count(self):
        state = with_block("blue_block", ON_PLATE)
        assert not tasks.achieved(tasks.TASKS["red_on_plate"], state)
        assert tasks.achieved(tasks.TASKS["blue_on_plate"], state)

    def test_stacked_means_on_top(self):
        task = tasks.TASKS["red_on_green"]
        assert tasks.achieved(task, with_block("red_block", (0.505, 0.0, 3 * BLOCK_HALF)))
        assert not tasks.achieved(task, with_block("red_block", (0.53, 0.0, 3 * BLOCK_HALF)))

    def test_pushed_means_wholly_past_the_line_and_still_on_the_table(self):
        task = tasks.TASKS["push_blue_back"]
        past = tasks.PUSH_X + 0.01
        assert tasks.achieved(task, with_block("blue_block", (past, 0.1, BLOCK_HALF)))
        assert not tasks.achieved(task, with_block("blue_block", (past - 0.02, 0.1, BLOCK_HALF)))
        assert not tasks.achieved(task, with_block("blue_block", (past, 0.1, 0.1)))

    def test_lifted_means_held_in_the_air(self):
        task = tasks.TASKS["lift_green"]
        high = (0.5, 0.0, tasks.LIFT_Z + 0.01)
        gripped = frozenset({"green_block"})
        assert tasks.achieved(task, with_block("green_block", high, pinched=gripped))
        assert not tasks.achieved(task, with_block("green_block", high))


class TestProgress:
    @given(
        st.sampled_from(sorted(tasks.TASKS)),
        st.lists(st.floats(-1.0, 1.5), min_size=9, max_size=9),
        st.floats(-0.1, 1.1),
        st.booleans(),
        st.floats(0.0, 2.0),
    )
    def test_is_a_share_whatever_the_state(self, name, numbers, opening, pinched, held_s):
        task = tasks.TASKS[name]
        state = make_state(
            tcp=np.array(numbers[:3]), opening=opening, held_s=held_s,
            pinched=frozenset({task.block}) if pinched else frozenset(),
        )  # fmt: skip
        blocks = {**state.blocks, task.block: np.array(numbers[3:6])}
        state = dataclasses.replace(state, blocks=blocks)
        assert 0.0 <= tasks.progress(task, state) <= 1.0

    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_grows_all_along_an_expert_run_to_one(self, world, name):
        progress, _ = run_expert(world, name, seed=5)
        assert world.success()
        assert np.diff(progress).min() > -0.01
        assert progress[0] < 0.4
        assert progress[-1] == pytest.approx(1.0)

    def test_is_one_only_at_success(self, world):
        progress, _ = run_expert(world, "lift_green", seed=1)
        assert (progress[:-1] < 1.0).all()

    def test_falls_when_the_block_is_dropped(self, world):
        world.reset("red_on_plate", 6)
        expert = Expert(world)
        while world.true_state().blocks["red_block"][2] < 0.07:
            world.apply(expert.act())
        before = world.progress()
        for _ in range(5):
            world.apply(OPEN_HAND)
        assert world.progress() < before - 0.1

    @pytest.mark.parametrize("seed", [50200, 50201, 50203])
    def test_does_not_pay_for_dragging_a_block_under_the_finger_tips(self, world, seed):
        world.reset("push_blue_back", seed)
        task = tasks.TASKS["push_blue_back"]
        drive_closed(world, (-0.06, 0.0, 0.08))
        before = world.progress()
        drive_closed(world, (-0.01, 0.0, 0.02), below=0.055)
        start = world.true_state().blocks[task.block][0]
        for _ in range(6):
            world.apply(np.array([0.02, 0, 0, 0, 0, 0, 0.0]))
            state = world.true_state()
            if tasks.achieved(task, state) or task.block not in state.touched:
                break  # dragged past the line, or slipped out
            assert world.progress() < before
        assert world.true_state().blocks[task.block][0] > start + 0.02

    def test_counts_how_far_a_pushed_block_has_come_when_it_is_free(self):
        task = tasks.TASKS["push_blue_back"]
        states = [with_block("blue_block", (x, 0.1, BLOCK_HALF)) for x in (0.5, 0.55, 0.6, 0.65)]
        for tcp in ((0.0, 0.0, 0.08), (-tasks.PUSH_OFFSET, 0.0, 0.0), (0.0, 0.08, 0.0)):
            moved = [
                dataclasses.replace(s, tcp=s.blocks["blue_block"] + tcp, opening=0.0)
                for s in states
            ]
            assert np.diff([tasks.progress(task, state) for state in moved]) == pytest.approx(
                0.5 * 0.05 / 0.28
            )

    @pytest.mark.parametrize("opening", [0.0, 1.0])
    def test_does_not_count_it_under_a_finger_tip(self, opening):
        task = tasks.TASKS["push_blue_back"]
        finger = np.array([0.0, opening * tasks.FINGER_TRAVEL, 0.025])
        values = []
        for x in (0.5, 0.6, 0.65):
            state = with_block("blue_block", (x, 0.1, BLOCK_HALF), opening=opening)
            state = dataclasses.replace(state, tcp=state.blocks["blue_block"] + finger)
            values.append(tasks.progress(task, state))
        assert values == pytest.approx([values[0]] * 3)
        assert max(values) < 0.2

    def test_open_fingers_around_a_block_do_not_press_it(self):
        task = tasks.TASKS["push_blue_back"]
        near, far = (with_block("blue_block", (x, 0.1, BLOCK_HALF)) for x in (0.5, 0.6))
        around = [
            dataclasses.replace(s, tcp=s.blocks["blue_block"] + (0.0, 0.0, 0.02))
            for s in (near, far)
        ]
        assert tasks.progress(task, around[1]) > tasks.progress(task, around[0]) + 0.1

    def test_tells_candidates_four_actions_apart(self, world):
        world.reset("red_on_plate", 6)
        start = world.get_state()
        block = world.true_state().blocks["red_block"]
        toward = block - world.true_state().tcp
        toward *= SPEED / np.linalg.norm(toward)
        outcomes = []
        for share in (1.0, 0.5, 0.0, -0.5, -1.0):
            world.set_state(start)
            for _ in range(4):
                world.apply(np.array([*(share * toward), 0, 0, 0, 1.0]))
            outcomes.append(world.progress())
        assert (np.diff(outcomes) < -0.002).all()


class TestSuccess:
    def test_must_hold_for_a_second(self, world):
        world.reset("lift_green", 0)
        expert = Expert(world)
        while not tasks.achieved(tasks.TASKS["lift_green"], world.true_state()):
            world.apply(expert.act())
        first = world.time
        while not world.success():
            world.apply(expert.act())
        assert world.time - first >= tasks.HOLD_S - 0.11

    def test_starts_over_when_the_goal_is_lost(self, world):
        world.reset("lift_green", 0)
        expert = Expert(world)
        while world.true_state().held_s < 0.5:
            world.apply(expert.act())
        for _ in range(3):
            world.apply(OPEN_HAND)
        assert world.true_state().held_s == 0.0
        assert not world.success()


class TestExperts:
    @pytest.mark.parametrize("name", tasks.TASKS)
    def test_solve_their_task_within_the_limits_of_the_arm(self, world, name):
        limits = world.robot.limits
        for seed in range(100, 103):
            _, joints = run_expert(world, name, seed)
            assert world.success()
            velocity = np.diff(joints, axis=0) / world.action_spec.dt
            acceleration = np.diff(velocity, axis=0) / world.action_spec.dt
            assert (np.abs(velocity) <= limits.velocity).all()
            assert (np.abs(acceleration) <= limits.acceleration).all()
            assert world.unreachable_actions == 0

    def test_solve_most_episodes_in_spite_of_noise(self, world):
        solved = 0
        for seed in range(6):
            world.reset("blue_on_plate", seed)
            expert = Expert(world, noise=0.15, rng=np.random.default_rng(seed))
            for _ in range(LIMIT):
                world.apply(expert.act())
                if world.success():
                    solved += 1
                    break
        assert solved >= 5

    def test_noise_is_added_to_what_was_intended(self, world):
        world.reset("blue_on_plate", 0)
        expert = Expert(world, noise=0.5, rng=np.random.default_rng(0))
        action = expert.act()
        assert not np.array_equal(action[:6], expert.intended[:6])
        assert action[6] == expert.intended[6]
        world.reset("blue_on_plate", 0)
        np.testing.assert_array_equal(Expert(world).act(), expert.intended)

    def test_noise_needs_a_generator(self, world):
        with pytest.raises(ValueError, match="random generator"):
            Expert(world, noise=0.1)
