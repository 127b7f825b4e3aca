"""AIM at a glance: runs a few held-out episodes of the tabletop tasks that it knows and makes pictures of them.

    python pipelines/demo.py [--policy checkpoints/aim-tiny] [--tasks ...] [--episodes 3] [--output outputs/demo]

Writes `contact_sheet.png`, a video a task and `results.json`. A few minutes on two CPU cores.
"""

import argparse
from pathlib import Path


def main() -> None:
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch
    from accelerate import PartialState

    from aim_hf.envs import TASKS
    from aim_hf.evaluation.evaluate import Protocol, evaluate, format_results
    from aim_hf.evaluation.policies import AIM_TINY_TASKS, AIMPolicy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="checkpoints/aim-tiny", help="folder of an AIMPipeline, or repo id")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS["tabletop"], default=AIM_TINY_TASKS, help="default: aim-tiny's"
    )
    parser.add_argument("--episodes", type=int, default=3, help="of each task")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    args = parser.parse_args()

    state = PartialState(cpu=not torch.cuda.is_available())
    try:
        policy = AIMPolicy.from_pretrained(args.policy, state.device)
        print(f"Runs {args.episodes} episodes of each task; this takes a few minutes on two CPU cores.", flush=True)
        results = evaluate(policy, Protocol(), args.output, args.episodes, args.tasks, state=state)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    print(format_results(results))
    print(f"At a glance: {args.output / 'contact_sheet.png'}")
    print("Observed, imagined and value maps side by side:")
    for video in sorted((args.output / "videos").glob("*.mp4")):
        print(f"  {video}")
    print(f"Numbers: {args.output / 'results.json'}")


if __name__ == "__main__":
    main()
