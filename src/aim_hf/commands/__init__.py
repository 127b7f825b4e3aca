"""The command `aim-hf`. Each subcommand is a module of this package with a function `main(argv)`.

    aim-hf evaluate --policy DIR ...
    accelerate launch -m aim_hf evaluate --policy DIR ...    # the same in several processes

Options are spelled as in transformers, diffusers and LeRobot: `--output_dir`; `--output-dir` is accepted too. An
option means the same in every subcommand: `--policy` is a checkpoint, given as a repo id or as the folder of an
`AIMPipeline` or of the parts made so far; `--output_dir` is the folder that a subcommand writes.

Each `main` parses its arguments before it imports heavy modules, so that `--help` and wrong arguments are answered
immediately. Processes of environments import this module too and need no heavy module. `train` and `train-grpo` import
transformers and torch to parse, because their options are fields of transformers' `TrainingArguments`.
"""

import argparse
import gc
import os
import re
import signal
import socket
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from ..utils.checks import check_path, check_whole
from ..utils.extras import MissingExtra, SimulatorFailed

COMMANDS = {
    "demo": "run a few held-out episodes of a policy and draw them",
    "app": "a web page to watch a policy act",
    "evaluate": "measure success rates in closed loop",
    "compare": "compare two policies on the same scenes",
    "report": "write a report over evaluations, beside published numbers",
    "serve": "serve a policy to robots, in openpi's protocol",
    "publish": "publish a pipeline, adapters, a dataset or a Space on the Hub",
    "collect": "record expert episodes with value maps",
    "validate": "check a folder of episodes",
    "preview": "draw a contact sheet of episodes",
    "annotate-robotwin": "add value maps to trajectories that RoboTwin has recorded",
    "import-lerobot": "convert a LeRobot dataset to episodes",
    "export-lerobot": "convert episodes to a LeRobot dataset",
    "encode-latents": "encode episodes to the latents that stage 1 trains on",
    "train-text-encoder": "train the tiny tokenizer and text encoder",
    "train-vae": "train the tiny video codec",
    "train": "stage 1: flow matching on RGB, value maps and actions",
    "train-grpo": "stage 2: GRPO on the action head",
    "check": "check that this machine can render and decode video",
}
SPLITS_HELP = "easy, hard (not of aloha), or of tabletop a perturbation such as camera-2 (docs/perturbations.md)"
RENAMED = {"--base": "--policy", "--pipeline": "--policy"}


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The help of an option ends with its default, unless its text names one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        values = action.default if isinstance(action.default, list | tuple) else [action.default]
        if "default" in (action.help or "") or values in ([], [None], [argparse.SUPPRESS]) or action.default is False:
            return action.help
        return f"{action.help}; default: {' '.join(map(str, values))}"


def path_argument(text: str) -> Path:
    """The path in an argument, with `~` for the home folder, which shells leave in `--output_dir=~/runs`. An empty
    one, as of a variable that isn't set, is refused."""
    try:
        return check_path("it", os.path.expanduser(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(error) from error


class PathParser(argparse.ArgumentParser):
    """Shows its description as it is written. Arguments of the type `Path` are converted by `path_argument`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=HelpFormatter, **kwargs)
        self.register("type", Path, path_argument)


class Parser(PathParser):
    """The parser of a subcommand. `description` is the docstring of its module."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(f"aim-hf {command}", description=description)


def check_options(args: argparse.Namespace, *names: str, least: int = 1) -> None:
    """Raises ValueError unless the options are whole numbers of at least `least`, or None, which is not given."""
    for name in names:
        if (value := getattr(args, name)) is not None:
            check_whole(f"--{name}", value, least)


def check_robotwin_options(suite: str, argv: list[str]) -> None:
    """Raises ValueError for options of RoboTwin with another suite, which would run in RoboTwin's place."""
    if suite != "robotwin" and (given := [option for option in argv if option.startswith("--robotwin_")]):
        raise ValueError(f"--suite is {suite}, and {given[0]} is of robotwin; give --suite robotwin, or leave it out")


def check_outside(output_dir: Path, policy: str) -> None:
    """Raises ValueError for an output folder inside the policy's: its files would count as the policy's, and the run
    couldn't continue, since its policy would be another one."""
    if os.path.isdir(policy) and output_dir.resolve().is_relative_to(Path(policy).resolve()):
        raise ValueError(f"--output_dir {output_dir} is inside of --policy {policy}; give a folder beside it")


def check_address(host: str, port: int) -> None:
    """Raises OSError unless a server can listen there. Checked before a policy is loaded, which may take minutes."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        socket.create_server((host, port), family=family).close()
    except OSError as error:
        reason = error.strerror.partition(" (while")[0]
        raise OSError(f"nothing can listen at {host}:{port} ({reason}); give another address or --port.") from error


def spelled(argv: list[str]) -> list[str]:
    """`argv` with options as they are declared: underscores for dashes, and current names for renamed options. `~` is
    the home folder, which shells leave in `--policy=~/runs/aim`."""

    def option(text: str) -> str:
        match = re.match(r"--[A-Za-z][\w-]*", text)
        if match is None:
            return text
        name = "--" + match[0][2:].replace("-", "_")
        if name in RENAMED:
            print(f"{name} is called {RENAMED[name]} now.", file=sys.stderr)
        value = text[match.end() :]
        return RENAMED.get(name, name) + (f"={os.path.expanduser(value[1:])}" if value.startswith("=~") else value)

    return [option(text) for text in argv]


def run(argv: list[str] | None = None) -> None:
    """Runs a subcommand. Errors about its input are printed as one line, with exit code 2, and Ctrl-C as one with exit
    code 130; AIM_HF_TRACEBACK=1 shows the traceback."""
    sys.stderr = sys.stderr or open(os.devnull, "w")  # None where it was closed, as by `2>&-`; tqdm writes to it
    command, *options = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in ("-h", "--help"):
        width = max(map(len, COMMANDS))
        listed = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
        print(f"usage: aim-hf COMMAND [options]\n\n{listed}\n\naim-hf COMMAND --help tells its options.")
        return
    if command not in COMMANDS:
        fail(f"there is no command {command!r}; choose one of {', '.join(COMMANDS)}")
    try:
        import_module(f".{command.replace('-', '_')}", __name__).main(spelled(options))
    except (OSError, ValueError, FloatingPointError, MissingExtra, SimulatorFailed, KeyboardInterrupt) as error:
        if os.environ.get("AIM_HF_TRACEBACK"):
            raise
        if isinstance(error, KeyboardInterrupt):
            fail(f"{command}: interrupted", code=128 + signal.SIGINT)
        fail(f"{command}: {error}")
    leave_processes()


def leave_processes() -> None:
    """Ends the group of processes of `accelerate launch`. Threads of gloo that outlive the interpreter can abort a
    command that has succeeded."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        gc.collect()  # trainers are in reference cycles, and hold the group
        distributed.destroy_process_group()


def fail(message: str, code: int = 2) -> None:
    print(f"aim-hf {message}", file=sys.stderr)
    raise SystemExit(code)
