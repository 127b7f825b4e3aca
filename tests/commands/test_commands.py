"""The command `aim-hf`: one spelling of options, one line for what is wrong."""

import importlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch.distributed as dist

from aim_hf.commands import COMMANDS, RENAMED, Parser, PathParser, leave_processes, run, spelled
from aim_hf.commands.policy_options import add_loading_arguments, given_options
from aim_hf.commands.serve import read_token
from aim_hf.pipeline.loading_config import LoadingConfig

ROOT = Path(__file__).parents[2]


def test_dashes_and_old_names_are_understood(capsys):
    given = ["--output-dir", "a-b", "--start-seed=3", "--base", "--x", "-1", "--", "words-with-dashes", "ws://a:1"]
    told = ["--output_dir", "a-b", "--start_seed=3", "--policy", "--x", "-1", "--", "words-with-dashes", "ws://a:1"]
    assert spelled(given) == told
    assert capsys.readouterr().err == "--base is called --policy now.\n"
    assert set(RENAMED.values()) == {"--policy"}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module_and_is_told_apart(name):
    module = importlib.import_module(f"aim_hf.commands.{name.replace('-', '_')}")
    assert callable(module.main) and (f"aim-hf {name}" in module.__doc__ or f"aim_hf {name}" in module.__doc__)


def test_scripts_of_the_checkout_hold_no_arguments_of_their_own():
    scripts = [*ROOT.glob("pipelines/*.py"), *ROOT.glob("dataset_scripts/*.py")]
    assert {script.stem.replace("_", "-") for script in scripts} == set(COMMANDS) - {"check"}
    for script in scripts:
        assert (
            script.read_text().splitlines()[2:]
            == (
                f'import sys\n\nfrom aim_hf.commands import run\n\nif __name__ == "__main__":\n'
                f'    run(["{script.stem.replace("_", "-")}", *sys.argv[1:]])'
            ).splitlines()
        )


def test_options_are_spelled_in_one_way():
    for path in sorted((ROOT / "src" / "aim_hf").rglob("*.py")):
        for line in path.read_text().splitlines():
            if "add_argument(" in line and "--" in line:
                name = line.split('"')[1]
                assert "-" not in name[2:] and name not in ("--output", "--base", "--pipeline", "--init"), line


@pytest.mark.parametrize(
    ("command", "host"),
    [
        (["serve", "--policy=no/such", "--host=127.0.0.1"], "127.0.0.1"),
        (["serve", "--policy=no/such", "--host=::1"], "::1"),
        (["app", "--policy=no/such"], "127.0.0.1"),
    ],
)
def test_an_address_in_use_is_told_before_the_policy_is_loaded(command, host, capsys):
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as other, pytest.raises(SystemExit) as ended:
        port = other.getsockname()[1]
        run([*command, f"--port={port}"])
    assert ended.value.code == 2
    told = f"{command[0]}: nothing can listen at {host}:{port} (Address already in use); give another address or"
    assert told in capsys.readouterr().err


def test_an_unknown_host_is_told(capsys):
    with pytest.raises(SystemExit):
        run(["serve", "--policy=no/such", "--host=no.such.invalid"])
    assert "nothing can listen at no.such.invalid:8000 (" in capsys.readouterr().err


def test_an_interrupted_command_says_so_in_one_line(tmp_path, capsys):
    os.mkfifo(tmp_path / "token")  # which the command waits for
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(SystemExit) as ended:
            run(["serve", "--policy=no/such", f"--token_file={tmp_path / 'token'}"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert ended.value.code == 130 and capsys.readouterr().err == "aim-hf serve: interrupted\n"


# The options of these two are fields of transformers' TrainingArguments, whose module imports torch.
HEAVY = {"train": {"torch", "transformers", "accelerate"}}
HEAVY["train-grpo"] = HEAVY["train"] | {"datasets", "diffusers"}
ANSWERS = """
import contextlib, io, json, sys
from aim_hf.commands import run
heavy, answers = {"torch", "transformers", "diffusers", "accelerate", "datasets", "sapien"}, {}
for name in sys.argv[1:]:
    with contextlib.redirect_stdout(io.StringIO()) as told, contextlib.redirect_stderr(io.StringIO()) as error:
        for option, code in (("--help", 0), ("--no_such_option", 2)):
            try:
                run([name, option])
            except SystemExit as ended:
                assert ended.code == code, ended.code
    answers[name] = told.getvalue(), error.getvalue(), list(heavy.intersection(sys.modules))
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers():
    """For each command its output, also for a wrong option, and the heavy modules imported by then. Commands that
    import the most come last."""
    names = sorted(COMMANDS, key=lambda name: len(HEAVY.get(name, ())))
    done = subprocess.run([sys.executable, "-c", ANSWERS, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_and_wrong_arguments_are_answered_before_anything_heavy_is_imported(name, answers):
    told, error, imported = answers[name]
    assert told.startswith("usage: aim-hf") and "error:" in error
    assert set(imported) <= HEAVY.get(name, set())


TRAIN = ["train", "--latents", "none", "--policy", "none", "--use_cpu"]
GRPO = ["train-grpo", "--policy", "none", "--max_steps", "1", "--use_cpu"]
EVALUATING = ["--eval_strategy", "steps", "--eval_steps", "1"]
VAE = ["train-vae", "--dataset", "none", "--policy", "none", "--output_dir", "out"]
TEXT = ["train-text-encoder", "--dataset", "none", "--policy", "none"]
COLLECT = ["collect", "--tasks", "click_bell", "--episodes", "1", "--output_dir", "out"]
EVALUATE = ["evaluate", "--policy", "no/such", "--episodes", "1", "--output_dir", "out"]
SERVE = ["serve", "--policy", "no/such"]
COUNTS = [  # command, its options, and the least number of each
    (COLLECT, {"episodes": 1, "shard_size": 1, "seeds_per_episode": 1, "start_seed": 0}),
    (["annotate-robotwin", "nowhere", "--output_dir", "out"], {"shard_size": 1}),
    (["import-lerobot", "nowhere", "--output_dir", "out"], {"shard_size": 1}),
    (["encode-latents", "--dataset", "nowhere", "--policy", "no/such", "--output_dir", "out"], {"shard_size": 1}),
    (["preview", "nowhere", "--output_file", "a.png"], {"episodes": 1, "frames": 1}),
    (["validate", "nowhere"], {"render": 0, "simulate": 0}),
    (EVALUATE, {"episodes": 1, "batch_size": 1, "actions_per_chunk": 1, "start_seed": 0, "videos": 0}),
    (["compare", "--before", "a", "--after", "b", "--output_dir", "c"], {"videos": 0}),
    (["demo", "--output_dir", "out"], {"episodes": 1}),
    (["app"], {"episodes": 1}),
    (
        ["train-vae", "--dataset", "nowhere", "--policy", "out", "--output_dir", "out"],
        {"max_episodes": 1, "held_out": 0},
    ),
    (["train-text-encoder", "--dataset", "nowhere", "--policy", "out"], {"steps": 1, "max_text_length": 1}),
    (["train-grpo", "--policy", "no/such", "--output_dir", "out", "--max_steps", "1"], {"eval_scenes": 1}),
]


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (["nothing"], "there is no command 'nothing'"),
        (["report", "--results", "nowhere", "--output_dir", "out"], "report: nowhere holds no results.json"),
        (["publish", "nowhere", "org/name"], "publish: nowhere holds neither model_index.json"),
        (["publish", "nowhere", "name"], "publish: repo_id is 'name'; expected org/name"),
        (
            ["evaluate", "--policy", "no/such", "--episodes", "1", "--output_dir", "out"],
            "evaluate: checkpoint 'no/such'",
        ),
        (["preview", "nowhere", "--output_file", "sheet.png"], "preview: nowhere holds no data/*.parquet"),
        ([*SERVE, "--image_keys", "head_camera"], "serve: --image_keys has head_camera; expected CAMERA=KEY"),
        (
            [*SERVE, "--image_keys", "head_camera=a", "head_camera=b"],
            "serve: --image_keys are head_camera=a head_camera=b; expected each camera once",
        ),
        (
            ["preview", "nowhere", "--output_file", "a.png", "--frames", "0"],
            "preview: --frames is 0; expected a whole",
        ),
        *(
            (
                [*argv, f"--{name}", str(value)],
                f"{argv[0]}: --{name} is {value}; expected a whole number, at least {least}",
            )
            for argv, options in COUNTS
            for name, least in options.items()
            for value in {least - 1, -3}
        ),
        *(
            ([*argv, "--port", str(port)], f"{argv[0]}: --port is {port}; expected {least} to 65535")
            for argv, least in ((SERVE, 0), (["app"], 1))
            for port in (least - 1, 65536)
        ),
        ([*SERVE, "--max_queue", "0"], "serve: max_queue is 0; expected more than 0"),
        ([*SERVE, "--idle_timeout", "nan"], "serve: idle_timeout is nan; expected more than 0"),
        *(
            ([*COLLECT, "--mistakes", share], f"collect: --mistakes is {float(share)}; expected 0 to 1")
            for share in ("2", "-1", "nan")
        ),
        ([*COLLECT, "--start_seed", "999999"], "collect: start=999999, count=100: purpose 'train' has 1000000 seeds"),
        (
            ["preview", "nowhere", "--output_file", "a.png", "--episodes", "-1"],
            "preview: --episodes is -1; expected a",
        ),
        (
            ["collect", "--suite", "robotwin", "--episodes", "1", "--output_dir", "a", "--noise", "0.01"],
            "collect: --noise is 0.01, but RoboTwin's experts plan as they move; leave it out",
        ),
        (
            ["collect", "--suite", "robotwin", "--episodes", "1", "--output_dir", "a", "--start_seed", "99990"],
            "collect: seed=100089 is for training, but RoboTwin evaluates on its seeds from 100000 on",
        ),
        ([*COLLECT, "--tasks", "fly"], "collect: no task fly in suite 'tabletop'; choose from click_bell"),
        ([*COLLECT, "--splits", "easy", "hrad"], "collect: split='hrad' is unknown in suite 'tabletop': choose one"),
        ([*EVALUATE, "--tasks", "fly"], "evaluate: no task fly in suite 'tabletop'; choose from click_bell"),
        ([*EVALUATE, "--split", "hrad"], "evaluate: split='hrad' is unknown in suite 'tabletop': choose one of"),
        ([*COLLECT, "--noise", "nan"], "collect: --noise is nan; expected 0 to 0.2"),
        ([*COLLECT, "--noise", "50"], "collect: --noise is 50.0; expected 0 to 0.2"),
        ([*COLLECT, "--noise", "-1"], "collect: --noise is -1.0; expected 0 to 0.2"),
        ([*TRAIN, "--ema_decay=5"], "train: ema_decay is 5.0; expected 0 to 1"),
        ([*TRAIN, "--value_foreground_weight=-100"], "train: value_foreground_weight is -100.0; expected a finite"),
        ([*TRAIN, "--gradient_accumulation_steps", "0"], "train: gradient_accumulation_steps is 0; expected a whole"),
        ([*GRPO, "--split", "hrad"], "train-grpo: split='hrad' is unknown in suite 'tabletop': choose one of"),
        (
            [*GRPO, "--tasks", "lift_pot", "lift_pot"],
            "train-grpo: tasks are ['lift_pot', 'lift_pot']; expected each once",
        ),
        (
            [*GRPO, "--reward_funcs", "success", "success"],
            "train-grpo: reward_funcs are ['success', 'success']; expected each once. Weigh them by --reward_weights.",
        ),
        (
            [*GRPO, "--hacking_patience", "2"],
            "train-grpo: --hacking_patience is 2; expected evaluations, such as by --eval_strategy steps",
        ),
        (
            [*GRPO, *EVALUATING, "--hacking_patience", "2", "--reward_funcs", "success"],
            "train-grpo: --hacking_patience is 2; expected evaluations, such as by --eval_strategy steps",
        ),
        (
            [*GRPO, "--max_kl", "0.5", "--logging_strategy", "no"],
            "train-grpo: --max_kl is 0.5 and --logging_strategy no; the KL divergence is checked as it is logged",
        ),
        (
            [*GRPO, *EVALUATING, "--eval_scenes", "3"],
            "train-grpo: --eval_scenes is 3; expected at least one for each of 12 tasks",
        ),
        (
            [*TRAIN, "--preset", "tiny", "--lora_rank", "2"],
            "train: --preset is tiny and --lora_rank 2: adapters of a new model would leave its video expert random.",
        ),
        ([*GRPO, "--learning_rate", "nan"], "train-grpo: learning_rate is nan; expected a finite number"),
        ([*GRPO, "--eval_scenes", "0"], "train-grpo: --eval_scenes is 0; expected a whole number"),
        ([*VAE, "--warmup_steps", "0"], "train-vae: warmup_steps is 0; expected a whole number"),
        *(
            ([*argv, "--seed", str(seed)], f"{argv[0]}: {name} is {seed}; expected a whole number, 0 to {most}")
            for argv, name, most in ((VAE, "seed", 2**63 - 1), (TEXT, "--seed", 2**63 - 1), (TRAIN, "seed", 2**32 - 1))
            for seed in (-1, 2**64)
        ),
        ([*VAE, "--max_episodes", "0"], "train-vae: --max_episodes is 0; expected a whole number"),
        ([*TEXT, "--steps", "0"], "train-text-encoder: --steps is 0; expected a whole number"),
        ([*TEXT, "--canvas", "0", "96"], "train-text-encoder: --canvas is 0; expected a whole number"),
        (
            ["compare", "--before", "a", "--after", "b", "--output_dir", "c", "--videos", "-3"],
            "compare: --videos is -3",
        ),
    ],
)
def test_what_is_wrong_is_one_line_and_code_2(argv, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(argv)
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith(f"aim-hf {told}") and error.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [COLLECT, EVALUATE, GRPO], ids=lambda argv: argv[0])
def test_options_of_robotwin_are_refused_for_other_suites(argv, tmp_path, monkeypatch, capsys):
    """They were ignored: episodes of tabletop came instead of RoboTwin's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROBOTWIN_ROOT", "")  # restored in the end: the option sets it
    with pytest.raises(SystemExit) as ended:
        run([*argv, "--robotwin-root", "RoboTwin"])
    told = (
        f"aim-hf {argv[0]}: --suite is tabletop, and --robotwin_root is of robotwin; give --suite robotwin, or leave"
    )
    assert ended.value.code == 2 and capsys.readouterr().err.startswith(told) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("argv", [EVALUATE, ["demo"], GRPO], ids=lambda argv: argv[0])
@pytest.mark.parametrize("output", ["policy", "policy/runs/easy", "link/easy"])
def test_an_output_folder_inside_of_the_policy_is_refused(argv, output, tmp_path, monkeypatch, capsys):
    """Its records counted as the policy's: an interrupted run was refused as one of another policy."""
    monkeypatch.chdir(tmp_path)
    Path("policy").mkdir()
    Path("link").symlink_to("policy")
    with pytest.raises(SystemExit) as ended:
        run([*argv, "--policy", "policy/", "--output_dir", output])
    told = f"aim-hf {argv[0]}: --output_dir {output} is inside of --policy policy/; give a folder beside it\n"
    assert ended.value.code == 2 and capsys.readouterr().err == told and not list(Path("policy").iterdir())
    with pytest.raises(SystemExit):
        run([*argv, "--policy", "policy/", "--output_dir", "policy-runs"])
    assert "policy has no model_index.json" in capsys.readouterr().err


PATHS = [  # every command and its arguments that are paths, where one is empty
    *([*argv, "--output_dir", ""] for argv in (TRAIN, GRPO, VAE, COLLECT, EVALUATE, ["demo"])),
    *([*argv, "--policy", ""] for argv in (VAE, TEXT)),
    *([*TRAIN, option, ""] for option in ("--latents", "--resume_from_checkpoint")),
    *([*argv, "--token_file", ""] for argv in (SERVE, EVALUATE)),
    *(["annotate-robotwin", *options] for options in (["a", "--output_dir", ""], ["--output_dir", "b", ""])),
    *(["import-lerobot", "a", "--output_dir", "b", option, ""] for option in ("--output_dir", "--config")),
    ["export-lerobot", "a", "--output_dir", ""],
    ["encode-latents", "--dataset", "a", "--policy", "b", "--output_dir", ""],
    *(
        ["compare", "--before", "a", "--after", "b", "--output_dir", "c", option, ""]
        for option in ("--before", "--after", "--output_dir", "--training")
    ),
    *(["report", "--results", "a", "--output_dir", "b", option, ""] for option in ("--results", "--output_dir")),
    ["preview", "a", "--output_file", ""],
    *(["validate", *options] for options in ([""], ["a", "--output_file", ""])),
    ["publish", "", "org/name"],
]


@pytest.mark.parametrize("argv", PATHS, ids=" ".join)
def test_an_empty_path_is_not_the_current_folder(argv, tmp_path, monkeypatch, capsys):
    """Such as the path in a variable that isn't set."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        run(argv)
    told = capsys.readouterr().err.splitlines()[-1]
    assert ended.value.code == 2 and told.startswith(f"aim-hf {argv[0]}: ") and not list(tmp_path.iterdir())
    assert told.endswith("is ''; expected a path. Give '.' for the current folder.")


def test_an_empty_path_is_refused_by_the_benchmarks_too(capsys):
    for program in (ROOT / "benchmarks").glob("*.py"):
        assert "argparse.ArgumentParser(" not in program.read_text(), program
    parser = PathParser(description="A benchmark of several steps.")
    parser.add_subparsers().add_parser("train").add_argument("--output_dir", type=Path)
    assert parser.parse_args(["train", "--output_dir", "."]).output_dir == Path(".")
    with pytest.raises(SystemExit) as ended:
        parser.parse_args(["train", "--output_dir", ""])
    assert ended.value.code == 2 and "is ''; expected a path. Give '.' for the" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch, capsys):
    """A shell leaves it in `--output_dir=~/runs`, which made a folder of that name."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(["report", "--results=~/easy", "--output_dir=~/report"])
    assert f"{tmp_path}/home/easy holds no results.json" in capsys.readouterr().err


def test_a_tilde_is_the_home_folder_also_where_a_repo_id_may_stand(tmp_path, monkeypatch, capsys):
    """`--policy=~/aim` was looked for on the Hub."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "aim").mkdir()
    with pytest.raises(SystemExit):
        run(["demo", "--policy=~/aim", f"--output_dir={tmp_path}/demo"])
    assert f"{tmp_path}/aim has no model_index.json" in capsys.readouterr().err


def test_a_tilde_with_an_unknown_user_stays_as_in_a_shell(tmp_path, monkeypatch, capsys):
    """It ended in a traceback."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        run(["report", "--results=~no-such-user/easy", "--output_dir=report"])
    assert "~no-such-user/easy holds no results.json" in capsys.readouterr().err


def test_every_command_with_an_output_folder_refuses_an_empty_one():
    commands = ROOT / "src" / "aim_hf" / "commands"
    named = {path.stem.replace("_", "-") for path in commands.glob("*.py") if '"--output_dir"' in path.read_text()}
    assert named | {"train", "train-grpo"} == {argv[0] for argv in PATHS if argv[-2:] == ["--output_dir", ""]}


def test_counts_that_are_wrong_end_every_command_of_them():
    """`COUNTS` has each option whose number the commands check."""
    checked = set()
    for path in (ROOT / "src" / "aim_hf" / "commands").glob("*.py"):
        command = path.stem.replace("_", "-")
        for call in re.findall(r"    check_options\((.*)\)", path.read_text()):
            checked |= {(command, name) for name in re.findall(r'"(\w+)"', call)}
    assert checked == {(argv[0], name) for argv, options in COUNTS for name in options}


@pytest.mark.parametrize(
    "argv", [SERVE, ["evaluate", "--policy", "ws://127.0.0.1:9", "--episodes", "1", "--output_dir", "o"]]
)
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "is missing"),
        (b"", r"can't be read \(it is empty\)"),
        (b" \n", r"can't be read \(it is empty\)"),
        (b"\xff", r"can't be read \(.*can't decode byte 0xff.*\)"),
    ],
)
def test_a_token_file_without_a_token_is_refused(argv, content, reason, tmp_path, capsys):
    """An empty token would admit every client."""
    token = tmp_path / "token"
    if content is not None:
        token.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        run([*argv, "--token_file", str(token)])
    expected = (
        rf"--token_file {token} {reason}; expected a text file with the token, such as `openssl rand -hex 32` .*"
    )
    assert ended.value.code == 2 and re.fullmatch(f"aim-hf {argv[0]}: {expected}\n", capsys.readouterr().err)


def test_a_token_is_read_without_the_end_of_its_line(tmp_path):
    (tmp_path / "token").write_text("secret\n")
    assert read_token(tmp_path / "token") == "secret" and read_token(None) is None


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        ([], {}),
        (["--compile_blocks"], {"compile_blocks": "default"}),
        (["--compile_blocks", "reduce-overhead"], {"compile_blocks": "reduce-overhead"}),
    ],
    ids=str,
)
def test_layers_are_compiled_in_a_mode(argv, told):
    parser = Parser("evaluate", "")
    add_loading_arguments(parser)
    assert given_options(parser.parse_args(argv), LoadingConfig) == told


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_shows_examples_as_they_are_written(name):
    module = importlib.import_module(f"aim_hf.commands.{name.replace('-', '_')}")
    for line in module.__doc__.splitlines():  # a backslash that isn't doubled joins two lines, with a gap between them
        assert not re.search(r"\S {4,}(?!#)\S", line) and len(line) <= 119, line


def test_the_help_of_a_field_is_its_text_and_its_default(capsys):
    with pytest.raises(SystemExit):
        run(["train-vae", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "--foreground_weight FOREGROUND_WEIGHT additional loss weight of pixels far from the background." in told
    assert "from encoded ones. Default: 0.05. --frame_stride FRAME_STRIDE control steps between" in told
    assert re.search(r"decays along a cosine to 3 %\. Default: 0\.02\.", told)
    with pytest.raises(SystemExit):
        run(["evaluate", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "denoising steps of actions. --stop_after" in told  # the policy's own number, not the dataclass's


def test_the_help_of_an_option_ends_with_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # so that no name is broken at a hyphen
    for command, told in (
        ("train-text-encoder", "optimizer steps; default: 1500 --max_text_length"),
        ("serve", "rounds as `evaluate` does; default: 1 2 4 8 --image_keys"),
        ("serve", "crop and resize pictures of other sizes loading:"),  # a switch
        ("demo", "default: aim-tiny --tasks"),  # told in other words
        ("train-vae", "default: one in 20, at most 48 training:"),
        ("compare", "episodes with different outcomes to film; default: 0 --robotwin_root"),
    ):
        with pytest.raises(SystemExit):
            run([command, "--help"])
        assert told in " ".join(capsys.readouterr().out.split()), told


def test_a_missing_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "sapien", None)  # as where it isn't installed
    from aim_hf.utils.extras import MissingExtra, extra

    with pytest.raises(MissingExtra, match=r"sapien is not installed; .* pip install 'aim-hf\[sim\]'"), extra("sim"):
        import sapien  # noqa: F401


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit):
        Parser("demo", "What it does.").parse_args(["--help"])
    assert capsys.readouterr().out.startswith("usage: aim-hf demo")


def test_a_command_ends_the_group_of_its_processes(tmp_path):
    """Threads of gloo that are left behind abort the interpreter now and then."""
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    with pytest.raises(SystemExit):
        run(["validate", str(tmp_path / "none")])
    assert dist.is_initialized()  # after an error others may still wait for this process
    leave_processes()
    assert not dist.is_initialized()
    leave_processes()  # and without a group there is nothing to do
