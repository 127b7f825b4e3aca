"""Time of a chunk in two checkouts, call by call in turn, so that both meet the same machine.

    git worktree add /tmp/before COMMIT
    python benchmarks/paired_latency.py --before /tmp/before --output_file paired.json

Each checkout runs its own `benchmarks/common.py` in a process of its own, with the same random weights' shapes, at the
preset "tiny" and at 8 heads of 32 (width 256), and whole calls of its own aim-tiny, with and without pictures. A ratio
is after / before; the interval is that of the median, by resampling. `events` counts the profiler's operator events of
a call, which no other load on the machine changes. Each checkout computes in one thread: threads of the one that
waits would spin in the other's time.

`--without_pipeline` leaves out the calls of aim-tiny, for code whose pipeline has no `append`. `--after_config` gives
the models after other fields, such as the `visibility` of the models before.
"""

import json
import subprocess
import sys
from pathlib import Path

from aim_hf.commands import PathParser

SIZES = {
    "tiny": {},
    "width 256": {"num_attention_heads": 8, "ffn_dim": 768, "action_hidden_size": 160, "action_ffn_dim": 640},
}
CALLS = {
    **{(size, "sample"): f"{size}, a chunk" for size in SIZES},
    **{(size, "append"): f"{size}, an observation appended" for size in SIZES},
    ("aim-tiny", "pictures"): "aim-tiny, a call",
    ("aim-tiny", "latents"): "aim-tiny, a call without pictures",
}
HISTORY = 4  # chunks
WORKER = """
import sys, time, argparse, json
sys.path.insert(0, sys.argv[1] + "/benchmarks")
import torch
from aim_hf import AIMPipeline
from aim_hf.envs import make_environment
from common import Rollout, make_model
from torch.profiler import ProfilerActivity, profile
args = argparse.Namespace(preset="tiny", width=1, layers=None, device="cpu", dtype=None, batch_size=1)
rollouts = {}
for name, changes in json.loads(sys.argv[2]).items():
    rollouts[name] = Rollout(make_model(args, history_chunks=int(sys.argv[3]), **changes), args)
    for _ in range(int(sys.argv[3])):
        rollouts[name].append()
class Calls:
    def __init__(self):
        self.pipe = AIMPipeline.from_pretrained(sys.argv[1] + "/checkpoints/aim-tiny")
        self.pipe.set_progress_bar_config(disable=True)
        environment = make_environment("tabletop", "click_bell", "easy")
        observation = environment.reset(seed=100_000_000)
        self.session = self.pipe.start(environment.instruction())
        out = self.pipe(observation, session=self.session)
        self.pipe.append(self.session, [observation] * self.pipe.frames_per_chunk, out.actions)
    def pictures(self):
        self.pipe(session=self.session)
    def latents(self):
        self.pipe(session=self.session, output_type="latent")
if sys.argv[4] == "with pipeline":
    rollouts["aim-tiny"] = Calls()
print("ready", flush=True)
for line in sys.stdin:
    name, call, counts = json.loads(line)
    run = getattr(rollouts[name], call)
    if counts:
        with profile(activities=[ProfilerActivity.CPU]) as counted:
            run()
        print(len(counted.events()), flush=True)
    else:
        began = time.perf_counter()
        run()
        print(time.perf_counter() - began, flush=True)
"""


class Checkout:
    def __init__(self, folder: Path, config: dict, pipeline: str):
        sizes = {name: changes | config for name, changes in SIZES.items()}
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), json.dumps(sizes), str(HISTORY), pipeline],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PYTHONPATH": str(folder / "src"), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"},
        )
        while self.process.stdout.readline().strip() != "ready":
            assert self.process.poll() is None, f"the benchmark of {folder} has ended"

    def seconds(self, size: str, call: str) -> float:
        return float(self._answer(size, call, False))

    def events(self, size: str, call: str) -> int:
        return int(self._answer(size, call, True))

    def _answer(self, *asked) -> str:
        self.process.stdin.write(json.dumps(asked) + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline()


def main() -> None:
    import numpy as np
    import torch

    from aim_hf.utils.files import write_json
    from aim_hf.utils.provenance import provenance, source_commit

    parser = PathParser(description=__doc__)
    parser.add_argument("--before", type=Path, required=True, help="a checkout")
    parser.add_argument("--after", type=Path, default=Path(__file__).parents[1], help="another; default: this one")
    parser.add_argument("--after_config", type=json.loads, default={}, help="fields of AIMConfig, as JSON")
    parser.add_argument("--without_pipeline", action="store_true")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--output_file", type=Path)
    args = parser.parse_args()
    pipeline = "without pipeline" if args.without_pipeline else "with pipeline"
    checkouts = {
        "before": Checkout(args.before.resolve(), {}, pipeline),
        "after": Checkout(args.after.resolve(), args.after_config, pipeline),
    }
    rng, numbers = np.random.default_rng(0), {}
    calls = {call: title for call, title in CALLS.items() if call[0] in SIZES or not args.without_pipeline}
    for call, title in calls.items():
        pairs = []
        for number in range(args.rounds + 3):
            order = list(checkouts) if number % 2 else list(checkouts)[::-1]  # neither is always the first
            pairs.append({name: checkouts[name].seconds(*call) for name in order})
        pairs = pairs[3:]
        ratios = np.array([pair["after"] / pair["before"] for pair in pairs])
        medians = np.median(rng.choice(ratios, size=(2000, len(ratios))), axis=1)
        low, high = np.quantile(medians, [0.025, 0.975])
        numbers[title] = {
            "after_over_before": float(np.median(ratios)),
            "interval": [float(low), float(high)],
            **{name: float(np.median([pair[name] for pair in pairs])) for name in checkouts},
            "events": {name: checkouts[name].events(*call) for name in checkouts},
        }
        print(f"{title}: {np.median(ratios):.3f} ({low:.3f} to {high:.3f})")
    commits = {name: source_commit(getattr(args, name).resolve()) for name in checkouts}
    if args.output_file:
        content = {"ratios": numbers, "commits": commits, "rounds": args.rounds} | provenance(torch.device("cpu"))
        write_json(args.output_file, content)


if __name__ == "__main__":
    main()
