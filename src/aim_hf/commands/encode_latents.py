"""Encodes episodes to latents and text features once, so that training runs neither the VAE nor the text encoder.

    accelerate launch --multi_gpu --num_processes 2 -m aim_hf encode-latents \\
        --dataset runs/episodes --policy runs/base --output_dir runs/latents

`--policy` is a checkpoint with `vae/`, `text_encoder/` and `processor/`. The config of its model gives the latent
frames and actions of a chunk; `--preset` gives them where a new model will be trained. The output folder also gets
the processor, fitted to the cameras and the action space of these episodes, with their action statistics. Processes
divide the shards among them. An interrupted run encodes the missing shards when it is started again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.presets import PRESETS
from . import Parser, check_options

if TYPE_CHECKING:
    import torch
    from accelerate import PartialState
    from datasets import Dataset

    from ..data.latents import LatentShard
    from ..model.configuration_aim import AIMConfig


def parse(argv: list[str]) -> argparse.Namespace:
    parser = Parser("encode-latents", __doc__)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument("--policy", required=True, help="checkpoint whose codec and text encoder are used")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="size of a new model; default: the policy's model")
    parser.add_argument("--shard_size", type=int, default=128, help="episodes in a file")
    args = parser.parse_args(argv)
    check_options(args, "shard_size")
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)

    import torch
    from accelerate import PartialState

    from ..data import latents
    from ..data.episodes import Episode
    from ..data.shards import load_episodes
    from ..model.checkpoint import fingerprint, local_folder
    from ..model.processing_aim import AIMProcessor
    from ..pipeline.codec import VideoCodec
    from ..pipeline.loading import load_text_encoder, load_vae

    # Processes wait for each other only at the end, hours later with many episodes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    policy = local_folder(args.policy)
    config = model_config(args, policy)
    codec = VideoCodec(load_vae(policy).to(state.device))
    text_encoder = load_text_encoder(policy).to(state.device)
    dataset = load_episodes(args.dataset)
    processor = latents.fit_processor(AIMProcessor.from_pretrained(policy / "processor"), dataset)
    latents.check_instructions(processor, sorted(set(dataset["instruction"])))
    settings = latents.made_from(
        config,
        processor,
        codec,
        text_encoder=fingerprint(policy / "text_encoder"),
        text_dim=text_encoder.config.d_model,
        fps=dataset["fps"][0],
        shard_size=args.shard_size,
    )
    shards = latents.plan_shards(args.output_dir, latents.described(dataset, processor), settings)
    with state.main_process_first():
        if state.is_main_process:
            print(latents.begin_encoding(args.output_dir, shards))
            if left_out := latents.without_slot(dataset, processor):
                print(f"left out: pictures of {', '.join(left_out)}, for which {args.policy} has no slot")

    @torch.no_grad()
    def encode_text(text: str, allow_empty: bool = False) -> torch.Tensor:
        tokens = processor.tokenize(text, allow_empty).to(state.device)
        features = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
        return features[: int(tokens.attention_mask.sum())].half()

    @torch.no_grad()
    def encode_row(row: dict[str, Any]) -> dict[str, torch.Tensor]:
        episode = Episode.from_row(row)
        tensors = latents.encode_episode(
            episode, codec, processor, config.actions_per_latent_frame, config.chunk_latent_frames
        )
        tensors["prompt_embeds"] = encode_text(episode.instruction)
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    encode_shards(shards, dataset, state, encode_row)
    state.wait_for_everyone()
    if state.is_main_process:
        latents.write_index(args.output_dir, shards, processor, encode_text("", allow_empty=True).cpu())


def model_config(args: argparse.Namespace, policy: Path) -> AIMConfig:
    """The config of `--preset`, or of the model in the checkpoint `policy`.

    Raises:
        ValueError: if neither is there.
    """
    from ..model.configuration_aim import AIMConfig

    if args.preset is not None:
        return AIMConfig(**PRESETS[args.preset])
    if (policy / "model").is_dir():
        return AIMConfig.from_pretrained(policy / "model")
    raise ValueError(f"{args.policy} holds no model that tells the sizes of a chunk; give --preset")


def encode_shards(
    shards: list[LatentShard],
    dataset: Dataset,
    state: PartialState,
    encode_row: Callable[[dict[str, Any]], dict[str, torch.Tensor]],
) -> None:
    """Writes the missing shards among those of this process."""
    from tqdm import tqdm

    first = 0
    total = sum(len(shard.episodes) for shard in shards[state.process_index :: state.num_processes])
    with tqdm(total=total, unit="episode", desc=f"process {state.process_index}", position=state.process_index) as bar:

        def encode_rows(rows: range) -> Iterator[dict[str, torch.Tensor]]:
            for row in rows:
                yield encode_row(dataset[row])
                bar.update()

        for index, shard in enumerate(shards):
            rows = range(first, first + len(shard.episodes))
            first = rows.stop
            if index % state.num_processes != state.process_index:
                continue
            if shard.unfinished() is None:
                bar.update(len(rows))
            else:
                shard.write(encode_rows(rows))
