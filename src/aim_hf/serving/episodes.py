"""The episodes of many clients behind one AIM: what a message asks for, and how several are answered at once.

Each client has an episode of its own, a session of one row. Requests whose episodes have the same form are stacked to
one batch, always of as many rows, as the evaluator's batches are: so a client gets the bits that it would get alone.
"""

from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from ..model.processing_aim import check_magnitude
from ..pipeline.session import AIMSession
from ..protocol.observations import CAMERA_KEYS, read_endpose, read_images, read_numbers
from ..rollout.policies import AIMPolicy, Pictures
from ..rollout.rows import ROWS, filled

START_KEYS = ("prompt", "images", "state", "endpose", "seed", "pictures")
CHUNK_KEYS = ("images", "state", "endpose", "executed_actions", "pictures")
MAX_PROMPT = 4096  # characters: the tokenizer reads all of them before it finds them too many


@dataclass
class ServedEpisode:
    """What is kept of a client between its requests. Empty until its first one has been answered."""

    session: AIMSession | None = None
    generator: torch.Generator | None = None
    actions: np.ndarray | None = None  # (T, action_dim), what was sent last


@dataclass(frozen=True)
class Request:
    """One chunk that a client asks for. With a `prompt` it is the first of a new episode."""

    episode: ServedEpisode
    prompt: str | None
    seed: int
    observations: list[dict[str, Any]]
    executed_actions: np.ndarray | None
    pictures: Pictures

    @property
    def form(self) -> tuple:
        """Requests of one form run together."""
        history = () if self.prompt is not None else self.episode.session.forms[0]
        return (history, len(self.observations), self.pictures)


class AIMEpisodes:
    """Reads and answers requests with an [`AIMPolicy`].

    Args:
        policy: its settings, and how many steps it takes.
        rows: of every call of the network; with the evaluator's number its bits come out.
        max_chunks: of one episode, whose memory grows with its length.
    """

    def __init__(self, policy: AIMPolicy, rows: int = ROWS, max_chunks: int = 1000):
        self.policy, self.pipe, self.rows, self.max_chunks = policy, policy.pipe, rows, max_chunks
        self.sizes = {name: tuple(camera["size"]) for name, camera in self.pipe.processor.cameras.items()}

    @property
    def metadata(self) -> dict[str, Any]:
        """What a client is told when it connects."""
        return {
            "server": "aim_hf",
            "settings": self.policy.settings,
            "action_space": self.policy.action_mode,
            "action_dim": self.pipe.processor.action_dim,
            "actions_per_chunk": self.policy.actions_per_chunk,
            "actions_per_frame": self.policy.actions_per_frame,
            "fps": self.pipe.fps,
            "images": {CAMERA_KEYS.get(name, name): [3, *size] for name, size in self.sizes.items()},
            "pixel_size": {name: list(size) for name, size in self.policy.pixel_size.items()},
        }

    @property
    def message_bytes(self) -> int:
        """Of the largest right message, about."""
        pictures = sum(3 * height * width for height, width in self.sizes.values())
        return self.pipe.frames_per_chunk * pictures + 8 * self.pipe.actions_per_chunk * self.pipe.processor.action_dim

    def read(self, message: Any, episode: ServedEpisode) -> Request:
        """A request, checked. The episode stays as it is.

        Raises:
            ValueError: saying what is wrong with the message.
        """
        if not isinstance(message, dict):
            raise ValueError(f"the message is {type(message).__name__}; expected a map with {', '.join(START_KEYS)}.")
        starts = "prompt" in message
        known = START_KEYS if starts else CHUNK_KEYS
        unknown = [str(key) for key in message if key not in known]
        if unknown:
            kind = "that starts an episode (it has a prompt)" if starts else "of an episode that has started"
            raise ValueError(f"unknown keys {', '.join(unknown)}; a message {kind} has {', '.join(known)}.")
        if not starts:
            if episode.session is None:
                raise ValueError("prompt is missing; a client's first message starts an episode with one.")
            if episode.session.chunks[0] >= self.max_chunks:
                raise ValueError(f"the episode has {self.max_chunks} chunks, as many as may be; start a new one.")
        pictures = message.get("pictures", "none")
        if not isinstance(pictures, str) or pictures not in get_args(Pictures):
            raise ValueError(f"pictures is {pictures!r}; expected one of {', '.join(get_args(Pictures))}.")
        most = 1 if starts else self.pipe.frames_per_chunk
        observations = read_images(message.get("images"), self.sizes, most)
        if "state" in message:
            # Not used, but what is sent must be sound.
            check_magnitude("state", torch.tensor(read_numbers("state", message["state"])))
        if "endpose" in message:
            observations[0]["endpose"] = read_endpose(message["endpose"])
        if starts:
            prompt = message["prompt"]
            if not isinstance(prompt, str) or len(prompt) > MAX_PROMPT:
                got = f"{len(prompt)} characters" if isinstance(prompt, str) else type(prompt).__name__
                raise ValueError(f"a prompt is a string of at most {MAX_PROMPT} characters; this one is {got}.")
            if self.pipe.processor.action_space == "ee":
                self.pipe.processor.initial_pose(observations[0])
            return Request(episode, prompt, self._seed(message), observations, None, pictures)
        executed = message.get("executed_actions")
        if executed is None and len(observations) < most:
            # Not guessed: a client that forgot pictures has executed the whole chunk.
            raise ValueError(
                f"images hold {len(observations)} of the {most} pictures of a chunk; expected all, one after every "
                f"{self.pipe.actions_per_frame} actions. After a part of a chunk, give its executed_actions too."
            )
        executed = episode.actions if executed is None else self._executed(executed, len(observations), episode)
        return Request(episode, None, 0, observations, executed, pictures)

    def check_prompt(self, request: Request) -> None:
        """Raises ValueError for words that the tokenizer refuses. Not part of `read`: a tokenizer is of one thread."""
        if request.prompt is not None:
            self.pipe.processor.tokenize(request.prompt)

    def answer(self, requests: list[Request]) -> list[dict[str, Any] | RuntimeError]:
        """The replies to 1 to `rows` requests of one form, or the error of some. An episode moves on only with
        a reply, so a request that failed can be sent again."""
        rows, pipe = filled(requests, self.rows), self.pipe
        observations = [request.observations for request in rows]
        if requests[0].prompt is not None:
            session = pipe.start([request.prompt for request in rows], negative_prompt=self.policy.negative_prompt)
            pipe.append(session, observations)
            generators = [torch.Generator().manual_seed(request.seed) for request in rows]
        else:
            session = AIMSession.stack([request.episode.session for request in rows])
            pipe.append(session, observations, np.stack([request.executed_actions for request in rows]))
            generators = [request.episode.generator.clone_state() for request in rows]
        pictures = requests[0].pictures
        out = pipe(
            session=session,
            generator=generators,
            output_type="latent" if pictures == "none" else "np",
            decode_frames=pictures == "all",
            sampling_config=self.policy.sampling_config,
        )
        actions = np.asarray(out.actions)
        replies: list[dict[str, Any] | RuntimeError] = []
        for row, request in enumerate(requests):
            if not np.isfinite(actions[row]).all():  # a robot must not get them
                replies.append(RuntimeError("the network gave actions that are not finite for what was sent."))
                continue
            episode = request.episode
            episode.session, episode.generator = session.select([row]), generators[row]
            episode.actions = actions[row].copy()
            reply: dict[str, Any] = {"actions": episode.actions}
            if pictures != "none":
                reply["value_maps"] = {_key(name): clips[row] for name, clips in out.value_maps.items()}
            if pictures == "all":
                reply["frames"] = {_key(name): clips[row] for name, clips in out.frames.items()}
            replies.append(reply)
        return replies

    def _executed(self, actions: Any, pictures: int, episode: ServedEpisode) -> np.ndarray:
        actions = read_numbers("executed_actions", actions)
        expected = (pictures * self.pipe.actions_per_frame, self.pipe.processor.action_dim)
        if actions.shape != expected:
            raise ValueError(
                f"executed_actions have shape {actions.shape}; expected {expected}, all that were executed before "
                "these pictures."
            )
        pose = episode.session.initial_pose
        pose = None if pose is None else pose[0]
        self.pipe.processor.normalize_executed("executed_actions", torch.tensor(actions), pose)
        return actions

    @staticmethod
    def _seed(message: dict) -> int:
        seed = message.get("seed")
        if seed is None:
            return torch.Generator().seed() >> 1
        if not isinstance(seed, int | np.integer) or isinstance(seed, bool) or not 0 <= seed < 2**63:
            raise ValueError(f"seed is {seed!r}; expected an integer of 0 to 2**63 - 1.")
        return int(seed)


def _key(camera: str) -> str:
    return CAMERA_KEYS.get(camera, camera)
