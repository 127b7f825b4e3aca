"""The matrices match the pictures, and the pictures show what a policy needs."""

import numpy as np
import pytest

from aim_hf.envs import make_environment
from aim_hf.envs.base import CAMERAS
from aim_hf.envs.tabletop.cameras import SUPERSAMPLING
from aim_hf.envs.tabletop.scene import TABLE_TOP


@pytest.fixture(scope="module")
def env():
    environment = make_environment("tabletop", "click_bell", "hard")
    yield environment
    environment.close()


def project(camera, point):
    """The picture's (column, row) of a world point."""
    in_camera = camera.extrinsics @ np.append(point, 1.0)
    assert in_camera[2] > 0, "the point lies behind the camera"
    return (camera.intrinsics @ in_camera)[:2] / in_camera[2]


def is_yellow(pixel):
    red, green, blue = pixel.astype(int)
    return red > 100 and green > 80 and blue < 0.5 * green


def test_pictures_have_the_declared_sizes(env):
    views = env.reset(0)["observation"]
    shapes = {name: views[name]["rgb"].shape for name in CAMERAS}
    assert shapes == {"head_camera": (64, 96, 3), "left_camera": (32, 48, 3), "right_camera": (32, 48, 3)}
    assert all(views[name]["rgb"].dtype == np.uint8 for name in CAMERAS)


def test_matrices_agree_with_the_renderer(env):
    env.reset(3)
    for action in env.expert().actions[:6]:
        env.step(action)
    for name, component in env._rig._components.items():
        camera = env.cameras()[name]
        rendered = component.get_intrinsic_matrix() / SUPERSAMPLING
        np.testing.assert_allclose(camera.intrinsics[:2], rendered[:2], atol=1e-4)
        np.testing.assert_allclose(camera.extrinsics, component.get_extrinsic_matrix()[:3], atol=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_bell_appears_where_the_head_camera_projects_it(env, seed):
    """Jitter, tint and table height included."""
    picture = env.reset(seed)["observation"]["head_camera"]["rgb"]
    bell = next(body.pose for body in env.bodies().values() if body.name == "bell")
    column, row = project(env.cameras()["head_camera"], bell[:3] + [0, 0, 0.042])
    assert is_yellow(picture[int(row), int(column)])


@pytest.mark.parametrize("seed", range(4))
def test_wrist_camera_sees_the_fingertips_and_what_they_press(env, seed):
    env.reset(seed)
    path = env.expert()
    for action in path.actions[: path.key_steps[0] - 1]:
        result = env.step(action)
    bell = next(body.pose for body in env.bodies().values() if body.name == "bell")
    arm = "left" if bell[0] < 0 else "right"
    camera = env.cameras()[f"{arm}_camera"]
    tip = env.tcp(arm)[:3]
    for point in (tip, bell[:3] + [0, 0, 0.042]):
        column, row = project(camera, point)
        assert 0 <= column < camera.width and 0 <= row < camera.height
    column, row = project(camera, tip - [0, 0, 0.005])
    red, green, blue = result.observation["observation"][f"{arm}_camera"]["rgb"][int(row), int(column)].astype(int)
    assert red > green and blue > green, "the fingertips are pink"


def test_home_pose_leaves_the_workspace_in_view():
    environment = make_environment("tabletop", "stack_blocks_two", "easy")
    picture = environment.reset(0)["observation"]["head_camera"]["rgb"].astype(int)
    saturated = (picture.max(axis=-1) - picture.min(axis=-1)) > 100
    assert saturated.sum() > 100, "both cubes are large and saturated"
    robot = picture.max(axis=-1) < 50
    assert robot.mean() < 0.01


def test_depth_is_that_of_the_table_under_each_pixel():
    """Seen from above, an empty corner of the table lies where its plane meets the pixel's ray."""
    env = make_environment("tabletop", "click_bell", depth=True)
    view = env.reset(0)["observation"]["head_camera"]
    (height, width), camera = view["depth"].shape, env.cameras()["head_camera"]
    assert view["rgb"].shape[:2] == (height, width) and view["depth"].dtype == np.float32
    row, column = height - 4, width // 2  # the table's near edge, where nothing stands
    ray = np.linalg.inv(camera.intrinsics) @ [column + 0.25, row + 0.25, 1]  # the first of its 2 x 2 samples
    rotation, translation = camera.extrinsics[:, :3], camera.extrinsics[:, 3]
    origin, direction = -rotation.T @ translation, rotation.T @ ray
    expected = (TABLE_TOP - origin[2]) / direction[2]
    assert view["depth"][row, column] == pytest.approx(expected, abs=1e-3)
    env.close()
