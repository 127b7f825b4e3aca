"""Costs of a whole chunk at equal width, of AIM and of other methods: the append of observations, and all steps.

    python benchmarks/chunk_cost.py --preset tiny [--width 4] --output_file benchmarks/results/latency/chunks-tiny.json
    python benchmarks/chunk_cost.py --preset wan2.2-ti2v-5b --layers 2 --history 4

Each row is over `aim, 5 + 10 steps`, by time, in turn within one run, and by operations:

- `aim`, `map_only`: denoising steps of RGB and value maps, and of actions; the pass at t = 0 between them.
- LingBot-VA's way: no value maps; actions are denoised by the video backbone. At our numbers of steps without
  guidance, and at its published settings, 25 + 1 video steps and 50 + 1 action steps with guidance.
- FastWAM's way: no imagination and no history; the current frame is encoded anew, then 10 action steps.

Other methods are re-implemented on our layers (`alternatives.py`): they compare methods, not code.
"""

import argparse

import torch
from alternatives import BackboneRollout
from common import Rollout, counted, finish, in_turn, make_model, parser

from aim_hf.pipeline.sampling import denoise_actions
from aim_hf.pipeline.sampling_config import SamplingConfig

BASELINE = "aim, 5 + 10 steps"


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--history", type=int, default=1, help="chunks of history")
    args = arguments.parse_args()
    runs = chunks(args)
    times = in_turn(runs, args.rounds, args.device)
    operations = {name: counted(run) for name, run in runs.items()}
    finish(
        {
            "seconds": times,
            "time_over_baseline": {name: seconds / times[BASELINE] for name, seconds in times.items()},
            "tflop": operations,
            "operations_over_baseline": {name: tflop / operations[BASELINE] for name, tflop in operations.items()},
        },
        args,
    )


def chunks(args: argparse.Namespace) -> dict:
    """Name -> function that runs one chunk."""
    ours = {visibility: grown(Rollout, args, args.history, visibility) for visibility in ("aim", "map_only")}
    backbone = grown(BackboneRollout, args, args.history, "aim")
    guided = argparse.Namespace(**vars(args) | {"batch_size": 2 * args.batch_size})
    published = grown(BackboneRollout, guided, args.history, "aim")
    alone = grown(Rollout, args, 0, "observations")

    def chunk(visibility: str, world: int, actions: int):
        return lambda: (ours[visibility].append(), ours[visibility].sample(world, actions))

    @torch.no_grad()
    def fastwam() -> None:
        alone.cache.reset(torch.arange(alone.rows))
        alone.model.append(alone.cache, alone.latents(1))
        rgb, value, noise = alone.noise()
        denoise_actions(alone.model, alone.cache, rgb, value, noise, alone.schedulers[1], SamplingConfig(5, 10))

    return {
        BASELINE: chunk("aim", 5, 10),
        "aim, 1 + 10 steps": chunk("aim", 1, 10),
        "aim, 1 + 4 steps": chunk("aim", 1, 4),
        "map_only, 5 + 10 steps": chunk("map_only", 5, 10),
        "map_only, 1 + 4 steps": chunk("map_only", 1, 4),
        "LingBot-VA's way, 5 + 10 steps": lambda: (backbone.append(), backbone.chunk(5, 10)),
        "LingBot-VA's way and settings": lambda: (published.append(), published.chunk(25, 50)),
        "FastWAM's way, 10 steps": fastwam,
    }


def grown(kind: type[Rollout], args: argparse.Namespace, history: int, visibility: str) -> Rollout:
    """A rollout whose history is full."""
    return kind(make_model(args, history_chunks=max(history, 1), visibility=visibility), args, history)


if __name__ == "__main__":
    main()
