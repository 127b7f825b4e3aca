"""Counters and histograms of a server, for Prometheus."""

from ..utils.extras import extra

with extra("serve"):
    import prometheus_client
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)

prometheus_client.disable_created_metrics()


class Metrics:
    """A registry of one server's own.

    Args:
        rows: of the largest batch.
    """

    def __init__(self, rows: int):
        self.registry = registry = CollectorRegistry()
        outcomes = {"labelnames": ["outcome"], "registry": registry}
        self.sessions = Gauge("aim_sessions", "Clients that are connected.", registry=registry)
        self.waiting_requests = Gauge("aim_waiting_requests", "Requests that wait for a batch.", registry=registry)
        self.requests = Counter("aim_requests", "Messages received, by outcome.", **outcomes)
        self.connections = Counter("aim_connections", "Connections, by outcome.", **outcomes)
        for counter, names in (
            (self.requests, ("answered", "refused", "busy", "failed", "abandoned")),
            (self.connections, ("accepted", "expired", "full", "unauthorized")),
        ):
            for name in names:
                counter.labels(name)  # so that 0 is reported too
        seconds = {"buckets": SECONDS, "registry": registry}
        self.request_seconds = Histogram("aim_request_seconds", "From a message to its reply.", **seconds)
        self.batch_seconds = Histogram("aim_batch_seconds", "A batch through the network.", **seconds)
        self.batch_rows = Histogram(
            "aim_batch_rows", "Requests in a batch.", buckets=range(1, rows + 1), registry=registry
        )

    def observe_batch(self, rows: int, seconds: float) -> None:
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)

    def text(self) -> str:
        return prometheus_client.generate_latest(self.registry).decode()
