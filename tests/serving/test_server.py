"""The server over its network: real clients, bad ones, limits, and its end."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgpack
import numpy as np
import pytest
import torch
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from aim_hf.serving.episodes import AIMEpisodes
from aim_hf.serving.requests import ServedEpisode

from .fixtures_serving import POSE, Robot, drive, running

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def alone(policy):
    """Actions of three chunks of an episode, without a server, for each of six seeds."""
    episodes = AIMEpisodes(policy, batch_sizes=[8])

    def run(seed):
        robot, episode = Robot(seed), ServedEpisode()
        messages = [robot.start(), robot.next(), robot.next()]
        return np.stack([episodes.answer([episodes.reader.read(m, episode)])[0]["actions"] for m in messages])

    return [run(seed) for seed in range(6)]


def raw(server):
    return connect(server.address, compression=None, max_size=None, proxy=None).__enter__()


@contextlib.contextmanager
def held(server):
    """The network holds a batch until it is let go. Yields the events of both."""
    busy, let_go, answer = threading.Event(), threading.Event(), server.server.episodes.answer

    def slow(requests):
        busy.set()
        assert let_go.wait(60)
        return answer(requests)

    server.server._batcher.answer = slow
    try:
        yield busy, let_go
    finally:
        let_go.set()
        server.server._batcher.answer = answer


def wait_until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_client_is_told_what_it_talks_to(server, policy):
    metadata = server.client().get_server_metadata()
    assert metadata["server"] == "aim_hf" and metadata["lookahead_actions"] == 0
    assert metadata["settings"] == policy.settings | {
        "server": {"batch_sizes": [8], "image_keys": {}, "resize": False}
    }
    assert metadata["action_space"] == "ee" and metadata["action_dim"] == 16
    assert metadata["actions_per_chunk"] == 8 and metadata["actions_per_frame"] == 2 and metadata["fps"] is None
    assert metadata["images"] == {
        "cam_high": [3, 64, 96],
        "cam_left_wrist": [3, 32, 48],
        "cam_right_wrist": [3, 32, 48],
    }


def counted(server, name: str, outcome: str) -> float:
    return server.server.metrics.registry.get_sample_value(f"aim_{name}_total", {"outcome": outcome})


def test_many_clients_at_once_each_get_what_they_get_alone(server, alone):
    def batches_and_rows() -> np.ndarray:
        registry = server.server.metrics.registry
        return np.array([registry.get_sample_value(f"aim_batch_rows_{name}") for name in ("count", "sum")])

    before = batches_and_rows()
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: drive(server.client(), seed, 3), range(6)))
    np.testing.assert_array_equal(together, alone)
    batches, rows = batches_and_rows() - before
    assert rows == 18 > batches


BAD = {
    "not msgpack": (b"\xc1 nonsense", "not msgpack"),
    "cut": (msgpack_numpy.packb(Robot(0).start())[:-100], "not msgpack, or incomplete"),
    "text": ("hello", "the message is text"),
    "a list": ([1, 2], "the message is list"),
    "no prompt": ({"images": {}}, "prompt is missing"),
    "unknown key": (Robot(0).start(iamges=1), "unknown keys iamges"),
    "executed at the start": (Robot(0).start(executed_actions=np.zeros((8, 16))), "unknown keys executed_actions"),
    "prompt of no words": (Robot(0).start(prompt="  "), "instruction 0 is '  '"),
    "prompt too long for the model": (
        Robot(0).start(prompt="bell " * 100),
        r"^instructions have at most 32 tokens \(about 1\d\d characters\); this one has \d+: 'bell [^\n]{,50}…'. Sh",
    ),
    "prompt too long for anyone": (Robot(0).start(prompt="x" * 5000), "at most 4096 characters; this one is 5000"),
    "prompt no string": (Robot(0).start(prompt=3), "this one is int"),
    "seed": (Robot(0).start(seed=-1), "seed is -1; expected a whole number, 0 to 9223372036854775807"),
    "seed no number": (Robot(0).start(seed=np.zeros(2)), "seed is"),
    "pictures": (Robot(0).start(pictures="some"), "pictures is 'some'"),
    "no camera": (Robot(0).start(images={}), "images are"),
    "no images": ({"prompt": "lift", "endpose": POSE}, "images are NoneType"),
    "another camera": (Robot(0).start(images={"cam_low": np.zeros((3, 64, 96), np.uint8)}), "images are"),
    "float picture": (
        Robot(0).start(images=Robot(0).images() | {"cam_high": np.zeros((3, 64, 96))}),
        r"images\['cam_high'\] is float64",
    ),
    "four colors": (
        Robot(0).start(images=Robot(0).images() | {"cam_high": np.zeros((64, 96, 4), np.uint8)}),
        r"is uint8 \(1, 64, 96, 4\); expected uint8 RGB",
    ),
    "another size": (
        Robot(0).start(images=Robot(0).images() | {"cam_high": np.zeros((224, 224, 3), np.uint8)}),
        r"are 224 x 224; expected 64 x 96 \(height x width\). Resize them on your side, or start the server with --re",
    ),
    "a clip at the start": (Robot(0).start(images=Robot(0).images(4)), "holds 4 pictures; expected one, before any"),
    "no picture": (Robot(0).start(images=Robot(0).images(0)), "holds 0 pictures; expected one, before any"),
    "a file that is no picture": (
        Robot(0).start(images=Robot(0).images() | {"cam_high": b"GIF89a"}),
        "can't be read (.*); expected a JPEG or PNG picture",
    ),
    "lookahead of a policy without": (Robot(0).start(lookahead=True), "lookahead is True; expected a bool, and a po"),
    "no pose": ({"prompt": "lift", "images": Robot(0).images()}, "no left_endpose"),
    "pose of NaN": (Robot(0).start(endpose=np.full(16, np.nan)), "endpose has NaN"),
    "pose too short": (Robot(0).start(endpose=POSE[:14]), r"endpose has shape \(14,\)"),
    "pose no numbers": (Robot(0).start(endpose="here"), "endpose is str of dtype <U4; expected an array of numbers"),
    "no quaternion": (Robot(0).start(endpose=np.zeros(16)), "quaternion"),
    "pose beyond the sky": (
        Robot(0).start(endpose=np.where(np.arange(16) == 8, 1e300, POSE)),
        r"^pose of the first observation: number \[8\] is 1e\+300; expected -1e\+03 to 1e\+03",
    ),
    "pose in millimetres": (
        Robot(0).start(endpose=np.where(np.arange(16) == 1, 1100, POSE)),
        r"number \[1\] is 1.1e\+03",
    ),
    "state beyond the sky": (Robot(0).start(state=np.full(14, 1e10)), r"state: number \[0\] is 1e\+10; expected"),
    "state of NaN": (Robot(0).start(state=np.full(14, np.inf)), "state has NaN"),
    "lists within lists": (b"\x82\xa6prompt\xa1x\xa8pictures" + 1015 * b"\x91" + b"\x90", "recursion|pictures is"),
    "array of objects": (
        msgpack.packb({"prompt": "x", "images": {b"__ndarray__": True, b"data": b"", b"dtype": "O", b"shape": [0]}}),
        "dtype 'O'",
    ),
    "array without its bytes": (
        msgpack.packb({"images": {b"__ndarray__": True, b"data": b"", b"dtype": "|u1", b"shape": [2**40]}}),
        "expected 1099511627776 bytes",
    ),
}


def test_bad_messages_get_an_error_and_nobody_else_notices(server, alone):
    """All of them on one connection, which works afterwards, while another client is in the midst of its episode."""
    refused = counted(server, "requests", "refused")
    other, robot = server.client(), Robot(0)
    actions = [other.infer(robot.start())["actions"]]
    with raw(server) as websocket:
        websocket.recv()
        for name, (message, reason) in BAD.items():
            websocket.send(message if isinstance(message, str | bytes) else msgpack_numpy.packb(message))
            reply = websocket.recv(timeout=60)
            assert isinstance(reply, str) and re.search(reason, reply), (name, reply)
        assert counted(server, "requests", "refused") - refused == len(BAD)
        robot_1 = Robot(1)
        websocket.send(msgpack_numpy.packb(robot_1.start()))
        np.testing.assert_array_equal(msgpack_numpy.unpackb(websocket.recv(timeout=60))["actions"], alone[1][0])
        absurd = np.tile(POSE, (8, 1))
        absurd[2, 0] = 3e38
        for message, reason in (
            (
                Robot(0).next(images=Robot(0).images()),
                "1 of the 4 pictures of a chunk.* give its executed_actions too",
            ),
            (Robot(0).next(images={key: [1] for key in Robot(0).images()}), "is list; expected uint8 RGB"),
            (Robot(0).next(images=Robot(0).images(5)), "holds 5 pictures; expected 1 to 4"),
            (Robot(0).next(images=Robot(0).images(4) | {"cam_high": Robot(0).images(3)["cam_high"]}), "and another"),
            (Robot(0).next(committed_actions=np.tile(POSE, (8, 1))), "8 actions are committed; expected 1 to 7"),
            (Robot(0).next(committed_actions=absurd[:3]), r"committed_actions.*: number \[2, 0\] is 3e\+38"),
            (
                Robot(0).next(committed_actions=np.tile(POSE, (1, 3, 1))),
                r"^committed_actions have shape \(1, 3, 16\); expected \(d, 16\), the d that are executed meanwhile",
            ),
            (Robot(0).next(executed_actions=np.zeros((7, 16))), "expected \\(8, 16\\)"),
            (Robot(0).next(executed_actions=np.zeros((8, 16))), "quaternion"),
            (Robot(0).next(executed_actions=np.full((8, 16), np.nan)), "executed_actions has NaN"),
            (
                Robot(0).next(executed_actions=absurd),
                r"executed_actions.*: number \[2, 0\] is 3e\+38; expected -\d+ to \d+",
            ),
            (Robot(0).next(seed=1), "unknown keys seed"),
        ):
            websocket.send(msgpack_numpy.packb(message))
            assert re.search(reason, websocket.recv(timeout=60))
        websocket.send(msgpack_numpy.packb(robot_1.next()))
        np.testing.assert_array_equal(msgpack_numpy.unpackb(websocket.recv(timeout=60))["actions"], alone[1][1])
    actions += [other.infer(robot.next())["actions"] for _ in range(2)]
    np.testing.assert_array_equal(actions, alone[0])


def test_openpis_client_raises_the_error_and_goes_on(server, alone):
    client = server.client()
    with pytest.raises(RuntimeError, match="Error in inference server:\nprompt is missing"):
        client.infer(Robot(0).next())
    np.testing.assert_array_equal(drive(client, 2, 2), alone[2][:2])


def test_what_is_too_large_is_not_read(server, alone):
    with raw(server) as websocket:
        websocket.recv()
        with pytest.raises(ConnectionClosed) as closed:
            websocket.send(b"\0" * (server.server.max_message + 1))
            websocket.recv(timeout=60)
        assert closed.value.rcvd.code == 1009
    np.testing.assert_array_equal(drive(server.client(), 0, 1), alone[0][:1])


def test_garbage_and_broken_connections_harm_nobody(server, alone):
    rng = np.random.default_rng(0)
    for content in (b"", rng.bytes(500), b"GET / HTTP/1.1\r\n", b"POST / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(content)
    half_sent = raw(server)
    half_sent.recv()
    half_sent.socket.sendall(b"\x82\xfe\x10\x00half")  # a frame's header, and the beginning of its content
    half_sent.socket.shutdown(socket.SHUT_RDWR)
    np.testing.assert_array_equal(drive(server.client(), 0, 2), alone[0][:2])


def test_messages_sent_ahead_are_answered_in_order(server, alone):
    robot = Robot(4)
    with raw(server) as websocket:
        websocket.recv()
        for message in (robot.start(), robot.next(), robot.next()):
            websocket.send(msgpack_numpy.packb(message))
        actions = [msgpack_numpy.unpackb(websocket.recv(timeout=60))["actions"] for _ in range(3)]
    np.testing.assert_array_equal(actions, alone[4])


def test_health_and_metrics(server):
    drive(server.client(), 0, 1)
    assert server.http("/healthz") == (200, "OK\n")
    assert server.http("/elsewhere")[0] == 404
    status, text = server.http("/metrics")
    numbers = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert status == 200 and all(float(number) >= 0 for number in numbers.values())
    answered = float(numbers['aim_requests_total{outcome="answered"}'])
    assert answered > 0 and float(numbers["aim_request_seconds_count"]) == answered
    assert numbers['aim_request_seconds_bucket{le="+Inf"}'] == numbers["aim_request_seconds_count"]
    assert float(numbers["aim_batch_rows_sum"]) >= answered
    names = {re.match(r"\w+", line).group() for line in numbers}
    families = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in names} == families


def test_a_web_page_may_not_connect(server):
    with pytest.raises(InvalidStatus, match="403"):
        connect(server.address, origin="http://evil.example", proxy=None)


def test_a_token(policy, alone):
    with running(policy, token="secret") as server:
        for token in (None, "Secret", "secret2"):
            with pytest.raises(InvalidStatus, match="401"):
                server.client(token)
        np.testing.assert_array_equal(drive(server.client("secret"), 0, 1), alone[0][:1])
        assert server.http("/healthz")[0] == 200
        assert server.http("/metrics")[0] == server.http("/metrics", Authorization="Basic secret")[0] == 401
        assert server.http("/metrics", Authorization="Bearer secret")[0] == 200
        assert 'outcome="unauthorized"} 5.0' in server.http("/metrics", Authorization="Bearer secret")[1]


def test_as_many_clients_as_may_and_episodes_as_long_as_may(policy):
    with running(policy, max_sessions=1, max_chunks=2) as server:
        client, robot = server.client(), Robot(0)
        with pytest.raises(ConnectionClosed, match="1 clients are connected already; try again later"):
            server.client()
        client.infer(robot.start())
        for _ in range(2):
            client.infer(robot.next())
        with pytest.raises(RuntimeError, match="the episode has 2 chunks"):
            client.infer(robot.next())
        client.infer(Robot(1).start())
        client._ws.close()
        wait_until(lambda: not server.server._clients)
        server.client()


def test_idle_clients_are_disconnected(policy):
    with running(policy, idle_timeout=1) as server, raw(server) as websocket:
        websocket.recv()
        with pytest.raises(ConnectionClosed, match="no message for 1 s"):
            websocket.recv(timeout=60)
        wait_until(lambda: not server.server._clients)
        assert counted(server, "connections", "expired") == 1


def test_a_full_queue_says_so_and_a_client_that_leaves_makes_room(policy, alone):
    with running(policy, max_queue=1) as server, ThreadPoolExecutor(2) as pool:
        clients = [server.client() for _ in range(2)]
        with held(server) as (busy, let_go):
            computed = pool.submit(clients[0].infer, Robot(0).start())
            assert busy.wait(30)
            with raw(server) as leaving:
                leaving.recv()
                leaving.send(msgpack_numpy.packb(Robot(1).start()))
                wait_until(lambda: len(server.server._batcher) == 1)
                with pytest.raises(RuntimeError, match="1 requests wait already; send this one again in a moment"):
                    clients[1].infer(Robot(1).start())
            wait_until(lambda: counted(server, "requests", "abandoned") == 1)
            waiting = pool.submit(clients[1].infer, Robot(1).start())
            wait_until(lambda: len(server.server._batcher) == 1)
            let_go.set()
        np.testing.assert_array_equal(computed.result(60)["actions"], alone[0][0])
        np.testing.assert_array_equal(waiting.result(60)["actions"], alone[1][0])
        assert counted(server, "requests", "busy") == 1


def test_a_network_that_fails_is_an_error_and_no_end(policy, alone):
    with running(policy) as server:
        client, robot, answer = server.client(), Robot(0), server.server._batcher.answer
        client.infer(robot.start())
        message = robot.next()
        server.server._batcher.answer = lambda requests: 1 / 0
        with pytest.raises(RuntimeError, match="the network failed \\(ZeroDivisionError\\); see the server's log"):
            client.infer(message)
        server.server._batcher.answer = answer
        np.testing.assert_array_equal(client.infer(message)["actions"], alone[0][1])
        assert server.http("/healthz")[0] == 200 and counted(server, "requests", "failed") == 1


def test_a_lost_accelerator_is_not_healthy(policy):
    with running(policy) as server:
        client, robot = server.client(), Robot(0)

        def fails(requests):
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")

        server.server._batcher.answer = fails
        with pytest.raises(RuntimeError, match="the network failed"):
            client.infer(robot.start())
        assert server.http("/healthz") == (503, "network down\n")


def test_others_are_served_while_a_message_is_read(policy, alone):
    with running(policy) as server, ThreadPoolExecutor(1) as pool:
        reading, let_go, read = threading.Event(), threading.Event(), server.server.episodes.reader.read

        def slow(message, episode):
            reading.set()
            assert let_go.wait(60)
            return read(message, episode)

        server.server.episodes.reader.read = slow
        reply = pool.submit(server.client().infer, Robot(0).start())
        try:
            assert reading.wait(30)
            assert server.http("/healthz")[0] == 200
        finally:
            let_go.set()
        np.testing.assert_array_equal(reply.result(60)["actions"], alone[0][0])


def test_stopping_answers_what_is_in_flight(policy, alone):
    with running(policy) as server, ThreadPoolExecutor(3) as pool:
        clients, idle = [server.client() for _ in range(2)], raw(server)
        idle.recv()
        with held(server) as (busy, let_go):
            computed = pool.submit(clients[0].infer, Robot(0).start())
            assert busy.wait(30)
            waiting = pool.submit(clients[1].infer, Robot(1).start())
            wait_until(lambda: len(server.server._batcher) == 1)
            server.stop()
            with pytest.raises(ConnectionClosed, match="the server stops"):
                idle.recv(timeout=60)
            with pytest.raises(OSError):
                raw(server)
            let_go.set()
            np.testing.assert_array_equal(computed.result(60)["actions"], alone[0][0])
            np.testing.assert_array_equal(waiting.result(60)["actions"], alone[1][0])
        with pytest.raises(ConnectionClosed):
            clients[0].infer(Robot(0).next())


def test_the_command_serves_and_ends_when_told(policy, alone, tmp_path, python):
    policy.pipe.save_pretrained(tmp_path / "policy")
    (tmp_path / "token").write_text("secret\n")
    command = [python, "-m", "aim_hf", "serve", "--policy", tmp_path / "policy", "--port=0", "--device=cpu"]
    command += ["--num_inference_steps=1", "--num_action_inference_steps=1", f"--token_file={tmp_path / 'token'}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    log = ""
    while not (serving := re.search(r"serving .* at ws://127.0.0.1:(\d+)", log)):
        log += (line := process.stderr.readline())
        assert line, log
    rest = threading.Thread(target=process.stderr.read)  # so that its log never blocks it
    rest.start()
    client, robot = WebsocketClientPolicy("127.0.0.1", int(serving[1]), "secret"), Robot(0)
    # Loaded tensors lie elsewhere in memory, which rounds their products otherwise.
    np.testing.assert_allclose(client.infer(robot.start())["actions"], alone[0][0], rtol=0, atol=1e-5)
    client._ws.send(msgpack_numpy.packb(robot.next()))
    time.sleep(0.2)
    os.kill(process.pid, signal.SIGTERM)
    np.testing.assert_allclose(msgpack_numpy.unpackb(client._ws.recv())["actions"], alone[0][1], rtol=0, atol=1e-5)
    assert process.wait(60) == 0
    rest.join()
