"""Serves a policy to robots over the network, in openpi's websocket protocol:

    aim-hf serve --policy checkpoints/aim-tiny

Ctrl-C or SIGTERM ends the server after all pending requests are answered; a second one ends it immediately.
docs/serving.md describes the messages, limits and metrics.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import logging
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..pipeline.loading_config import LoadingConfig
from ..pipeline.sampling_config import SamplingConfig
from ..rollout.rows import ROWS
from ..serving.limits import BATCH_SIZES, Limits
from ..utils.checks import check_number
from ..utils.files import reading
from . import Parser, check_address
from .policy_options import add_loading_arguments, add_options, add_sampling_arguments, given_options

if TYPE_CHECKING:
    from ..serving.server import PolicyServer

logger = logging.getLogger("serve")


def main(argv: list[str]) -> None:
    parser = Parser("serve", __doc__)
    parser.add_argument("--policy", required=True, help="folder of an AIMPipeline, or repo id")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for all interfaces")
    parser.add_argument("--port", type=int, default=8000, help="0 for any free port")
    parser.add_argument("--token_file", type=Path, help="file with the token that clients must send")
    parser.add_argument("--device", help="default: cuda if available, else cpu")
    add_loading_arguments(parser)
    add_sampling_arguments(parser)
    parser.add_argument(
        "--batch_sizes",
        type=int,
        nargs="+",
        default=BATCH_SIZES,
        help=f"of calls of the model, by the number of waiting requests; {ROWS} alone rounds as `evaluate` does",
    )
    parser.add_argument(
        "--image_keys",
        nargs="+",
        default=[],
        metavar="CAMERA=KEY",
        help="keys of the policy's cameras in messages of other clients, such as head_camera=observation/image",
    )
    parser.add_argument("--resize", action="store_true", help="crop and resize pictures of other sizes")
    add_options(parser, "limits", Limits)
    args = parser.parse_args(argv)
    check_number("--port", args.port, 0, 65535)
    if min(args.batch_sizes) < 1:
        raise ValueError(f"--batch_sizes has {min(args.batch_sizes)}; expected numbers of at least 1")
    if wrong := [pair for pair in args.image_keys if not all(pair.partition("="))]:
        raise ValueError(f"--image_keys has {', '.join(wrong)}; expected CAMERA=KEY")
    image_keys = dict(pair.split("=", 1) for pair in args.image_keys)
    if len(image_keys) < len(args.image_keys):
        raise ValueError(f"--image_keys are {' '.join(args.image_keys)}; expected each camera once")
    limits = Limits(**given_options(args, Limits))
    token = read_token(args.token_file)
    check_address(args.host, args.port)

    import torch

    from ..rollout.policies import AIMPolicy
    from ..serving.server import PolicyServer

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    device = args.device or ("cuda" if torch.cuda.is_available() else "cpu")
    policy = AIMPolicy.from_pretrained(args.policy, device, **given_options(args, LoadingConfig, SamplingConfig))
    server = PolicyServer(policy, args.batch_sizes, limits, token, image_keys, args.resize)
    if token is None and not is_loopback(args.host):
        logger.warning("everybody who reaches %s may drive this policy: give --token_file", args.host)
    asyncio.run(serve(server, args))


async def serve(server: PolicyServer, args: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()

    def stop(*_: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)  # so that the next one ends the process
        loop.call_soon_threadsafe(server.stop)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)  # Windows has no handlers in a loop
    await server.run(
        args.host, args.port, lambda port: logger.info("serving %s at ws://%s:%d", args.policy, args.host, port)
    )


def read_token(path: Path | None) -> str | None:
    """The token in the file of `--token_file`; None without the option.

    Raises:
        UnreadableFile: for a file that is missing, no text or empty. An empty token would admit every client.
    """
    if path is None:
        return None
    with reading(f"--token_file {path}", "expected a text file with the token, such as `openssl rand -hex 32` makes"):
        token = path.read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError("it is empty")
    return token


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
