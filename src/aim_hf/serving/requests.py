"""Reads clients' messages into requests."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch

from ..model.actions import check_magnitude
from ..pipeline.inputs import committed_actions
from ..pipeline.pipeline_aim import AIMPipeline
from ..pipeline.session import AIMSession
from ..protocol.observations import keys_of, read_endpose, read_images, read_numbers
from ..rollout.policies import Pictures
from ..utils.checks import check_choice, noise_seed, shortened

START_KEYS = ("prompt", "images", "state", "endpose", "seed", "pictures", "lookahead")
CHUNK_KEYS = ("images", "state", "endpose", "executed_actions", "committed_actions", "pictures", "lookahead")
VGA = 480 * 640  # pixels of a picture that a message has room for, if it is to be resized
MAX_PROMPT = 4096  # characters: the tokenizer reads all of them before it finds them too many


@dataclass
class ServedEpisode:
    """A client's state between its requests. Empty until its first one has been answered."""

    session: AIMSession | None = None
    generator: torch.Generator | None = None
    actions: np.ndarray | None = None  # (T, action_dim), the last ones sent


@dataclass(frozen=True)
class Request:
    """One chunk that a client asks for. With a `prompt` it is the first of a new episode."""

    episode: ServedEpisode
    prompt: str | None
    seed: int
    observations: list[dict[str, Any]]
    executed_actions: np.ndarray | None = None
    committed_actions: np.ndarray | None = None
    pictures: Pictures = "none"
    lookahead: bool = False

    @property
    def form(self) -> tuple:
        """Requests of one form run together."""
        history: tuple = ()
        if self.prompt is None:
            session = self.episode.session
            history, recent = session.forms[0], session.recent[0]
            if len(self.executed_actions) < session.cache.config.actions_per_chunk:
                # The recent frames are encoded again, in one batch for each length.
                history += (len(recent.canvases), recent.whole)
        committed = 0 if self.committed_actions is None else len(self.committed_actions)
        return (history, len(self.observations), committed, self.pictures)


class RequestReader:
    """Reads and checks the messages of clients of a pipeline.

    Args:
        max_chunks: of one episode, whose memory grows with its length.
        image_keys: camera -> its key in messages, in `images` or beside it; other pictures are then ignored. If not
            given, clients send `images` with `CAMERA_KEYS`.
        resize: whether pictures of other sizes are accepted, see `read_images`.

    Raises:
        ValueError: for `image_keys` of unknown cameras, or one key for two cameras.
    """

    def __init__(
        self,
        pipe: AIMPipeline,
        max_chunks: int = 1000,
        image_keys: Mapping[str, str] | None = None,
        resize: bool = False,
    ):
        self.pipe, self.max_chunks = pipe, max_chunks
        self.sizes = {name: tuple(camera["size"]) for name, camera in pipe.processor.cameras.items()}
        if unknown := [name for name in image_keys or {} if name not in self.sizes]:
            raise ValueError(f"image_keys has {', '.join(unknown)}; the policy looks at {', '.join(self.sizes)}.")
        self.lookahead_actions = pipe.model.config.action_horizon - pipe.actions_per_chunk
        self.image_keys, self.resize = dict(image_keys or {}), resize
        self.keys = keys_of(self.sizes, self.image_keys)
        if len(set(self.keys.values())) < len(self.keys):
            told = ", ".join(f"{name}={key}" for name, key in self.keys.items())
            raise ValueError(f"image_keys make {told}; expected a key of its own for each camera.")

    @property
    def message_bytes(self) -> int:
        """Approximate size of the largest valid message."""
        pictures = sum(3 * max(height * width, VGA if self.resize else 0) for height, width in self.sizes.values())
        return self.pipe.frames_per_chunk * pictures + 8 * self.pipe.actions_per_chunk * self.pipe.processor.action_dim

    def read(self, message: Any, episode: ServedEpisode) -> Request:
        """The request in a message, checked. Doesn't change `episode`.

        Raises:
            ValueError: saying what is wrong with the message.
        """
        if not isinstance(message, dict):
            raise ValueError(f"the message is {type(message).__name__}; expected a map with {', '.join(START_KEYS)}.")
        starts = "prompt" in message
        known = START_KEYS if starts else CHUNK_KEYS
        unknown = [str(key) for key in message if key not in known and not self._is_of_another_client(key)]
        if unknown:
            kind = "that starts an episode (it has a prompt)" if starts else "of an episode that has started"
            raise ValueError(f"unknown keys {', '.join(unknown)}; a message {kind} has {', '.join(known)}.")
        if not starts:
            if episode.session is None:
                raise ValueError("prompt is missing; a client's first message starts an episode with one.")
            if episode.session.chunks[0] >= self.max_chunks:
                raise ValueError(f"the episode has {self.max_chunks} chunks, the most allowed; start a new one.")
        pictures = check_choice("pictures", message.get("pictures", "none"), get_args(Pictures))
        lookahead = message.get("lookahead", False)
        if not isinstance(lookahead, bool) or (lookahead and not self.lookahead_actions):
            raise ValueError(
                f"lookahead is {shortened(lookahead)}; expected a bool, and a policy that looks ahead for True."
            )
        most = 1 if starts else self.pipe.frames_per_chunk
        observations = read_images(self._images(message), self.sizes, most, self.keys, self.resize)
        if "state" in message:
            # Not used, but checked as all that is sent.
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
            return Request(episode, prompt, self._seed(message), observations, pictures=pictures, lookahead=lookahead)
        executed = message.get("executed_actions")
        if executed is None and len(observations) < most:
            # Not guessed: a client that forgot pictures has executed the whole chunk.
            raise ValueError(
                f"images hold {len(observations)} of the {most} pictures of a chunk; expected all, one after every "
                f"{self.pipe.actions_per_frame} actions. After a part of a chunk, give its executed_actions too."
            )
        executed = episode.actions if executed is None else self._executed(executed, len(observations), episode)
        committed = self._committed(message.get("committed_actions"), episode)
        return Request(episode, None, 0, observations, executed, committed, pictures, lookahead)

    def _is_of_another_client(self, key: Any) -> bool:
        """Whether a key holds a picture of `image_keys`, or what openpi's other robots send, `observation/...`."""
        if not self.image_keys or not isinstance(key, str):
            return False
        return key in self.keys.values() or key.startswith("observation/")

    def _images(self, message: dict[str, Any]) -> Any:
        """The pictures of the policy's cameras, by key."""
        images = message.get("images", {} if self.image_keys else None)
        if not self.image_keys or not isinstance(images, dict):
            return images
        there = message | images
        return {key: there[key] for key in self.keys.values() if key in there}

    def check_prompt(self, request: Request) -> None:
        """Raises ValueError for words that the tokenizer refuses. Not part of `read`: one thread alone may use a
        tokenizer."""
        if request.prompt is not None:
            self.pipe.processor.tokenize(request.prompt)

    def _executed(self, actions: Any, pictures: int, episode: ServedEpisode) -> np.ndarray:
        actions = read_numbers("executed_actions", actions)
        expected = (pictures * self.pipe.actions_per_frame, self.pipe.processor.action_dim)
        if actions.shape != expected:
            raise ValueError(
                f"executed_actions have shape {actions.shape}; expected {expected}, all that were executed before "
                "these pictures."
            )
        self._check_plausible("executed_actions", actions, episode)
        return actions

    def _committed(self, actions: Any, episode: ServedEpisode) -> np.ndarray | None:
        if actions is None:
            return None
        actions = read_numbers("committed_actions", actions)
        if actions.ndim != 2:
            raise ValueError(
                f"committed_actions have shape {actions.shape}; expected (d, {self.pipe.processor.action_dim}), the d "
                "that are executed meanwhile."
            )
        committed_actions(self.pipe.processor, actions, rows=1, horizon=self.pipe.model.config.action_horizon)
        self._check_plausible("committed_actions", actions, episode)
        return actions

    def _check_plausible(self, name: str, actions: np.ndarray, episode: ServedEpisode) -> None:
        pose = episode.session.initial_pose
        self.pipe.processor.normalize_executed(name, torch.tensor(actions), None if pose is None else pose[0])

    @staticmethod
    def _seed(message: dict) -> int:
        seed = message.get("seed")
        return torch.Generator().seed() >> 1 if seed is None else noise_seed("seed", seed)
