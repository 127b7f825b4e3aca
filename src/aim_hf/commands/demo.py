"""Runs a few held-out episodes of the tabletop tasks, and draws them.

    aim-hf demo [--policy DIR] [--tasks ...] [--episodes 3] [--output_dir outputs/demo]

Writes `contact_sheet.png`, a video of each task and `results.json`. Takes 1 to 2 minutes on two CPU cores.
"""

from pathlib import Path

from .. import AIM_TINY
from ..envs.names import TABLETOP
from . import Parser, check_options, check_outside


def main(argv: list[str]) -> None:
    parser = Parser("demo", __doc__)
    parser.add_argument("--policy", default=AIM_TINY, help="folder of an AIMPipeline, or repo id; default: aim-tiny")
    parser.add_argument("--tasks", nargs="+", choices=TABLETOP, default=TABLETOP, help="default: all")
    parser.add_argument("--episodes", type=int, default=3, help="episodes of each task")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/demo"))
    args = parser.parse_args(argv)
    check_options(args, "episodes")
    check_outside(args.output_dir, args.policy)

    import torch
    from accelerate import PartialState

    from ..evaluation.evaluate import Protocol, evaluate, format_results
    from ..rollout.policies import AIMPolicy

    state = PartialState(cpu=not torch.cuda.is_available())
    policy = AIMPolicy.from_pretrained(args.policy, state.device)
    state.print(
        f"Runs {args.episodes} held-out episodes of {len(args.tasks)} tasks (usually 1 to 2 minutes on 2 CPU cores).",
        flush=True,
    )
    results = evaluate(policy, Protocol(), args.output_dir, args.episodes, args.tasks, state=state)
    if results is None:  # not the main process
        return
    print(format_results(results))
    print(f"At a glance: {args.output_dir / 'contact_sheet.png'}")
    print("Observed, imagined and value maps side by side:")
    for video in sorted((args.output_dir / "videos").glob("*.mp4")):
        print(f"  {video}")
    print(f"Numbers: {args.output_dir / 'results.json'}")
