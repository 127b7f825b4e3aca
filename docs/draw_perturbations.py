"""Draws a scene under every perturbation of the tabletop simulator: `python docs/draw_perturbations.py`."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import numpy as np  # noqa: E402

from aim_hf.envs import make_environment  # noqa: E402
from aim_hf.envs.names import AXES, STRENGTHS  # noqa: E402

TASK, SEED = "place_a2b_right", 100_030_000
SIZES = {"head_camera": (288, 192), "left_camera": (48, 32), "right_camera": (48, 32)}
DELAYED = 14  # control steps of the expert after which the row of `delay` is drawn


def scene(split: str, steps: int) -> tuple[np.ndarray, str]:
    """The head camera's picture (192, 288, 3) uint8 after the expert's first `steps` actions, and the instruction."""
    env = make_environment("tabletop", TASK, split, sizes=SIZES)
    env.reset(SEED)
    for action in env.expert().actions[:steps]:
        env.step(action, observe=False)
    return env.observe()["observation"]["head_camera"]["rgb"], env.instruction()


def main() -> None:
    figure, axes = plt.subplots(len(AXES), 1 + len(STRENGTHS), figsize=(9.6, 14.4))
    for row, name in zip(axes, AXES):
        for axis, split in zip(row, ["easy", *(f"{name}-{strength}" for strength in STRENGTHS)]):
            picture, instruction = scene(split, DELAYED if name == "delay" else 0)
            axis.set_xticks([])
            axis.set_yticks([])
            if name == "wording":
                picture = np.full_like(picture, 255)
                words = "\n".join(textwrap.wrap(instruction, 27))
                axis.text(0.5, 0.5, words, ha="center", va="center", fontsize=9, transform=axis.transAxes)
            axis.imshow(picture)
        row[0].set_ylabel(name, fontsize=11)
    for axis, title in zip(axes[0], ["Easy", *map(str, STRENGTHS)]):
        axis.set_title(title, fontsize=11)
    figure.subplots_adjust(left=0.04, right=0.995, top=0.98, bottom=0.005, wspace=0.03, hspace=0.03)
    path = Path(__file__).parent / "images" / "perturbations.png"
    figure.savefig(path, dpi=100)
    print(path)


if __name__ == "__main__":
    main()
