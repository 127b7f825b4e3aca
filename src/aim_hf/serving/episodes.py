"""The episodes of many clients behind one AIM, of which several are answered at once.

Each client has an episode of its own, a session of one row. Requests whose episodes have the same form are stacked to
one batch. Rows don't influence each other, but batches of different sizes may round differently.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ..envs.poses import unpack_endpose
from ..pipeline.session import AIMSession
from ..rollout.policies import AIMPolicy
from ..rollout.rows import filled
from .limits import BATCH_SIZES
from .requests import Request, RequestReader, ServedEpisode


class AIMEpisodes:
    """Answers requests with an [`AIMPolicy`].

    Args:
        policy: gives the pipeline, the sampling parameters and the settings in the metadata.
        batch_sizes: of calls of the network, see [`PolicyServer`].
        max_chunks, image_keys, resize: see [`RequestReader`].

    Raises:
        ValueError: for batch sizes below 1 or none, and as `RequestReader`.
    """

    def __init__(
        self,
        policy: AIMPolicy,
        batch_sizes: Sequence[int] = BATCH_SIZES,
        max_chunks: int = 1000,
        image_keys: Mapping[str, str] | None = None,
        resize: bool = False,
    ):
        if not batch_sizes or min(batch_sizes) < 1:
            raise ValueError(f"batch_sizes are {list(batch_sizes)}; expected numbers of at least 1.")
        self.policy, self.pipe = policy, policy.pipe
        self.batch_sizes = sorted(set(batch_sizes))
        self.reader = RequestReader(self.pipe, max_chunks, image_keys, resize)

    @property
    def settings(self) -> dict[str, Any]:
        """How messages are read and batched."""
        reader = self.reader
        return {"batch_sizes": self.batch_sizes, "image_keys": reader.image_keys, "resize": reader.resize}

    @property
    def metadata(self) -> dict[str, Any]:
        """The message that a client gets when it connects."""
        reader = self.reader
        return {
            "server": "aim_hf",
            "settings": self.policy.settings | {"server": self.settings},
            "action_space": self.policy.action_mode,
            "action_dim": self.pipe.processor.action_dim,
            "actions_per_chunk": self.policy.actions_per_chunk,
            "actions_per_frame": self.policy.actions_per_frame,
            "lookahead_actions": reader.lookahead_actions,
            "fps": self.pipe.fps,
            "images": {reader.keys[name]: [3, *size] for name, size in reader.sizes.items()},
            "pixel_size": {name: list(size) for name, size in self.policy.pixel_size.items()},
        }

    def answer(self, requests: list[Request]) -> list[dict[str, Any] | RuntimeError]:
        """The reply, or an error, for each request of one form, at most as many as the largest batch. An episode
        advances only with a reply, and none if this raises, so a failed request can be sent again."""
        rows = filled(requests, next(size for size in self.batch_sizes if size >= len(requests)))
        pipe = self.pipe
        observations = [request.observations for request in rows]
        if requests[0].prompt is not None:
            session = pipe.start([request.prompt for request in rows], negative_prompt=self.policy.negative_prompt)
            pipe.append(session, observations)
            generators = [torch.Generator().manual_seed(request.seed) for request in rows]
        else:
            session = AIMSession.stack([request.episode.session for request in rows])
            pipe.append(session, observations, np.stack([request.executed_actions for request in rows]))
            generators = [request.episode.generator.clone_state() for request in rows]
        pictures, committed = requests[0].pictures, None
        if requests[0].committed_actions is not None:
            committed = np.stack([request.committed_actions for request in rows])
        out = pipe(
            session=session,
            committed_actions=committed,
            generator=generators,
            output_type="latent" if pictures == "none" else "np",
            decode_frames=pictures == "all",
            sampling_config=self.policy.sampling_config,
        )
        actions = np.asarray(out.actions)
        replies: list[dict[str, Any] | RuntimeError] = []
        answered: list[tuple[ServedEpisode, ServedEpisode]] = []  # each episode and its next state
        for row, request in enumerate(requests):
            if not np.isfinite(actions[row]).all():  # a robot must not get them
                replies.append(RuntimeError("the network gave actions that are not finite for this message."))
                continue
            then = ServedEpisode(session.select([row]), generators[row], actions[row].copy())
            answered.append((request.episode, then))
            reply: dict[str, Any] = {"actions": then.actions}
            if request.lookahead:
                reply["lookahead_actions"] = np.asarray(out.lookahead_actions[row])
            if pictures != "none":
                reply["value_maps"] = {self.reader.keys[name]: clips[row] for name, clips in out.value_maps.items()}
            if pictures == "all":
                reply["frames"] = {self.reader.keys[name]: clips[row] for name, clips in out.frames.items()}
            replies.append(reply)
        for episode, then in answered:  # only now: a batch that fails is run again, row by row
            vars(episode).update(vars(then))
        return replies

    def warm_up(self) -> None:
        """Answers blank requests of each kind at each batch size, so that no client waits for compilation and first
        allocations: a start, a part of a chunk, whole chunks and committed actions, of rows of one age and of two.

        Raises:
            RuntimeError: if the network fails on them.
        """
        frames = self.pipe.frames_per_chunk
        blank = {
            "observation": {name: {"rgb": np.zeros((*size, 3), np.uint8)} for name, size in self.reader.sizes.items()}
        }
        first = blank | {"endpose": unpack_endpose(np.tile([0.0, 0, 0, 1, 0, 0, 0, 1], 2))}

        def go_on(episodes: list[ServedEpisode], pictures: int = frames, committed: int | None = None) -> None:
            executed = pictures * self.pipe.actions_per_frame
            self._answer_all(
                [
                    Request(e, None, 0, [blank] * pictures, e.actions[:executed], committed and e.actions[:committed])
                    for e in episodes
                ]
            )

        for size in self.batch_sizes:
            episodes = [ServedEpisode() for _ in range(size)]
            self._answer_all([Request(episode, "warm up", 0, [first]) for episode in episodes])
            go_on(episodes, pictures=1)
            for _ in ("of one age", "of two ages"):
                go_on(episodes)
                if self.reader.lookahead_actions:
                    go_on(episodes, committed=1)
                go_on(episodes[:1])

    def _answer_all(self, requests: list[Request]) -> None:
        """Raises the first error among the replies."""
        for reply in self.answer(requests):
            if isinstance(reply, RuntimeError):
                raise reply
