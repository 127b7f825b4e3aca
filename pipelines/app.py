"""A page to try AIM on: pick a task, a scene and words, and watch what it sees, imagines, intends and does.

    python pipelines/app.py [--policy checkpoints/aim-tiny] [--tasks ...] [--port 7860]

Runs on a CPU. Scenes are the held-out ones of the tabletop suite. Set GRADIO_SERVER_NAME=0.0.0.0 to let other machines
in.
"""

import argparse


def main() -> None:
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch

    from aim_hf.app.episode import LiveRollouts, Simulators
    from aim_hf.app.page import LAUNCH, build
    from aim_hf.envs import TASKS
    from aim_hf.evaluation.policies import AIM_TINY_TASKS, AIMPolicy

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="checkpoints/aim-tiny", help="folder of an AIMPipeline, or repo id")
    parser.add_argument(
        "--tasks", nargs="+", choices=TASKS["tabletop"], default=AIM_TINY_TASKS, help="default: aim-tiny's"
    )
    parser.add_argument("--episodes", type=int, default=2, help="that run at once; others wait")
    parser.add_argument("--port", type=int, help="default: 7860, or the next one that is free")
    args = parser.parse_args()

    simulators = Simulators(limit=args.episodes + 1)
    try:
        pipe = AIMPolicy.from_pretrained(args.policy, "cuda" if torch.cuda.is_available() else "cpu").pipe
        page = build(LiveRollouts(pipe, simulators), args.tasks, at_once=args.episodes)
        page.launch(server_port=args.port, **LAUNCH)
    except OSError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    finally:
        simulators.close()


if __name__ == "__main__":
    main()
