"""A policy server under load: real clients that never stop asking, and others that do it harm.

    python benchmarks/serving.py --policy checkpoints/aim-tiny --output_file benchmarks/results/serving/tiny.json

Starts `aim-hf serve`. `--clients` threads with openpi's client run episodes of a few chunks on made-up pictures
for `--seconds`; now and then one drops its connection, with a request in flight or without, and connects again. Two
others send garbage beside them: bytes that are no message, messages that are wrong, too large or cut, and connections
that say nothing.

- `requests`: answered, and `lost`: good ones that got an error or no answer. Expected: 0.
- `latency_seconds`: of good requests, seen by the clients. With more clients than the network answers at once they
  wait for each other, so it is the time of a round of all of them.
- `requests_per_second`, `rows_per_batch`: the effect of batching.
- `memory`: resident megabytes of the server, a median over the second and the last quarter of the time, and
  `growth` between them.
"""

import argparse
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import torch
from common import finish
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from aim_hf.commands import PathParser

CHUNKS = 5  # of an episode
DROP_CHANCE = 0.05  # after each chunk, of leaving without a word
POSE = np.array([-0.2, 0.1, 0.9, 1, 0, 0, 0, 1, 0.2, 0.1, 0.9, 1, 0, 0, 0, 1])


def main():
    parser = PathParser(description=__doc__)
    parser.add_argument("--policy", default="checkpoints/aim-tiny", help="folder of an AIMPipeline, or repo id")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[8], help="of calls of the network")
    parser.add_argument("--output_file", type=Path, help="also write the numbers as JSON")
    args = parser.parse_args()
    with tempfile.NamedTemporaryFile("w+") as log:
        server, port = start_server(args, log)
        try:
            numbers = load(args, server.pid, port)
        finally:
            server.terminate()
            server_exit = server.wait()
    numbers["server_exit"] = server_exit
    finish(numbers, args)
    if numbers["requests"]["lost"] or numbers["server_exit"]:
        raise SystemExit("good requests were lost")


def start_server(args: argparse.Namespace, log) -> tuple[subprocess.Popen, int]:
    command = [sys.executable, "-m", "aim_hf", "serve", "--policy", args.policy, "--port", "0"]
    command += [
        "--device",
        args.device,
        "--batch_sizes",
        *map(str, args.batch_sizes),
        "--max_sessions",
        str(2 * args.clients + 16),
    ]
    server = subprocess.Popen(command, stderr=log)
    while server.poll() is None:
        found = re.search(r"serving .* at ws://127.0.0.1:(\d+)", Path(log.name).read_text())
        if found:
            return server, int(found[1])
        time.sleep(0.2)
    raise SystemExit(Path(log.name).read_text())


def load(args: argparse.Namespace, pid: int, port: int) -> dict:
    until = time.monotonic() + args.seconds
    robots = [Robot(port, seed, until) for seed in range(args.clients)]
    vandals = [threading.Thread(target=vandalize, args=(port, seed, until)) for seed in range(2)]
    for thread in (*robots, *vandals):
        thread.start()
    memory = []
    while time.monotonic() < until:
        memory.append(psutil.Process(pid).memory_info().rss / 2**20)
        time.sleep(min(0.5, args.seconds / 40))
    for thread in (*robots, *vandals):
        thread.join()
    latencies = sorted(seconds for robot in robots for seconds in robot.latencies)
    counts = sum((robot.counts for robot in robots), Counter())
    if not latencies:
        errors = {error for robot in robots for error in robot.errors}
        raise SystemExit(
            f"no request was answered in {args.seconds:g} s: {', '.join(sorted(errors)) or 'take longer'}"
        )
    quarter = len(memory) // 4
    early, late = statistics.median(memory[quarter : 2 * quarter]), statistics.median(memory[-quarter:])
    metrics = read_metrics(port)
    return {
        "requests": {"answered": len(latencies), "lost": counts["lost"], "dropped_by_client": counts["dropped"]},
        "errors": [error for robot in robots for error in robot.errors][:5],
        "refused_garbage": metrics['aim_requests_total{outcome="refused"}'],
        "latency_seconds": {
            f"p{percent}": latencies[min(len(latencies) * percent // 100, len(latencies) - 1)]
            for percent in (50, 90, 95, 99)
        }
        | {"max": latencies[-1]},
        "requests_per_second": len(latencies) / args.seconds,
        "rows_per_batch": metrics["aim_batch_rows_sum"] / metrics["aim_batch_rows_count"],
        "batch_seconds": metrics["aim_batch_seconds_sum"] / metrics["aim_batch_seconds_count"],
        "memory": {"early_mb": early, "late_mb": late, "growth": late / early - 1},
    }


class Robot(threading.Thread):
    """A client that asks for one episode after another."""

    def __init__(self, port: int, seed: int, until: float):
        super().__init__()
        self.port, self.until, self.rng = port, until, np.random.default_rng(seed)
        self.latencies: list[float] = []
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    def run(self) -> None:
        client = None
        while time.monotonic() < self.until:
            try:
                client = client or WebsocketClientPolicy("127.0.0.1", self.port)
                client = self.episode(client)
            except Exception as error:
                self.counts["lost"] += 1
                self.errors.append(repr(error))
                client = None
        if client is not None:
            client._ws.close()

    def episode(self, client: WebsocketClientPolicy) -> WebsocketClientPolicy | None:
        """The client, to be used again; None if it was dropped."""
        metadata = client.get_server_metadata()
        for chunk in range(CHUNKS):
            if time.monotonic() > self.until:
                return client
            leading = (metadata["actions_per_chunk"] // metadata["actions_per_frame"],) if chunk else ()
            message = {
                "images": {
                    key: self.rng.integers(0, 256, (*leading, *shape), dtype=np.uint8)
                    for key, shape in metadata["images"].items()
                }
            }
            if chunk == 0:
                message |= {"prompt": "ring the bell", "endpose": POSE}
            start = time.perf_counter()
            if self.rng.random() < DROP_CHANCE:
                if self.rng.random() < 0.5:
                    client._ws.send(msgpack_numpy.packb(message))
                client._ws.socket.shutdown(socket.SHUT_RDWR)
                self.counts["dropped"] += 1
                return None
            actions = client.infer(message)["actions"]
            self.latencies.append(time.perf_counter() - start)
            if not np.isfinite(actions).all():
                raise ValueError("actions are not finite")
        return client


def vandalize(port: int, seed: int, until: float) -> None:
    """Wrong messages of every kind, one after another, with a breath in between."""
    rng = np.random.default_rng([seed, 1])
    good = msgpack_numpy.packb({"prompt": "ring the bell", "images": {"cam_high": np.zeros((3, 64, 96), np.uint8)}})
    kinds = [
        lambda: rng.bytes(1000),
        lambda: good[: rng.integers(1, len(good))],
        lambda: good,  # without a pose and the other cameras
        lambda: msgpack_numpy.packb({"prompt": "lift", "images": {"cam_high": np.full((3, 64, 96), np.nan)}}),
        lambda: b"\x91" * 5000,
        lambda: "text",
        lambda: b"\0" * 2**24,
    ]
    while time.monotonic() < until:
        with connect(f"ws://127.0.0.1:{port}", compression=None, max_size=None, proxy=None) as websocket:
            websocket.recv()
            for kind in rng.permutation(len(kinds)):
                try:
                    websocket.send(kinds[kind]())
                    websocket.recv()
                except ConnectionClosed:  # expected after a message that is too large
                    break
        with socket.create_connection(("127.0.0.1", port)) as connection:  # and goes without waiting for an answer
            connection.sendall(rng.bytes(200))
        time.sleep(0.1)


def read_metrics(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        lines = response.read().decode().splitlines()
    return {name: float(number) for name, number in (line.rsplit(" ", 1) for line in lines if line[0] != "#")}


if __name__ == "__main__":
    main()
