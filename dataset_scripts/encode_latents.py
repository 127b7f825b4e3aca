"""Encodes episodes once, so that training runs neither the VAE nor the text encoder.

    accelerate launch --multi_gpu --num_processes 2 dataset_scripts/encode_latents.py \
        --dataset runs/episodes --base runs/base --output runs/latents

`--base` is a folder with `vae/`, `text_encoder/` and `processor/`. The output folder also gets the processor, fitted
to the cameras and the action space of these episodes, with their action statistics. Processes share the work shard by
shard, and a run that was killed goes on with the shards that are missing.
"""

import argparse
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers import AutoencoderKLWan
from tqdm import tqdm
from transformers import AutoModelForTextEncoding

from aim_hf.checkpoint import fingerprint
from aim_hf.codec import VideoCodec
from aim_hf.configuration_aim import PRESETS
from aim_hf.data.episodes import Episode
from aim_hf.data.latents import encode_episode, fit_processor, missing, plan_shards, write_index
from aim_hf.data.shards import load_episodes
from aim_hf.processing_aim import AIMProcessor

DESCRIPTION = ["suite", "task", "split", "seed", "instruction"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS), help="sizes of a chunk")
    parser.add_argument("--shard-size", type=int, default=128, help="episodes of a file")
    args = parser.parse_args()
    # Processes meet only at the end, which may be hours away.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))

    config = PRESETS[args.preset]()
    codec = VideoCodec(AutoencoderKLWan.from_pretrained(args.base / "vae").to(state.device))
    text_encoder = AutoModelForTextEncoding.from_pretrained(args.base / "text_encoder").to(state.device)
    dataset = load_episodes(args.dataset)
    processor = fit_processor(AIMProcessor.from_pretrained(args.base / "processor"), dataset)
    encoder = fingerprint(args.base / "vae") + fingerprint(args.base / "text_encoder")
    described = zip(dataset.select_columns(DESCRIPTION).to_list(), missing(dataset, processor), strict=True)
    shards = plan_shards(args.output, [row | lacks for row, lacks in described], encoder, args.shard_size)
    args.output.mkdir(parents=True, exist_ok=True)

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
            if shard.is_done():
                bar.update(len(rows))
                continue

            def progressing(rows=rows):
                for row in rows:
                    yield encoded(dataset[row])
                    bar.update()

            shard.write(progressing())
    state.wait_for_everyone()
    if state.is_main_process:
        for path in {*args.output.glob("*shard-*.safetensors")} - {shard.path for shard in shards}:
            path.unlink()  # of another set of episodes, or left by a writer that was killed
        no_prompt_embeds = encoded_text("", allow_empty=True).cpu()
        write_index(args.output, shards, processor, config.chunk_latent_frames, no_prompt_embeds)


if __name__ == "__main__":
    main()
