"""The denoising loops as CUDA graphs, against the same loops launched operation by operation.

    python benchmarks/graphs.py --preset wan2.2-ti2v-5b --output_file benchmarks/results/gpu/graphs.json

Each loop, 5 steps of RGB and value maps or 10 action steps, is captured once over the context of one chunk, and
replayed for the next chunk, whose context is copied to the place of the first one's. Per loop: `eager_seconds`,
`replay_seconds` and their ratio, and the largest difference of the replay from the next chunk's own loop, over the
largest number in it. Ends with exit code 1 if that is more than 1e-3. A CPU captures nothing: it runs the loop where
it would replay, and says so in `skipped`.
"""

import sys
from collections.abc import Callable

import torch
from common import ACTION_STEPS, WORLD_STEPS, Rollout, fill_zeros, finish, in_turn, make_model, parser

from aim_hf.pipeline.sampling import with_steps

ACCEPTED = 1e-3
HISTORY = 4  # chunks


def main() -> None:
    args = parser(__doc__).parse_args()
    with torch.no_grad():
        loops = {name: Loop(name, args) for name in ("world", "action")}
        numbers = {name: compared(loop, args) for name, loop in loops.items()}
    if not torch.device(args.device).type == "cuda":
        numbers["skipped"] = f"no CUDA graph was captured: the device is {args.device}"
    finish(numbers, args)
    wrong = [name for name in loops if not numbers[name]["difference"] <= ACCEPTED]
    if wrong:
        sys.exit(f"{', '.join(wrong)}: a replay differs from the loop")


class Loop:
    """One denoising loop, and the context and noise of a first chunk, whose memory a graph of it reads."""

    def __init__(self, name: str, args):
        self.name, self.model = name, make_model(args, history_chunks=HISTORY)
        fill_zeros(self.model)
        self.rollout = Rollout(self.model, args, HISTORY)
        world = name == "world"
        steps, head = (WORLD_STEPS, self.model) if world else (ACTION_STEPS, self.model.action_head)
        scheduler = with_steps(self.rollout.schedulers[0 if world else 1], steps, self.model.device)
        self.times = head.condition_embedder.steps(scheduler.timesteps / scheduler.config.num_train_timesteps)
        self.deltas = scheduler.sigmas.diff()
        self.context, self.noise = self.chunk()

    def chunk(self) -> tuple:
        """Context and noise of a chunk after another observation."""
        self.rollout.append()
        rgb, value, actions = self.rollout.noise()
        if self.name == "world":
            return self.model.world_context(self.rollout.cache), torch.stack([rgb, value])
        inputs = (latents.to(self.model.dtype) for latents in (rgb, value))
        return self.model.action_context(self.rollout.cache, *inputs), actions

    def load(self, context, noise: torch.Tensor) -> None:
        """Copies a chunk to the memory of the first one. Keys and values of a full history are there already, in the
        cache."""
        self.noise.copy_(noise)
        self.context.rotary_emb.copy_(context.rotary_emb)
        if self.name == "action":
            for pair, new_pair in zip(self.context.past, context.past):
                for part, new in zip(pair, new_pair):
                    part.copy_(new)

    def run(self, context, noise: torch.Tensor) -> torch.Tensor:
        """All steps."""
        x, dtype = noise, self.model.dtype
        for time, delta in zip(self.times, self.deltas):
            if self.name == "world":
                velocity = torch.stack(self.model.world_velocity(context, *x.to(dtype), time))
            else:
                velocity = self.model.action_velocity(context, x.to(dtype), time)
            x = x + delta * velocity.float()
        return x


def compared(loop: Loop, args) -> dict:
    def eager() -> torch.Tensor:
        return loop.run(loop.context, loop.noise)

    on_gpu = torch.device(args.device).type == "cuda"
    replay = captured(eager) if on_gpu else eager
    chunk = loop.chunk()
    wanted = loop.run(*chunk)
    loop.load(*chunk)
    numbers = {"difference": ((replay() - wanted).abs().max() / wanted.abs().max()).item()}
    times = in_turn({"eager": eager} | ({"replay": replay} if on_gpu else {}), args.rounds, args.device)
    numbers |= {f"{name}_seconds": seconds for name, seconds in times.items()}
    return numbers | ({"eager_over_replay": times["eager"] / times["replay"]} if on_gpu else {})


def captured(run: Callable[[], torch.Tensor]) -> Callable[[], torch.Tensor]:
    """Replays a CUDA graph of `run`. Each replay writes its result to the same tensor, and returns it."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what libraries set up at the first calls must not be captured
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = run()

    def replay() -> torch.Tensor:
        graph.replay()
        return result

    return replay


if __name__ == "__main__":
    main()
