"""Recent real frames of a row: from these its history is encoded again after a part of a chunk was executed.

Latent frames hold several RGB frames, and a chunk several latent frames. After a part of a chunk, a row's history no
longer ends with a latent frame. It is therefore encoded again, such that the newest RGB frame ends a latent frame. The
result is what a training window holds: one latent frame, then whole chunks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

# Chunks before the kept history that the encoder sees, so that the first kept latent frame isn't a clip's first.
WARM_UP_CHUNKS = 2


@dataclass(frozen=True)
class RecentFrames:
    """The last n frames of a row, n >= 1, and what was executed between them.

    canvases: uint8 (n, H, W, 3). actions: normalized, (n - 1) * `actions_per_frame` of them, (..., action_dim).
    whole: whether the first of the frames is the episode's first observation.
    """

    canvases: np.ndarray
    actions: torch.Tensor
    whole: bool = True

    def extended(
        self, canvases: np.ndarray, actions: torch.Tensor, frames_per_chunk: int, history_chunks: int | None
    ) -> RecentFrames:
        """A copy with newer frames and the actions before them, without frames that no history needs any more."""
        canvases, actions = np.concatenate([self.canvases, canvases]), torch.cat([self.actions, actions])
        actions_per_frame = len(actions) // (len(canvases) - 1)
        needed = len(canvases)
        if history_chunks is not None:
            needed = (history_chunks + WARM_UP_CHUNKS + 1) * frames_per_chunk
        dropped = max(len(canvases) - needed, 0)
        return RecentFrames(
            canvases[dropped:], actions[dropped * actions_per_frame :], whole=self.whole and not dropped
        )

    def whole_chunks(self, frames_per_chunk: int) -> tuple[np.ndarray, torch.Tensor]:
        """Canvases and actions of a first frame and of whole chunks after it, which end with the newest frame.

        An episode that doesn't fill them is taken to have begun earlier: its first frame and action are repeated.
        """
        actions_per_frame = len(self.actions) // (len(self.canvases) - 1)
        surplus = (len(self.canvases) - 1) % frames_per_chunk
        if not self.whole:
            return self.canvases[surplus:], self.actions[surplus * actions_per_frame :]
        missing = -surplus % frames_per_chunk
        canvases = np.concatenate([self.canvases[:1].repeat(missing, axis=0), self.canvases])
        return canvases, torch.cat([self.actions[:1].expand(missing * actions_per_frame, -1), self.actions])
