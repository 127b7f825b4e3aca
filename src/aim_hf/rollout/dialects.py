"""Message formats of policy servers, one short class for each family.

All use openpi's websocket protocol, in which a map is sent and a map is returned, and differ in the keys of these
maps. A server with other keys needs a class like `OpenPIEpisode` and a `Dialect` with that class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, get_args

import numpy as np

from ..envs.base import ActionMode, Interface, Observation
from ..envs.poses import along_tools, pack_endpose, quaternion_product
from ..envs.robotwin.environment import FRAME_BEHIND_TCP
from ..protocol.observations import CAMERA_KEYS, keys_of, write_images, write_state
from ..utils.checks import are_finite, check_choice, check_kind, check_positive, check_whole, shortened

if TYPE_CHECKING:  # `policies` imports torch
    from .policies import Pictures

Ask = Callable[[dict[str, Any]], dict[str, Any]]  # sends a message, returns the reply


class RemoteEpisode(Protocol):
    """One episode on a server.

    ask: sends a message over the connection of this episode. seed: random seed, if the server takes one.
    """

    def __init__(self, ask: Ask, instruction: str, seed: int) -> None: ...

    def next_chunk(
        self, observations: list[Observation], executed: np.ndarray | None, pictures: Pictures
    ) -> dict[str, Any]:
        """The next chunk.

        Args:
            observations: the first observation; later those after every `actions_per_frame` actions of the last chunk.
            executed: (T, action_dim), the last chunk; None at first.

        Returns:
            `actions` (T, action_dim) in physical units, with T at least `actions_per_chunk` of the dialect; if the
            server sends them, `value_maps` and `frames`, camera -> clip.
        """


@dataclass(frozen=True)
class Dialect:
    """The message format of a server. Other fields are those of a [`Policy`].

    one_at_a_time: the server keeps the state of a single episode, for all clients.
    interface: requirements on environments, if known.
    """

    episode: Callable[[Ask, str, int], RemoteEpisode]
    settings: dict[str, Any]
    action_mode: ActionMode
    actions_per_chunk: int
    actions_per_frame: int
    pixel_size: dict[str, tuple[float, float]] = field(default_factory=dict)
    one_at_a_time: bool = False
    interface: Interface | None = None


def aim(metadata: dict[str, Any]) -> Dialect:
    """AIM's own server, whose metadata give all fields. Its results are those of the checkpoint that it serves.

    Raises:
        KeyError: for metadata without a field.
        ValueError: for a field of another type; names it.
    """
    for name in ("settings", "pixel_size", "images"):
        check_kind(name, metadata[name], dict)
    # Older servers send neither their `image_keys` nor `fps`.
    server = metadata["settings"].get("server", {})
    check_kind("settings.server", server, dict)
    image_keys = server.get("image_keys", {})
    check_kind("settings.server.image_keys", image_keys, dict)
    for camera, key in image_keys.items():
        check_kind(f"settings.server.image_keys.{camera}", key, str)
    if (fps := metadata.get("fps")) is not None:
        check_positive("fps", fps)
    action_space = check_choice("action_space", metadata["action_space"], get_args(ActionMode))
    action_dim, chunk, frame = (
        check_whole(name, metadata[name]) for name in ("action_dim", "actions_per_chunk", "actions_per_frame")
    )
    keys = keys_of(metadata["pixel_size"], image_keys)
    pixel_size = {camera: _numbers(f"pixel_size.{camera}", size, 2) for camera, size in metadata["pixel_size"].items()}
    sizes = {camera: _numbers(f"images.{key}", metadata["images"][key], 3)[1:] for camera, key in keys.items()}
    interface = Interface({action_space: action_dim}, sizes, fps)
    episode = partial(AIMEpisode, keys=keys)
    return Dialect(episode, metadata["settings"], action_space, chunk, frame, pixel_size, interface=interface)


def _numbers(name: str, values: Any, count: int) -> tuple[float, ...]:
    if not are_finite(values) or len(values) != count:
        raise ValueError(f"{name} is {shortened(values)}; expected {count} finite numbers.")
    return tuple(values)


def openpi(actions_per_chunk: int) -> Dialect:
    """pi0 and pi0.5 with ALOHA's and RoboTwin's keys: joint positions; executes `actions_per_chunk` of each reply."""
    settings = {"dialect": "openpi", "actions_per_chunk": actions_per_chunk}
    return Dialect(OpenPIEpisode, settings, "qpos", actions_per_chunk, actions_per_chunk)


def lingbot_va() -> Dialect:
    """LingBot-VA for RoboTwin: end-effector poses. A chunk is one of its latent frames."""
    settings = {"dialect": "lingbot-va"}
    return Dialect(LingBotVAEpisode, settings, "ee", 16, 4, one_at_a_time=True)


class AIMEpisode:
    """AIM's own server keeps the history of the episode. It takes only pictures of its policy's cameras, under their
    `keys`."""

    def __init__(self, ask: Ask, instruction: str, seed: int, keys: Mapping[str, str]) -> None:
        self.ask, self.first, self.keys = ask, {"prompt": instruction, "seed": seed}, keys

    def next_chunk(
        self, observations: list[Observation], executed: np.ndarray | None, pictures: Pictures
    ) -> dict[str, Any]:
        message = {"images": write_images(observations, self.keys), "pictures": pictures}
        if executed is None:
            message |= self.first | {"endpose": pack_endpose(observations[0])}
        else:
            message["executed_actions"] = executed
        reply = self.ask(message)
        clips = {
            name: {camera: reply[name][key] for camera, key in self.keys.items()}
            for name in ("value_maps", "frames")
            if name in reply
        }
        return {"actions": reply["actions"]} | clips


class OpenPIEpisode:
    """Each chunk depends only on the latest observation."""

    def __init__(self, ask: Ask, instruction: str, seed: int) -> None:
        self.ask, self.instruction = ask, instruction

    def next_chunk(
        self, observations: list[Observation], executed: np.ndarray | None, pictures: Pictures
    ) -> dict[str, Any]:
        latest = observations[-1]
        reply = self.ask({"state": write_state(latest), "images": write_images([latest]), "prompt": self.instruction})
        return {"actions": reply["actions"]}


class LingBotVAEpisode:
    """The server predicts two latent frames per request and returns the 16 actions of each. In the first request, the
    first of these frames is the observed one. Afterwards the server must be sent the observations, four pictures per
    latent frame.

    Its actions are relative to the first pose of the frame behind the tool center point, which RoboTwin uses. Its
    training code composed RoboTwin's wxyz quaternions as if they were xyzw, so absolute poses are recovered only by
    the same composition.
    """

    KEYS = {camera: f"observation.images.{key}" for camera, key in CAMERA_KEYS.items()}

    def __init__(self, ask: Ask, instruction: str, seed: int) -> None:
        self.ask, self.instruction = ask, instruction
        ask({"reset": True, "prompt": instruction, "save_visualization": False})
        self.chunk: np.ndarray | None = None  # (16, 2, 16): numbers, latent frames, actions
        self.left: list[np.ndarray] = []  # actions of latent frames that aren't executed yet
        self.seen: list[dict[str, Any]] = []

    def next_chunk(
        self, observations: list[Observation], executed: np.ndarray | None, pictures: Pictures
    ) -> dict[str, Any]:
        if executed is None:
            self.first = self._observation(observations[0])
            self.pose = along_tools(pack_endpose(observations[0]), -FRAME_BEHIND_TCP)
        else:
            self.seen += [self._observation(observation) for observation in observations]
        if not self.left:
            first = self.chunk is None
            if not first:
                message = {"obs": self.seen, "compute_kv_cache": True, "imagine": False, "state": self.chunk}
                self.ask(message | {"save_visualization": False})
                self.seen = []
            reply = self.ask({"obs": self.first, "prompt": self.instruction, "save_visualization": False})
            self.chunk = np.asarray(reply["action"])
            if self.chunk.shape != (16, 2, 16):
                raise ValueError(f"action has shape {self.chunk.shape}; expected (16, 2, 16), as for RoboTwin")
            self.left = list(np.moveaxis(self.chunk, 0, -1)[1 if first else 0 :])
        return {"actions": np.stack([self._absolute(action) for action in self.left.pop(0)])}

    def _observation(self, observation: Observation) -> dict[str, Any]:
        pictures = {key: observation["observation"][camera]["rgb"] for camera, key in self.KEYS.items()}
        return pictures | {"observation.state": write_state(observation), "task": self.instruction}

    def _absolute(self, action: np.ndarray) -> np.ndarray:
        arms = []
        for pose, relative in zip(np.split(self.pose, 2), np.split(action.astype(np.float64), 2), strict=True):
            product = quaternion_product(np.roll(pose[3:7], 1), np.roll(relative[3:7], 1))  # see the class
            rotation = np.roll(product, -1)
            arms += [pose[:3] + relative[:3], rotation / np.linalg.norm(rotation), relative[7:]]
        return along_tools(np.concatenate(arms), FRAME_BEHIND_TCP)
