"""Checks what AIM needs besides Python packages: rendering with SAPIEN, and with MuJoCo if the extra aloha is
installed, and video decoding.

    aim-hf check
"""

import sys
from importlib.util import find_spec

from ..utils.extras import extra
from . import Parser


def check_rendering() -> None:
    """Renders a red box with SAPIEN and checks the color of the middle pixel."""
    with extra("sim"):
        import sapien

    sapien.render.set_camera_shader_dir("trivial")  # unlit; its first picture takes 1 s instead of 10 s
    scene = sapien.Scene()
    builder = scene.create_actor_builder()
    builder.add_box_visual(half_size=[0.5, 0.5, 0.5], material=[1.0, 0.0, 0.0])
    builder.build_kinematic().set_pose(sapien.Pose([2.0, 0.0, 0.0]))
    camera = scene.add_camera("check", width=16, height=16, fovy=1.0, near=0.1, far=10.0)
    scene.update_render()
    camera.take_picture()
    red, green, blue, _ = camera.get_picture("Color")[8, 8]
    if not (red > 0.5 and green < 0.1 and blue < 0.1):
        raise RuntimeError(f"the picture of a red box shows the color {red, green, blue}")


def check_egl() -> None:
    """Renders a scene of the suite aloha, if its extra is installed, and looks for the red cube."""
    if find_spec("gym_aloha") is None:
        return
    from ..envs import make_environment

    red, green, _ = make_environment("aloha", "transfer_cube").reset(0)["observation"]["head_camera"]["rgb"].T
    if not ((red > 200) & (green < 100)).any():
        raise RuntimeError("the picture of a red cube shows nothing red")


def check_video() -> None:
    """Loads torchcodec, which links against ffmpeg's shared libraries."""
    with extra("data"):
        import torchcodec.decoders  # noqa: F401


def main(argv: list[str]) -> None:
    Parser("check", __doc__).parse_args(argv)
    remedies = {
        check_rendering: "SAPIEN can't render. It needs a Vulkan driver: your GPU's own, or Mesa 24.3 or newer "
        "(Debian 12: mesa-vulkan-drivers from bookworm-backports, with libvulkan1 and libx11-6).",
        check_egl: "MuJoCo can't render. It needs EGL: your GPU's driver, or Mesa (Debian: libegl-mesa0, with libegl1 "
        "and libopengl0).",
        check_video: "torchcodec can't load. It needs the shared libraries of ffmpeg and of Python (Debian: ffmpeg, "
        "libpython3.11).",
    }
    failures = 0
    for check, remedy in remedies.items():
        try:
            check()
        except (ImportError, OSError, RuntimeError) as error:
            print(f"{type(error).__name__}: {error}\nset-up incomplete: {remedy}", file=sys.stderr)
            failures += 1
    if failures:
        raise SystemExit(1)
    print("set-up complete: pictures are rendered, torchcodec loads.")
