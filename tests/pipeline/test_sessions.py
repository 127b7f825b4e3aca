"""Rows, seeds and sessions don't disturb each other, and wrong ones are refused."""

import copy
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from aim_hf.pipeline.pipeline_aim import AIMPipeline
from aim_hf.pipeline.session import AIMSession

from ..fixtures_pipeline import make_observation, make_pipeline
from .fixtures_rollouts import INSTRUCTIONS, ODD, assert_same, make_episode, roll_out, seeded


def test_the_same_seed_gives_the_same_rollout(pipe, rng):
    """Over more chunks than the history holds."""
    episodes = [make_episode(pipe, rng, chunks=3) for _ in range(2)]
    first, again, other = (roll_out(pipe, INSTRUCTIONS[:2], episodes, seeded(seed)) for seed in (7, 7, 8))
    for a, b, c in zip(first, again, other, strict=True):
        assert_same(a, b)
        assert np.abs(a.actions - c.actions).max() > 1e-3


def test_a_row_with_its_own_generator_does_not_know_the_batch(pipe, rng):
    episodes = [make_episode(pipe, rng, chunks=2) for _ in range(3)]
    together = roll_out(pipe, INSTRUCTIONS, episodes, [seeded(i) for i in range(3)])
    for i in range(3):
        alone = roll_out(pipe, INSTRUCTIONS[i : i + 1], episodes[i : i + 1], [seeded(i)])
        for a, b in zip(together, alone, strict=True):
            assert_same(a, b, rows=slice(i, i + 1), atol=1e-4)


def test_rows_do_not_influence_each_other(pipe, rng):
    episodes = [make_episode(pipe, rng, chunks=2) for _ in range(3)]
    for_row_0 = roll_out(pipe, INSTRUCTIONS[:2], episodes[:2], [seeded(0), seeded(1)])
    changed = roll_out(pipe, [INSTRUCTIONS[0], INSTRUCTIONS[2]], [episodes[0], episodes[2]], [seeded(0), seeded(2)])
    for a, b in zip(for_row_0, changed, strict=True):
        assert_same(a, b, rows=slice(0, 1), others=slice(0, 1))
        assert np.abs(a.actions[1] - b.actions[1]).max() > 1e-3


def test_a_default_device_of_torch_changes_nothing(rng):
    """Tensors that the pipeline makes name their device: on the default device "meta" they would hold no numbers."""
    pipe = make_pipeline()
    episodes = [make_episode(pipe, rng, chunks=2) for _ in range(2)]
    expected = roll_out(pipe, INSTRUCTIONS[:2], episodes, [seeded(0), seeded(1)])
    pipe = make_pipeline()
    generators = [seeded(0), seeded(1)]
    try:
        torch.set_default_device("meta")
        outputs = roll_out(pipe, INSTRUCTIONS[:2], episodes, generators)
    finally:
        torch.set_default_device(None)
    for a, b in zip(expected, outputs, strict=True):
        assert_same(a, b, atol=1e-5)


def test_actions_may_be_tensors_of_any_kind(pipe, rng):
    first, ((observations, actions),) = make_episode(pipe, rng, chunks=1)
    actions[..., 3:7] = actions[..., 11:15] = [1, 0, 0, 0]  # of unit length in bfloat16, too
    exact = torch.tensor(actions).bfloat16()
    outputs = []
    for executed in (exact.double().numpy(), exact, exact.double().requires_grad_(), exact.double().tolist()):
        session = pipe.start("ring bell")
        pipe.append(session, first)
        pipe.append(session, observations, executed)
        outputs.append(pipe(session=session, generator=seeded(0)))
    for other in outputs[1:]:
        assert_same(outputs[0], other)


def test_a_call_leaves_its_session_as_it_was(pipe, rng):
    (first, happened), session = make_episode(pipe, rng, chunks=1), pipe.start("ring bell")
    a = pipe(first, session=session, generator=seeded(0))
    pipe(session=session, generator=seeded(1))
    assert_same(pipe(session=session, generator=seeded(0)), a)
    pipe.append(session, *happened[0])
    pipe(session=session, generator=seeded(3))
    fresh = pipe.start("ring bell")
    pipe(first, session=fresh, output_type="latent")
    pipe.append(fresh, *happened[0])
    assert_same(pipe(session=session, generator=seeded(2)), pipe(session=fresh, generator=seeded(2)))


def test_threads_that_share_a_pipeline_get_what_each_gets_alone(pipe, rng):
    """Sessions and generators of their own; nothing that one call sets is another's."""
    episodes = [make_episode(pipe, rng, chunks=1) for _ in range(4)]

    def run(thread: int):
        instruction, steps = INSTRUCTIONS[thread % 3 :][:1], {"num_inference_steps": 1 + thread}
        steps["num_action_inference_steps"] = 5 - thread
        return roll_out(pipe, instruction, [episodes[thread]], seeded(thread), **steps)

    alone = [run(thread) for thread in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(run, range(4)))
    for a, b in zip(sum(alone, []), sum(together, []), strict=True):
        assert_same(a, b, atol=1e-6)


@pytest.mark.parametrize("ages", [(1, 1), (2, 1), (1, 2)])
def test_a_row_that_is_nan_stays_alone(pipe, rng, ages):
    """In batches of rows of one age, and of several, which a mask keeps apart. Once reset, the row is as new."""
    episodes = [make_episode(pipe, rng, chunks=2) for _ in range(2)]
    session = pipe.start(INSTRUCTIONS[:2])
    pipe.append(session, [first for first, _ in episodes])
    for row, age in enumerate(ages):
        for chunk in range(age):
            pipe.append(session, *episodes[row][1][chunk], rows=[row])
    generators = lambda: [seeded(0), seeded(1)]  # noqa: E731
    sound = pipe(session=session, generator=generators(), output_type="latent")
    for pair in session.cache._buffers:
        for buffer in pair:
            buffer[1] = torch.nan
    seen = {}

    def watch(pipe, step, timestep, tensors):
        seen.update(tensors)
        return {}

    names = ["latents", "value_latents", "action_latents"]
    arguments = {"callback_on_step_end": watch, "callback_on_step_end_tensor_inputs": names, "output_type": "latent"}
    with pytest.raises(RuntimeError, match=r"actions of rows \[1\] are not finite"):
        pipe(session=session, generator=generators(), **arguments)
    assert all(tensor[0].isfinite().all() and tensor[1].isnan().all() for tensor in seen.values())
    assert torch.equal(seen["latents"][0], sound.frames[0])
    pipe.reset(session, 1, "ring bell")
    pipe.append(session, episodes[1][0], rows=[1])
    again = pipe(session=session, generator=generators(), output_type="latent")
    assert again.actions.isfinite().all() and again.frames.isfinite().all()


def test_one_instruction_for_all_rows(pipe, rng):
    episode = make_episode(pipe, rng, chunks=0)
    session = pipe.start("ring bell", batch_size=2)
    out = pipe([episode[0]] * 2, session=session, generator=[seeded(0), seeded(0)])
    assert_same(out, out, rows=slice(0, 1), others=slice(1, 2), atol=1e-6)


def test_a_session_is_data(pipe, rng):
    """Reading a session leaves it as it was; a copy of one goes on by itself."""
    first, happened = make_episode(pipe, rng, chunks=1)
    session = pipe.start("ring bell")
    pipe.append(session, first)
    kept = copy.deepcopy(session)
    with_frames = pipe(session=session, generator=seeded(0))
    assert all(field in vars(session) for field in vars(kept))
    assert_same(pipe(session=kept, generator=seeded(0)), with_frames)
    for one in (session, kept):
        pipe.append(one, *happened[0])
    assert_same(pipe(session=kept, generator=seeded(0)), pipe(session=session, generator=seeded(0)))
    assert not any(isinstance(value, AIMPipeline | torch.nn.Module) for value in vars(session).values())


@pytest.mark.parametrize("negative_prompt", [None, ""])
def test_rows_are_reset_on_their_own(pipe, rng, negative_prompt):
    """Row 1 starts another episode after a chunk; both rows give what sessions of their own give."""
    guided = {} if negative_prompt is None else {"guidance_scale": 2.0}
    kwargs = guided | {"num_inference_steps": 2, "num_action_inference_steps": 2}
    episodes = [make_episode(pipe, rng, chunks=3) for _ in range(3)]
    alone = []
    for instruction, (first, happened) in zip(INSTRUCTIONS, episodes):
        session = pipe.start(instruction, negative_prompt=negative_prompt)
        pipe.append(session, first)
        alone.append([pipe(session=session, generator=seeded(7), **kwargs)])
        for moment in happened:
            pipe.append(session, *moment)
            alone[-1].append(pipe(session=session, generator=seeded(7), **kwargs))

    session = pipe.start(INSTRUCTIONS[:2], negative_prompt=negative_prompt)
    pipe.append(session, [episodes[0][0], episodes[1][0]])

    def assert_rows(*expected):
        out = pipe(session=session, generator=[seeded(7), seeded(7)], **kwargs)
        for row, (episode, chunk) in enumerate(expected):
            assert_same(out, alone[episode][chunk], slice(row, row + 1), atol=2e-5)

    assert_rows((0, 0), (1, 0))
    pipe.append(session, *(list(part) for part in zip(episodes[0][1][0], episodes[1][1][0])))
    pipe.reset(session, 1, INSTRUCTIONS[2])
    assert session.chunks == [1, 0] and session.waiting == [1]
    with pytest.raises(ValueError, match=r"rows \[1\] have no observation yet"):
        pipe(session=session)
    with pytest.raises(ValueError, match=r"rows \[1\] wait for their first observation, and rows \[0\]"):
        pipe.append(session, [episodes[2][0]] * 2)
    pipe.append(session, episodes[2][0], rows=[1])
    assert_rows((0, 1), (2, 0))
    pipe.append(session, *episodes[0][1][1], rows=[0])  # row 1 rests meanwhile
    assert_rows((0, 2), (2, 0))
    pipe.append(session, *(list(part) for part in zip(episodes[0][1][2], episodes[2][1][0])))
    assert_rows((0, 3), (2, 1))


@pytest.mark.parametrize("frames", [4, 2])
def test_rows_are_appended_in_any_order(pipe, rng, frames):
    """A whole chunk, or a part of it, of all rows."""
    episodes = [make_episode(pipe, rng, chunks=1) for _ in range(2)]
    outputs = []
    for rows in ([0, 1], [1, 0]):
        session = pipe.start(INSTRUCTIONS[:2])
        pipe.append(session, [episodes[row][0] for row in rows], rows=rows)
        observations, actions = zip(*(episodes[row][1][0] for row in rows))
        actions = np.stack(actions)[:, : frames * pipe.actions_per_frame]
        pipe.append(session, [of_row[:frames] for of_row in observations], actions, rows=rows)
        outputs.append(pipe(session=session, generator=[seeded(0), seeded(1)]))
    assert_same(*outputs, atol=2e-5)
    assert np.abs(outputs[0].actions[0] - outputs[0].actions[1]).max() > 1e-3


def test_a_session_forks(pipe, rng):
    (first, happened), (other, _) = (make_episode(pipe, rng, chunks=2) for _ in range(2))
    kwargs = {"num_inference_steps": 2, "num_action_inference_steps": 2}
    session = pipe.start(["ring bell", "lift pot"])
    pipe.append(session, [first, other])
    before = pipe(session=session, generator=[seeded(0), seeded(1)], **kwargs)
    forks = session.select([0, 0, 1])
    out = pipe(session=forks, generator=[seeded(0), seeded(5), seeded(1)], **kwargs)
    assert_same(out, before, [0, 2], atol=2e-5)
    assert np.abs(out.actions[0] - out.actions[1]).max() > 1e-3
    pipe.append(forks, *happened[0], rows=[1])
    pipe.append(session, *happened[0], rows=[0])
    out = pipe(session=forks, generator=[seeded(0), seeded(2), seeded(1)], **kwargs)
    assert_same(out, before, [0, 2], atol=2e-5)
    assert_same(out, pipe(session=session, generator=[seeded(2), seeded(3)], **kwargs), [1], [0], atol=2e-5)


@pytest.mark.parametrize("rows", [None, [1]])
def test_an_append_that_failed_may_be_made_again(pipe, rng, rows, monkeypatch):
    """The memory is full when the history under the negative prompt is appended, after the one under the prompt."""
    first, [happened] = make_episode(pipe, rng, chunks=1)
    observations, actions = ([one] * (2 if rows is None else 1) for one in happened)
    outputs, append = [], pipe.model.append
    for fails in (False, True):
        session = pipe.start("ring bell", batch_size=2, negative_prompt="")
        pipe.append(session, [first] * 2)
        if fails:

            def full(cache, *arguments, negative=session.negative_cache, **options):
                if cache is negative:
                    raise torch.OutOfMemoryError
                append(cache, *arguments, **options)

            monkeypatch.setattr(pipe.model, "append", full)
            with pytest.raises(torch.OutOfMemoryError):
                pipe.append(session, observations, np.stack(actions), rows=rows)
            monkeypatch.undo()
        pipe.append(session, observations, np.stack(actions), rows=rows)
        outputs.append(pipe(session=session, generator=seeded(0), num_inference_steps=2, guidance_scale=2.0))
    assert_same(*outputs)


def test_a_row_keeps_no_memory_of_other_rows(pipe, rng):
    """A row that goes on after the others have ended holds what it holds alone."""

    def memory(session):
        tensors = [tensor for pair in session.cache._buffers for tensor in pair]
        for row in range(session.batch_size):
            decoder = session.decoders[row]
            tensors += [*session.encoders[row].features, *decoder.state.features, *decoder.unseen]
        storages = [tensor.untyped_storage() for tensor in tensors if torch.is_tensor(tensor)]
        return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())

    first, [(observations, actions)] = make_episode(pipe, rng, chunks=1)
    part, steps = observations[:2], actions[: 2 * pipe.actions_per_frame]
    held = []
    for rows in (1, 3):
        session = pipe.start("ring bell", batch_size=rows)
        pipe.append(session, [first] * rows)
        held.append([])
        for seen, executed in ((observations, actions), (part, steps), (observations, actions)):
            pipe.append(session, [seen] * rows, np.stack([executed] * rows))
            held[-1].append(memory(session.select([0])))
            pipe(session=session, num_inference_steps=1, num_action_inference_steps=1)  # decodes what was seen
            held[-1].append(memory(session.select([0])))
    assert held[0] == held[1]


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        *(({"batch_size": n}, f"batch_size is {n!r}; expected a whole number, at least 1") for n in ODD),
        ({"instruction": None}, "instruction is None; expected words"),
        ({"instruction": 5}, "instruction is 5; expected words"),
        ({"instruction": []}, r"instruction is \[\]; expected words"),
        ({"instruction": ["bell", None]}, "instruction 1 is None"),
        ({"negative_prompt": 5}, "negative_prompt is 5"),
        ({"negative_prompt": ["", ""]}, "negative_prompt is"),
    ],
)
def test_wrong_starts_are_refused(pipe, arguments, match):
    with pytest.raises(ValueError, match=match):
        pipe.start(**({"instruction": "bell"} | arguments))


def test_wrong_rows_are_refused(pipe, rng):
    session = pipe.start(["ring bell", "lift pot"])
    for wrong in ([2], [0, 0], [], [-1], [0.5], [1.0], ["1"], "1", [True], True, 1.0, [None], torch.tensor([0.0])):
        with pytest.raises(ValueError, match="rows are .*expected some of 0 to 1, each once"):
            pipe.append(session, make_observation(rng), rows=wrong)
        with pytest.raises(ValueError, match="expected some of 0 to 1, each once"):
            pipe.reset(session, wrong, "ring bell")
        if wrong != [0, 0]:
            with pytest.raises(ValueError, match="expected some of 0 to 1"):
                session.select(wrong)
    assert session.waiting == [0, 1]
    with pytest.raises(ValueError, match="2 instructions for 1 rows"):
        pipe.reset(session, [1], ["ring bell", "lift pot"])
    with pytest.raises(ValueError, match="instruction 0 is ''"):
        pipe.reset(session, 1, "")


def test_wrong_sessions_are_refused(pipe, rng):
    other = make_pipeline().start("ring bell")
    with pytest.raises(ValueError, match="another pipeline"):
        pipe(make_observation(rng), session=other)
    for step in (pipe.append, lambda *args: pipe.reset(args[0], 0, "ring bell")):
        with pytest.raises(ValueError, match="another pipeline"):
            step(other, make_observation(rng))
    for name in ("model", "vae", "processor"):
        changed = copy.copy(pipe)
        session = changed.start("ring bell")
        changed.append(session, make_observation(rng))
        setattr(changed, name, copy.deepcopy(getattr(pipe, name)))
        with pytest.raises(ValueError, match="or to a model, VAE or processor that this one no longer has"):
            changed(session=session)
        pipe(session=session, output_type="latent", num_inference_steps=1)  # which still has them
    session = pipe.start("ring bell")
    pipe(make_observation(rng), session=session, output_type="latent")
    with pytest.raises(ValueError, match="pipe.append"):
        pipe(make_observation(rng), session=session)
    with pytest.raises(ValueError, match="2 instructions for batch_size 3"):
        pipe.start(["ring bell", "lift pot"], batch_size=3)
    with pytest.raises(ValueError, match="instruction 0 is ''"):
        pipe.start("")


def test_a_session_shows_its_rows_and_not_their_numbers(pipe, rng):
    session = pipe.start(INSTRUCTIONS[:2])
    pipe.append(session, [make_observation(rng)], rows=[1])
    assert repr(session) == "AIMSession(batch_size=2, chunks=[0, 0], waiting=[0])"


def test_a_session_from_before_the_model_was_cast_is_refused(rng):
    pipe = make_pipeline()
    session = pipe.start("ring bell")
    pipe.to(torch.bfloat16)
    with pytest.raises(ValueError, match="of torch.float32 on cpu, and the model of torch.bfloat16 on cpu; start"):
        pipe(make_observation(rng), session=session)
    assert session.waiting == [0]
    pipe(make_observation(rng), session=pipe.start("ring bell"), output_type="latent")


def test_sessions_from_before_and_after_a_cast_are_not_stacked():
    pipe = make_pipeline()
    before = pipe.start("ring bell")
    pipe.to(torch.bfloat16)
    with pytest.raises(
        ValueError, match="of torch.bfloat16 on cpu and torch.float32 on cpu; stack those of the model"
    ):
        AIMSession.stack([pipe.start("ring bell"), before])


@pytest.mark.parametrize("history", [None, 1])
def test_a_session_outlives_inference_mode(rng, history):
    """It starts there, is continued outside and there by turns, and gives what it gives outside."""
    pipe = make_pipeline(history_chunks=history)
    first, happened = make_episode(pipe, rng, chunks=5)  # more than an unlimited history has room for at first
    outputs = []
    for mode in (False, True):
        with torch.inference_mode(mode):
            session = AIMSession.stack([pipe.start("ring bell")]).select([0])
            pipe(first, session=session, output_type="latent")
        for number, chunk in enumerate(happened):
            with torch.inference_mode(mode and number % 2 == 1):
                pipe.append(session, *chunk)
        outputs.append(pipe(session=session, generator=seeded(0), num_inference_steps=1))
        pipe.reset(session, [0], "lift pot")
    assert_same(*outputs)


def test_wrong_history_is_refused_and_leaves_the_session_alone(pipe, rng):
    first, happened = make_episode(pipe, rng, chunks=1)
    observations, actions = happened[0]
    session = pipe.start("ring bell")
    broken = make_observation(rng)
    broken["observation"]["head_camera"]["rgb"] = np.zeros((8, 8, 3), np.uint8)
    for wrong, match in [
        ((observations,), "row 0 has 4 observations; expected 1 before any action"),
        ((first, actions), "with the first observation"),
        (([first, first], None), "row 0 has 2 observations"),
        ((broken,), "head_camera has shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            pipe.append(session, *wrong)
    pipe.append(session, first)
    nan = actions.copy()
    nan[3, 2] = np.nan
    far = actions.copy()
    far[3, 2] = 3e38
    for wrong, match in [
        ((observations[:3], actions), r"executed_actions have shape \(1, 8, 16\); expected \(1, 6, 16\)"),
        ((observations + observations, actions), "row 0 has 8 observations; .*every 2 actions, at most 4 at a time"),
        (([], actions), "row 0 has 0 observations"),
        ((observations,), "executed_actions are missing"),
        ((observations, actions[:7]), r"shape \(1, 7, 16\); expected \(1, 8, 16\)"),
        ((observations, actions[:, :14]), r"expected \(1, 8, 16\)"),
        ((observations, nan), "executed_actions have NaN"),
        ((observations, far), r"executed_actions.*: number \[0, 3, 2\] is 3e\+38; expected -[\d.]+ to [\d.]+"),
        ((observations, "left"), "executed_actions is str of dtype <U4; expected an array of numbers"),
        ((observations, [[1], [2, 3]]), "executed_actions is no array .*; expected an array of numbers"),
        ((None, actions), "observations hold NoneType"),
        (([1] * 4, actions), "observations hold int"),
        (([observations] * 2, actions), "2 rows; expected 1"),
        ((observations[:3] + [broken], actions), "head_camera has shape"),
    ]:
        with pytest.raises(ValueError, match=match):
            pipe.append(session, *wrong)
    # Nothing of this stayed behind.
    pipe.append(session, *happened[0])
    fresh = pipe.start("ring bell")
    pipe.append(fresh, first)
    pipe.append(fresh, *happened[0])
    assert_same(pipe(session=session, generator=seeded(0)), pipe(session=fresh, generator=seeded(0)))
