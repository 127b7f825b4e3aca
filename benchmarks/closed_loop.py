"""Success by settings of the sampler: closed loop on the tabletop, one setting changed at a time.

    python benchmarks/closed_loop.py --study schedules --policy checkpoints/aim-tiny --episodes 20 --output_dir DIR
    python benchmarks/closed_loop.py --study delays --policy checkpoints/aim-tiny --episodes 20 --output_dir DIR

`schedules`: denoising steps of the world and of the actions, an early end, guidance. `noise`: less of the noise that
actions start from. `few_steps`: few steps of both together. `replanning`: parts of a chunk executed, or planning again
by signals; a new plan starts afresh, or continues two actions of the plan before. `delays`: control steps that a chunk
takes to compute, bridged by real-time chunking or without telling the new chunk. Each setting has a folder of results,
as `aim-hf evaluate` writes it, so a run that was stopped goes on; DIR/STUDY.json holds them all, and DIR/STUDY.md the
table. Seeds are the same for all settings, held out of training, and none of those that success rates are reported on,
so that choosing a setting by them is fair. Each setting is compared with the first, seed by seed.
"""

from pathlib import Path

from aim_hf.commands import PathParser

START_SEED = 10_000
STUDIES = {
    "schedules": [
        {},
        *({"num_inference_steps": steps} for steps in (1, 2, 3, 10)),
        *({"num_action_inference_steps": steps} for steps in (1, 2, 5, 20)),
        *({"stop_after": steps} for steps in (1, 2, 3, 4)),
        *({"guidance_scale": scale} for scale in (1.5, 3.0)),
    ],
    "few_steps": [
        {"num_inference_steps": world, "num_action_inference_steps": action}
        for world, action in ((5, 10), (2, 10), (1, 10), (1, 5), (1, 4), (1, 2), (1, 1))
    ],
    "replanning": [
        {"n_action_steps": 8},
        *(
            setting | plan
            for setting in (
                *({"n_action_steps": steps} for steps in (6, 4, 2)),
                *({"replan_drift": drift} for drift in (0.05, 0.1)),
                *({"replan_entropy": entropy} for entropy in (0.6, 0.8)),
            )
            for plan in ({}, {"delay": 2})
        ),
    ],
    "noise": [{"action_noise_scale": scale} for scale in (1.0, 0.5, 0.0)],
    "delays": [
        {},
        *({"delay": delay, "real_time_chunking": told} for delay in range(1, 9) for told in (True, False)),
    ],
}


def main():
    # Imported here: the environments' worker processes import this file too, and need none of it.
    import torch
    from accelerate import PartialState

    from aim_hf.envs.names import TASKS
    from aim_hf.evaluation.evaluate import Protocol, evaluate
    from aim_hf.evaluation.statistics import paired_difference, rate_of
    from aim_hf.rollout.policies import AIMPolicy
    from aim_hf.utils.files import write_json, write_text
    from aim_hf.utils.provenance import provenance

    parser = PathParser(description=__doc__)
    parser.add_argument("--study", choices=sorted(STUDIES), required=True)
    parser.add_argument("--policy", required=True, help="folder of an AIMPipeline, or repo id")
    parser.add_argument("--split", default="easy", choices=("easy", "hard"))
    parser.add_argument("--tasks", nargs="+", help="default: all tasks of the suite")
    parser.add_argument("--episodes", type=int, default=20, help="of each task and setting")
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()

    state = PartialState(cpu=not torch.cuda.is_available())
    rows, first = [], None
    for setting in STUDIES[args.study]:
        name = "-".join(f"{key}={value}" for key, value in setting.items()) or "defaults"
        policy = AIMPolicy.from_pretrained(args.policy, state.device, **setting)
        folder = args.output_dir / args.study / name
        results = evaluate(
            policy,
            Protocol(split=args.split, start_seed=START_SEED),
            folder,
            args.episodes,
            args.tasks,
            videos=0,
            state=state,
        )
        if results is None:  # not the main process
            continue
        # The folder may hold tasks and episodes of another run, which folders of other settings may lack.
        outcomes = {
            task: results["tasks"][task]["outcomes"][: args.episodes] for task in args.tasks or TASKS["tabletop"]
        }
        every = [outcome == "1" for of_task in outcomes.values() for outcome in of_task]
        first = first or every
        row = {
            "setting": setting,
            "episodes": len(every),
            **rate_of(sum(every), len(every)),
            "tasks": {task: of_task.count("1") for task, of_task in outcomes.items()},
            "outcomes": outcomes,
            "to_first": paired_difference(first, every),
        }
        rows.append(row)
        print(f"{name}: {sum(every)} of {len(every)}")
    if state.is_main_process:
        settings = {"study": args.study, "policy": args.policy, "split": args.split, "rows": rows}
        whole = settings | provenance(state.device)
        write_json(args.output_dir / f"{args.study}.json", whole)
        write_text(args.output_dir / f"{args.study}.md", table(rows))
        print(table(rows))


def table(rows: list[dict]) -> str:
    from aim_hf.evaluation.statistics import format_rate

    lines = ["| setting | success | points to the first | p |", "|---|---|---|---|"]
    for row in rows:
        setting = ", ".join(f"{key} {value}" for key, value in row["setting"].items()) or "defaults"
        change = row["to_first"]
        lines.append(f"| {setting} | {format_rate(row)} | {change['gain_points']:+.1f} | {change['p']:.2g} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
