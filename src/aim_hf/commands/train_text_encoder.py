"""Trains the tiny tokenizer and text encoder on a dataset's instructions, in a minute on a CPU core.

    aim-hf train-text-encoder --dataset runs/episodes --policy runs/base

Writes `text_encoder/` and `processor/` into the checkpoint. The processor holds the tokenizer and the canvas: how
the pictures of the dataset's cameras are put together. `text_encoder.made_from.json` records the settings: the same
command writes both again, other settings are refused. `aim-hf train-vae` is the next step.
"""

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ..utils.checks import check_whole, noise_seed
from . import Parser, check_options


def parse(argv: list[str]) -> argparse.Namespace:
    """The options, checked."""
    parser = Parser("train-text-encoder", __doc__)
    parser.add_argument("--dataset", required=True, help="folder or repo id of episodes")
    parser.add_argument(
        "--policy", type=Path, required=True, help="checkpoint folder that gets text_encoder/ and processor/"
    )
    parser.add_argument("--steps", type=int, default=1500, help="optimizer steps")
    parser.add_argument("--max_text_length", type=int, default=64, help="tokens that instructions are padded to")
    parser.add_argument(
        "--canvas",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="in pixels, multiples of 16; default: the head camera's pictures as they are, the others half as wide",
    )
    parser.add_argument("--seed", type=int, default=0, help="of new weights and of the samples")
    args = parser.parse_args(argv)
    check_options(args, "steps", "max_text_length")
    noise_seed("--seed", args.seed)
    for size in args.canvas or ():
        check_whole("--canvas", size)
    return args


def canvas_size(sizes: dict[str, Sequence[int]]) -> tuple[int, int]:
    """The default canvas (height, width) for cameras of `sizes` (height, width): the head camera's pictures as they
    are, above the left camera's at half that width.

    Raises:
        ValueError: if one of the two cameras is missing.
    """
    if not {"head_camera", "left_camera"} <= set(sizes):
        raise ValueError(f"the first episode has only {', '.join(sizes)}; say with --canvas how large the canvas is")
    (head_height, width), (left_height, left_width) = sizes["head_camera"], sizes["left_camera"]
    return head_height + left_height * width // (2 * left_width), width


def main(argv: list[str]) -> None:
    args = parse(argv)

    import torch

    from .. import AIMProcessor, t_pose_canvas
    from ..data.episodes import Episode
    from ..data.latents import fit_processor
    from ..data.shards import load_episodes
    from ..tiny.text_encoder import tiny_text_encoder, train_text_encoder, train_tokenizer
    from ..tiny.vae_arguments import check_canvas
    from ..utils.files import claim, written_folder

    dataset = load_episodes(args.dataset)
    instructions = sorted(set(dataset["instruction"]))
    tokenizer = train_tokenizer(instructions, max_length=args.max_text_length)
    sizes = {camera: rgb.shape[1:3] for camera, rgb in Episode.from_row(dataset[0]).rgb.items()}
    canvas = tuple(args.canvas) if args.canvas else canvas_size(sizes)
    check_canvas(canvas)
    slots = t_pose_canvas(canvas, canvas, canvas)  # `fit_processor` sets the cameras' sizes
    processor = fit_processor(AIMProcessor(tokenizer, canvas, slots, max_text_length=args.max_text_length), dataset)
    processor.tokenize(instructions)  # refuses one that is longer than --max_text_length, as encode-latents would
    fitted = ("canvas_size", "cameras", "action_space", "action_dim", "max_text_length", "fps")
    settings = {
        "instructions": hashlib.sha256(json.dumps(instructions).encode()).hexdigest(),
        **{name: getattr(processor, name) for name in fitted},
        **{name: getattr(args, name) for name in ("steps", "seed")},
    }
    # Not inside text_encoder/ or processor/, whose fingerprints cover every file in them.
    claim(args.policy, settings, "text_encoder", "processor", record="text_encoder.made_from.json")

    torch.manual_seed(args.seed)
    encoder = tiny_text_encoder(len(tokenizer))
    accuracy = train_text_encoder(encoder, tokenizer, instructions, steps=args.steps, seed=args.seed)
    with written_folder(args.policy / "text_encoder") as folder:
        encoder.save_pretrained(folder)
    with written_folder(args.policy / "processor") as folder:
        processor.save_pretrained(folder)
    print(
        f"{len(instructions)} instructions, {len(tokenizer)} tokens, "
        f"{sum(parameter.numel() for parameter in encoder.parameters()) / 1e6:.2f} M parameters; "
        f"restores {accuracy:.0%} of masked tokens. Written to {args.policy}."
    )
