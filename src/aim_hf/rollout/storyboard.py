"""Pictures of a rollout: heat overlays, the video of an episode, and its strip of the contact sheet.

Pictures are uint8 (height, width, 3). They are enlarged by repeating pixels, so that they show exactly what the model
sees. Cameras are laid out as on AIM's canvas: head above, left and right wrist below.
"""

from __future__ import annotations

import io
import textwrap
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import cycle
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ..envs.base import ARMS, ActionMode, Arm, Observation
from ..utils.extras import extra
from ..utils.files import write_bytes
from ..value_maps.render import overlay
from .policies import Prediction

with extra("sim"):
    import av
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

VIDEO_PANEL = 384  # width in pixels of a canvas in a video
SHEET_PANEL = 192  # width in pixels of a canvas in the contact sheet
HOLD_SECONDS = 1.5  # duration of the last frame of a video
MOMENTS = (0.2, 0.55, 0.9)  # moments in a strip, as fractions of the episode

PAPER, INK, FAINT = (255, 255, 255), (28, 30, 36), (120, 124, 134)
NIGHT, CHALK = (18, 19, 24), (232, 233, 238)
GREEN, RED = (38, 160, 82), (214, 64, 58)


def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def canvas(views: dict[str, np.ndarray], width: int) -> np.ndarray:
    """The cameras' pictures, uint8 (H, W, 3) each, on one canvas of the given width."""
    head = _resized(views["head_camera"], width)
    wrists = [_resized(views[name], width // 2) for name in ("left_camera", "right_camera")]
    picture = np.concatenate([head, np.concatenate(wrists, axis=1)])
    picture[len(head) - 1 : len(head) + 1] = NIGHT
    picture[len(head) :, width // 2 - 1 : width // 2 + 1] = NIGHT
    return picture


@dataclass
class Storyboard:
    """The pictures of one episode, collected during the rollout. A moment is an observed frame of a chunk.

    observed, imagined: of each moment, camera -> uint8 (H, W, 3). value_maps: of each moment, camera -> (H, W) in
        [0, 1]. imagined and value_maps are empty for a policy that doesn't predict them, and black for cameras that
        it doesn't look at.
    steps: the control step of each moment.
    actions: the executed actions, of `action_mode`.
    """

    title: str
    instruction: str
    start: Observation
    control_dt: float
    step_limit: int
    action_mode: ActionMode
    success: bool = False
    observed: list[dict[str, np.ndarray]] = field(default_factory=list)
    imagined: list[dict[str, np.ndarray]] = field(default_factory=list)
    value_maps: list[dict[str, np.ndarray]] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    actions: list[np.ndarray] = field(default_factory=list)

    def add_chunk(self, prediction: Prediction, row: int, observations: list[Observation], executed: int) -> None:
        """Adds a chunk whose first `executed` actions were executed; moments after the end are left out."""
        chunk = prediction.actions[row]
        actions_per_frame = len(chunk) // len(observations)
        for index in range(-(-executed // actions_per_frame)):
            observed = views(observations[index])
            self.observed.append(observed)
            if prediction.frames is not None:
                imagined = {name: np.zeros_like(picture) for name, picture in observed.items()}
                maps = {name: np.zeros(picture.shape[:2]) for name, picture in observed.items()}
                for name, clip in prediction.frames.items():
                    imagined[name] = np.rint(255 * clip[row, index]).astype(np.uint8)
                    maps[name] = prediction.value_maps[name][row, index]
                self.imagined.append(imagined)
                self.value_maps.append(maps)
            self.steps.append(len(self.actions) + min((index + 1) * actions_per_frame, executed))
        self.actions.extend(chunk[:executed])

    def overlays(self, moment: int, width: int) -> np.ndarray:
        """The value maps of a moment over its imagined pictures."""
        imagined, maps = self.imagined[moment], self.value_maps[moment]
        return canvas({name: overlay(imagined[name], maps[name]) for name in imagined}, width)


def views(observation: Observation) -> dict[str, np.ndarray]:
    return {name: view["rgb"] for name, view in observation["observation"].items()}


def png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def write_video(path: Path, board: Storyboard) -> None:
    """Writes observed pictures, imagined pictures and value maps side by side, if present, as a real-time MP4 that
    browsers play."""
    frames = [_video_frame(board, moment) for moment in range(len(board.steps))]
    fps = len(board.steps) / (board.control_dt * board.steps[-1])
    frames += [frames[-1]] * round(HOLD_SECONDS * fps)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(100))
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "16", "preset": "fast"}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    write_bytes(path, buffer.getvalue())


def _video_frame(board: Storyboard, moment: int) -> np.ndarray:
    panels = {"what it sees": canvas(board.observed[moment], VIDEO_PANEL)}
    if board.imagined:
        panels["what it imagined"] = canvas(board.imagined[moment], VIDEO_PANEL)
        panels["where it wants to act"] = board.overlays(moment, VIDEO_PANEL)
    gap, bar, caption = 8, 30, 46
    height = next(iter(panels.values())).shape[0]
    even = -(-(bar + height + caption) // 2) * 2  # as the codec needs it
    picture = Image.new("RGB", (len(panels) * (VIDEO_PANEL + gap) + gap, even), NIGHT)
    draw = ImageDraw.Draw(picture)
    for index, (name, panel) in enumerate(panels.items()):
        left = gap + index * (VIDEO_PANEL + gap)
        draw.text((left, bar / 2), name, CHALK, font(18), anchor="lm")
        picture.paste(Image.fromarray(panel), (left, bar))
    is_last = moment == len(board.steps) - 1
    outcome, color = _outcome(board) if is_last else (f"step {board.steps[moment]} of {board.step_limit}", FAINT)
    middle = bar + height + caption / 2
    draw.text((picture.width - gap, middle), outcome, color, font(20), anchor="rm")
    room = picture.width - 3 * gap - draw.textlength(outcome, font(20))
    draw.text((gap, middle), board.instruction, CHALK, _fitting(board.instruction, 20, room), anchor="lm")
    return np.asarray(picture)


def write_strip(path: Path, board: Storyboard) -> None:
    """Writes one row of the contact sheet as a PNG."""
    height = canvas(views(board.start), SHEET_PANEL).shape[0]
    moments = [round(share * (len(board.steps) - 1)) for share in MOMENTS]
    cells = [_label(board, height), canvas(views(board.start), SHEET_PANEL)]
    cells += [_stamped(canvas(board.imagined[m], SHEET_PANEL), f"step {board.steps[m]}") for m in moments]
    cells += [_stamped(board.overlays(m, SHEET_PANEL), f"step {board.steps[m]}") for m in moments]
    cells += [_action_plot(board, height), _framed(canvas(board.observed[-1], SHEET_PANEL), board)]
    write_bytes(path, png(_beside(cells, height)))


def write_contact_sheet(path: Path, strips: list[Path]) -> None:
    """Writes strips below each other, under the headings of their columns."""
    rows = [Image.open(strip) for strip in strips]
    head = 92
    sheet = Image.new("RGB", (rows[0].width, head + sum(row.height for row in rows)), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 10), "AIM imagines what will happen, marks where it wants to act, and acts there.", INK, font(26))
    left = _GAP
    for name, note, width in _COLUMNS:
        draw.text((left, 50), name, INK, font(18))
        draw.text((left, 71), note, FAINT, font(13))
        left += width + _GAP
    top = head
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height
    write_bytes(path, png(sheet))


# Layout of the contact sheet: heading, explanation and width of each group of cells.
_GAP, _LABEL, _PLOT = 10, 190, 300
_GROUP = len(MOMENTS) * SHEET_PANEL + (len(MOMENTS) - 1) * _GAP
_COLUMNS = (
    ("told", "task and instruction", _LABEL),
    ("sees", "head camera and both wrists", SHEET_PANEL),
    ("imagines", "its predictions of what it will see: early, midway and near the end", _GROUP),
    ("wants to act", "its value maps, over what it imagines", _GROUP),
    ("does", "tool positions, or joints, that it asked for", _PLOT),
    ("outcome", "last picture seen", SHEET_PANEL),
)


def _label(board: Storyboard, height: int) -> np.ndarray:
    picture = Image.new("RGB", (_LABEL, height), PAPER)
    draw = ImageDraw.Draw(picture)
    name, _, details = board.title.partition(" ")
    draw.text((0, 0), name, INK, _fitting(name, 20, _LABEL))
    draw.text((0, 27), details, FAINT, _fitting(details, 13, _LABEL))
    words = "\n".join(textwrap.wrap(f"“{board.instruction}”", 22))
    draw.multiline_text((0, 56), words, INK, font(16), spacing=5)
    return np.asarray(picture)


_COLORS = ("#d1495b", "#3a7d44", "#2e6fbb", "#b8860b", "#7b4fa3", "#2a9d8f", "#8d6e63")


def _arm(board: Storyboard, arm: Arm) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The commands of an arm over the steps: x, y and z of its tool (m), or each of its joints (rad), by name; and its
    gripper."""
    actions = np.split(np.array(board.actions), 2, axis=1)[ARMS.index(arm)]
    names = "xyz" if board.action_mode == "ee" else [str(number) for number in range(1, actions.shape[1])]
    return {name: actions[:, index] for index, name in enumerate(names)}, actions[:, -1]


def _action_plot(board: Storyboard, height: int) -> np.ndarray:
    """Commanded tool position or joints of the left arm (solid) and the right arm (dashed) over the steps of the
    episode."""
    (left, _), (right, _) = (_arm(board, arm) for arm in ARMS)
    steps = np.arange(1, len(board.actions) + 1)
    figure, axes = _plot(_PLOT, height, "m" if board.action_mode == "ee" else "joints, rad")
    for name, color in zip(left, cycle(_COLORS)):
        axes.plot(steps, left[name], color=color, linewidth=1.6, label=name)
        axes.plot(steps, right[name], color=color, linewidth=1.4, linestyle=(0, (3, 1.5)))
    _add_legend(axes, title="left —   right - -")
    return _drawn(figure)


def hand_plot(board: Storyboard, arm: Arm, width: int, height: int) -> np.ndarray:
    """Commanded displacement of one end effector from its start along x, y and z, or of the arm's joints, over the
    steps of the episode, and the commanded gripper opening as a gray band. The size is 2 * `width` x 2 * `height`
    pixels."""
    numbers, gripper = _arm(board, arm)
    if board.action_mode == "ee":
        start, unit, scale = board.start["endpose"][f"{arm}_endpose"][:3], "cm", 100
    else:
        joints = np.split(board.start["joint_action"]["vector"], 2)[ARMS.index(arm)]
        start, unit, scale = joints[:-1], "joints, degrees", 180 / np.pi
    steps = np.arange(1, len(board.actions) + 1)
    figure, axes = _plot(width, height, unit, size=8, dpi=200)
    figure.subplots_adjust(top=1 - 20 / height)
    band = {"transform": axes.get_xaxis_transform(), "color": "#d6d9e0", "linewidth": 0, "label": "gripper open"}
    axes.fill_between(steps, 0, 0.2 * gripper.clip(0, 1), **band)
    displacement = scale * (np.stack([*numbers.values()], axis=1) - start)
    for index, (name, color) in enumerate(zip(numbers, cycle(_COLORS))):
        axes.plot(steps, displacement[:, index], color=color, linewidth=1.6, label=name)
    axes.set_ylim(min(displacement.min() - 1, -8), max(displacement.max() + 1, 8))  # so that a resting arm looks flat
    _add_legend(axes, size=8)
    return _drawn(figure)


def _plot(width: int, height: int, unit: str, size: int = 7, dpi: int = 100) -> tuple[Figure, Axes]:
    # pyplot's figures are global, but several threads may draw at once.
    figure = Figure(figsize=(width / 100, height / 100), dpi=dpi)
    axes = figure.add_subplot()
    axes.set_xlabel("step", fontsize=size, labelpad=1)
    axes.set_ylabel(unit, fontsize=size, labelpad=1)
    axes.tick_params(labelsize=size, length=2, pad=1.5)
    axes.spines[["top", "right"]].set_visible(False)
    figure.subplots_adjust(left=44 / width, right=1 - 6 / width, bottom=30 / height, top=1 - 38 / height)
    return figure, axes


def _add_legend(axes: Axes, title: str | None = None, size: int = 7) -> None:
    axes.legend(
        title=title, title_fontsize=size, fontsize=size, frameon=False, ncols=8, loc="lower left",
        bbox_to_anchor=(0, 0.98), borderaxespad=0, handlelength=1.2, columnspacing=1, alignment="left",
    )  # fmt: skip


def _drawn(figure: Figure) -> np.ndarray:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def _framed(picture: np.ndarray, board: Storyboard) -> np.ndarray:
    words, color = _outcome(board)
    framed = Image.fromarray(picture)
    draw = ImageDraw.Draw(framed)
    draw.rectangle((0, 0, framed.width - 1, framed.height - 1), outline=color, width=4)
    draw.rectangle((0, 0, framed.width - 1, 24), fill=color)
    draw.text((8, 12), words, PAPER, font(15), anchor="lm")
    return np.asarray(framed)


def _stamped(picture: np.ndarray, words: str) -> np.ndarray:
    stamped = Image.fromarray(picture)
    draw = ImageDraw.Draw(stamped)
    draw.text((5, 4), words, PAPER, font(13), stroke_width=2, stroke_fill=NIGHT)
    return np.asarray(stamped)


def _outcome(board: Storyboard) -> tuple[str, tuple[int, int, int]]:
    if board.success:
        return f"success in {board.steps[-1]} steps", GREEN
    return f"failed: {board.steps[-1]} steps", RED


def _beside(cells: list[np.ndarray], height: int) -> Image.Image:
    width = sum(cell.shape[1] for cell in cells) + _GAP * (len(cells) + 1)
    picture = Image.new("RGB", (width, height + _GAP), PAPER)
    left = _GAP
    for cell in cells:
        picture.paste(Image.fromarray(cell), (left, 0))
        left += cell.shape[1] + _GAP
    return picture


def _fitting(words: str, size: int, room: float) -> ImageFont.FreeTypeFont:
    """The largest font up to `size` in which `words` are at most `room` pixels wide."""
    while size > 8 and font(size).getlength(words) > room:
        size -= 1
    return font(size)


def _resized(picture: np.ndarray, width: int) -> np.ndarray:
    height = round(width * picture.shape[0] / picture.shape[1])
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.NEAREST))
