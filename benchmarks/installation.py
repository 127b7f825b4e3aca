"""The cost of an installation: packages, megabytes and seconds of import, of the core and of each extra.

    python benchmarks/installation.py --output_file benchmarks/results/installation.json

Each is installed with the versions of constraints.txt into a virtual environment of its own, in a temporary folder.
`--project` measures another checkout, such as one of an earlier commit, whose extras are other ones.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from aim_hf.commands import PathParser
from aim_hf.utils.files import write_json
from aim_hf.utils.provenance import provenance

ROOT = Path(__file__).parents[1]
EXTRAS = ("", "lora", "plot", "data", "serve", "quantization", "sim", "aloha", "app", "all")
IMPORTS = ("import aim_hf", "from aim_hf import AIMPipeline")


def install(project: Path, extra: str, folder: Path) -> Path:
    """Makes a virtual environment, and returns its interpreter. PyTorch goes first, in the constraints' version."""
    python = folder / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [python, "-m", "pip", "install", "--quiet", "--constraint", project / "constraints.txt"]
    subprocess.run([*pip, "torch"], check=True)
    subprocess.run([*pip, f"{project}[{extra}]" if extra else str(project)], check=True)
    return python


def commit_of(project: Path) -> str:
    return subprocess.check_output(["git", "-C", project, "rev-parse", "HEAD"], text=True).strip()


def seconds(python: Path, statement: str, runs: int = 5) -> float:
    """The fastest of some new processes, minus the time of an empty one."""

    def fastest(code: str) -> float:
        times = []
        for _ in range(runs):
            start = time.perf_counter()
            subprocess.run([python, "-c", code], check=True, cwd="/")
            times.append(time.perf_counter() - start)
        return min(times)

    return fastest(statement) - fastest("pass")


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--extras", nargs="*", default=EXTRAS, help="'' for the core")
    parser.add_argument("--output_file", type=Path, required=True)
    args = parser.parse_args()
    measured = {}
    for extra in args.extras:
        with tempfile.TemporaryDirectory() as folder:
            python = install(args.project, extra, Path(folder))
            packages = json.loads(subprocess.check_output([python, "-m", "pip", "list", "--format", "json"]))
            (site,) = Path(folder).glob("lib/*/site-packages")
            measured[extra or "core"] = {
                "packages": sum(package["name"] not in ("pip", "setuptools") for package in packages),
                "megabytes": round(sum(f.stat().st_size for f in site.rglob("*") if f.is_file()) / 1e6),
                "import_seconds": {statement: round(seconds(python, statement), 2) for statement in IMPORTS},
                "torch_seconds": round(seconds(python, "import torch"), 2),
            }
        print(extra or "core", measured[extra or "core"], flush=True)
        result = {"extras": measured, "project_commit": commit_of(args.project)} | provenance(torch.device("cpu"))
        write_json(args.output_file, result)


if __name__ == "__main__":
    main()
