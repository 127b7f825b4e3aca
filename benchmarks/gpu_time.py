"""How long `gpu.sh` takes on one GPU, from counted operations.

    python benchmarks/gpu_time.py --output_file benchmarks/results/gpu_time.json

Each stage is a process that starts, makes random weights and measures. `tflop` are the operations of its runs, counted
on the meta device with one round. `seconds` are those at `--share` of the GPU's peak, `--start` for imports and
weights, and `--compile` where layers are compiled: these three are assumed, and most of the total. Stages that have no
row in `operations` run too little of the preset to count, and take their start alone.
"""

import argparse
import re
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from chunk_cost import chunks
from common import Rollout, counted, finish, make_model, parser
from latency import codec_stages, world_stages
from rollout import uncached_and_cached
from training import make_batch, make_single, single_step, step

GPU_SH = Path(__file__).with_name("gpu.sh")


def main() -> None:
    arguments = parser(__doc__)
    arguments.set_defaults(preset="wan2.2-ti2v-5b", device="meta", dtype="bfloat16", rounds=3)
    arguments.add_argument("--tflops", type=float, default=989, help="peak of the GPU in bfloat16, TFLOP/s")
    arguments.add_argument("--share", type=float, default=0.3, help="share of the peak that is reached")
    arguments.add_argument("--start", type=float, default=20, help="seconds of imports and random weights")
    arguments.add_argument("--compile", type=float, default=60, help="seconds of compiling a stage's layers")
    args = arguments.parse_args()
    rounds = 2 + args.rounds  # one warms up, one counts operations
    per_round = operations(argparse.Namespace(**vars(args) | {"history": 4, "chunks": 4}))
    tflop = {name: rounds * per_round.get(name, 0.0) for name in stages()}
    seconds = {
        name: args.start + args.compile * ("--compile" in options) + tflop[name] / (args.share * args.tflops)
        for name, options in stages().items()
    }
    finish({"tflop": tflop, "seconds": seconds, "minutes": sum(seconds.values()) / 60}, args)


def stages() -> dict[str, str]:
    """Name of each stage of `gpu.sh` -> its script and options; those of `for` loops unrolled."""
    found, script = {}, GPU_SH.read_text()
    for loop, values, body in re.findall(
        r"^ *for (\w+) in ([^\n]*); do\n(.*?)^ *done", script, re.MULTILINE | re.DOTALL
    ):
        unrolled = "".join(body.replace(f"${loop}", value) for value in values.split())
        script = script.replace(body, unrolled)
    for name, options in re.findall(r'^ *stage "?([\w-]+)"? (.*)$', script, re.MULTILINE):
        found[name] = options
    return found


def operations(args: argparse.Namespace) -> dict[str, float]:
    """Name of a stage -> TFLOP of one round of it."""
    model = make_model(args, history_chunks=args.history)
    rollout = Rollout(model, args, args.history)
    with torch.device(args.device):
        codec = total(codec_stages(rollout, args).values())
    of_chunks = {name: counted(run) for name, run in chunks(args).items()}
    of_latency = total(world_stages(rollout).values()) + of_chunks["LingBot-VA's way and settings"]
    of_latency += 2 * of_chunks["aim, 5 + 10 steps"]
    singles = [make_single(model, args, context) for context in range(args.chunks)]
    of_training = counted(lambda: step(model, make_batch(model, args, args.chunks)))
    of_training += counted(lambda: [single_step(model, *single) for single in singles])
    after_16 = {name: counted(run) for name, run in uncached_and_cached(args).items()}
    return {
        "latency": of_latency + codec,
        "latency-compiled": of_latency,
        "latency-reduce-overhead": of_latency,
        "chunks": sum(of_chunks.values()),
        "training": of_training,
        "training-lora": of_training,
        "rollout": 32 * after_16["cached"] + after_16["uncached"],
        **{f"latency-batch-{rows}": rows * of_latency for rows in (4, 8)},
    }


def total(runs: Iterable[Callable[[], object]]) -> float:
    return sum(counted(run) for run in runs)


if __name__ == "__main__":
    main()
