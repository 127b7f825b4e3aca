"""Encodes episodes once, so that training runs neither the VAE nor the text encoder.

    python dataset_scripts/encode_latents.py --dataset runs/episodes --base runs/base --output runs/latents

`--base` is a folder with `vae/`, `text_encoder/` and `processor/`. The output folder also gets the processor, with the
action statistics of these episodes.
"""

import argparse
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from tqdm import tqdm
from transformers import AutoModelForTextEncoding

from aim_hf.codec import VideoCodec
from aim_hf.configuration_aim import PRESETS
from aim_hf.data.episodes import Episode, load_episodes
from aim_hf.data.latents import encode_episode, write_latents
from aim_hf.processing_aim import AIMProcessor


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--preset", default="tiny", choices=sorted(PRESETS), help="sizes of a chunk")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if (args.output / "index.json").exists():
        raise SystemExit(f"{args.output} holds latents already; delete it to encode again.")
    for leftover in args.output.glob("*shard-*.safetensors"):
        leftover.unlink()

    config = PRESETS[args.preset]()
    codec = VideoCodec(AutoencoderKLWan.from_pretrained(args.base / "vae").to(args.device))
    text_encoder = AutoModelForTextEncoding.from_pretrained(args.base / "text_encoder").to(args.device)
    processor = AIMProcessor.from_pretrained(args.base / "processor")
    dataset = load_episodes(args.dataset)

    @torch.no_grad()
    def encoded():
        for row in tqdm(dataset, desc="encode", unit="episode"):
            episode = Episode.from_row(row)
            tensors = encode_episode(
                episode, codec, processor, config.actions_per_latent_frame, config.chunk_latent_frames
            )
            tokens = processor.tokenize(episode.instruction).to(args.device)
            features = text_encoder(tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state[0]
            tensors["prompt_embeds"] = features[: int(tokens.attention_mask.sum())].half()
            description = {name: getattr(episode, name) for name in ("suite", "task", "split", "seed", "instruction")}
            description["chunks"] = tensors["value_latents"].shape[1] // config.chunk_latent_frames
            yield description, {name: tensor.cpu() for name, tensor in tensors.items()}

    write_latents(args.output, encoded(), processor)


if __name__ == "__main__":
    main()
