"""Draws a contact sheet of episodes: for each camera its frames and, below them, the value maps over the gray frames.

aim-hf preview DIR --output_file sheet.png [--tasks click_bell] [--episodes 1] [--frames 12]
"""

from pathlib import Path

from . import Parser, check_options


def main(argv: list[str]) -> None:
    parser = Parser("preview", __doc__)
    parser.add_argument("source", help="a folder of episodes or a repo id")
    parser.add_argument("--output_file", type=Path, required=True, help="the PNG to write")
    parser.add_argument("--tasks", nargs="+", help="default: all")
    parser.add_argument("--episodes", type=int, default=1, help="episodes of each task and split")
    parser.add_argument("--frames", type=int, default=10, help="frames of each episode")
    args = parser.parse_args(argv)
    check_options(args, "episodes", "frames")
    if args.output_file.suffix.lower() != ".png":
        parser.error(f"--output_file is {args.output_file}; expected a name that ends in .png")

    import numpy as np
    from PIL import Image

    from ..data.preview import contact_sheet
    from ..data.shards import load_episodes
    from ..utils.files import written_file

    dataset = load_episodes(args.source)
    if unknown := set(args.tasks or ()) - set(dataset["task"]):
        raise ValueError(
            f"--tasks has {', '.join(sorted(unknown))}; {args.source} holds {', '.join(sorted(set(dataset['task'])))}."
        )
    chosen: dict[tuple[str, str], list[int]] = {}
    for index, (task, split) in enumerate(zip(dataset["task"], dataset["split"], strict=True)):
        if args.tasks is None or task in args.tasks:
            chosen.setdefault((task, split), []).append(index)
    indices = [index for group in chosen.values() for index in group[: args.episodes]]
    if not indices:
        raise ValueError(f"{args.source} holds no episode; record some with aim-hf collect.")
    sheets = [np.asarray(contact_sheet(dataset[index], args.frames)) for index in indices]
    with written_file(args.output_file) as temporary:
        Image.fromarray(np.concatenate(sheets)).save(temporary, "PNG")
    print(f"{len(sheets)} of {len(dataset)} episodes in {args.output_file}")
