"""Many clients' requests in one batch: each gets the bits that it gets alone, and those of the evaluator's policy."""

import numpy as np
import pytest
import torch

from aim_hf.pipeline.session import AIMSession
from aim_hf.protocol.observations import read_endpose, read_images
from aim_hf.serving.batching import Batcher
from aim_hf.serving.episodes import AIMEpisodes
from aim_hf.serving.requests import ServedEpisode

from .fixtures_serving import Robot, make_policy

SIZES = {"head_camera": (64, 96), "left_camera": (32, 48), "right_camera": (32, 48)}


class Client:
    def __init__(self, episodes: AIMEpisodes, seed: int):
        self.episodes, self.robot, self.episode, self.actions = episodes, Robot(seed), ServedEpisode(), []

    def request(self, **more):
        message = self.robot.next(**more) if self.actions else self.robot.start(**more)
        return self.episodes.reader.read(message, self.episode)

    def ask(self, chunks: int, **more):
        for _ in range(chunks):
            ask_together([self], **more)
        return self


def ask_together(clients, **more):
    requests = [client.request(**more) for client in clients]
    assert len({request.form for request in requests}) == 1
    replies = clients[0].episodes.answer(requests)
    for client, reply in zip(clients, replies, strict=True):
        client.actions.append(reply["actions"])
    return replies


@pytest.fixture(scope="module")
def episodes(policy):
    return AIMEpisodes(policy, batch_sizes=[8])


@pytest.fixture(scope="module")
def alone(episodes):
    """Five chunks of each of four episodes, one after the other."""
    return [Client(episodes, seed).ask(5).actions for seed in range(4)]


def test_the_evaluators_policy_gives_the_same_bits(policy, episodes, alone):
    robots = [Robot(seed) for seed in range(4)]
    policy.start(["ring the bell"] * 4, list(range(4)))
    executed = None
    for chunk in range(5):
        observations = []
        for robot in robots:
            message = robot.next() if chunk else robot.start()
            observations.append(read_images(message["images"], episodes.reader.sizes, 4 if chunk else 1))
            if not chunk:
                observations[-1][0]["endpose"] = read_endpose(message["endpose"])
        executed = policy.predict(observations, executed).actions
        np.testing.assert_array_equal(executed, [actions[chunk] for actions in alone])


def test_together_is_alone(episodes, alone):
    clients = [Client(episodes, seed) for seed in range(4)]
    for _ in range(5):
        ask_together(clients)
    np.testing.assert_array_equal([client.actions for client in clients], alone)
    assert not np.array_equal(alone[0], alone[1])


def test_a_part_of_a_chunk_may_be_executed(episodes):
    """Two frames after four actions: the reply is that of the evaluator's policy, which plans again there."""
    policy = make_policy(n_action_steps=4)
    robot, episode = Robot(1), ServedEpisode()
    start, later = robot.start(), robot.next()
    part = later | {"images": {key: clip[:2] for key, clip in later["images"].items()}}
    served = AIMEpisodes(policy, batch_sizes=[8])
    first = served.answer([served.reader.read(start, episode)])[0]["actions"]
    part["executed_actions"] = first[:4]
    second = served.answer([served.reader.read(part, episode)])[0]["actions"]
    observations = read_images(start["images"], served.reader.sizes, 1)
    observations[0]["endpose"] = read_endpose(start["endpose"])
    policy.start([start["prompt"]], [start["seed"]])
    executed = policy.predict([observations]).actions
    np.testing.assert_array_equal(first[:4], executed[0])
    again = policy.predict([read_images(part["images"], served.reader.sizes, 4)], executed).actions
    np.testing.assert_array_equal(second[:4], again[0])
    with pytest.raises(ValueError, match=r"executed_actions have shape \(8, 16\); expected \(4, 16\)"):
        served.reader.read(part | {"executed_actions": first}, episode)


def test_parts_of_chunks_run_together_where_as_many_frames_are_encoded_again(episodes):
    """Clients that saw two, three and three frames, then two more: each gets the bits that it gets alone."""

    def part(client, frames):
        images, executed = client.robot.images(frames), np.array(client.actions[-1][: 2 * frames])
        return client.request(images=images, executed_actions=executed)

    def clients():
        of = [Client(episodes, seed).ask(1) for seed in range(3)]
        for client, frames in zip(of, (2, 3, 3), strict=True):
            client.actions.append(episodes.answer([part(client, frames)])[0]["actions"])
        return of

    alone = [episodes.answer([part(client, 2)])[0]["actions"] for client in clients()]
    two, three, also = (part(client, 2) for client in clients())
    assert two.form != three.form == also.form
    np.testing.assert_array_equal([reply["actions"] for reply in episodes.answer([three, also])], alone[1:])
    two, three, _ = clients()
    assert two.request().form == three.request().form  # of a whole chunk, nothing is encoded again


def test_of_different_ages_too_once_the_history_is_full(episodes, alone):
    """With two chunks of history, an episode of three chunks holds as much as one of four."""
    young, old = Client(episodes, 0).ask(3), Client(episodes, 1).ask(4)
    assert young.request().form == old.request().form != Client(episodes, 2).ask(1).request().form
    young, old = Client(episodes, 0).ask(3), Client(episodes, 1).ask(4)
    ask_together([old, young])
    np.testing.assert_array_equal(young.actions, alone[0][:4])
    np.testing.assert_array_equal(old.actions, alone[1])


def test_a_new_prompt_starts_a_new_episode_on_the_same_connection(episodes, alone):
    client = Client(episodes, 3).ask(2)
    client.robot, client.actions = Robot(0), []
    np.testing.assert_array_equal(client.ask(5).actions, alone[0])


def test_the_executed_actions_are_those_that_were_sent_unless_others_are_given(episodes, alone):
    client = Client(episodes, 0).ask(1)
    sent = client.episode.actions
    np.testing.assert_array_equal(client.ask(1, executed_actions=sent).actions, alone[0][:2])
    other = Client(episodes, 0).ask(1)
    changed = sent.copy()
    changed[:, 7] = 1 - changed[:, 7]
    assert not np.array_equal(other.ask(1, executed_actions=changed).actions[1], alone[0][1])


def test_no_robot_waits_for_compilation():
    """The warm-up runs the layers in each form that requests run them in, for which compiled layers have code each."""
    policy, forms = make_policy(action_lookahead_frames=1), []

    def form(layer, inputs):
        *experts, _, past, text = (*inputs, None)[:6]
        tokens = [
            None if expert is None else [(t.shape, t.stride()) if torch.is_tensor(t) else t for t in expert]
            for expert in experts
        ]
        forms.append(repr((layer is policy.pipe.model.blocks[0], tokens, past[0].shape[:2], text is None)))

    for layer in policy.pipe.model.blocks:
        layer.register_forward_pre_hook(form)
    episodes = AIMEpisodes(policy, batch_sizes=[2])
    episodes.warm_up()
    known = set(forms)
    clients = [Client(episodes, seed).ask(4) for seed in range(2)]
    some = clients[:1]
    ask_together(clients, committed_actions=clients[0].actions[-1][:1])
    ask_together(some)
    ask_together(clients)  # of two ages
    ask_together(clients, committed_actions=clients[0].actions[-1][:2])
    ask_together(some, images=clients[0].robot.images(3), executed_actions=clients[0].actions[-1][:6])
    ask_together(some)
    assert set(forms) == known


def test_pictures(policy, episodes):
    client, robot = Client(episodes, 5), Robot(5)
    reply = ask_together([client], pictures="all")[0]
    policy.start(["ring the bell"], [5])
    message = robot.start()
    observation = read_images(message["images"], episodes.reader.sizes, 1)[0]
    observation["endpose"] = read_endpose(message["endpose"])
    prediction = policy.predict([[observation]], pictures="all")
    np.testing.assert_array_equal(reply["actions"], prediction.actions[0])
    for ours, theirs in ((reply["value_maps"], prediction.value_maps), (reply["frames"], prediction.frames)):
        np.testing.assert_array_equal(ours["cam_high"], theirs["head_camera"][0])
        assert ours["cam_left_wrist"].shape[:3] == (4, 32, 48)


def test_an_episode_that_failed_stays_as_it_was(episodes, alone, monkeypatch):
    client = Client(episodes, 0).ask(2)
    request = client.request()
    with monkeypatch.context() as patch:
        patch.setattr(episodes.pipe.model, "world_velocity", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            episodes.answer([request])
    np.testing.assert_array_equal(episodes.answer([request])[0]["actions"], alone[0][2])


def test_a_batch_that_fails_at_its_last_row_moves_no_episode(episodes, alone, monkeypatch):
    """As where memory runs out: the first rows had moved on, and were then asked again for the same chunk."""
    clients = [Client(episodes, seed).ask(1) for seed in range(2)]
    requests = [client.request() for client in clients]
    select = AIMSession.select
    with monkeypatch.context() as patch:
        patch.setattr(AIMSession, "select", lambda session, rows: 1 / 0 if rows == [1] else select(session, rows))
        batcher = Batcher(episodes.reader.check_prompt, episodes.answer, rows=8, max_queue=8)
        replies = batcher._answers(requests)
        batcher.stop()
    for reply, expected in zip(replies, alone):
        np.testing.assert_array_equal(reply["actions"], expected[1])
    for client, expected in zip(clients, alone):
        np.testing.assert_array_equal(episodes.answer([client.request()])[0]["actions"], expected[2])


def test_actions_that_are_not_finite_are_not_sent(episodes, alone, monkeypatch):
    clients = [Client(episodes, seed).ask(1) for seed in range(2)]
    unnormalize = episodes.pipe.processor.unnormalize_actions

    def broken(actions, pose):
        actions = unnormalize(actions, pose)
        actions[0] = torch.nan
        return actions

    requests = [client.request() for client in clients]
    monkeypatch.setattr(episodes.pipe.processor, "unnormalize_actions", broken)
    error, reply = episodes.answer(requests)
    assert isinstance(error, RuntimeError) and "not finite" in str(error)
    np.testing.assert_array_equal(reply["actions"], alone[1][1])


def test_a_row_that_becomes_nan_in_the_network_stays_alone(episodes, alone, monkeypatch):
    """The pipeline answers nobody then, naming the row; the batcher asks again for each by itself."""
    clients = [Client(episodes, seed).ask(1) for seed in range(2)]
    with torch.no_grad():
        for keys, values in clients[0].episode.session.cache._buffers:
            keys.fill_(torch.nan), values.fill_(torch.nan)
    requests = [client.request() for client in clients]
    with pytest.raises(RuntimeError, match=r"actions of rows \[0\] are not finite"):
        episodes.answer(requests)
    batcher = Batcher(episodes.reader.check_prompt, episodes.answer, rows=8, max_queue=8)
    failed, good = batcher._answers(requests)
    batcher.stop()
    assert isinstance(failed, RuntimeError)
    np.testing.assert_array_equal(good["actions"], alone[1][1])


def test_stacked_sessions_go_on_as_before(policy):
    """Sessions of unlimited history whose buffers have grown differently, and of guidance."""
    pipe = make_policy(guidance_scale=2.0).pipe
    pipe.model.config.history_chunks = None
    generators = lambda: [torch.Generator().manual_seed(seed) for seed in range(2)]  # noqa: E731
    robots = [Robot(seed) for seed in range(2)]
    sessions = []
    for robot, chunks in zip(robots, (1, 6), strict=True):
        session = pipe.start("ring the bell", negative_prompt="")
        message = robot.start()
        observation = read_images(message["images"], SIZES, 1)[0]
        observation["endpose"] = read_endpose(message["endpose"])
        pipe.append(session, observation)
        actions = np.tile(message["endpose"], (8, 1))
        for _ in range(chunks):
            images = robot.next()["images"]
            pipe.append(
                session,
                read_images(images, SIZES, 4),
                actions,
            )
        sessions.append(session)
    stacked = AIMSession.stack(sessions)
    assert stacked.chunks == [1, 6]
    options = {"num_inference_steps": 1, "guidance_scale": 2.0}
    together = pipe(session=stacked, generator=generators(), **options)
    for row, session in enumerate(sessions):
        apart = pipe(session=session, generator=generators()[row : row + 1], **options)
        np.testing.assert_allclose(together.actions[row], apart.actions[0], atol=1e-5)
        for camera in apart.frames:
            np.testing.assert_allclose(together.frames[camera][row], apart.frames[camera][0], atol=1e-5)


def test_sessions_that_do_not_fit_are_not_stacked(policy):
    pipe, other = policy.pipe, make_policy().pipe
    for nothing in ([], None, pipe.start("lift"), ["lift"]):
        with pytest.raises(ValueError, match="expected a list of at least one AIMSession"):
            AIMSession.stack(nothing)
    with pytest.raises(ValueError, match="of several pipelines"):
        AIMSession.stack([pipe.start("lift"), other.start("lift")])
    with pytest.raises(ValueError, match="negative prompt"):
        AIMSession.stack([pipe.start("lift"), pipe.start("lift", negative_prompt="")])
