"""Serves a web page to try AIM: choose a task, a scene and an instruction, and watch a rollout with its predictions.

    aim-hf app [--policy DIR] [--tasks ...] [--port 7860]

Runs on a CPU. Scenes are held-out scenes of the tabletop suite. Set GRADIO_SERVER_NAME=0.0.0.0 to accept other
machines.
"""

import os

from .. import AIM_TINY
from ..envs.names import TABLETOP
from ..pipeline.loading_config import LoadingConfig
from ..utils.checks import check_number
from . import Parser, check_address, check_options
from .policy_options import add_loading_arguments, given_options


def main(argv: list[str]) -> None:
    parser = Parser("app", __doc__)
    parser.add_argument("--policy", default=AIM_TINY, help="folder of an AIMPipeline, or repo id; default: aim-tiny")
    parser.add_argument("--tasks", nargs="+", choices=TABLETOP, default=TABLETOP, help="default: all")
    parser.add_argument("--episodes", type=int, default=2, help="episodes that run at once; others wait")
    parser.add_argument("--port", type=int, help="default: 7860, or the next free port")
    add_loading_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "episodes")
    if args.port is not None:
        check_number("--port", args.port, 1, 65535)
        check_address(os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"), args.port)

    import torch

    from ..app.episode import LiveRollouts, Simulators
    from ..app.page import LAUNCH, build
    from ..rollout.policies import AIMPolicy

    simulators = Simulators(limit=args.episodes + 1)
    try:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        pipe = AIMPolicy.from_pretrained(args.policy, device, **given_options(args, LoadingConfig)).pipe
        page = build(LiveRollouts(pipe, simulators), args.tasks, at_once=args.episodes)
        page.launch(server_port=args.port, **LAUNCH)
    finally:
        simulators.close()
