"""Encodes episodes once, so that training runs neither the VAE nor the text encoder.

    accelerate launch --multi_gpu --num_processes 2 -m aim_hf encode-latents \
        --dataset runs/episodes --policy runs/base --output_dir runs/latents

`--policy` is a checkpoint with `vae/`, `text_encoder/` and `processor/`. Its model tells how many frames and actions a
chunk has, or `--preset` where a new model shall be trained. The output folder also gets the processor, fitted
to the cameras and the action space of these episodes, with their action statistics. Processes share the work shard by
shard, and a run that was killed goes on with the shards that are missing.
"""

from datetime import timedelta
from pathlib import Path

from ..model.presets import PRESETS
from . import Parser


def main(argv: list[str]) -> None:
    parser = Parser("encode-latents", __doc__)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument("--policy", required=True, help="checkpoint whose codec and text encoder are used")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--preset", choices=sorted(PRESETS), help="of a new model; default: the policy's own")
    parser.add_argument("--shard_size", type=int, default=128, help="episodes of a file")
    args = parser.parse_args(argv)

    import torch
    from accelerate import PartialState
    from tqdm import tqdm

    from ..data.episodes import Episode
    from ..data.latents import (
        begin_encoding,
        described,
        encode_episode,
        fit_processor,
        made_from,
        plan_shards,
        write_index,
    )
    from ..data.shards import load_episodes
    from ..model.checkpoint import fingerprint, local_folder
    from ..model.configuration_aim import AIMConfig
    from ..model.processing_aim import AIMProcessor
    from ..pipeline.codec import VideoCodec
    from ..pipeline.loading import load_text_encoder, load_vae

    # Processes meet only at the end, which may be hours away.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    policy = local_folder(args.policy)
    if args.preset is not None:
        config = AIMConfig(**PRESETS[args.preset])
    elif (policy / "model").is_dir():
        config = AIMConfig.from_pretrained(policy / "model")
    else:
        raise ValueError(f"{args.policy} holds no model that tells the sizes of a chunk; give --preset")
    codec = VideoCodec(load_vae(policy).to(state.device))
    text_encoder = load_text_encoder(policy).to(state.device)
    dataset = load_episodes(args.dataset)
    processor = fit_processor(AIMProcessor.from_pretrained(policy / "processor"), dataset)
    settings = made_from(
        *(config, processor, codec, fingerprint(policy / "text_encoder")),
        text_dim=text_encoder.config.d_model,
        fps=dataset["fps"][0],
        shard_size=args.shard_size,
    )
    shards = plan_shards(args.output_dir, described(dataset, processor), settings)
    with state.main_process_first():
        if state.is_main_process:
            print(begin_encoding(args.output_dir, shards))

    @torch.no_grad()
    def encoded_text(text: str, allow_empty: bool = False) -> torch.Tensor:
        tokens = processor.tokenize(text, allow_empty).to(state.device)
        features = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
        return features[: int(tokens.attention_mask.sum())].half()

    @torch.no_grad()
    def encoded(row: dict) -> dict[str, torch.Tensor]:
        episode = Episode.from_row(row)
        tensors = encode_episode(
            episode, codec, processor, config.actions_per_latent_frame, config.chunk_latent_frames
        )
        tensors["prompt_embeds"] = encoded_text(episode.instruction)
        return {name: tensor.cpu() for name, tensor in tensors.items()}

    first = 0
    total = sum(len(shard.episodes) for shard in shards[state.process_index :: state.num_processes])
    with tqdm(total=total, unit="episode", desc=f"process {state.process_index}", position=state.process_index) as bar:
        for index, shard in enumerate(shards):
            rows = range(first, first + len(shard.episodes))
            first = rows.stop
            if index % state.num_processes != state.process_index:
                continue
            if shard.unfinished() is None:
                bar.update(len(rows))
                continue

            def progressing(rows=rows):
                for row in rows:
                    yield encoded(dataset[row])
                    bar.update()

            shard.write(progressing())
    state.wait_for_everyone()
    if state.is_main_process:
        write_index(args.output_dir, shards, processor, encoded_text("", allow_empty=True).cpu())
