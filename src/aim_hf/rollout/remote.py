"""A [`Policy`] behind a policy server, for the evaluator."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np

from ..envs.base import ActionMode, Interface, Observation
from ..protocol.messages import MessageError, pack, unpack
from ..utils.checks import shortened
from ..utils.extras import extra
from ..utils.plain import plain
from .dialects import Dialect, RemoteEpisode, aim
from .policies import Pictures, Prediction

with extra("serve"):
    from websockets.exceptions import InvalidHandshake, InvalidStatus, InvalidURI, WebSocketException
    from websockets.sync.client import ClientConnection, connect

REPLY_SECONDS = 600  # a server may compile at its first request
MAX_REPLY = 2**28  # bytes


class RemotePolicyError(OSError):
    """A policy server can't be reached, disconnected, or refused a request."""


class Connection:
    """A connection to the server at `address`, with openpi's protocol.

    Raises:
        RemotePolicyError: here and in `ask`; names the address.
    """

    def __init__(self, address: str, token: str | None = None) -> None:
        self.address = address
        headers = {"Authorization": f"Api-Key {token}"} if token else None
        with ExitStack() as stack:
            self._websocket = self._connected(stack, headers)
            self.metadata = self._receive()
            self._opened = stack.pop_all()

    def _connected(self, stack: ExitStack, headers: dict[str, str] | None) -> ClientConnection:
        """A connection that ends with `stack`: newer releases of websockets want `connect` in a `with` statement."""
        address = self.address
        try:
            return stack.enter_context(
                connect(
                    address,
                    additional_headers=headers,
                    compression=None,
                    max_size=MAX_REPLY,
                    ping_interval=None,  # many servers don't answer pings during inference
                    proxy=None,
                )
            )
        except InvalidStatus as error:
            status = error.response.status_code
            mend = "give --token_file" if status in (401, 403) else "look at the server's log"
            raise RemotePolicyError(f"the policy server at {address} refused: HTTP status {status}; {mend}") from error
        except (InvalidURI, InvalidHandshake, OSError, EOFError, ValueError) as error:  # the last: no host or port
            raise RemotePolicyError(
                f"no policy server answers at {address} ({error}); start it, or look at the address and the port"
            ) from error

    def ask(self, message: dict[str, Any]) -> dict[str, Any]:
        with self._talking():
            self._websocket.send(pack(message))
        return self._receive()

    def close(self) -> None:
        self._opened.close()

    def _receive(self) -> dict[str, Any]:
        with self._talking():
            data = self._websocket.recv(timeout=REPLY_SECONDS)
        if isinstance(data, str):
            raise RemotePolicyError(f"the policy server at {self.address} answered with an error: {data}")
        try:
            message = unpack(data)
        except MessageError as error:
            raise RemotePolicyError(f"the policy server at {self.address} sent unreadable bytes: {error}") from error
        if not isinstance(message, dict):
            raise RemotePolicyError(f"the policy server at {self.address} sent {type(message).__name__}, not a map")
        return message

    @contextmanager
    def _talking(self) -> Iterator[None]:
        try:
            yield
        except (WebSocketException, TimeoutError) as error:
            raise RemotePolicyError(
                f"the policy server at {self.address} went away ({error}). Episodes that had ended are kept: start "
                "the server again, then run the same command again"
            ) from error


class RemotePolicy:
    """The server at `address` as a [`Policy`]. Each episode has its own connection, and the requests of a batch are
    sent concurrently.

    Args:
        address: such as "ws://127.0.0.1:8000".
        dialect: message format; None for AIM's own server, whose metadata give it.
        name: name of the policy in the results; default: the address, and what the metadata of AIM's server give.
        token: sent as `Authorization: Api-Key TOKEN`.

    Raises:
        RemotePolicyError: if no server answers, or it disconnects later.
        ValueError: if a dialect is needed, or given for AIM's own server, or for a batch on a server that holds one
            episode at a time.
    """

    def __init__(
        self,
        address: str,
        dialect: Dialect | None = None,
        name: str | None = None,
        token: str | None = None,
    ) -> None:
        self.address, self.token = address, token
        connection = Connection(address, token)
        metadata = plain(connection.metadata)
        connection.close()
        ours = metadata.get("server") == "aim_hf"
        if ours and (dialect is not None or name is not None):
            raise ValueError(
                f"the server at {address} is AIM's, whose metadata give its messages and its policy's name; leave "
                "out --dialect, --actions_per_chunk and --policy_name."
            )
        if not ours and dialect is None:
            raise ValueError(f"the server at {address} is not AIM's; say by --dialect which message format it has.")
        try:
            for field, value in metadata.items():
                _check_json(field, value)
            self.dialect = aim(metadata) if ours else dialect
        except KeyError as error:
            raise RemotePolicyError(
                f"the policy server at {address} is of another release of AIM, whose metadata have no {error}; "
                "install the same release on both sides"
            ) from error
        except ValueError as error:
            raise RemotePolicyError(
                f"the policy server at {address} sent metadata that don't fit: {error} Look at the server's code."
            ) from error
        self.settings = self.dialect.settings
        if not ours:
            self.settings = {"policy": name or address} | self.settings | {"server_metadata": metadata}
        self.action_mode: ActionMode = self.dialect.action_mode
        self.interface = self.dialect.interface or Interface({self.action_mode: {"ee": 16}.get(self.action_mode)})
        self.actions_per_chunk = self.dialect.actions_per_chunk
        self.actions_per_frame = self.dialect.actions_per_frame
        self.pixel_size = self.dialect.pixel_size
        self._connections: list[Connection] = []
        self._episodes: list[RemoteEpisode] = []

    def start(self, instructions: list[str], seeds: list[int]) -> None:
        if self.dialect.one_at_a_time and len(seeds) > 1:
            raise ValueError(
                f"{len(seeds)} episodes at once, but the server at {self.address} holds one: give --batch_size 1, and "
                "a server to each process."
            )
        self.close()

        def begin(instruction: str, seed: int) -> RemoteEpisode:
            connection = Connection(self.address, self.token)
            self._connections.append(connection)
            return self.dialect.episode(connection.ask, instruction, seed)

        self._episodes = _at_once(begin, instructions, seeds)

    def keep(self, rows: list[int]) -> None:
        self._episodes = [self._episodes[row] for row in rows]

    def predict(
        self,
        observations: list[list[Observation]],
        executed_actions: np.ndarray | None = None,
        value_maps: Mapping[str, np.ndarray] | None = None,
        pictures: Pictures = "none",
    ) -> Prediction:
        if value_maps is not None:
            raise ValueError("a remote policy acts on its own value maps; true ones need the policy in this process.")
        executed = [None] * len(observations) if executed_actions is None else list(executed_actions)

        def ask(episode: RemoteEpisode, observed: list[Observation], chunk: np.ndarray | None) -> dict[str, Any]:
            try:
                reply = episode.next_chunk(observed, chunk, pictures)
                return reply | {"actions": self._actions(reply["actions"])}
            except (KeyError, TypeError, ValueError) as error:
                raise RemotePolicyError(
                    f"the policy server at {self.address} sent a reply that doesn't fit ({error!r}); see "
                    "docs/serving.md for what is expected"
                ) from error

        replies = _at_once(ask, self._episodes, observations, executed)
        clips = {
            name: {camera: np.stack([reply[name][camera] for reply in replies]) for camera in replies[0][name]}
            for name in ("value_maps", "frames")
            if name in replies[0]
        }
        return Prediction(actions=np.stack([reply["actions"] for reply in replies]), **clips)

    def close(self) -> None:
        for connection in self._connections:
            connection.close()
        self._connections, self._episodes = [], []

    def _actions(self, actions: Any) -> np.ndarray:
        actions = np.asarray(actions)
        dim = self.interface.action_dims[self.action_mode]
        if actions.ndim != 2 or len(actions) < self.actions_per_chunk or dim not in (None, actions.shape[1]):
            raise ValueError(
                f"actions have shape {actions.shape}; expected at least {self.actions_per_chunk} actions of "
                f"{dim or 'as many numbers as the robot has joints and grippers'}"
            )
        if not np.isfinite(actions).all():
            raise ValueError("actions have NaN or infinite numbers")
        return actions[: self.actions_per_chunk]


def _check_json(name: str, value: Any) -> None:
    """Raises ValueError for a value that results can't record."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {shortened(value)}; expected what JSON can hold ({error}).") from error


def _at_once(function: Callable, *columns: list) -> list[Any]:
    """Calls `function` for each row in its own thread. The first error is raised after all have ended."""
    with ThreadPoolExecutor(len(columns[0])) as pool:
        futures = [pool.submit(function, *row) for row in zip(*columns, strict=True)]
    return [future.result() for future in futures]
