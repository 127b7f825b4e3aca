"""Parts of a chunk: what a session holds when the robot plans again before a chunk is over."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aim_hf.pipeline.recent import WARM_UP_CHUNKS, RecentFrames

from ..fixtures_pipeline import make_observation, make_pipeline, make_pose

FRAMES, STEPS = 4, 8  # RGB frames and actions of a chunk
TOLERANCE = {"rtol": 0, "atol": 2e-5}


def make_episode(seed: int, frames: int, rows: int = 1) -> tuple[list, np.ndarray]:
    """Observations of each row, `frames` after the first, and the actions between them."""
    rng = np.random.default_rng(seed)
    observations = [[make_observation(rng) for _ in range(1 + frames)] for _ in range(rows)]
    actions = [[make_pose(rng) for _ in range(frames * STEPS // FRAMES)] for _ in range(rows)]
    return observations, np.array(actions)


def appended(pipe, observations, actions, counts, rows=1):
    """A session that got `counts` frames one after another."""
    session, seen = pipe.start("ring bell", batch_size=rows), 1
    pipe.append(session, [of_row[:1] for of_row in observations])
    for count in counts:
        steps = slice((seen - 1) * 2, (seen - 1 + count) * 2)
        pipe.append(session, [of_row[seen : seen + count] for of_row in observations], actions[:, steps])
        seen += count
    return session


def sampled(pipe, session, seed=0):
    generators = [torch.Generator().manual_seed(seed) for _ in range(session.batch_size)]
    out = pipe(session=session, generator=generators, num_inference_steps=2, num_action_inference_steps=2)
    return [out.actions, out.frames["head_camera"], out.value_maps["left_camera"]]


def assert_same(one, other):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


@pytest.mark.parametrize("counts", [[2, 2], [1, 3], [4, 2, 2], [3, 1, 4]])
def test_parts_that_make_up_whole_chunks_are_the_same_history(counts):
    pipe = make_pipeline(history_chunks=2)
    observations, actions = make_episode(0, sum(counts))
    parts = appended(pipe, observations, actions, counts)
    whole = appended(pipe, observations, actions, [FRAMES] * (sum(counts) // FRAMES))
    assert_same(sampled(pipe, parts), sampled(pipe, whole))


@pytest.mark.parametrize("history", [None, 2, 1])
@pytest.mark.parametrize("counts", [[1], [3], [4, 2], [2, 4, 4, 3]])
def test_cached_is_uncached(history, counts):
    """A session that grew part by part holds the training window whose last chunk ends with the newest frame."""
    pipe = make_pipeline(history_chunks=history)
    observations, actions = make_episode(1, sum(counts))
    session = appended(pipe, observations, actions, counts)

    missing = -sum(counts) % FRAMES  # the episode is taken to have begun earlier, standing still
    frames = [observations[0][0]] * missing + observations[0]
    executed = np.concatenate([actions[:, :1].repeat(2 * missing, axis=1), actions], axis=1)
    canvases = [pipe.processor.pack_canvas(pipe.processor.observation_views(frame)) for frame in frames]
    latents = pipe.codec.encode(pipe.processor.canvas_to_pixels(np.stack(canvases)[None]))
    normalized = pipe.processor.normalize_actions(torch.tensor(executed), session.initial_pose).float()
    window, chunks = pipe.start("ring bell"), len(frames) // FRAMES
    first = chunks - (chunks if history is None else min(history, chunks))
    pipe.model.append(window.cache, latents[:, :, first : first + 1])
    for chunk in range(first, chunks):
        steps = slice(chunk * STEPS, (chunk + 1) * STEPS)
        pipe.model.append(window.cache, latents[:, :, chunk + 1 : chunk + 2], normalized[:, steps])
    window.initial_pose[:] = session.initial_pose
    unseen = tuple(latents[0].split(1, dim=1))
    window.decoders = [replace(decoder, unseen=unseen) for decoder in window.decoders]
    assert_same(sampled(pipe, session), sampled(pipe, window))


def test_rows_of_different_phase_share_a_batch():
    pipe = make_pipeline()
    observations, actions = make_episode(2, 8, rows=2)
    session = appended(pipe, observations, actions, [FRAMES], rows=2)
    pipe.append(session, observations[1][5:7], actions[1, 8:12], rows=[1])
    alone = [
        appended(pipe, observations[:1], actions[:1], [4]),
        appended(pipe, observations[1:], actions[1:], [4, 2]),
    ]
    together = sampled(pipe, session)
    for row, one in enumerate(alone):
        assert_same([part[[row]] for part in together], sampled(pipe, one))
    # They go on apart: a whole chunk of the one, another part of the other.
    pipe.append(session, observations[0][5:9], actions[0, 8:16], rows=[0])
    pipe.append(session, observations[1][7:8], actions[1, 12:14], rows=[1])
    alone = [
        appended(pipe, observations[:1], actions[:1], [4, 4]),
        appended(pipe, observations[1:], actions[1:], [4, 2, 1]),
    ]
    together = sampled(pipe, session)
    for row, one in enumerate(alone):
        assert_same([part[[row]] for part in together], sampled(pipe, one))


def test_a_fork_and_a_new_episode_have_their_own_frames():
    pipe = make_pipeline()
    observations, actions = make_episode(3, 8)
    session = appended(pipe, observations, actions, [2])
    fork = session.select([0, 0])
    pipe.append(fork, [observations[0][3:5]] * 2, actions[:, 4:8].repeat(2, axis=0))
    assert_same(sampled(pipe, session), sampled(pipe, appended(pipe, observations, actions, [2])))
    pipe.reset(fork, 1, "ring bell")
    pipe.append(fork, observations[0][0], rows=[1])
    pipe.append(fork, observations[0][1:3], actions[:, :4], rows=[1])
    assert_same([part[[1]] for part in sampled(pipe, fork)], sampled(pipe, session))


@pytest.mark.parametrize("full_at", [1, 2])
def test_a_part_that_failed_may_be_appended_again(full_at, monkeypatch):
    """The memory is full when the first frame of the history is appended again, or a chunk after it."""
    pipe = make_pipeline(history_chunks=2)
    observations, actions = make_episode(5, 6)
    session, append, calls = appended(pipe, observations, actions, [4]), pipe.model.append, []
    before, part = sampled(pipe, session), (observations[0][5:7], actions[0, 8:12])

    def full(*arguments, **options):
        calls.append(arguments)
        if len(calls) == full_at:
            raise torch.OutOfMemoryError
        append(*arguments, **options)

    monkeypatch.setattr(pipe.model, "append", full)
    with pytest.raises(torch.OutOfMemoryError):
        pipe.append(session, *part)
    monkeypatch.undo()
    assert session.chunks == [1]
    assert_same(sampled(pipe, session), before)
    pipe.append(session, *part)
    assert_same(sampled(pipe, session), sampled(pipe, appended(pipe, observations, actions, [4, 2])))


def test_only_frames_that_a_history_needs_are_kept():
    frames = RecentFrames(np.zeros((1, 4, 4, 3), np.uint8), torch.zeros(0, 3))
    for chunk in range(6):
        canvases = np.full((FRAMES, 4, 4, 3), 1 + chunk, np.uint8)
        frames = frames.extended(canvases, torch.full((STEPS, 3), 1.0 + chunk), FRAMES, history_chunks=1)
    assert len(frames.canvases) == FRAMES * (1 + WARM_UP_CHUNKS + 1) and not frames.whole
    assert len(frames.actions) == 2 * (len(frames.canvases) - 1)
    canvases, actions = frames.whole_chunks(FRAMES)
    assert len(canvases) == 1 + 3 * FRAMES and len(actions) == 3 * STEPS
    assert (canvases[-FRAMES:] == 6).all() and (actions[-STEPS:] == 6).all()


def test_a_part_that_does_not_fit_is_refused():
    pipe = make_pipeline()
    observations, actions = make_episode(4, 4, rows=2)
    session = appended(pipe, observations, actions, [], rows=2)
    before = sampled(pipe, session)
    for seen, executed, match in (
        ([observations[0][1:3], observations[1][1:4]], actions[:, :4], "row 1 has 3 observations; .* equally many"),
        ([of_row[1:3] for of_row in observations], actions[:, :6], r"\(2, 6, 16\); expected \(2, 4, 16\)"),
        ([[], []], actions[:, :0], "row 0 has 0 observations"),
    ):
        with pytest.raises(ValueError, match=match):
            pipe.append(session, seen, executed)
    assert_same(sampled(pipe, session), before)
