"""Cost of a chunk as the history grows, with the cache and without it.

    python benchmarks/rollout.py --preset tiny [--width 4] --output_file benchmarks/results/rollout/tiny.json

A chunk: 5 steps of RGB and value maps, the clean pass, 10 action steps, and the append of the observed frames. The
history is limited to `--history` chunks (H); the first chunk that starts from a full window is number H.

- `chunk_seconds`: of chunk 1, 2 ... of a rollout.
- `flatness_after_window`: the last chunk over the first one with a full window.
- `peak_memory_mib`: most memory that the model takes with 16 chunks of history, weights included; on a CPU, of the
  process beyond its imports.
- `uncached_over_cached_at_16`: one chunk after 16 chunks of history, when every step recomputes the whole prefix, over
  ours.
"""

import resource
import statistics
from collections.abc import Callable

import torch
from alternatives import UncachedRollout
from common import ACTION_STEPS, WORLD_STEPS, Rollout, finish, in_turn, make_model, parser, seconds

HISTORY_OF_COMPARISON = 16


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--history", type=int, default=16, help="H, chunks that are kept")
    arguments.add_argument("--chunks", type=int, default=32)
    args = arguments.parse_args()
    numbers = {"peak_memory_mib": peak_memory(args)}  # first, since a process remembers its highest peak alone
    finish(numbers | growth(args) | uncached_over_cached(args), args)


def peak_memory(args) -> float:
    before = most_memory(args.device)
    model = make_model(args, history_chunks=HISTORY_OF_COMPARISON)
    Rollout(model, args, HISTORY_OF_COMPARISON).sample()
    return (most_memory(args.device) - before) / 2**20


def most_memory(device: str) -> int:
    """Bytes in use at the same time so far."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def growth(args) -> dict:
    model = make_model(args, history_chunks=args.history)
    times = []
    for _ in range(1 + args.rounds):  # the first one warms up
        rollout, measured = Rollout(model, args), []
        for _ in range(args.chunks):
            measured.append(seconds(rollout.sample, args.device) + seconds(rollout.append, args.device))
        times.append(measured)
    chunk_seconds = [statistics.median(column) for column in zip(*times[1:])]
    # The ratio within each rollout, so that a drift between them doesn't count.
    flatness = statistics.median(measured[-1] / measured[args.history - 1] for measured in times[1:])
    return {"chunk_seconds": chunk_seconds, "flatness_after_window": flatness}


def uncached_over_cached(args) -> dict:
    times = in_turn(uncached_and_cached(args), args.rounds, args.device)
    return {"chunk_after_16_seconds": times, "uncached_over_cached_at_16": times["uncached"] / times["cached"]}


def uncached_and_cached(args) -> dict[str, Callable[[], object]]:
    """Functions that sample one chunk after 16 chunks of history."""
    model = make_model(args, history_chunks=HISTORY_OF_COMPARISON)
    config, rollout = model.config, Rollout(model, args)
    latents = rollout.latents(1 + HISTORY_OF_COMPARISON * config.chunk_latent_frames)
    actions = rollout.randn(HISTORY_OF_COMPARISON * config.actions_per_chunk, config.action_dim)
    rollout.observe(latents, actions)
    uncached = UncachedRollout(model, rollout.prompt_embeds, latents, actions)
    return {
        "cached": rollout.sample,
        "uncached": lambda: uncached.sample(rollout.noise(), rollout.schedulers, WORLD_STEPS, ACTION_STEPS),
    }


if __name__ == "__main__":
    main()
