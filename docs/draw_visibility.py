"""Draws who may see whom, from the function that decides it: `python docs/draw_visibility.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from aim_hf.model.visibility import Kind, Units, visible  # noqa: E402

OUTPUT = Path(__file__).parent / "images" / "visibility.png"
CHUNKS = 3
COLORS = {
    Kind.OBSERVATION: "#4c72b0",
    Kind.ACTION: "#dd8452",
    Kind.FUTURE_RGB: "#8172b3",
    Kind.FUTURE_VALUE: "#c44e52",
    Kind.CLEAN_VALUE: "#da8bc3",
    Kind.FUTURE_ACTION: "#937860",
}
NAMES = {
    Kind.OBSERVATION: "o",
    Kind.ACTION: "a",
    Kind.FUTURE_RGB: "x",
    Kind.FUTURE_VALUE: "m",
    Kind.CLEAN_VALUE: r"\bar{m}",
    Kind.FUTURE_ACTION: "a^*",
}


def units() -> Units:
    """What was seen and done in two chunks, and the third, which is being imagined: a latent frame a chunk."""
    third = torch.tensor([CHUNKS])
    return Units.concatenate(
        [
            Units.segment(Kind.OBSERVATION, torch.arange(CHUNKS + 1), 1),
            Units.segment(Kind.ACTION, torch.arange(1, CHUNKS), 1),
            Units.segment(Kind.FUTURE_RGB, third, 1),
            Units.segment(Kind.FUTURE_VALUE, third, 1),
            Units.segment(Kind.CLEAN_VALUE, third, 1),
            Units.segment(Kind.FUTURE_ACTION, third, 1),
        ]
    )


def main() -> None:
    shown = units()
    seen = visible(shown, shown, chunk_latent_frames=1)
    kinds = [Kind(kind) for kind in shown.kind.tolist()]
    labels = [f"${NAMES[kind]}_{chunk}$" for kind, chunk in zip(kinds, shown.chunk.tolist())]
    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    for row in range(len(kinds)):
        for column in range(len(kinds)):
            color = COLORS[kinds[column]] if seen[row, column] else "#f2f2f4"
            axis.add_patch(plt.Rectangle((column + 0.04, row + 0.04), 0.92, 0.92, color=color))
    axis.set_xlim(0, len(kinds))
    axis.set_ylim(len(kinds), 0)
    axis.set_aspect("equal")
    middles = [index + 0.5 for index in range(len(kinds))]
    axis.set_xticks(middles, labels)
    axis.set_yticks(middles, labels)
    axis.xaxis.tick_top()
    axis.set_ylabel("who looks", fontsize=9)
    axis.set_title("at whom", fontsize=9)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.tight_layout()
    figure.savefig(OUTPUT, dpi=130)
    print(OUTPUT)


if __name__ == "__main__":
    main()
