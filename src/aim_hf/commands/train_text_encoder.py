"""Trains the tiny tokenizer and text encoder on a dataset's instructions, in a minute on a CPU core.

    aim-hf train-text-encoder --dataset runs/episodes --policy runs/base

Writes `text_encoder/` and `processor/` of the checkpoint: the processor holds the tokenizer and the T-pose canvas that
fits the dataset's cameras. `text_encoder.made_from.json` says what they were made from: the same command makes them
again, another one is refused. `aim-hf train-vae` comes next.
"""

import hashlib
import json
from pathlib import Path

from ..utils.checks import check_whole
from . import Parser


def main(argv: list[str]) -> None:
    parser = Parser("train-text-encoder", __doc__)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument(
        "--policy", type=Path, required=True, help="checkpoint folder that gets text_encoder/ and processor/"
    )
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--max_text_length", type=int, default=64, help="tokens that instructions are padded to")
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="in pixels; default: the head camera's width, its height and the left camera's together",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    for name in ("steps", "max_text_length"):
        check_whole(f"--{name}", getattr(args, name))

    import torch

    from .. import AIMProcessor, t_pose_canvas
    from ..data.episodes import Episode
    from ..data.latents import fit_processor
    from ..data.shards import load_episodes
    from ..tiny.text_encoder import tiny_text_encoder, train_text_encoder, train_tokenizer
    from ..utils.files import claim, written_folder

    dataset = load_episodes(args.dataset)
    instructions = sorted(set(dataset["instruction"]))
    tokenizer = train_tokenizer(instructions, max_length=args.max_text_length)
    sizes = {camera: rgb.shape[1:3] for camera, rgb in Episode.from_row(dataset[0]).rgb.items()}
    if args.canvas:
        canvas = tuple(args.canvas)
    elif {"head_camera", "left_camera"} <= set(sizes):
        canvas = (sizes["head_camera"][0] + sizes["left_camera"][0], sizes["head_camera"][1])
    else:
        raise ValueError(f"the first episode has only {', '.join(sizes)}; say with --canvas how large the canvas is")
    slots = t_pose_canvas(canvas, canvas, canvas)  # their sizes are the dataset's
    processor = fit_processor(AIMProcessor(tokenizer, canvas, slots, max_text_length=args.max_text_length), dataset)
    fitted = ("canvas_size", "cameras", "action_space", "action_dim", "max_text_length", "fps")
    settings = {
        "instructions": hashlib.sha256(json.dumps(instructions).encode()).hexdigest(),
        **{name: getattr(processor, name) for name in fitted},
        **{name: getattr(args, name) for name in ("steps", "seed")},
    }
    # Beside the parts and not in them: a part's fingerprint covers all that it holds.
    claim(args.policy, settings, outputs="text_encoder", record="text_encoder.made_from.json")

    torch.manual_seed(args.seed)
    encoder = tiny_text_encoder(len(tokenizer))
    accuracy = train_text_encoder(encoder, tokenizer, instructions, steps=args.steps, seed=args.seed)
    with written_folder(args.policy / "text_encoder") as folder:
        encoder.save_pretrained(folder)
    with written_folder(args.policy / "processor") as folder:
        processor.save_pretrained(folder)
    print(
        f"{len(instructions)} instructions, {len(tokenizer)} tokens, "
        f"{sum(p.numel() for p in encoder.parameters()) / 1e6:.2f} M parameters; "
        f"restores {accuracy:.0%} of masked tokens. Written to {args.policy}."
    )
