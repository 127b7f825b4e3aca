"""What a policy server lets clients take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one client, and all of them together, may take.

    max_sessions: clients that are connected.
    max_queue: requests that wait for the network.
    idle_timeout: seconds without a message after which a client is disconnected.
    max_chunks: of one episode.

    Raises:
        ValueError: for a limit that lets nothing through.
    """

    max_sessions: int = 64
    max_queue: int = 64
    idle_timeout: float = 300.0
    max_chunks: int = 1000

    def __post_init__(self) -> None:
        for name, number in vars(self).items():
            if not number > 0:
                raise ValueError(f"{name} is {number}; expected more than 0.")
