"""`benchmarks/serving.py`, for two seconds."""

import argparse
import os

from .fixtures_serving import running


def test_no_good_request_is_lost_under_load(policy):
    import serving

    args = argparse.Namespace(clients=4, seconds=2.0)
    with running(policy) as server:
        numbers = serving.load(args, os.getpid(), server.port)
    requests = numbers["requests"]
    assert requests["answered"] > 0 and requests["lost"] == 0, numbers["errors"]
    assert numbers["refused_garbage"] > 0 and 1 <= numbers["rows_per_batch"] <= 8
    latency = numbers["latency_seconds"]
    assert 0 < latency["p50"] <= latency["p99"] <= latency["max"]
