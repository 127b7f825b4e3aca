"""Measures success rates in closed loop:

    aim-hf evaluate --policy checkpoints/aim-tiny --suite tabletop --split easy \\
        --tasks click_bell lift_pot --episodes 50 --output_dir runs/easy

Writes `results.json`, videos and a contact sheet; `aim_hf/evaluation/evaluate.py` describes the folder. An interrupted
run continues when the same command is given again. More episodes or tasks may be added to a folder; other settings
are refused. The results depend neither on `--batch_size` nor on the number of processes.

Any policy behind openpi's websocket protocol is evaluated the same way (docs/serving.md):

    aim-hf evaluate --policy ws://127.0.0.1:8000 --dialect openpi --actions_per_chunk 50 \\
        --policy_name pi0.5 --suite robotwin --tasks click_bell --episodes 50 --output_dir runs/pi05
"""

from __future__ import annotations

import argparse
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from ..envs.names import TASKS, check_split, check_tasks
from ..envs.robotwin import add_robotwin_arguments
from ..pipeline.loading_config import LoadingConfig
from ..pipeline.sampling_config import SamplingConfig
from ..rollout import dialects
from ..rollout.execution_config import ExecutionConfig
from . import SPLITS_HELP, Parser, check_options, check_outside, check_robotwin_options
from .policy_options import add_loading_arguments, add_options, add_sampling_arguments, given_options
from .serve import read_token

if TYPE_CHECKING:
    import torch

    from ..rollout.policies import Policy


def parse(argv: list[str]) -> tuple[argparse.Namespace, dialects.Dialect | None]:
    """The options, checked, and the dialect of a server; None without a server and for AIM's own."""
    parser = Parser("evaluate", __doc__)
    parser.add_argument("--policy", required=True, help="folder of an AIMPipeline, repo id, or ws://host:port")
    parser.add_argument("--suite", choices=sorted(TASKS), default="tabletop")
    parser.add_argument("--split", default="easy", help=SPLITS_HELP)
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the suite")
    parser.add_argument("--episodes", type=int, required=True, help="of each task")
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--start_seed", type=int, default=0, help="offset into the seeds kept for evaluation")
    parser.add_argument(
        "--instructions", choices=("seen", "unseen"), default="seen", help="templates that instructions are drawn from"
    )
    parser.add_argument(
        "--value_maps", choices=("predicted", "true"), default="predicted", help="value maps that the policy acts on"
    )
    add_loading_arguments(parser)
    add_sampling_arguments(parser)
    add_options(parser, "execution", ExecutionConfig)
    parser.add_argument(
        "--batch_size",
        type=int,
        default=32,
        help="episodes that a process runs at a time; the more, the fuller the network's calls, and the more memory",
    )
    parser.add_argument(
        "--videos", type=int, default=1, help="first episodes of each task to film, if not evaluated before"
    )
    remote = parser.add_argument_group("policies behind a server (ws://)")
    remote.add_argument(
        "--dialect", choices=("openpi", "lingbot-va"), help="message format of the server; not for AIM's own"
    )
    remote.add_argument(
        "--actions_per_chunk",
        type=int,
        help="execution horizon: actions of each reply to execute; with --dialect openpi",
    )
    remote.add_argument("--policy_name", help="name in the results; default: the address")
    remote.add_argument("--token_file", type=Path, help="file with the token that the server requires")
    add_robotwin_arguments(parser)
    args = parser.parse_args(argv)
    check_options(args, "episodes", "batch_size", "actions_per_chunk")
    check_options(args, "start_seed", "videos", least=0)
    check_robotwin_options(args.suite, argv)
    check_tasks(args.suite, args.tasks or ())
    check_split(args.suite, args.split)
    if is_address(args.policy):
        args.token = read_token(args.token_file)
        return args, remote_dialect(parser, args)
    check_outside(args.output_dir, args.policy)
    if args.dialect or args.actions_per_chunk or args.policy_name or args.token_file:
        parser.error(f"{args.policy} is no ws:// address; --dialect and its like are for policies behind a server")
    return args, None


def main(argv: list[str]) -> None:
    args, dialect = parse(argv)

    import torch
    from accelerate import PartialState

    from ..evaluation.evaluate import Protocol, evaluate, format_results

    # Processes wait for each other at the end, as long as the slowest of them takes.
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=7))
    protocol = Protocol(args.suite, args.split, args.instructions, args.value_maps, args.start_seed)
    policy = load_policy(args, dialect, state.device)
    results = evaluate(
        policy, protocol, args.output_dir, args.episodes, args.tasks, args.batch_size, args.videos, state=state
    )
    if results is not None:
        print(format_results(results))
        print(f"All in {args.output_dir / 'results.json'}")


def is_address(policy: str) -> bool:
    return policy.startswith(("ws://", "wss://"))


def load_policy(args: argparse.Namespace, dialect: dialects.Dialect | None, device: torch.device) -> Policy:
    """The policy behind the server at `--policy`, or the pipeline there on `device`."""
    from ..rollout.policies import AIMPolicy

    if is_address(args.policy):
        from ..rollout.remote import RemotePolicy  # needs the extra `serve`

        return RemotePolicy(args.policy, dialect, args.policy_name, args.token)
    options = given_options(args, LoadingConfig, SamplingConfig, ExecutionConfig)
    return AIMPolicy.from_pretrained(args.policy, device, **options)


def remote_dialect(parser: argparse.ArgumentParser, args: argparse.Namespace) -> dialects.Dialect | None:
    """The dialect of the server at `--policy`; None for AIM's own. Refuses options that a server decides itself."""
    if told := given_options(args, LoadingConfig, SamplingConfig, ExecutionConfig):
        parser.error(f"{', '.join(told)}: the server decides that; give it to `aim-hf serve`")
    if (args.dialect == "openpi") != (args.actions_per_chunk is not None):
        parser.error("--dialect openpi and --actions_per_chunk go together")
    dialect = None
    if args.dialect is not None:
        dialect = dialects.openpi(args.actions_per_chunk) if args.dialect == "openpi" else dialects.lingbot_va()
    if args.value_maps == "true":
        parser.error("--value_maps true needs the policy in this process, not behind a server")
    if dialect is not None and dialect.one_at_a_time and args.batch_size > 1:
        parser.error(f"the server of --dialect {args.dialect} holds one episode at a time: give --batch_size 1")
    return dialect
