"""HTML of an episode on the page: the status line, the pictures of a moment, and the curves of the actions.

Pictures are embedded as data URLs, so that no file is kept on the server.
"""

import base64
from html import escape
from typing import Literal

import numpy as np
from PIL import Image

from ..envs.base import ARMS
from ..rollout.storyboard import SHEET_PANEL, Storyboard, canvas, hand_plot, png

Mood = Literal["calm", "busy", "success", "failure", "error"]


def status(words: str, mood: Mood = "calm", detail: str = "", share: float = 0.0) -> str:
    """The line above the pictures. detail: text at its end; share: fraction of the episode's steps taken."""
    role = "alert" if mood == "error" else "status"
    return (
        f'<div class="status {mood}" role="{role}"><span class="dot"></span><span>{escape(words)}</span>'
        f'<span class="detail">{escape(detail)}</span></div>'
        f'<div class="progress"><div style="width:{100 * share:.0f}%"></div></div>'
    )


def pictures(
    observed: dict[str, np.ndarray] | None = None, board: Storyboard | None = None, moment: int | None = None
) -> str:
    """Observed, imagined and value maps side by side.

    Args:
        observed: camera -> picture; None before a scene is set up.
        board, moment: the episode and the index of its moment; None before the first chunk.
    """
    imagined = value_maps = None
    if moment is not None:
        imagined = canvas(board.imagined[moment], SHEET_PANEL)
        value_maps = board.overlays(moment, SHEET_PANEL)
    if observed is not None:
        observed = canvas(observed, SHEET_PANEL)
    legend = '<div class="legend"><span></span>here</div>'
    return (
        '<div class="panels">'
        + _panel("observed", 1, "Observed", "What its three cameras see now.", observed)
        + _panel("imagined", 2, "Imagined", "What it expected to see by now.", imagined)
        + _panel("value", 3, "Value map", "Where in the picture it wants to act.", value_maps, legend)
        + "</div>"
    )


def hands(board: Storyboard | None = None) -> str:
    """The curves of both end effectors' actions so far."""
    figures = []
    for arm in ARMS:
        inside = '<div class="waiting"></div>'
        if board is not None:
            numbers = "x, y, z" if board.action_mode == "ee" else "joints"
            plot = hand_plot(board, arm, 430, 150)
            inside = _image(plot, f"{numbers} and gripper of the {arm} hand over the steps of the episode")
        figures.append(f"<figure><figcaption>{arm} hand</figcaption>{inside}</figure>")
    return (
        '<section class="panel actions"><header><h3><i>4</i>Actions</h3><p>Where it sends its hands, decoded '
        "from the tokens of the value map.</p></header>"
        f'<div class="hands">{"".join(figures)}</div></section>'
    )


# Names of the cameras at their places on `storyboard.canvas`.
_CAMERAS = "".join(
    f'<span class="camera" style="left:{left}%;top:{top}%">{camera}</span>'
    for camera, left, top in (("head", 0, 0), ("left wrist", 0, 66.7), ("right wrist", 50, 66.7))
)


def _panel(name: str, number: int, title: str, words: str, picture: np.ndarray | None, legend: str = "") -> str:
    if picture is None:
        words_inside = "" if name == "observed" else "appears when you press Run"
        inside = f'<div class="waiting">{words_inside}</div>'
    else:
        inside = _image(picture, f"{title}: head camera above, left and right wrist below")
        if name == "observed":
            inside += _CAMERAS
    return (
        f'<section class="panel {name}"><header><h3><i>{number}</i>{title}</h3><p>{words}</p>{legend}</header>'
        f'<div class="picture">{inside}</div></section>'
    )


def _image(picture: np.ndarray, words: str) -> str:
    # Decoded synchronously, so that the page doesn't flash when one picture replaces another.
    data = base64.b64encode(png(Image.fromarray(picture))).decode()
    return f'<img alt="{words}" decoding="sync" src="data:image/png;base64,{data}">'
