import gc

import numpy as np
import pytest

from vla_reasoner_ros.control.kinematics import Kinematics
from vla_reasoner_ros.control.robots import load_robot
from vla_reasoner_ros.errors import ActionChunkError, ConfigurationError
from vla_reasoner_ros.sim import headless, scene
from vla_reasoner_ros.sim.experts import Expert
from vla_reasoner_ros.sim.headless import mujoco
from vla_reasoner_ros.sim.joint_trajectory_controller import TrajectoryMessage, TrajectoryPoint
from vla_reasoner_ros.sim.tasks import TASKS
from vla_reasoner_ros.sim.world import ACTION_SPEC, World

STILL_OPEN = np.array([0, 0, 0, 0, 0, 0, 1.0])


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


def drive(world, steps):
    expert = Expert(world)
    actions = []
    for _ in range(steps):
        actions.append(expert.act())
        world.apply(actions[-1])
    return actions


def pose_error(world):
    return np.linalg.norm(world.true_state().tcp - world.target_pose[0])


class TestKinematics:
    def test_the_scene_has_the_kinematics_of_the_robot_file(self, world):
        kinematics = Kinematics(load_robot("fr3"))
        data = mujoco.MjData(world.model)
        rng = np.random.default_rng(3)
        for _ in range(10):
            joints = rng.uniform(world.robot.limits.position_min, world.robot.limits.position_max)
            data.qpos[:7] = joints
            mujoco.mj_kinematics(world.model, data)
            position, quaternion = kinematics.forward(joints)
            np.testing.assert_allclose(data.site("tcp").xpos, position, atol=1e-9)
            own = np.empty(4)
            mujoco.mju_mat2Quat(own, data.site("tcp").xmat)
            assert abs(np.dot(own[[1, 2, 3, 0]], quaternion)) == pytest.approx(1.0)

    def test_an_action_displaces_the_target_and_the_arm_follows(self, world):
        world.reset("lift_green", 0)
        before, _ = world.target_pose
        action = np.array([0.01, -0.015, 0.005, 0, 0, 0.05, 1.0])
        for _ in range(5):
            world.apply(action)
        for _ in range(3):
            world.apply(STILL_OPEN)
        after, _ = world.target_pose
        np.testing.assert_allclose(after - before, 5 * action[:3], atol=1e-12)
        assert pose_error(world) < 1e-3

    def test_lag_stays_small_in_motion(self, world):
        world.reset("lift_green", 0)
        for _ in range(6):
            world.apply(np.array([0.0, 0.02, 0, 0, 0, 0, 1.0]))
        assert pose_error(world) < 2e-3

    def test_a_target_out_of_reach_does_not_wind_up_and_is_counted(self, world):
        world.reset("lift_green", 0)
        for _ in range(30):
            world.apply(np.array([0.04, 0, 0, 0, 0, 0, 1.0]))
        assert world.unreachable_actions > 0
        position, _ = world.target_pose
        assert np.linalg.norm(position - [0, 0, 0.333]) < 0.9
        limits = world.robot.limits
        assert (world.commanded_joints >= limits.position_min).all()
        assert (world.commanded_joints <= limits.position_max).all()

    @pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))])
    def test_refuses_a_bad_action(self, world, action):
        with pytest.raises(ActionChunkError, match="7 finite numbers"):
            world.apply(action)

    def test_refuses_an_impossible_opening(self, world):
        with pytest.raises(ActionChunkError, match="opening"):
            world.command_gripper(1.5)


class TestReset:
    def test_a_seed_repeats_the_episode(self, world):
        first = world.reset("red_on_green", 11)
        drive(world, 5)
        state = world.get_state()
        assert world.reset("red_on_green", 11) == first
        drive(world, 5)
        np.testing.assert_array_equal(world.get_state(), state)

    def test_seeds_differ(self, world):
        world.reset("red_on_green", 1)
        state = world.get_state()
        world.reset("red_on_green", 2)
        assert not np.array_equal(world.get_state(), state)

    def test_the_instruction_is_one_of_the_right_list(self, world):
        for seed in range(10):
            for name, task in TASKS.items():
                assert world.reset(name, seed) in task.instructions
                assert world.reset(name, seed, held_out=True) in task.held_out

    def test_names_an_unknown_task(self, world):
        with pytest.raises(ConfigurationError, match=r"fold_towel.*lift_green"):
            world.reset("fold_towel", 0)

    def test_refuses_a_negative_seed(self, world):
        with pytest.raises(ConfigurationError, match="seed"):
            world.reset("lift_green", -1)


class TestState:
    def test_restoring_repeats_what_follows_bit_by_bit(self, world):
        world.reset("red_on_plate", 4)
        drive(world, 14)  # fingers in contact with the block
        saved = world.get_state()
        actions = drive(world, 6)
        after, progress = world.get_state(), world.progress()
        world.reset("lift_green", 9)
        drive(world, 3)
        world.set_state(saved)
        assert world.task == "red_on_plate"
        for action in actions:
            world.apply(action)
        np.testing.assert_array_equal(world.get_state(), after)
        assert world.progress() == progress

    def test_what_is_read_and_seen_comes_back_too(self, world):
        world.reset("blue_on_plate", 2)
        drive(world, 14)
        saved, progress, image = world.get_state(), world.progress(), world.render("wrist")
        drive(world, 5)
        assert not np.array_equal(world.render("wrist"), image)
        world.set_state(saved)
        assert world.progress() == progress
        np.testing.assert_array_equal(world.render("wrist"), image)

    def test_a_running_trajectory_is_part_of_it(self, world):
        world.reset("lift_green", 0)
        goal = world.commanded_joints + 0.05
        world.controller.accept(
            TrajectoryMessage(world.robot.joint_names, [TrajectoryPoint(400_000_000, goal)])
        )
        world.advance(0.1)
        saved = world.get_state()
        world.advance(0.5)
        after = world.get_state()
        world.reset("lift_green", 1)
        world.set_state(saved)
        world.advance(0.5)
        np.testing.assert_array_equal(world.get_state(), after)
        np.testing.assert_allclose(world.data.qpos[:7], goal, atol=1e-3)

    def test_a_state_of_another_scene_is_refused(self, world):
        with pytest.raises(ConfigurationError, match="simulator state"):
            world.set_state(np.zeros(12))


class TestAdvance:
    def test_stands_still_without_a_trajectory(self, world):
        world.reset("lift_green", 0)
        before = world.true_state().tcp
        world.advance(0.5)
        np.testing.assert_allclose(world.true_state().tcp, before, atol=1e-4)
        assert world.time == pytest.approx(0.5)

    def test_actions_go_on_where_a_trajectory_stopped(self, world):
        world.reset("lift_green", 0)
        goal = world.commanded_joints + 0.03
        world.controller.accept(
            TrajectoryMessage(
                world.robot.joint_names,
                [TrajectoryPoint(500_000_000, goal, np.zeros(7), np.zeros(7))],
            )
        )
        world.advance(1.0)
        assert pose_error(world) < 5e-4
        before = world.true_state().tcp
        world.apply(STILL_OPEN)
        np.testing.assert_allclose(world.true_state().tcp, before, atol=5e-4)

    def test_refuses_a_part_of_a_physics_step(self, world):
        with pytest.raises(ConfigurationError, match="multiple of the physics step"):
            world.advance(0.0031)


class TestRendering:
    @pytest.mark.parametrize("camera", scene.CAMERAS)
    def test_images_are_images(self, world, camera):
        world.reset("lift_green", 0)
        image = world.render(camera, 60, 80)
        assert image.shape == (60, 80, 3)
        assert image.dtype == np.uint8
        assert image.std() > 5.0
        np.testing.assert_array_equal(world.render(camera, 60, 80), image)

    def test_every_block_plate_and_tray_is_seen(self, world):
        world.reset("lift_green", 0)
        image = world.render("agent").astype(int)
        red, green, blue = image[..., 0], image[..., 1], image[..., 2]
        assert ((red > 100) & (red > 2.5 * green) & (red > 2.5 * blue)).sum() > 15
        assert ((green > 60) & (green > 2 * red) & (green > 2 * blue)).sum() > 15
        assert ((blue > 100) & (blue > 2 * red) & (blue > 1.8 * green)).sum() > 15
        assert (image.min(axis=2) > 225).sum() > 15

    def test_close_frees_and_rendering_goes_on(self, world):
        image = world.render("agent")
        world.close()
        np.testing.assert_array_equal(world.render("agent"), image)

    def test_names_an_unknown_camera(self, world):
        with pytest.raises(ConfigurationError, match=r"'front'.*agent"):
            world.render("front")

    def test_a_flat_image_is_an_error_not_an_image(self):
        def dark(spec):
            for geom in spec.geoms:
                geom.rgba = [0, 0, 0, 1]
            for texture in list(spec.textures):
                spec.delete(texture)

        world = World(scene_hook=dark)
        with pytest.raises(ConfigurationError, match="flat image"):
            world.render("agent")
        world.close()

    def test_an_observation_is_complete(self, world):
        world.reset("lift_green", 5)
        observation = world.observation(stamp_ns=7)
        assert set(observation.images) == {"agent", "wrist"}
        assert observation.images["agent"].shape == (96, 96, 3)
        assert observation.joint_names == world.robot.joint_names
        assert observation.instruction == world.instruction
        assert observation.stamp_ns == 7
        assert 0.95 < observation.gripper < 1.05
        np.testing.assert_array_equal(observation.simulator_state, world.get_state())
        position, quaternion = Kinematics(world.robot).forward(observation.joint_positions)
        np.testing.assert_allclose(observation.ee_position, position, atol=1e-6)
        assert abs(np.dot(observation.ee_quaternion, quaternion)) == pytest.approx(1.0)


class TestBackend:
    def test_what_the_user_set_is_kept(self):
        assert headless.choose_backend({"MUJOCO_GL": "glfw"}) == "glfw"

    def test_a_choice_is_made_where_nothing_is_set(self):
        environment: dict[str, str] = {}
        chosen = headless.choose_backend(environment)
        assert environment.get("MUJOCO_GL", "") == chosen

    def test_the_error_says_what_to_install(self):
        assert "libegl1" in str(headless.explain(RuntimeError("no display")))


class TestSceneHook:
    def test_a_file_may_change_the_scene(self, tmp_path):
        file = tmp_path / "heavier.py"
        file.write_text(
            "def heavier(spec):\n    spec.geom('red_block').mass = 0.5\n", encoding="utf-8"
        )
        model = scene.compile_scene(hook=f"{file}:heavier")
        assert model.body("red_block").mass[0] == pytest.approx(0.5)

    @pytest.mark.parametrize(
        ("text", "hook", "says"),
        [
            ("", "no_colon", "FILE.py:FUNCTION"),
            ("", "{missing}:f", "no file"),
            ("def f(spec): pass", "{file}:g", "no function 'g'"),
            ("1 / 0", "{file}:f", "ZeroDivisionError"),
            ("def f(spec): raise RuntimeError('boom')", "{file}:f", "RuntimeError: boom"),
            ("def f(spec): spec.geom('table').size = [-1, -1, -1]", "{file}:f", "not compile"),
            ("def f(spec): spec.body('plate').name = 'dish'", "{file}:f", "'plate'"),
        ],
    )
    def test_what_goes_wrong_is_named(self, tmp_path, text, hook, says):
        file = tmp_path / "hook.py"
        file.write_text(text, encoding="utf-8")
        hook = hook.format(file=file, missing=tmp_path / "none.py")
        with pytest.raises(ConfigurationError, match=f"scene_hook.*{says}"):
            scene.compile_scene(hook=hook)

    @pytest.mark.parametrize("time_step", [0.0, -0.0025, 0.003, 0.2])
    def test_the_time_step_must_divide_an_action(self, time_step):
        with pytest.raises(ConfigurationError, match="time_step"):
            World(time_step=time_step)


def test_the_action_convention_is_in_si_units_of_the_base_frame():
    assert ACTION_SPEC.names == ("x", "y", "z", "rx", "ry", "rz", "gripper")
    assert ACTION_SPEC.frame == "base"
    assert ACTION_SPEC.dt == pytest.approx(0.1)


def test_a_world_that_ends_leaves_the_images_of_another_as_they_are():
    world = World()
    world.reset("lift_green", 3)
    seen = world.render("agent").copy()
    closed, forgotten = World(), World()
    closed.render("agent")
    forgotten.render("agent")
    closed.close()
    assert np.array_equal(world.render("agent"), seen)
    del forgotten
    gc.collect()
    assert np.array_equal(world.render("agent"), seen)
    world.close()
