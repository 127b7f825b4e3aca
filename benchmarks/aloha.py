"""Compares AIM with LeRobot's own policies on ALOHA's transfer cube: the same episodes, cores, hours and scenes.

    make setup test-lerobot              # .venv trains AIM, .venv-floor has lerobot and runs this file
    PYTHON=.venv-floor/bin/python
    $PYTHON benchmarks/aloha.py train --arm maps --episodes 200 --steps 4000 --output_dir runs/aloha
    $PYTHON benchmarks/aloha.py train --arm act --episodes 200 --steps 20000 --output_dir runs/aloha
    $PYTHON benchmarks/aloha.py judge --arm act --episodes 200 --output_dir runs/aloha
    $PYTHON benchmarks/aloha.py report --output_dir runs/aloha

`train` collects the episodes where they are missing, and trains: AIM by `make train-aloha`, LeRobot's policies by
`lerobot-train`. `judge` runs the scenes of `aim-hf evaluate` by `lerobot-eval` and by the project's own evaluator.
`report` writes benchmarks/results/aloha.json. Every step goes on where it was stopped, and `train --arm act` with more
`--steps` goes on from there, since its learning rate is constant; only `lerobot-eval` begins again.

    output_dir/<episodes>/episodes, lerobot     the episodes, and the same in LeRobot's format
    output_dir/<episodes>/<arm>                 a training
    output_dir/<episodes>/hours/<arm>.json      how long it took, with commit, hardware and commands
    output_dir/<episodes>/judged/<arm>/<checkpoint>/lerobot, ours
"""

import argparse
import itertools
import json
import math
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
from arms import add_holm, read_outcomes

from aim_hf.commands import PathParser
from aim_hf.envs import interface
from aim_hf.envs.base import Observation
from aim_hf.envs.poses import pack_endpose, unit_quaternions
from aim_hf.envs.seeds import seed_range
from aim_hf.evaluation.evaluate import Protocol, evaluate
from aim_hf.evaluation.statistics import mcnemar_p, rate_of
from aim_hf.rollout.policies import Prediction
from aim_hf.rollout.rows import ROWS
from aim_hf.utils.files import claim, read_json, write_json
from aim_hf.utils.provenance import provenance

TASK, REPO_ID = "transfer_cube", "aim/aloha"
AIM_ARMS = ("maps", "no-maps")
# LeRobot's policies with their default settings, but from random weights, as AIM is: the default begins with a ResNet
# that was trained on ImageNet. Learning rates of 1e-5 are meant for that, so `act-1e-4` has larger ones.
LEROBOT_ARMS = {
    "act": ["--policy.type=act"],
    "act-1e-4": ["--policy.type=act", "--policy.optimizer_lr=1e-4", "--policy.optimizer_lr_backbone=1e-4"],
    "diffusion": ["--policy.type=diffusion"],
}
FROM_NOTHING = "--policy.pretrained_backbone_weights=null"
# 100 steps of DDPM, its default, would take a CPU core a minute for each chunk of actions.
DIFFUSION_SAMPLING = ["--policy.noise_scheduler_type=DDIM", "--policy.num_inference_steps=10"]
RESULTS = Path(__file__).parent / "results" / "aloha.json"


# ----------------------------------------------------------------------------------------------------------- training


def train(args: argparse.Namespace) -> None:
    run = args.output_dir / str(args.episodes)
    make = ["make", f"EPISODES={args.episodes}", f"RUN={run}"]
    subprocess.run([*make, "train-aloha-episodes"], check=True)
    check_counted(run / args.arm, record_of(run, args.arm))
    if args.arm in AIM_ARMS:
        check_counted(run / "base", record_of(run, "latents"))
        make += args.options
        timed([*make, "train-aloha-latents"], record_of(run, "latents"))
        timed([*make, "train-aloha", f"ARM={args.arm}", "JUDGED=", f"STEPS={args.steps}"], record_of(run, args.arm))
        return
    dataset = run / "lerobot"
    if not dataset.exists():
        export = [sys.executable, "-m", "aim_hf", "export-lerobot", run / "episodes", "--output_dir", dataset]
        subprocess.run([*export, "--no_value_maps", "--expert_actions", "--repo_id", REPO_ID], check=True)
    folder, last = run / args.arm, run / args.arm / "checkpoints" / "last"
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_train", f"--steps={args.steps}"]
    command += [f"--save_freq={args.save_freq}", "--log_freq=100"]
    if last.exists():
        check_steps(last, args)
        command += [f"--config_path={last / 'pretrained_model' / 'train_config.json'}", "--resume=true"]
    else:
        shutil.rmtree(folder, ignore_errors=True)  # a training that was stopped before its first checkpoint
        command += [*LEROBOT_ARMS[args.arm], FROM_NOTHING, "--policy.device=cpu", "--policy.push_to_hub=false"]
        command += [f"--dataset.repo_id={REPO_ID}", f"--dataset.root={dataset}", f"--output_dir={folder}"]
    timed([*command, *args.options], record_of(run, args.arm))


def record_of(run: Path, arm: str) -> Path:
    return run / "hours" / f"{arm}.json"


def check_counted(folder: Path, record: Path) -> None:
    if folder.exists() and not record.exists():
        raise SystemExit(f"{folder} is there, but not its hours, {record}; give another --output_dir.")


def check_steps(checkpoint: Path, args: argparse.Namespace) -> None:
    """Ends the command if the learning rate of a training that is resumed would jump, since it falls until the last
    step."""
    steps = read_json(checkpoint / "pretrained_model" / "train_config.json", "train into another folder")["steps"]
    if args.arm == "diffusion" and steps != args.steps:
        raise SystemExit(
            f"--steps is {args.steps}, and {steps} in {checkpoint}; give the same, or another --output_dir: the "
            "learning rate of diffusion falls until the last step."
        )


def timed(command: list[str], record: Path) -> None:
    """Runs a command and adds its time to the `sessions` of `record`, every minute, so that a kill loses no more."""
    import torch

    sessions = json.loads(record.read_text())["sessions"] if record.exists() else []
    session = provenance(torch.device("cpu")) | {"runs": [str(part) for part in command], "start": time.time()}
    record.parent.mkdir(parents=True, exist_ok=True)
    with subprocess.Popen(command) as process:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(60)
            session["end"] = time.time()
            write_json(record, {"sessions": [*sessions, session]})
            if process.returncode is not None:
                break
    if process.returncode:
        raise SystemExit(process.returncode)


def hours(record: Path, until: float = math.inf) -> float:
    """Hours of the sessions of `record` before the time `until`."""
    sessions = json.loads(record.read_text())["sessions"]
    return sum(max(0.0, min(session["end"], until) - session["start"]) for session in sessions) / 3600


# ------------------------------------------------------------------------------------------------------------ judging


def judge(args: argparse.Namespace) -> None:
    from aim_hf.rollout.policies import AIMPolicy

    run = args.output_dir / str(args.episodes)
    protocol = Protocol("aloha", start_seed=args.start_seed)
    if args.arm in AIM_ARMS:
        pipeline, policy = run / args.arm / "pipeline", run / args.arm / "policy"
        folder = judged(run, args, pipeline.name)
        shutil.rmtree(policy, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "lerobot_policy_aim", pipeline, policy], check=True)
        first_seed = seed_range("evaluation")[args.start_seed]
        judge_by_lerobot(policy, folder, args, f"--eval.batch_size={ROWS}", f"--policy.first_seed={first_seed}")
        evaluate(AIMPolicy.from_pretrained(pipeline), protocol, folder / "ours", args.scenes, [TASK])
        return
    checkpoint = (run / args.arm / "checkpoints" / args.checkpoint).resolve()
    policy, folder = checkpoint / "pretrained_model", judged(run, args, checkpoint.name)
    if args.arm == "diffusion":  # its noise comes from one generator, whose state our evaluator doesn't share
        judge_by_lerobot(policy, folder, args, f"--eval.batch_size={ROWS}", *DIFFUSION_SAMPLING)
        return
    # One scene at a time in both: another batch size could round differently.
    judge_by_lerobot(policy, folder, args, "--eval.batch_size=1")
    evaluate(LeRobotPolicy(policy), protocol, folder / "ours", args.scenes, [TASK], batch_size=1, videos=0)


def judged(run: Path, args: argparse.Namespace, checkpoint: str) -> Path:
    folder = run / "judged" / args.arm / checkpoint
    return folder / f"from-{args.start_seed}" if args.start_seed else folder


def judge_by_lerobot(policy: Path, folder: Path, args: argparse.Namespace, *options: str) -> None:
    """Runs `lerobot-eval`, once. Raises FileExistsError if the folder holds outcomes of another policy, number of
    scenes or options."""
    from aim_hf.model.checkpoint import fingerprint

    made_from = {"policy_sha256": fingerprint(policy), "scenes": args.scenes, "options": [*options, *args.options]}
    claim(folder, made_from, "lerobot/*", record="lerobot.json")
    if "lerobot" in outcomes(folder):
        return
    command = [sys.executable, "-m", "lerobot.scripts.lerobot_eval", f"--policy.path={policy}", "--policy.device=cpu"]
    command += ["--env.type=aim_aloha", f"--env.task={TASK}", "--eval.use_async_envs=false"]
    command += [f"--seed={args.start_seed}", f"--eval.n_episodes={args.scenes}"]
    subprocess.run([*command, f"--output_dir={folder / 'lerobot'}", *options, *args.options], check=True)


class LeRobotPolicy:
    """A policy of LeRobot for our evaluator: one episode at a time, asked at each control step, as `lerobot-eval`."""

    action_mode, actions_per_chunk, actions_per_frame = "ee", 1, 1

    def __init__(self, folder: Path) -> None:
        from lerobot.configs import PreTrainedConfig
        from lerobot.policies.factory import get_policy_class, make_pre_post_processors

        from aim_hf.model.checkpoint import fingerprint

        config = PreTrainedConfig.from_pretrained(folder)
        config.device = "cpu"
        self.policy = get_policy_class(config.type).from_pretrained(folder, config=config).eval()
        self.preprocess, self.postprocess = make_pre_post_processors(config, pretrained_path=str(folder))
        self.settings = {"policy": str(folder), "policy_sha256": fingerprint(folder)}
        self.interface, self.pixel_size = interface("aloha", "easy"), {}

    def start(self, instructions: list[str], seeds: list[int]) -> None:
        (self.instruction,) = instructions
        self.policy.reset()

    def predict(
        self, observations: list[list[Observation]], executed_actions=None, value_maps=None, pictures="none"
    ) -> Prediction:
        import torch
        from lerobot.envs.utils import preprocess_observation

        seen = observations[0][-1]
        batch = {"pixels": {name: view["rgb"][None] for name, view in seen["observation"].items()}}
        batch["agent_pos"] = pack_endpose(seen)[None].astype(np.float32)
        batch = preprocess_observation(batch) | {"task": [self.instruction]}
        with torch.inference_mode():
            action = self.postprocess(self.policy.select_action(self.preprocess(batch))).double().numpy()
        return Prediction(unit_quaternions(action[0])[None, None])


# ------------------------------------------------------------------------------------------------------------- report


def outcomes(folder: Path) -> dict[str, np.ndarray]:
    """Evaluator -> success (N,) of each scene, of those that have run."""
    found = {}
    if (folder / "lerobot" / "eval_info.json").exists():
        (task,) = read_json(folder / "lerobot" / "eval_info.json", "run `judge` again")["per_task"]
        found["lerobot"] = np.array(task["metrics"]["successes"], dtype=bool)
    if (ours := read_outcomes(folder / "ours", [TASK])) is not None:
        found["ours"] = ours[0].astype(bool)
    return found


def entry(run: Path, arm: str, folder: Path) -> dict:
    """The results of a checkpoint, which is judged in `folder`. Hours don't count the collection; those of AIM count
    its text encoder, its codec and the latents."""
    of_evaluator, record = outcomes(folder), record_of(run, arm)
    if arm in AIM_ARMS:
        took = hours(record) + hours(record_of(run, "latents"))
    else:
        weights = run / arm / "checkpoints" / folder.name / "pretrained_model" / "model.safetensors"
        took = hours(record, weights.stat().st_mtime)
    return {
        "arm": arm,
        "episodes": int(run.name),
        "checkpoint": folder.name,
        "hours": took,
        "success": {
            name: {
                "episodes": len(success),
                **rate_of(int(success.sum()), len(success)),
                "outcomes": "".join(str(int(each)) for each in success),
            }
            for name, success in of_evaluator.items()
        },
        "differing": int((of_evaluator["lerobot"] != of_evaluator["ours"]).sum()) if len(of_evaluator) == 2 else None,
        "sessions": json.loads(record.read_text())["sessions"],
    }


def report(args: argparse.Namespace) -> None:
    import torch

    folders = sorted(path.parents[1] for path in args.output_dir.glob("*/judged/*/*/lerobot/eval_info.json"))
    entries, tests = [entry(folder.parents[2], folder.parent.name, folder) for folder in folders], []
    for first, second in itertools.combinations(entries, 2):
        before, after = (np.array(list(each["success"]["lerobot"]["outcomes"])) == "1" for each in (first, second))
        if first["episodes"] == second["episodes"] and len(before) == len(after):
            only = int((before & ~after).sum()), int((after & ~before).sum())
            names = [f"{each['arm']}/{each['checkpoint']}" for each in (first, second)]
            tests.append({"episodes": first["episodes"], "pair": names, "only": only, "p": mcnemar_p(*only)})
    add_holm(tests)
    content = {"entries": entries, "tests": tests} | provenance(torch.device("cpu"))
    write_json(args.output_file, content)
    print(
        f"{len(entries)} entries and {len(tests)} tests in {args.output_file}; model_cards/render.py writes the page"
    )


def main() -> None:
    parser = PathParser(description=__doc__)
    steps = parser.add_subparsers(required=True)
    for step in (train, judge, report):
        of_step = steps.add_parser(step.__name__)
        of_step.set_defaults(run=step)
        of_step.add_argument("--output_dir", type=Path, required=True)
        if step is report:
            of_step.add_argument("--output_file", type=Path, default=RESULTS)
            continue
        of_step.add_argument("--arm", choices=[*AIM_ARMS, *LEROBOT_ARMS], required=True)
        of_step.add_argument("--episodes", type=int, required=True, help="episodes that the arm is trained on")
        of_step.add_argument("options", nargs="*", help="more for make, lerobot-train or lerobot-eval, behind --")
        if step is train:
            of_step.add_argument("--steps", type=int, required=True)
            of_step.add_argument("--save_freq", type=int, default=2500, help="steps between LeRobot's checkpoints")
        else:
            of_step.add_argument("--checkpoint", default="last", help="of LeRobot's policies, such as 005000")
            of_step.add_argument("--scenes", type=int, default=200)
            of_step.add_argument("--start_seed", type=int, default=0, help="the first scene")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
