"""Does doubt foretell failure? The entropy of value maps and the drift of imagined pictures, against success.

    python benchmarks/signals.py --policy checkpoints/aim-tiny --split hard --episodes 100 --output_dir DIR

Each episode's signal is its mean over the first `CHUNKS` chunks, which nearly all episodes have: later chunks would
give it away, since failures last longer. Episodes are ranked within their task, since tasks differ in both. Writes
DIR/signals.json and DIR/signals.png: success of each fifth of the episodes, and the area under the ROC curve, with
95 % intervals. Success rates are reported on other scenes than these.
"""

from pathlib import Path

import numpy as np

from aim_hf.commands import PathParser

START_SEED = 12_000
CHUNKS, PARTS = 3, 5
SIGNALS = {"entropy": "entropy of the value maps", "drift": "drift of the imagined pictures"}


class Watched:
    """A policy whose signals of every chunk are kept: seed -> signal -> numbers."""

    def __init__(self, policy):
        self.policy, self.seen = policy, {}

    def __getattr__(self, name):
        return getattr(self.policy, name)

    def start(self, instructions, seeds):
        self.seeds = list(seeds)
        self.seen |= {seed: {name: [] for name in SIGNALS} for seed in seeds}
        self.policy.start(instructions, seeds)

    def keep(self, rows):
        self.seeds = [self.seeds[row] for row in rows]
        self.frames = {camera: clips[rows] for camera, clips in self.frames.items()}
        self.policy.keep(rows)

    def predict(self, observations, executed_actions=None, value_maps=None, pictures="none"):
        from aim_hf.pipeline.signals import frame_drift, map_entropy

        if executed_actions is not None:
            self._add("drift", frame_drift(self.frames, observations))
        prediction = self.policy.predict(observations, executed_actions, value_maps, "all")
        self._add("entropy", map_entropy(prediction.value_maps))
        self.frames = prediction.frames
        return prediction

    def _add(self, name, of_rows):
        for seed, frames in zip(self.seeds, of_rows, strict=True):
            self.seen[seed][name].append(float(frames.mean()))


def main() -> None:
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch
    from tqdm import tqdm

    from aim_hf.envs.names import TABLETOP
    from aim_hf.envs.seeds import episode_seeds
    from aim_hf.rollout.policies import AIMPolicy
    from aim_hf.rollout.run import run_episodes
    from aim_hf.rollout.vector_env import VectorEnvironment, cores_of_this_process
    from aim_hf.utils.files import write_json
    from aim_hf.utils.provenance import provenance

    parser = PathParser(description=__doc__)
    parser.add_argument("--policy", required=True, help="folder of an AIMPipeline, or repo id")
    parser.add_argument("--split", default="hard")
    parser.add_argument("--tasks", nargs="+", choices=TABLETOP, default=TABLETOP)
    parser.add_argument("--episodes", type=int, default=100, help="of each task")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    if args.episodes < PARTS:
        parser.error(f"--episodes is {args.episodes}; expected at least {PARTS}, the parts that are compared")

    policy = Watched(AIMPolicy.from_pretrained(args.policy))
    seeds = episode_seeds("evaluation", START_SEED, args.episodes)
    episodes = []
    with (
        VectorEnvironment("tabletop", args.split, cores_of_this_process()) as environments,
        tqdm(total=args.episodes * len(args.tasks), unit="episode") as progress,
    ):
        for task in args.tasks:
            policy.seen = {}
            for first in range(0, len(seeds), 32):
                for result in run_episodes(policy, environments, task, seeds[first : first + 32]):
                    signals = {name: values[:CHUNKS] for name, values in policy.seen[result.seed].items()}
                    episodes.append({"task": task, "seed": result.seed, "success": result.success} | signals)
                    progress.update()
    content = {"signals": {name: calibration(episodes, name) for name in SIGNALS}, "episodes": episodes}
    settings = {"policy": args.policy, "split": args.split, "start_seed": START_SEED, "chunks": CHUNKS}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    content |= settings | provenance(torch.device("cpu"))
    write_json(args.output_dir / "signals.json", content)
    draw(content["signals"], args.output_dir / "signals.png")
    for name, numbers in content["signals"].items():
        low, high = numbers["auroc_interval"]
        print(f"{name}: AUROC of failure {numbers['auroc']:.2f} ({low:.2f} to {high:.2f}), rates {numbers['rates']}")


def calibration(episodes: list[dict], name: str) -> dict:
    """Success rate of each fifth of the episodes by their signal, lowest first, with Wilson's intervals; and how well
    the signal tells failures from successes, 0.5 for not at all."""
    from aim_hf.evaluation.statistics import wilson_interval

    known = [episode for episode in episodes if episode[name]]
    success = np.array([episode["success"] for episode in known])
    tasks, values = np.array([episode["task"] for episode in known]), np.array([np.mean(e[name]) for e in known])
    rank = np.empty(len(known))
    for task in np.unique(tasks):
        of_task = tasks == task
        rank[of_task] = (values[of_task].argsort().argsort() + 0.5) / of_task.sum()
    part = (rank * PARTS).astype(int)
    counts = [(int(success[part == index].sum()), int((part == index).sum())) for index in range(PARTS)]
    rng = np.random.default_rng(0)
    draws = (rng.integers(len(known), size=len(known)) for _ in range(1000))
    areas = [auroc(rank[draw], ~success[draw]) for draw in draws]
    return {
        "rates": [round(hits / total, 3) for hits, total in counts],
        "intervals": [list(wilson_interval(*of_part)) for of_part in counts],
        "auroc": auroc(rank, ~success),
        "auroc_interval": np.nanquantile(areas, [0.025, 0.975]).tolist(),
        "episodes": len(known),
    }


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive's score exceeds a negative's, ties by half; NaN without both."""
    if positive.all() or not positive.any():
        return float("nan")
    differences = score[positive][:, None] - score[~positive][None]
    return float((differences > 0).mean() + 0.5 * (differences == 0).mean())


def draw(signals: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(signals), figsize=(9, 3.2), sharey=True, layout="constrained")
    for axis, (name, numbers) in zip(axes, signals.items(), strict=True):
        centers, rates = (np.arange(PARTS) + 0.5) / PARTS, np.array(numbers["rates"])
        errors = np.abs(np.array(numbers["intervals"]).T - rates)
        axis.errorbar(centers, rates, yerr=errors, marker="o", capsize=3, color="#20639b")
        axis.set_xlabel(f"rank of the episode by {SIGNALS[name]}")
        axis.set_title(f"AUROC of failure {numbers['auroc']:.2f}", fontsize=10)
        axis.set_ylim(0, 1)
    axes[0].set_ylabel("success rate")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
