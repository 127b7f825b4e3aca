"""Episodes in which the expert recovers from a mistake: no prediction is trained on what it couldn't foresee."""

import pytest
import torch

from aim_hf.data.latent_windows import LatentWindows
from aim_hf.data.latents import described, encode_episode, made_from, plan_shards, write_index
from aim_hf.data.shards import ShardWriter, load_episodes
from aim_hf.pipeline.codec import VideoCodec
from aim_hf.training.flow_matching import FlowMatchingLoss, weigh_values

from ..fixtures_pipeline import make_pipeline
from .test_stage1 import make_episode

INTERVENTION = 11  # in the second of the chunks, which have 8 actions


@pytest.fixture(scope="module", params=[0, 1])
def pipe(request):
    return make_pipeline(action_lookahead_frames=request.param)


@pytest.fixture(scope="module")
def latents(pipe, tmp_path_factory):
    """An episode with a mistake and one without."""
    folder = tmp_path_factory.mktemp("mistakes")
    episodes = [make_episode(0), make_episode(1)]
    episodes[0].intervention = INTERVENTION
    writer = ShardWriter(folder / "episodes", "easy", "click_bell", 0)
    for episode in episodes:
        writer.add(episode.to_row())
    writer.finish({"simulator": {}})
    codec = VideoCodec(pipe.vae)
    entries = described(load_episodes(folder / "episodes"), pipe.processor)
    assert [entry.get("intervention") for entry in entries] == [INTERVENTION, None]
    (shard,) = plan_shards(
        folder, entries, made_from(pipe.model.config, pipe.processor, codec, "text encoder", 16, 12.5, shard_size=4)
    )
    shard.write(
        encode_episode(episode, codec, pipe.processor, 8, 1) | {"prompt_embeds": torch.zeros(2, 16).half()}
        for episode in episodes
    )
    write_index(folder, [shard], pipe.processor, torch.ones(1, 16).half())
    return folder


def test_what_a_prediction_cannot_foresee_has_no_weight(pipe, latents):
    """The mistake is in the second chunk: predictions from before it know the expert's plan only up to there."""
    horizon = pipe.model.config.action_horizon
    windows = LatentWindows(latents, pipe.model.config, window_chunks=3)
    first, later, other = (windows[index]["action_mask"].view(3, horizon) for index in (0, 1, 2))
    expected = torch.ones(3, horizon)
    for chunk in (0, 1):
        expected[chunk, INTERVENTION - 8 * chunk :] = 0
    assert torch.equal(first, expected) and torch.equal(later[:2], expected[1:]) and later[2].all()
    assert other.all(), "the episode without a mistake"


def test_the_recovery_is_learned_by_the_predictions_that_see_the_mistake(pipe, latents):
    """Another recovery changes the loss of the third chunk's prediction alone."""
    config, windows = pipe.model.config, LatentWindows(latents, pipe.model.config, window_chunks=3)
    batch = weigh_values({name: tensor[None] for name, tensor in windows[0].items()}, foreground_weight=10.0)
    actions = batch["actions"].clone()
    actions[:, INTERVENTION:] += 1
    generator = torch.Generator().manual_seed(0)
    chunks, count = batch["value_latents"].shape, 3 * config.action_horizon
    noise = [torch.randn(1, 1, *shape, generator=generator) for shape in (chunks[1:], chunks[1:], (count, 16))]

    def losses(mask: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        loss = FlowMatchingLoss(config)
        times = torch.full((1, 1, 3), 1.0), torch.full((1, 1, 3), 1.0)
        given = batch | {"actions": targets, "executed_actions": batch["executed_actions"], "action_mask": mask}
        return loss(pipe.model, **given, timesteps=times, noise=noise).action_loss

    horizon = config.action_horizon
    before, third = batch["action_mask"].clone(), batch["action_mask"].clone()
    before[:, 2 * horizon :], third[:, : 2 * horizon] = 0, 0
    assert torch.equal(losses(before, batch["actions"]), losses(before, actions))
    assert not torch.equal(losses(third, batch["actions"]), losses(third, actions))
