"""Draws who may see whom, from the function that decides it: `python docs/draw_visibility.py`."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402

from aim_hf.model.visibility import Kind, Units, Visibility, visible  # noqa: E402

IMAGES = Path(__file__).parent / "images"
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
    """Units of two executed chunks, and of the third, which is being imagined: a latent frame a chunk."""
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


def draw(axis, seen: torch.Tensor, rows: list[int]) -> None:
    """The `rows` of a mask over the units: whose keys each of them attends to."""
    shown = units()
    kinds = [Kind(kind) for kind in shown.kind.tolist()]
    labels = [f"${NAMES[kind]}_{chunk}$" for kind, chunk in zip(kinds, shown.chunk.tolist())]
    for place, row in enumerate(rows):
        for column, kind in enumerate(kinds):
            color = COLORS[kind] if seen[row, column] else "#f2f2f4"
            axis.add_patch(plt.Rectangle((column + 0.04, place + 0.04), 0.92, 0.92, color=color))
    axis.set_xlim(0, len(kinds))
    axis.set_ylim(len(rows), 0)
    axis.set_aspect("equal")
    axis.set_xticks([index + 0.5 for index in range(len(kinds))], labels)
    axis.set_yticks([index + 0.5 for index in range(len(rows))], [labels[row] for row in rows])
    axis.xaxis.tick_top()
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)


def main() -> None:
    shown = units()
    figure, axis = plt.subplots(figsize=(5.6, 5.2))
    draw(axis, visible(shown, shown, chunk_latent_frames=1), list(range(len(shown.kind))))
    axis.set_ylabel("query", fontsize=9)
    axis.set_title("keys", fontsize=9)
    save(figure, "visibility.png")

    figure, axes = plt.subplots(len(Visibility), figsize=(5.6, 6.4))
    for axis, variant in zip(axes, Visibility):
        draw(axis, visible(shown, shown, 1, visibility=variant), [len(shown.kind) - 2, len(shown.kind) - 1])
        axis.set_ylabel(variant, fontsize=9, rotation=0, ha="right", va="center", labelpad=22)
    save(figure, "visibility_variants.png")


def save(figure, name: str) -> None:
    figure.tight_layout()
    figure.savefig(IMAGES / name, dpi=130)
    print(IMAGES / name)


if __name__ == "__main__":
    main()
