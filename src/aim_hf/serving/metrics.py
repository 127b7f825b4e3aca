"""What a server counts, in Prometheus' text format."""

from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


@dataclass
class Histogram:
    """Counts of values up to each bound, and beyond the last."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self):
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        lines, below = [], 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            below += count
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Metrics:
    """`requests` by what became of them, and `connections` likewise, are counted in the event loop, batches in the
    network's thread: each number has one writer."""

    def __init__(self, rows: int):
        self.requests = Counter(dict.fromkeys(("answered", "refused", "busy", "failed", "abandoned"), 0))
        self.connections = Counter(dict.fromkeys(("accepted", "expired", "full", "unauthorized"), 0))
        self.request_seconds = Histogram(SECONDS)
        self.batch_seconds = Histogram(SECONDS)
        self.batch_rows = Histogram(tuple(range(1, rows + 1)))

    def observe_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self, sessions: int, waiting: int) -> str:
        lines = []

        def add(name: str, kind: str, help_: str, samples: list[str]) -> None:
            lines.extend((f"# HELP {name} {help_}", f"# TYPE {name} {kind}", *samples))

        add("aim_sessions", "gauge", "Clients that are connected.", [f"aim_sessions {sessions}"])
        add("aim_waiting_requests", "gauge", "Requests that wait for a batch.", [f"aim_waiting_requests {waiting}"])
        for name, help_, counts in (
            ("aim_requests_total", "Messages received, by what became of them.", self.requests),
            ("aim_connections_total", "Connections, by what became of them.", self.connections),
        ):
            add(name, "counter", help_, [f'{name}{{outcome="{outcome}"}} {n}' for outcome, n in counts.items()])
        for name, help_, histogram in (
            ("aim_request_seconds", "From a message to its reply.", self.request_seconds),
            ("aim_batch_seconds", "A batch through the network.", self.batch_seconds),
            ("aim_batch_rows", "Requests in a batch.", self.batch_rows),
        ):
            add(name, "histogram", help_, histogram.lines(name))
        return "\n".join(lines) + "\n"
