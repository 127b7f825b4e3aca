"""The model's identities, on a small real model in float64."""

import copy
import json
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention.flex_attention import flex_attention
from transformers import AttentionInterface, TorchAoConfig, Trainer, TrainingArguments

from aim_hf import AIM_TINY, AIMConfig, AIMForWorldAction
from aim_hf.model import layers
from aim_hf.model.attention import attend, packed_visible, unit_block_mask, visible_sets
from aim_hf.model.cache import AIMCache
from aim_hf.model.visibility import Kind, Units, Visibility, visible
from aim_hf.pipeline.sampling import new_schedulers, with_steps
from aim_hf.training.flow_matching import FlowMatchingLoss, FlowMatchingOutput
from aim_hf.utils.versions import ACTIVATION_CHECKPOINTING

B, S, C, H, W = 2, 5, 6, 4, 6


def make_config(**overrides) -> AIMConfig:
    sizes = dict(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=C,
        out_channels=C,
        text_dim=10,
        freq_dim=8,
        ffn_dim=32,
        num_layers=3,
        action_dim=5,
        action_hidden_size=16,
        action_ffn_dim=24,
        chunk_latent_frames=2,
        actions_per_latent_frame=3,
    )
    return AIMConfig(**{**sizes, **overrides})


def make_model(**overrides) -> AIMForWorldAction:
    torch.manual_seed(0)
    model = AIMForWorldAction(make_config(**overrides)).double().eval()
    # New weights start with silent outputs; give every parameter a say, or equalities would hold trivially.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model


def objective(model, num_draws: int = 1, num_action_draws: int = 1, **batch) -> FlowMatchingOutput:
    return FlowMatchingLoss(model.config, num_draws, num_action_draws)(model, **batch)


def make_batch(config: AIMConfig, chunks: int, rows: int = B, draws: int = 1) -> dict:
    """A batch with `draws` noise draws of the video and one more of the actions."""
    action_draws = draws + 1
    generator = torch.Generator().manual_seed(1)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    T, n = chunks * config.chunk_latent_frames, config.actions_per_latent_frame
    horizon = T + config.action_lookahead_frames
    return dict(
        latents=randn(rows, C, 1 + T, H, W),
        value_latents=randn(rows, C, T, H, W),
        actions=randn(rows, horizon * n, config.action_dim),
        prompt_embeds=randn(rows, S, config.text_dim),
        num_draws=draws,
        num_action_draws=action_draws,
        timesteps=(randn(rows, draws, chunks).sigmoid(), randn(rows, action_draws, chunks).sigmoid()),
        noise=(
            randn(rows, draws, C, T, H, W),
            randn(rows, draws, C, T, H, W),
            randn(rows, action_draws, chunks * config.action_horizon, config.action_dim),
        ),
    )


def rollout(model, batch, draw: int = 0):
    """The same velocities as `forward`, chunk by chunk through the cache."""
    F_, n = model.config.chunk_latent_frames, model.config.actions_per_latent_frame
    T = batch["value_latents"].shape[2]
    (t_video, t_action), (eps_x, eps_m, eps_a) = batch["timesteps"], batch["noise"]
    rows = batch["latents"].shape[0]
    committed = batch.get("committed_actions")
    cache = model.new_cache(rows, H, W)
    model.set_text(cache, batch["prompt_embeds"])
    model.append(cache, batch["latents"][:, :, :1])
    horizon, outputs = model.config.action_horizon, []
    for chunk in range(T // F_):
        frames = slice(chunk * F_, (chunk + 1) * F_)
        first, prediction = chunk * F_ * n, slice(chunk * horizon, (chunk + 1) * horizon)
        x = batch["latents"][:, :, 1:][:, :, frames]
        m = batch["value_latents"][:, :, frames]
        a = batch["actions"][:, first : first + horizon]
        t, s = t_video[:, draw, chunk], t_action[:, draw, chunk]
        at = t[:, None, None, None, None]
        world = model.world_velocity(
            model.world_context(cache),
            (1 - at) * x + at * eps_x[:, draw, :, frames],
            (1 - at) * m + at * eps_m[:, draw, :, frames],
            t,
        )
        context = model.action_context(cache, x, m)
        if committed is not None:
            s = s[:, None] * (torch.arange(horizon) >= committed[:, draw, chunk][:, None])
        noise_level = s.reshape(rows, -1, 1)
        noisy = (1 - noise_level) * a + noise_level * eps_a[:, draw, prediction]
        outputs.append((*world, model.action_velocity(context, noisy, s)))
        model.append(cache, x, a[:, : F_ * n])
    rgb, value, action = zip(*outputs)
    return torch.cat(rgb, 2), torch.cat(value, 2), torch.cat(action, 1)


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 1, 2])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"action_lookahead_frames": 1},
        {"action_lookahead_frames": 3},
        {"separate_history_head": True},
        *({"visibility": variant} for variant in Visibility if variant != Visibility.MAP_ONLY),
    ],
    ids=lambda v: "".join(map(str, v.items())) or "plain",
)
def test_cached_rollout_equals_one_masked_forward(history, frames, variant):
    model = make_model(history_chunks=history, chunk_latent_frames=frames, **variant)
    batch = make_batch(model.config, chunks=7, draws=2)
    if model.config.action_lookahead_frames:
        generator = torch.Generator().manual_seed(5)
        batch["committed_actions"] = torch.randint(4, (B, batch["num_action_draws"], 7), generator=generator)
    packed = objective(model, **batch)
    for draw in range(2):
        cached = rollout(model, batch, draw)
        expected = packed.rgb_velocity[:, draw], packed.value_velocity[:, draw], packed.action_velocity[:, draw]
        for got, want in zip(cached, expected):
            assert want.std() > 0.1
            torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


@torch.no_grad()
def test_several_draws_of_actions_at_once():
    """Also where rows differ in age, so that masks and positions do."""
    model = make_model(history_chunks=2)
    batch = make_batch(model.config, chunks=2)
    cache = model.new_cache(B, H, W)
    model.set_text(cache, batch["prompt_embeds"])
    model.append(cache, batch["latents"][:, :, :1])
    model.append(cache, batch["latents"][:1, :, 1:3], batch["actions"][:1, :6], rows=torch.tensor([0]))
    context = model.action_context(cache, batch["latents"][:, :, 3:], batch["value_latents"][:, :, 2:])
    draws = torch.randn(B, 3, 6, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    times = torch.tensor([[0.9, 0.5, 0.1], [0.8, 0.4, 0.2]], dtype=torch.float64)
    several = context.repeat_interleave(3)
    together = model.action_velocity(several, draws.flatten(0, 1), times.flatten()).unflatten(0, (B, 3))
    for draw in range(3):
        alone = model.action_velocity(context, draws[:, draw], times[:, draw])
        torch.testing.assert_close(together[:, draw], alone, rtol=0, atol=1e-12)


@torch.no_grad()
def test_cached_rollout_in_float32():
    model = make_model(history_chunks=2).float()
    batch = {name: cast(value, torch.float32) for name, value in make_batch(model.config, chunks=7).items()}
    packed = objective(model, **batch)
    for got, want in zip(rollout(model, batch), (packed.rgb_velocity, packed.value_velocity, packed.action_velocity)):
        torch.testing.assert_close(got, want[:, 0], rtol=0, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 1, 2])
@pytest.mark.parametrize(
    "variant",
    [{}, {"action_lookahead_frames": 1}, {"visibility": "aim"}, {"visibility": "both"}],
    ids=lambda v: "".join(map(str, v.items())) or "plain",
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-4)])
def test_packed_chunks_equal_single_ones(history, variant, dtype, tolerance):
    """Each chunk of a packed sequence is denoised as it is by itself, from its history."""
    model = make_model(history_chunks=history, **variant).to(dtype)
    chunks, F_, n = 5, model.config.chunk_latent_frames, model.config.actions_per_latent_frame
    A, horizon = model.config.action_lookahead_frames, model.config.action_horizon
    batch = make_batch(model.config, chunks, draws=2)
    batch = {name: cast(value, dtype) for name, value in batch.items()}
    (t, s), (eps_x, eps_m, eps_a) = batch["timesteps"], batch["noise"]
    packed = objective(model, **batch)
    for context in range(1, chunks):
        last, chunk = context + 1, slice(context * F_, (context + 1) * F_)
        x, m = batch["latents"][:, :, 1:][:, :, chunk], batch["value_latents"][:, :, chunk]
        a = batch["actions"][:, context * F_ * n : context * F_ * n + horizon]
        at, at_action = (given[:, :, context] for given in (t, s))

        def noised(clean, eps, level):
            level = level.reshape(*level.shape, *(1 for _ in clean.shape[1:]))
            return (1 - level) * clean[:, None] + level * eps

        single = model(
            latents=batch["latents"][:, :, : 1 + last * F_],
            value_latents=m,
            executed_actions=batch["actions"][:, : last * F_ * n],
            prompt_embeds=batch["prompt_embeds"],
            noisy_latents=noised(x, eps_x[:, :, :, chunk], at),
            noisy_value_latents=noised(m, eps_m[:, :, :, chunk], at),
            noisy_actions=noised(a, eps_a[:, :, context * horizon : (context + 1) * horizon], at_action),
            timestep=at[..., None].expand(-1, -1, F_),
            action_timestep=at_action[..., None].expand(-1, -1, F_ + A),
        )
        for name, places in (("rgb_velocity", chunk), ("value_velocity", chunk)):
            want = packed[name][:, :, :, places]
            assert want.std() > 0.1
            torch.testing.assert_close(single[name], want, rtol=0, atol=tolerance)
        want = packed.action_velocity[:, :, context * horizon : (context + 1) * horizon]
        torch.testing.assert_close(single.action_velocity, want, rtol=0, atol=tolerance)


@torch.no_grad()
@torch.no_grad()
@pytest.mark.parametrize("lookahead", [0, 1])
def test_targets_may_be_those_of_each_prediction(lookahead):
    model = make_model(action_lookahead_frames=lookahead)
    batch = make_batch(model.config, 3)
    batch["executed_actions"] = batch["actions"][:, : 3 * model.config.actions_per_chunk]
    expected = objective(model, **batch)
    batch["actions"] = FlowMatchingLoss(model.config).predictions(batch["actions"])
    assert batch["actions"].shape[1] == 3 * model.config.action_horizon
    found = objective(model, **batch)
    assert torch.equal(found.loss, expected.loss) and torch.equal(found.action_velocity, expected.action_velocity)
    batch["actions"][:, model.config.action_horizon :] += 1  # the later two, in a frame of their own
    moved = objective(model, **batch).action_velocity
    assert torch.equal(
        moved[..., : model.config.action_horizon, :], expected.action_velocity[..., : model.config.action_horizon, :]
    )
    assert not torch.equal(moved, expected.action_velocity)


@pytest.mark.parametrize("lookahead", [0, 1])
def test_weights_and_masks_of_the_loss(lookahead):
    """Each place counts by its own weight; each action of a prediction where its own mask says so."""
    model = make_model(action_lookahead_frames=lookahead)
    batch, F_, n = make_batch(model.config, 3, draws=2), model.config.chunk_latent_frames, 3
    generator = torch.Generator().manual_seed(4)
    weights = torch.rand(B, 3 * F_, H, W, dtype=torch.float64, generator=generator)
    mask = torch.rand(B, 3 * model.config.action_horizon, generator=generator) > 0.5
    out = objective(model, **batch, rgb_weights=weights, value_weights=weights, action_mask=mask)
    eps_x, eps_m, eps_a = batch["noise"]
    for loss, velocity, target in (
        (out.rgb_loss, out.rgb_velocity, eps_x - batch["latents"][:, None, :, 1:]),
        (out.value_loss, out.value_velocity, eps_m - batch["value_latents"][:, None]),
    ):
        error = (velocity - target).square().mean(2)
        expected = (error * weights[:, None]).sum() / weights[:, None].expand(error.shape).sum()
        assert loss.item() == pytest.approx(expected.item(), abs=1e-9)
    horizon, counted, total = model.config.action_horizon, 0, 0.0
    for chunk in range(3):
        first, places = chunk * F_ * n, slice(chunk * horizon, (chunk + 1) * horizon)
        target = eps_a[:, :, places] - batch["actions"][:, None, first : first + horizon]
        seen = mask[:, None, places, None].expand(target.shape)
        total += ((out.action_velocity[:, :, places] - target).square() * seen).sum()
        counted += seen.sum()
    assert out.action_loss.item() == pytest.approx((total / counted).item(), abs=1e-9)


@pytest.mark.parametrize("steps", [1, 4])
def test_times_of_few_steps_are_those_of_the_schedulers(steps):
    """Each time at which a denoising step starts is trained, and no other."""
    config = make_model().config
    loss = FlowMatchingLoss(config, 5, 7, num_inference_steps=steps, num_action_inference_steps=steps)
    values = torch.zeros(8, config.in_channels, 3 * config.chunk_latent_frames, H, W)
    drawn = loss._sample_timesteps(values, {"generator": torch.Generator().manual_seed(0)})
    for times, scheduler in zip(drawn, new_schedulers(config).values(), strict=True):
        expected = with_steps(scheduler, steps, torch.device("cpu")).sigmas[:-1]
        torch.testing.assert_close(times.unique(), expected.flip(0).to(times))


def cast(value, dtype):
    if isinstance(value, tuple):
        return tuple(item.to(dtype) for item in value)
    return value.to(dtype) if torch.is_tensor(value) else value


@torch.no_grad()
def test_limited_history_matters():
    batch = make_batch(make_config(), chunks=4)
    full, limited = (objective(make_model(history_chunks=history), **batch).rgb_velocity for history in (None, 1))
    assert (full[:, :, :, :2] == limited[:, :, :, :2]).all()
    assert (full[:, :, :, -2:] - limited[:, :, :, -2:]).abs().max() > 1e-3


def table_of_the_paper(q: tuple, k: tuple, F_: int, history: int | None, variant: str) -> bool:
    """Section "who may see whom", written once more as sentences over single units (kind, chunk, frame, draw)."""
    (qk, qc, _, qd), (kk, kc, kf, kd) = q, k
    in_window = history is None or kc >= qc - history
    match qk, kk:
        case Kind.OBSERVATION, Kind.OBSERVATION:
            return kc == qc or (kc < qc and in_window)
        case ((Kind.OBSERVATION | Kind.FUTURE_RGB | Kind.FUTURE_ACTION), Kind.ACTION):
            return kc < qc and in_window
        case Kind.ACTION, Kind.ACTION:
            return kc == qc or (kc < qc and in_window)
        case ((Kind.ACTION | Kind.FUTURE_ACTION), Kind.OBSERVATION):
            current = kc == qc - 1 and kf == (qc - 1) * F_
            return current or (qk == Kind.FUTURE_ACTION and kc == qc and variant in ("rgb", "both"))
        case ((Kind.FUTURE_RGB | Kind.FUTURE_VALUE), Kind.OBSERVATION):
            return kc < qc and in_window
        case Kind.CLEAN_VALUE, Kind.OBSERVATION:
            return (kc == qc and variant in ("aim", "both")) or (kc < qc and in_window)
        case (
            (Kind.FUTURE_RGB, Kind.FUTURE_RGB)
            | (Kind.FUTURE_VALUE, Kind.FUTURE_RGB)
            | (Kind.FUTURE_VALUE, Kind.FUTURE_VALUE)
            | (Kind.FUTURE_ACTION, Kind.FUTURE_ACTION)
        ):
            return kc == qc and kd == qd
        case Kind.CLEAN_VALUE, Kind.CLEAN_VALUE:
            return kc == qc
        case Kind.FUTURE_ACTION, Kind.CLEAN_VALUE:
            return kc == qc and variant in ("aim", "map_only", "both")
    return False


@pytest.mark.parametrize("history", [None, 1, 2])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("variant", list(Visibility))
@pytest.mark.parametrize("lookahead", [0, 1])
def test_visibility_pair_by_pair(history, frames, variant, lookahead):
    past, chunks = torch.arange(1 + 4 * frames), torch.arange(1, 5)
    segments = [Units.segment(Kind.OBSERVATION, past, frames), Units.segment(Kind.ACTION, past[1:], frames)]
    segments += [Units.segment(Kind.CLEAN_VALUE, past[1:], frames)]
    for kind in (Kind.FUTURE_RGB, Kind.FUTURE_VALUE):
        segments += [Units.segment(kind, past[1:], frames, draw) for draw in range(2)]
    segments += [Units.future_actions(chunks, frames, lookahead, draw) for draw in range(2)]
    units = Units.concatenate(segments)
    mask = visible(units, units, frames, history, variant)
    rows = list(zip(*(getattr(units, name).tolist() for name in ("kind", "chunk", "frame", "draw"))))
    for i, q in enumerate(rows):
        for j, k in enumerate(rows):
            assert mask[i, j] == table_of_the_paper(q, k, frames, history, variant), (q, k)
    assert mask.any(1).all()


def test_attention_over_units_equals_dense_masked_attention():
    torch.manual_seed(2)
    lengths = [3, 1, 4, 2]
    q, k, v = (torch.randn(2, 3, sum(lengths), 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.tensor([[1, 0, 1, 0], [1, 1, 0, 1], [1, 0, 1, 0], [0, 0, 0, 1]], dtype=torch.bool)
    repeats = torch.tensor(lengths)
    dense = mask.repeat_interleave(repeats, 0).repeat_interleave(repeats, 1)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=dense)
    got = attend(make_model().blocks[0], q, k, v, visible_sets(mask, lengths))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    weights = torch.randn_like(got)
    gradients = (torch.autograd.grad(output, (q, k, v), weights) for output in (got, expected))
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)
    # FlexAttention, which a GPU takes, has the same mask. Uncompiled it runs here, forward only.
    block_mask = unit_block_mask(mask, lengths, torch.device("cpu"))
    got = flex_attention(*(tensor.detach().float() for tensor in (q, k, v)), block_mask=block_mask)
    torch.testing.assert_close(got.double(), expected.detach(), rtol=0, atol=1e-6)
    # Steps of one layout share their mask.
    cpu, again = torch.device("cpu"), packed_visible(mask.clone(), list(lengths), torch.device("cpu"))
    assert packed_visible(mask, lengths, cpu) is again and again == visible_sets(mask, lengths)
    assert packed_visible(mask, lengths[::-1], cpu) == visible_sets(mask, lengths[::-1]) != again
    assert packed_visible(~mask, lengths, cpu) == visible_sets(~mask, lengths) != again


@pytest.mark.parametrize("variant", ["map_only", "aim"])
def test_no_gradient_from_actions_to_future_rgb_but_through_value_tokens(variant, monkeypatch):
    model = make_model(visibility=variant)
    batch = make_batch(model.config, chunks=2)
    batch["latents"].requires_grad_(True)
    last_chunk = slice(-model.config.actions_per_chunk, None)

    def gradient():
        velocity = objective(model, **batch).action_velocity[:, 0, last_chunk]
        (grad,) = torch.autograd.grad(velocity.square().sum(), batch["latents"])
        return grad[:, :, -model.config.chunk_latent_frames :]  # the RGB of the chunk that is being predicted

    if variant == "map_only":  # value tokens have not seen the RGB
        assert gradient().abs().max() == 0
        return
    assert gradient().abs().max() > 1e-6

    # Hold the keys and values of the clean value tokens; what remains must be exactly nothing.
    T, L = 2 * model.config.chunk_latent_frames, H * W // 4
    held = slice((1 + 3 * T) * L, (1 + 4 * T) * L)

    def hold(tensor):
        return torch.cat([tensor[:, :, : held.start], tensor[:, :, held].detach(), tensor[:, :, held.stop :]], dim=2)

    monkeypatch.setattr(layers, "attend", lambda layer, q, k, v, *seen: attend(layer, q, hold(k), hold(v), *seen))
    assert gradient().abs().max() == 0


def test_activation_checkpointing_changes_memory_alone():
    model = make_model(history_chunks=2).train()
    batch = make_batch(model.config, chunks=3, draws=2)

    def gradients():
        kept = []
        model.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t
        ):
            loss = objective(model, **batch).loss
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}, sum(kept)

    plain, whole = gradients()
    getattr(model, f"{ACTIVATION_CHECKPOINTING}_enable")()
    checkpointed, less = gradients()
    assert less < whole / 2
    for name, gradient in plain.items():
        assert gradient is not None, name
        torch.testing.assert_close(checkpointed[name], gradient, rtol=0, atol=1e-12, msg=name)


@torch.no_grad()
@pytest.mark.parametrize(
    ("variant", "reads_rgb", "reads_value"),
    [
        ("map_only", False, True),
        ("aim", True, True),  # the RGB through the hidden states of the value tokens
        ("rgb", True, False),
        ("both", True, True),
        ("observations", False, False),
    ],
)
def test_what_reaches_the_actions(variant, reads_rgb, reads_value):
    """Another imagined RGB, or another value map, changes the actions of the variants that read it, and no others'."""
    model = make_model(visibility=variant)
    episode = Episode(model, 0)
    model.append(episode.cache, *episode.next_observation())
    (rgb, value, actions), (other_rgb, other_value, _) = episode.prediction_inputs(), episode.prediction_inputs()
    t = torch.full((1,), 0.6, dtype=torch.float64)

    def velocity(rgb, value):
        return model.action_velocity(model.action_context(episode.cache, rgb, value), actions, t)

    for reads, changed in ((reads_rgb, (other_rgb, value)), (reads_value, (rgb, other_value))):
        difference = (velocity(*changed) - velocity(rgb, value)).abs().max()
        assert difference > 1e-3 if reads else difference == 0


def test_a_model_of_transformers_own_trainer_is_saved_and_loaded(tmp_path):
    """That sets a field of language models on the configuration."""
    trainer = Trainer(make_model(), TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    trainer.save_model()
    assert AIMForWorldAction.from_pretrained(tmp_path).config.num_layers == make_config().num_layers


def test_variants_by_name_and_by_the_name_of_before(tmp_path):
    assert AIMConfig().visibility == "map_only"
    assert AIMConfig(action_reads_value=True).visibility == "aim"
    assert AIMConfig(action_reads_value=False).visibility == "observations"
    stored = AIMConfig().to_dict() | {"action_reads_value": True}  # by a version without variants
    del stored["visibility"]
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert AIMConfig.from_pretrained(tmp_path).visibility == "aim"
    assert AIMConfig.from_pretrained(tmp_path, visibility="map_only").visibility == "map_only"
    assert AIMConfig.from_pretrained(AIM_TINY, subfolder="model").visibility == "map_only"
    for given in ("map_only", "aim"):  # as in a stored configuration that somebody has added it to
        with pytest.raises(ValueError, match=f"visibility is '{given}' and action_reads_value True; expected one"):
            AIMConfig.from_dict({"visibility": given, "action_reads_value": True})
    with pytest.raises(ValueError, match="visibility is 'map'; expected one of map_only, aim, rgb, both, obs"):
        AIMConfig(visibility="map")


@torch.no_grad()
def test_rows_of_a_batch_are_independent():
    model = make_model(history_chunks=2)
    batch = make_batch(model.config, chunks=3)
    alone = {
        name: (value[:1] if torch.is_tensor(value) else value)
        if name not in ("timesteps", "noise")
        else tuple(item[:1] for item in value)
        for name, value in batch.items()
    }
    for got, want in zip(rollout(model, batch), rollout(model, alone)):
        torch.testing.assert_close(got[:1], want, rtol=0, atol=1e-12)


class Episode:
    """A row's real history, and what it predicts next, by a cache of its own."""

    def __init__(self, model, seed: int):
        self.model, self.generator = model, torch.Generator().manual_seed(seed)
        self.text = self.randn(1, S, 10)
        self.cache = model.new_cache(1, H, W)
        model.set_text(self.cache, self.text)

    def randn(self, *shape):
        return torch.randn(shape, generator=self.generator, dtype=torch.float64).to(self.model.dtype)

    def next_observation(self):
        config = self.model.config
        if self.cache.frames[0] == 0:
            return self.randn(1, C, 1, H, W), None
        return self.randn(1, C, config.chunk_latent_frames, H, W), self.randn(1, config.actions_per_chunk, 5)

    def prediction_inputs(self):
        shape = (1, C, self.model.config.chunk_latent_frames, H, W)
        return self.randn(*shape), self.randn(*shape), self.randn(1, self.model.config.actions_per_chunk, 5)


def predict(model, cache, rgb, value, actions):
    t = torch.full((len(rgb),), 0.6, dtype=rgb.dtype)
    world = model.world_velocity(model.world_context(cache), rgb, value, t)
    return *world, model.action_velocity(model.action_context(cache, rgb, value), actions, t)


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 1])
def test_a_rollout_under_autocast(history):
    """Training with --bf16 samples so: weights and cache are float32, products bfloat16."""
    model = make_model(history_chunks=history).float()
    rollouts = []
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            episode = Episode(model, 0)
            for _ in range(3):
                model.append(episode.cache, *episode.next_observation())
            rollouts.append(predict(model, episode.cache, *episode.prediction_inputs()))
    for exact, coarse in zip(*rollouts, strict=True):
        assert 0 < (coarse.float() - exact).abs().max() < 0.05 * exact.abs().max()


def batched(parts):
    return [None if part[0] is None else torch.cat(part) for part in zip(*parts)]


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 1, 2])
@pytest.mark.parametrize("frames", [1, 2])
@pytest.mark.parametrize("visibility", ["map_only", "aim"])
def test_rows_of_different_age(history, frames, visibility):
    """Rows that are reset at different times, by other instructions, give what each gives alone."""
    model = make_model(history_chunks=history, chunk_latent_frames=frames, visibility=visibility)
    episodes = [Episode(model, seed) for seed in range(3)]
    cache = model.new_cache(3, H, W)
    model.set_text(cache, torch.cat([episode.text for episode in episodes]))
    new_seed = 3
    # Rows that start anew, before each of these moments; the others go on.
    for moment, starting in enumerate([[0, 1, 2], [], [1], [], [0, 1], [2], [], [], [1], []]):
        starting = torch.tensor(starting, dtype=torch.long)
        going = torch.tensor([row for row in range(3) if row not in starting], dtype=torch.long)
        if moment:
            for row in starting:
                episodes[row] = Episode(model, new_seed)
                new_seed += 1
            if len(starting):
                cache.reset(starting)
                model.set_text(cache, torch.cat([episodes[row].text for row in starting]), starting)
        for rows in (starting, going):
            if len(rows):
                seen = [episodes[row].next_observation() for row in rows]
                for row, observed in zip(rows, seen):
                    model.append(episodes[row].cache, *observed)
                model.append(cache, *batched(seen), rows=rows)
        inputs = [episode.prediction_inputs() for episode in episodes]
        together = predict(model, cache, *batched(inputs))
        for row, (episode, given) in enumerate(zip(episodes, inputs)):
            for got, want in zip(together, predict(model, episode.cache, *given)):
                torch.testing.assert_close(got[row : row + 1], want, rtol=0, atol=1e-9)
        assert cache.chunks.tolist() == [episode.cache.chunks.item() for episode in episodes]


@torch.no_grad()
@pytest.mark.parametrize("history", [None, 2])
def test_a_fork_continues_on_its_own(history):
    """Copies of one prefix give what the prefix gives, and leave it alone."""
    model = make_model(history_chunks=history)
    episodes = [Episode(model, seed) for seed in range(2)]
    for _ in range(4):
        for episode in episodes:
            model.append(episode.cache, *episode.next_observation())
    cache = model.new_cache(2, H, W)
    model.set_text(cache, torch.cat([episode.text for episode in episodes]))
    for row, episode in enumerate(episodes):
        cache.assign(torch.tensor([row]), episode.cache)
    fork = cache.select(torch.tensor([1, 1, 0]))
    for row, source in enumerate([1, 1, 0]):  # the copies part, each by an observation of its own
        observed = Episode(model, 0)
        observed.cache = episodes[source].cache
        seen = observed.next_observation() if row != 1 else episodes[1].next_observation()
        model.append(fork, *seen, rows=torch.tensor([row]))
        alone = episodes[source].cache.select(torch.tensor([0]))
        model.append(alone, *seen)
        inputs, copy = episodes[source].prediction_inputs(), fork.select(torch.tensor([row]))
        for got, want in zip(predict(model, copy, *inputs), predict(model, alone, *inputs)):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)
    for row, episode in enumerate(episodes):
        inputs = episode.prediction_inputs()
        prefix = cache.select(torch.tensor([row]))
        for got, want in zip(predict(model, prefix, *inputs), predict(model, episode.cache, *inputs)):
            torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


@torch.no_grad()
def test_a_full_history_never_moves_nor_grows():
    model = make_model(history_chunks=2)
    episode = Episode(model, 0)
    places = None
    for _ in range(12):
        model.append(episode.cache, *episode.next_observation())
        buffers = [buffer.data_ptr() for pair in episode.cache._buffers for buffer in pair]
        assert places in (None, buffers)
        places = buffers
    assert episode.cache.observation_tokens == 2 * 2 * (H * W // 4)
    assert episode.cache.action_tokens == 2 * 2 * 3


@torch.no_grad()
def test_an_unlimited_history_grows_layer_by_layer_and_wastes_an_eighth(monkeypatch):
    model = make_model(num_layers=6)
    episode, new_buffer, alive = Episode(model, 0), AIMCache._new_buffer, []

    def counted(cache):
        """Buffers of old and new layers that exist at the same time: one layer's more than the model has layers."""
        pair = new_buffer(cache)
        alive.extend(weakref.ref(buffer) for buffer in pair)
        assert sum(buffer() is not None for buffer in alive) <= 2 * model.config.num_layers + 3
        return pair

    monkeypatch.setattr(AIMCache, "_new_buffer", counted)
    episode.cache._grow(episode.cache._slots + 1)  # the buffers are counted from here on
    for _ in range(20):
        model.append(episode.cache, *episode.next_observation())
        slots, needed = episode.cache._slots, int(episode.cache.frames.max())
        assert needed <= slots and (slots <= needed * 9 // 8 or needed < 12)


@torch.no_grad()
def test_save_and_load_are_bit_equal(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    loaded = AIMForWorldAction.from_pretrained(tmp_path)
    for name in set(model.config.to_dict()) - {"_name_or_path", "dtype", "architectures", "transformers_version"}:
        assert getattr(loaded.config, name) == getattr(model.config, name), name
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_layers_stay_compiled_in_each_form():
    """torch runs a function as it is once it has compiled it for `recompile_limit` forms of its inputs, a number that
    each thread has for itself."""
    ran = []

    def backend(graph, inputs):
        return lambda *arguments: ran.append(graph) or graph(*arguments)

    torch._dynamo.reset()
    model = make_model()
    model.compile_blocks(backend=backend)
    with torch.no_grad(), torch._dynamo.config.patch(recompile_limit=1):
        for rows in (1, 2):
            batch, cache = make_batch(model.config, 1, rows=rows), model.new_cache(rows, H, W)
            model.set_text(cache, batch["prompt_embeds"])
            ran.clear()
            model.append(cache, batch["latents"][:, :, :1])
            assert ran, f"{rows} rows"


def test_compiled_layers_belong_to_their_model(tmp_path):
    """A copy of a compiled model, or of its action head, runs on the copy's weights and gives them gradients."""
    model = make_model(num_layers=1)
    batch, names = make_batch(model.config, 2), set(model.state_dict())
    with torch.no_grad():
        expected = objective(model, **batch)
    model.compile_blocks(backend="eager")
    assert set(model.state_dict()) == names
    other = copy.deepcopy(model)
    model.separate_history_head()  # the copy is trained, the compiled original encodes what was executed
    with torch.no_grad():
        for parameter in (*other.blocks.parameters(), *model.blocks[0].action.parameters()):
            parameter.zero_()
    for one in (other, model):
        out = objective(one, **batch)
        assert (out.action_velocity - expected.action_velocity).abs().max() > 1e-3
        assert ((out.rgb_velocity - expected.rgb_velocity).abs().max() > 1e-3) == (one is other)
    with torch.no_grad():
        for parameter in (*model.action_head.parameters(), *model.blocks[0].action.parameters()):
            parameter.add_(0.1)
    objective(model, **batch).action_loss.backward()
    for trained in (model.action_head, model.blocks[0].action):
        assert all(p.grad.abs().max() > 0 for name, p in trained.named_parameters() if "bias" not in name)
    for frozen in (model.history_head, model.blocks[0].history):
        assert all(p.grad is None for p in frozen.parameters())
    model.join_history_head()
    with torch.no_grad():
        torch.testing.assert_close(objective(model, **batch).loss, expected.loss, rtol=0, atol=1e-12)
    model.save_pretrained(tmp_path)
    loaded = AIMForWorldAction.from_pretrained(tmp_path)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in loaded.state_dict().items())


@torch.no_grad()
def test_attention_implementations():
    """A rollout's attention is transformers' choice; here one that counts, in place of a GPU's kernels."""
    calls = []

    def counted(module, query, key, value, attention_mask, is_causal=None, **kwargs):
        calls.append(query.shape[2])
        assert attention_mask is None and is_causal is False
        return F.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    AttentionInterface.register("counted", counted)
    model = make_model()
    batch = make_batch(model.config, 2)
    want = rollout(model, batch)
    assert not calls
    model.set_attn_implementation("counted")
    for a, b in zip(want, rollout(model, batch)):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    # RGB and value tokens attend apart, and RGB to the instruction too. Passes for the cache, of clean value tokens
    # and of what is appended, end with the last layer's keys and values.
    world, clean, actions, first, append = 3 * 3, 2 * 1, 3 * 1, 2 * 2, 2 * 3
    assert len(calls) == first + 2 * (world + clean + actions + append)


@torch.no_grad()
def test_weight_only_quantization(tmp_path):
    """By transformers' own configuration: every matrix product's weights, a quarter of the size, little changed."""
    torchao = pytest.importorskip("torchao.quantization")  # of users who want it; importing it is noisy
    quantization = TorchAoConfig(torchao.Int8WeightOnlyConfig())
    model = make_model(num_attention_heads=4, attention_head_dim=32, ffn_dim=256).float()
    model.save_pretrained(tmp_path)
    quantized = AIMForWorldAction.from_pretrained(tmp_path, quantization_config=quantization)
    assert type(quantized.blocks[0].ffn.net[2].weight).__name__ == "Int8Tensor"
    batch = {name: cast(value, torch.float32) for name, value in make_batch(model.config, 2).items()}
    want, got = rollout(model, batch), rollout(quantized, batch)
    for a, b in zip(want, got):
        assert 0 < (a - b).abs().mean() < 0.05 * a.abs().mean()


@torch.no_grad()
def test_committed_actions_are_given_and_do_not_count():
    model = make_model(action_lookahead_frames=1)
    batch = make_batch(model.config, chunks=2)
    horizon = model.config.action_horizon
    committed = torch.tensor([[[0, 2], [horizon, 1]], [[3, 0], [1, 1]]])  # (B, E, K)
    out = objective(model, **batch, committed_actions=committed)
    certain = (torch.arange(horizon) < committed[..., None]).flatten(2)[..., None].expand(out.action_velocity.shape)
    # The noise of what is certain isn't looked at, and its error isn't either.
    eps_x, eps_m, eps_a = batch["noise"]
    other = eps_a + certain * torch.randn(eps_a.shape, dtype=torch.float64)
    again = objective(model, **batch | {"noise": (eps_x, eps_m, other)}, committed_actions=committed)
    assert torch.equal(again.action_velocity, out.action_velocity) and again.action_loss == out.action_loss
    target = batch["actions"].unfold(1, horizon, model.config.actions_per_chunk).movedim(-1, 2).flatten(1, 2)
    error = (out.action_velocity - (eps_a - target[:, None])).square()
    assert out.action_loss.item() == pytest.approx(error[~certain].mean().item(), abs=1e-12)
    # What is certain guides the rest.
    free = objective(model, **batch)
    assert (free.action_velocity - out.action_velocity)[0, 0, horizon:].abs().max() > 1e-3
    torch.testing.assert_close(free.action_velocity[0, 0, :horizon], out.action_velocity[0, 0, :horizon])


@torch.no_grad()
def test_masked_actions_and_unweighted_values_do_not_count():
    model = make_model()
    batch = make_batch(model.config, chunks=2)
    mask = torch.ones_like(batch["actions"])
    mask[:, -2:] = 0
    weights = torch.ones(B, 4, H, W, dtype=torch.float64)
    weights[:, -2:] = 0
    before = objective(model, **batch, action_mask=mask, value_weights=weights)
    noise = [item.clone() for item in batch["noise"]]
    target_m, target_a = batch["value_latents"].clone(), batch["actions"].clone()
    # Same network inputs, other targets: only eps - x_0 of masked places changes.
    t_video, t_action = batch["timesteps"]
    t, s = t_video[:, 0, -1], t_action[:, :, -1]
    change = torch.randn(B, C, 2, H, W, dtype=torch.float64)
    target_m[:, :, -2:] += change
    noise[1][:, 0, :, -2:] -= ((1 - t) / t)[:, None, None, None, None] * change
    unmasked = objective(model, **{**batch, "value_latents": target_m, "noise": tuple(noise)}, action_mask=mask)
    masked = objective(
        model, **{**batch, "value_latents": target_m, "noise": tuple(noise)}, action_mask=mask, value_weights=weights
    )
    assert (unmasked.value_loss - objective(model, **batch).value_loss).abs() > 1e-3
    torch.testing.assert_close(masked.value_loss, before.value_loss, rtol=0, atol=1e-9)
    change = torch.randn(B, 2, model.config.action_dim, dtype=torch.float64)
    target_a[:, -2:] += change
    noise[2][:, :, -2:] -= ((1 - s) / s)[..., None, None] * change[:, None]
    masked = objective(
        model,
        **{
            **batch,
            "actions": target_a,
            "executed_actions": batch["actions"],
            "noise": (*batch["noise"][:2], noise[2]),
        },
        action_mask=mask,
    )
    torch.testing.assert_close(masked.action_loss, before.action_loss, rtol=0, atol=1e-9)


class Seen(Exception):
    """Carries what a module was given, past the rest of the pass."""


@pytest.mark.parametrize("inputs", [torch.bfloat16, torch.float32])
def test_times_are_a_continuum_in_a_bfloat16_model(inputs):
    """bfloat16 has some 850 times, of which 1 is drawn again and again."""
    model = make_model().bfloat16()
    batch = {k: v.to(inputs) for k, v in make_batch(model.config, 2, rows=8).items() if torch.is_tensor(v)}

    def stop(module, given):
        raise Seen(given[0])

    model.action_head.condition_embedder.register_forward_pre_hook(stop)
    with pytest.raises(Seen) as seen:
        objective(model, **batch, num_action_draws=700, generator=torch.Generator().manual_seed(0))
    times = seen.value.args[0]
    times = times[times > 0]  # the executed actions are clean
    assert times.dtype == torch.float32
    assert len(times.unique()) > 10_000 and (times < 1).all()


@torch.no_grad()
def test_what_is_mixed_and_summed_in_a_bfloat16_model_is_float32():
    """The network alone is in bfloat16: its input is rounded once, and its errors are not rounded at all."""
    model = make_model().bfloat16()
    batch = {name: cast(value, torch.float32) for name, value in make_batch(model.config, 2).items()}
    embedded = []
    model.patch_embedding.register_forward_pre_hook(lambda module, given: embedded.append(given[0]))
    out = objective(
        model, **{name: value.bfloat16() if torch.is_tensor(value) else value for name, value in batch.items()}
    )
    (eps_x, eps_m, eps_a), (t, _) = batch["noise"], batch["timesteps"]
    clean = {name: value.bfloat16().float() for name, value in batch.items() if torch.is_tensor(value)}
    at = t.repeat_interleave(2, dim=2)[:, 0, None, :, None, None]
    x_t = (1 - at) * clean["latents"][:, :, 1:] + at * eps_x[:, 0]
    assert all(part.dtype == torch.bfloat16 for part in embedded)
    assert any(part.shape == x_t.shape and torch.equal(part, x_t.bfloat16()) for part in embedded)
    for loss, velocity, target in (
        (out.rgb_loss, out.rgb_velocity[:, 0], eps_x[:, 0] - clean["latents"][:, :, 1:]),
        (out.value_loss, out.value_velocity[:, 0], eps_m[:, 0] - clean["value_latents"]),
        (out.action_loss, out.action_velocity, eps_a - clean["actions"][:, None]),
    ):
        want = (velocity.double() - target.double()).square().mean()
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(want.item(), rel=1e-6)
    assert out.loss.dtype == torch.float32


@torch.no_grad()
def test_missing_views_do_not_count():
    model = make_model()
    batch = make_batch(model.config, chunks=2)
    weights = torch.ones(B, batch["value_latents"].shape[2], H, W, dtype=torch.float64)
    assert objective(model, **batch, rgb_weights=weights).rgb_loss == pytest.approx(
        objective(model, **batch).rgb_loss.item(), abs=1e-12
    )
    weights[:, :, 2:] = 0  # the lower rows of the canvas are missing
    out = objective(model, **batch, rgb_weights=weights)
    target = batch["noise"][0][:, 0] - batch["latents"][:, :, 1:]
    error = (out.rgb_velocity[:, 0] - target)[:, :, :, :2].square().mean()
    assert out.rgb_loss.item() == pytest.approx(error.item(), abs=1e-12)


@torch.no_grad()
def test_noisy_history():
    """At t = 0 it is the clean one; otherwise what is seen and told changes, and the targets don't."""
    model = make_model()
    batch = make_batch(model.config, chunks=2)
    clean = objective(model, **batch)
    same = objective(model, **batch, history_timestep=torch.zeros(B, dtype=torch.float64))
    torch.testing.assert_close(same.rgb_velocity, clean.rgb_velocity, rtol=0, atol=1e-12)
    level = torch.tensor([0.0, 0.4], dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    noisy = objective(model, **batch, history_timestep=level, generator=generator)
    torch.testing.assert_close(noisy.rgb_velocity[0], clean.rgb_velocity[0], rtol=0, atol=1e-12)
    assert (noisy.rgb_velocity[1] - clean.rgb_velocity[1]).abs().max() > 1e-3
    target = batch["noise"][0][:, 0] - batch["latents"][:, :, 1:]
    assert noisy.rgb_loss.item() == pytest.approx((noisy.rgb_velocity[:, 0] - target).square().mean().item(), abs=1e-9)


def test_a_folder_without_a_configuration_is_no_model(tmp_path):
    """transformers would take the configuration's defaults, the full size."""
    AIMForWorldAction(make_config()).save_pretrained(tmp_path / "model")
    assert AIMConfig.from_pretrained(tmp_path, subfolder="model").num_layers == make_config().num_layers
    for loaded in (AIMConfig, AIMForWorldAction):
        with pytest.raises(OSError, match=r'has no config.json; expected the model .* or subfolder="model"'):
            loaded.from_pretrained(tmp_path)


def test_unknown_and_ill_typed_config_fields_are_refused():
    with pytest.raises(ValueError, match="num_layer'"):
        AIMConfig(num_layer=3)
    with pytest.raises(ValueError, match="^Field 'num_layers' expected int, got str .value: 'three'.$"):
        AIMConfig(num_layers="three")
    with pytest.raises(ValueError, match="^history_chunks is 0; it must be at least 1, or None for all history.$"):
        AIMConfig(history_chunks=0)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("history_chunks", 0, "^history_chunks is 0; it must be at least 1, or None"),  # a cache would keep 4
        ("visibility", "map", "^visibility is 'map'; expected one of map_only, aim"),
        ("video_shift", -1.0, "^video_shift is -1.0; expected a number above 0"),
    ],
)
def test_fields_that_a_checkpoint_is_loaded_with_are_checked(tmp_path, field, value, message):
    make_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        AIMForWorldAction.from_pretrained(tmp_path, **{field: value})
    model = AIMForWorldAction.from_pretrained(tmp_path, history_chunks=1, visibility="rgb")
    assert model.config.history_chunks == 1 and model.config.visibility == "rgb"


@torch.no_grad()
def test_misuse_of_a_rollout_is_named():
    model = make_model()
    cache = model.new_cache(1, H, W)
    latents = torch.zeros(1, C, 1, H, W, dtype=torch.float64)
    with pytest.raises(ValueError, match="set_text"):
        model.append(cache, latents)
    model.set_text(cache, torch.zeros(1, S, 10, dtype=torch.float64))
    with pytest.raises(ValueError, match="append first"):
        model.action_context(cache, latents, latents)
    with pytest.raises(ValueError, match="one latent frame"):
        model.append(cache, latents.repeat(1, 1, 2, 1, 1))
    model.append(cache, latents)
    two = cache.select(torch.tensor([0, 0]))
    two.reset(torch.tensor([1]))
    with pytest.raises(ValueError, match=r"rows \[1\] have observed nothing yet"):
        model.append(two, latents.repeat(2, 1, 1, 1, 1))
    with pytest.raises(ValueError, match=r"rows \[1\] of the cache hold no observation"):
        model.action_context(two, *[latents.repeat(2, 1, 2, 1, 1)] * 2)
    with pytest.raises(ValueError, match="executed actions"):
        model.append(cache, latents.repeat(1, 1, 2, 1, 1))
    with pytest.raises(ValueError, match="patches"):
        model.new_cache(1, 3, 4)


def test_positions_in_float32_turn_by_the_same_angles():
    """Apple's GPUs have no float64. Torch can't make their tensors on other machines, so positions are converted."""
    dtypes = [layers.angle_dtype(torch.device(device)) for device in ("mps", "cpu")]
    assert dtypes == [torch.float32, torch.float64]
    frames = torch.arange(200)[None]
    for positions in (layers.video_positions(frames, 3, 4), layers.action_positions(frames, 8)):
        assert positions.dtype == torch.float64
        rounded = layers.rotary(positions.float(), 24, torch.float32)
        torch.testing.assert_close(rounded, layers.rotary(positions, 24, torch.float32), rtol=0, atol=3e-5)
