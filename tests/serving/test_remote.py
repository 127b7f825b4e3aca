"""Evaluating policies that are somewhere else."""

import json
import re
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from openpi_client import msgpack_numpy
from websockets.sync.server import serve

from aim_hf.commands import run
from aim_hf.evaluation.evaluate import Protocol, evaluate
from aim_hf.model.canvas import t_pose_canvas
from aim_hf.pipeline.sampling_config import SamplingConfig
from aim_hf.protocol.observations import read_endpose, read_images
from aim_hf.rollout import dialects
from aim_hf.rollout.policies import AIMPolicy
from aim_hf.rollout.remote import Connection, RemotePolicy, RemotePolicyError

from ..fixtures_pipeline import make_processor
from ..rollout.fixtures_policy import CANVAS, HEAD, STATISTICS, WRIST, make_policy
from .fixtures_serving import Robot, running

ROOT = Path(__file__).parents[2]
SIZES = {"head_camera": (64, 96), "left_camera": (32, 48), "right_camera": (32, 48)}


class OtherServer:
    """A server of another policy: `infer` answers messages, which it keeps."""

    def __init__(self, infer, metadata=None):
        self.infer, self.metadata, self.messages = infer, metadata or {}, []

    def __enter__(self):
        def converse(websocket):
            websocket.send(msgpack_numpy.packb(self.metadata))
            for data in websocket:
                self.messages.append(msgpack_numpy.unpackb(data))
                reply = self.infer(self.messages[-1])
                websocket.send(reply if isinstance(reply, str) else msgpack_numpy.packb(reply))

        self.server = serve(converse, "127.0.0.1", 0, compression=None, max_size=None)
        self.address = f"ws://127.0.0.1:{self.server.socket.getsockname()[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.thread.join()


class StoppedLater:
    """A policy whose server ends when its second batch starts."""

    def __init__(self, policy, server):
        self.policy, self.server, self.batches = policy, server, 0

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        self.batches += 1
        self.policy.start(instructions, seeds)
        if self.batches == 2:
            self.server.__exit__()


def records(output):
    return [json.loads(line) for line in (output / "episodes" / "click_bell.jsonl").read_text().splitlines()]


def test_results_are_those_in_process_though_the_server_went_away(policy, tmp_path):
    def run(policy, name, episodes):
        return evaluate(
            policy, Protocol(), tmp_path / name, episodes, ["click_bell"], batch_size=1, videos=0, num_workers=1
        )

    with running(policy) as server:
        with pytest.raises(RemotePolicyError, match="went away .* then run the same command again"):
            run(StoppedLater(RemotePolicy(server.address), server), "remote", 2)
    assert len(records(tmp_path / "remote")) == 1
    with running(policy) as server:  # at another address
        remote = run(RemotePolicy(server.address), "remote", 2)
    here = run(policy, "here", 2)
    assert records(tmp_path / "remote") == records(tmp_path / "here")
    assert json.loads((tmp_path / "remote" / "results.json").read_text()) == remote
    assert remote.pop("server") == {"batch_sizes": [8], "image_keys": {}, "resize": False}
    assert remote.pop("command") and here.pop("command") and remote == here
    assert remote["policy"] == "random-0" and remote["first_chunk_peak_within_10_percent"]["count"] == 2


def test_predictions_are_those_in_process_with_all_their_pictures(server, policy):
    remote = RemotePolicy(server.address)
    assert remote.settings.items() > policy.settings.items() and remote.pixel_size == policy.pixel_size
    assert remote.interface == policy.interface
    robots = [Robot(seed) for seed in range(3)]
    observations = []
    for robot in robots:
        message = robot.start()
        observations.append(read_images(message["images"], SIZES, 1))
        observations[-1][0]["endpose"] = read_endpose(message["endpose"])
    later = [read_images(robot.next()["images"], SIZES, 4) for robot in robots]
    predictions = []
    for each in (policy, remote):
        each.start(["ring the bell", "lift the pot", "ring the bell"], [7, 8, 9])
        first = each.predict(observations, pictures="all")
        predictions.append((first, each.predict(later, first.actions, pictures="value_maps")))
    remote.close()
    for here, there in zip(*predictions):
        np.testing.assert_array_equal(there.actions, here.actions)
        for name, clips in here.value_maps.items():
            np.testing.assert_array_equal(there.value_maps[name], clips)
    np.testing.assert_array_equal(predictions[1][0].frames["left_camera"], predictions[0][0].frames["left_camera"])
    assert predictions[1][1].frames is None
    with pytest.raises(ValueError, match="acts on its own value maps"):
        remote.predict(later, first.actions, value_maps={})


@pytest.mark.parametrize(
    "image_keys",
    [
        {"left_camera": "cam_right_wrist", "right_camera": "cam_left_wrist"},
        {"head_camera": "observation/image", "left_camera": "observation/wrist_image"},
    ],
    ids=["swapped", "renamed"],
)
def test_each_camera_goes_by_the_key_that_its_server_gives_it(policy, image_keys):
    observations = [read_images(Robot(0).images(), SIZES, 1)]
    observations[0][0]["endpose"] = read_endpose(Robot(0).start()["endpose"])
    with running(policy, image_keys=image_keys) as server:
        remote = RemotePolicy(server.address)
        assert remote.interface == policy.interface
        for each in (policy, remote):
            each.start(["ring the bell"], [7])
        here, there = (each.predict(observations, pictures="all") for each in (policy, remote))
        remote.close()
    np.testing.assert_array_equal(there.actions, here.actions)
    for clips, others in ((here.value_maps, there.value_maps), (here.frames, there.frames)):
        assert clips.keys() == others.keys()
        for name, clip in clips.items():
            np.testing.assert_array_equal(others[name], clip)


def test_a_policy_of_the_wrist_cameras_alone_is_evaluated_and_filmed_here_and_remotely(tmp_path):
    cameras = t_pose_canvas(CANVAS, HEAD, WRIST)
    del cameras["head_camera"]
    pipe = make_policy().pipe
    processor = make_processor(canvas_size=CANVAS, cameras=cameras, max_text_length=32, action_statistics=STATISTICS)
    pipe.register_modules(processor=processor)
    here = AIMPolicy(pipe, {"policy": "wrists"}, SamplingConfig(1, 1))
    with running(here) as server:
        remote = RemotePolicy(server.address)
        for policy, name in ((here, "here"), (remote, "remote")):
            results = evaluate(policy, Protocol(), tmp_path / name, 1, ["click_bell"], num_workers=1)
            assert results["first_chunk_peak_within_10_percent"] == {"share": None, "count": 0}  # of the head camera
            assert (tmp_path / name / "contact_sheet.png").exists()
        remote.close()
    (record,) = records(tmp_path / "remote")
    assert [record] == records(tmp_path / "here") and record["video"] and len(record["peak_error"]) == 2


def test_openpis_policies_are_evaluated_and_filmed(tmp_path):
    """One that stands still, executed twenty actions at a time."""
    with OtherServer(lambda obs: {"actions": np.tile(obs["state"], (25, 1))}, {"reset_pose": np.zeros(3)}) as server:
        policy = RemotePolicy(server.address, dialects.openpi(20), name="still")
        results = evaluate(policy, Protocol(), tmp_path, 1, ["click_bell"], num_workers=1)
        policy.close()
    assert results["policy"] == "still" and results["dialect"] == "openpi" and results["actions_per_chunk"] == 20
    assert results["server_metadata"] == {"reset_pose": [0, 0, 0]} and results["mean_rate"] == 0
    assert results["first_chunk_peak_within_10_percent"]["count"] == 0
    first, second = server.messages
    assert first.keys() == {"state", "images", "prompt"} and first["prompt"] == records(tmp_path)[0]["instruction"]
    assert {key: image.shape for key, image in first["images"].items()} == {
        "cam_high": (3, 64, 96),
        "cam_left_wrist": (3, 32, 48),
        "cam_right_wrist": (3, 32, 48),
    }
    assert first["images"]["cam_high"].dtype == np.uint8 and first["state"].shape == (14,)
    np.testing.assert_allclose(second["state"], first["state"], atol=0.01)  # it did stand still
    assert [path.suffix for path in (tmp_path / "videos").iterdir()] == [".mp4"]
    assert not (tmp_path / "contact_sheet.png").exists()


def rotation(xyzw):
    x, y, z, w = xyzw / np.linalg.norm(xyzw)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def test_lingbot_va():
    """Its server gives two latent frames of actions, relative to the first pose, and then wants to see both."""
    rng, messages = np.random.default_rng(0), []
    chunks = [rng.normal(size=(16, 2, 16)) for _ in range(3)]

    def ask(message):
        messages.append(message)
        return (
            {"action": chunks[sum("prompt" in m and "obs" in m for m in messages) - 1]} if "prompt" in message else {}
        )

    def observation():
        quaternions = [q / np.linalg.norm(q) for q in rng.normal(size=(2, 4))]
        pose = np.concatenate([[*rng.normal(size=3), *q, 0.5] for q in quaternions])
        views = {name: {"rgb": rng.integers(0, 256, (*size, 3), dtype=np.uint8)} for name, size in SIZES.items()}
        return {"observation": views, "endpose": read_endpose(pose), "joint_action": {"vector": rng.normal(size=14)}}

    dialect = dialects.lingbot_va()
    episode, executed, first = dialect.episode(ask, "lift the pot", 0), None, observation()
    actions, seen = [], [[first]]
    for _ in range(4):
        actions.append(episode.next_chunk(seen[-1], executed, "none")["actions"])
        executed = actions[-1]
        seen.append([observation() for _ in range(4)])
    assert [sorted(set(message) - {"save_visualization"}) for message in messages] == [
        ["prompt", "reset"],
        ["obs", "prompt"],
        ["compute_kv_cache", "imagine", "obs", "state"],
        ["obs", "prompt"],
        ["compute_kv_cache", "imagine", "obs", "state"],
        ["obs", "prompt"],
    ]
    assert [len(messages[2]["obs"]), len(messages[4]["obs"])] == [4, 8]
    assert messages[2]["state"] is chunks[0] and messages[4]["state"] is chunks[1]
    shown = messages[4]["obs"][5]
    np.testing.assert_array_equal(
        shown["observation.images.cam_left_wrist"], seen[3][1]["observation"]["left_camera"]["rgb"]
    )
    np.testing.assert_array_equal(shown["observation.state"], seen[3][1]["joint_action"]["vector"])
    assert shown["task"] == "lift the pot"

    # Frame 1 of the first chunk, frames 0 and 1 of the second, frame 0 of the third.
    wanted = np.stack([chunks[0][:, 1], chunks[1][:, 0], chunks[1][:, 1], chunks[2][:, 0]]).transpose(0, 2, 1)
    pose = np.concatenate([[*first["endpose"][f"{arm}_endpose"], 0.5] for arm in ("left", "right")])
    for action, relative in zip(np.concatenate(actions), np.concatenate(wanted), strict=True):
        for start in (0, 8):
            p0, q0 = pose[start : start + 3], pose[start + 3 : start + 7]
            got, asked = action[start : start + 8], relative[start : start + 8]
            # Composed as if the four numbers were xyzw ...
            np.testing.assert_allclose(rotation(got[3:7]), rotation(q0) @ rotation(asked[3:7]), atol=1e-9)
            # ... while positions are of a point that lies 0.12 m behind the tool center, by what wxyz says.
            forward, forward0 = (rotation(np.roll(q, -1))[:, 0] for q in (got[3:7], q0))
            behind, behind0 = got[:3] - 0.12 * forward, p0 - 0.12 * forward0
            np.testing.assert_allclose(behind - behind0, asked[:3], atol=1e-9)
            assert got[7] == asked[7]


def test_lingbot_va_takes_one_episode_at_a_time():
    with OtherServer(lambda message: {}) as server:
        policy = RemotePolicy(server.address, dialects.lingbot_va())
        with pytest.raises(ValueError, match="2 episodes at once, .* --batch_size 1"):
            policy.start(["lift", "lift"], [1, 2])


OBSERVATION = read_images(Robot(0).images(), SIZES, 1)[0] | {"joint_action": {"vector": np.zeros(14)}}


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("Traceback: boom", "answered with an error: Traceback: boom"),
        ({"action": np.zeros((20, 14))}, "doesn't fit .*actions"),
        ({"actions": np.zeros((19, 14))}, r"doesn't fit .*\(19, 14\); expected at least 20"),
        ({"actions": np.full((20, 14), np.nan)}, "NaN"),
        ({"actions": [["0.1"] * 14] * 20}, "doesn't fit"),
        ({"actions": [[None] * 14] * 20}, "doesn't fit"),
        ([1], "sent list, not a map"),
    ],
)
def test_replies_that_do_not_fit_are_errors(reply, reason):
    with OtherServer(lambda message: reply) as server:
        policy = RemotePolicy(server.address, dialects.openpi(20))
        policy.start(["lift"], [1])
        with pytest.raises(RemotePolicyError, match=reason):
            policy.predict([[OBSERVATION]])
        policy.close()


def test_a_connection_is_opened_as_websockets_wants_it(server):
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        connection = Connection(server.address)
        assert connection.metadata["server"] == "aim_hf"
        connection.close()
    with pytest.raises(RemotePolicyError, match="went away"):
        connection.ask({})


@pytest.mark.parametrize("address", ["ws://127.0.0.1:port", "ws://127.0.0.1:80000", "ws://..", "ws://[::1"])
def test_an_address_of_no_host_or_port_is_named(address):
    with pytest.raises(
        RemotePolicyError, match=rf"no policy server answers at {re.escape(address)} \(.*\); .*the port"
    ):
        Connection(address)


def test_a_server_of_another_release_is_named():
    with OtherServer(lambda message: {}, {"server": "aim_hf", "settings": {}}) as server:
        with pytest.raises(RemotePolicyError, match="of another release of AIM, whose metadata have no 'pixel_size'"):
            RemotePolicy(server.address)


@pytest.mark.parametrize(
    ("odd", "told"),
    [
        ({"settings": []}, "settings is of type list; expected dict."),
        ({"settings": {"server": "aim_hf"}}, "settings.server is of type str; expected dict."),
        ({"settings": {"server": {"image_keys": 5}}}, "settings.server.image_keys is of type int; expected dict."),
        (
            {"settings": {"server": {"image_keys": {"head_camera": 5}}}},
            "settings.server.image_keys.head_camera is of type int; expected str.",
        ),
        ({"pixel_size": ["head_camera"]}, "pixel_size is of type list; expected dict."),
        ({"pixel_size": {"head_camera": 4}}, "pixel_size.head_camera is 4; expected 2 finite numbers."),
        ({"images": None}, "images is of type NoneType; expected dict."),
        ({"images": {"cam_high": [3, 64]}}, "images.cam_high is [3, 64]; expected 3 finite numbers."),
        ({"fps": "25"}, "fps is '25'; expected a number above 0."),
        ({"action_dim": None}, "action_dim is None; expected a whole number, at least 1."),
        ({"action_space": 3}, "action_space is 3; expected one of ee, qpos."),
        ({"actions_per_chunk": 8.5}, "actions_per_chunk is 8.5; expected a whole number, at least 1."),
        ({"actions_per_frame": "2"}, "actions_per_frame is '2'; expected a whole number, at least 1."),
    ],
    ids=str,
)
def test_metadata_of_another_type_are_named(odd, told):
    metadata = {
        "server": "aim_hf",
        "settings": {},
        "action_space": "ee",
        "action_dim": 16,
        "actions_per_chunk": 8,
        "actions_per_frame": 2,
        "images": {"cam_high": [3, 64, 96]},
        "pixel_size": {"head_camera": [4, 4]},
    }
    with OtherServer(lambda message: {}, metadata | {"fps": 25}) as server:
        assert RemotePolicy(server.address).interface.fps == 25
    with OtherServer(lambda message: {}, metadata | odd) as server:
        with pytest.raises(RemotePolicyError, match=f"sent metadata that don't fit: {re.escape(told)} Look at the s"):
            RemotePolicy(server.address)


@pytest.mark.parametrize("value", [b"raw", float("nan")], ids=str)
def test_metadata_that_results_cannot_record_are_named(value):
    with OtherServer(lambda message: {}, {"reset_pose": [0, value]}) as server:
        with pytest.raises(RemotePolicyError, match="don't fit: reset_pose is .*; expected what JSON can hold"):
            RemotePolicy(server.address, dialects.openpi(4))


def test_a_server_that_is_not_there_or_closed_to_us(policy):
    with OtherServer(lambda message: {}) as server:
        with pytest.raises(ValueError, match="say by --dialect"):
            RemotePolicy(server.address)
    with pytest.raises(RemotePolicyError, match="no policy server answers at ws://127.0.0.1"):
        RemotePolicy(server.address)
    with running(policy, token="secret") as server:
        with pytest.raises(RemotePolicyError, match="HTTP status 401; give --token_file"):
            RemotePolicy(server.address)
        assert RemotePolicy(server.address, token="secret").settings["policy"] == "random-0"
        for options in ({"dialect": dialects.openpi(4)}, {"name": "mine"}):  # neither is ignored
            with pytest.raises(ValueError, match="is AIM's, .*; leave out --dialect, --actions_per_chunk and"):
                RemotePolicy(server.address, token="secret", **options)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--guidance_scale=2"], "guidance_scale: the server decides that"),
        (["--dialect=openpi"], "--dialect openpi and --actions_per_chunk go together"),
        (["--dialect=lingbot-va"], "give --batch_size 1"),
        (["--value_maps=true"], "--value_maps true needs the policy in this process"),
        ([], "no policy server answers at ws://127.0.0.1:9"),
        (["--policy=checkpoints/aim-tiny", "--dialect=lingbot-va"], "is no ws:// address"),
    ],
)
def test_the_command_says_what_is_wrong(options, reason, tmp_path, monkeypatch, capsys):
    command = ["evaluate", "--policy=ws://127.0.0.1:9", "--episodes=1", f"--output_dir={tmp_path / 'results'}"]
    with pytest.raises(SystemExit) as ended:
        run([*command, *options])
    assert ended.value.code == 2 and reason in capsys.readouterr().err
    assert not (tmp_path / "results").exists()
