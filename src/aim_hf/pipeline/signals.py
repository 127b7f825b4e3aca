"""Signals of doubt: how far the imagined frames are from the observed ones, and how undecided the value map is."""

from collections.abc import Mapping, Sequence

import numpy as np

from .inputs import Observation


def frame_drift(frames: Mapping[str, np.ndarray], observations: Sequence[Sequence[Observation]]) -> np.ndarray:
    """Root mean square difference of imagined and observed pictures, over all pixels of all cameras, in [0, 1].

    Args:
        frames: camera -> (B, T, H, W, 3) in [0, 1], the `frames` of an [`AIMPipelineOutput`].
        observations: of each row, the n <= T observations that followed, one after every `actions_per_frame` actions.

    Returns:
        (B, n), of each observed frame.

    Raises:
        ValueError: for another number of rows, more observations than frames, or pictures that aren't uint8.
    """
    rows, frames_per_chunk = next(iter(frames.values())).shape[:2]
    counts = {len(of_row) for of_row in observations}
    if len(observations) != rows or len(counts) != 1 or max(counts) > frames_per_chunk:
        raise ValueError(
            f"observations have {[len(of_row) for of_row in observations]} frames; expected equally many for each of "
            f"{rows} rows, at most {frames_per_chunk}."
        )
    squares = []
    for camera, imagined in frames.items():
        seen = np.stack([[seen["observation"][camera]["rgb"] for seen in of_row] for of_row in observations])
        if seen.dtype != np.uint8:
            raise ValueError(
                f"pictures of {camera} have dtype {seen.dtype}; expected uint8 RGB, 0 to 255. Convert them."
            )
        seen = seen / 255
        squares.append(np.square(imagined[:, : seen.shape[1]] - seen).reshape(*seen.shape[:2], -1))
    return np.sqrt(np.concatenate(squares, axis=2).mean(axis=2))


def map_entropy(value_maps: Mapping[str, np.ndarray]) -> np.ndarray:
    """Entropy of each frame's value map as a distribution over pixels, divided by the largest possible: in [0, 1]. The
    camera with the lowest entropy counts; a black map has 1.

    Args:
        value_maps: camera -> (B, T, H, W) in [0, 1], the `value_maps` of an [`AIMPipelineOutput`].

    Returns:
        (B, T).
    """
    entropies = []
    for value_map in value_maps.values():
        mass = value_map.reshape(*value_map.shape[:2], -1).astype(np.float64)
        total = mass.sum(axis=2, keepdims=True)
        share = np.divide(mass, total, out=np.full_like(mass, 1 / mass.shape[2]), where=total > 0)
        logs = np.log(share, out=np.zeros_like(share), where=share > 0)
        entropies.append(-(share * logs).sum(axis=2) / np.log(mass.shape[2]))
    return np.min(entropies, axis=0)
