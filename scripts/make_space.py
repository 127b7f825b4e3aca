"""Makes the folder of a Hugging Face Space that runs the app on checkpoints/aim-tiny:

    python scripts/make_space.py outputs/space
    aim-hf publish outputs/space org/name --push

The package lies in it beside `app.py`, so that the Space installs other people's packages alone: those that
pyproject.toml asks for, in the versions of constraints.txt. The card and Debian's packages come from `space/`.
"""

import re
import shutil
import tomllib
from pathlib import Path
from string import Template

from aim_hf.commands import PathParser
from aim_hf.utils.files import written_folder

ROOT = Path(__file__).parents[1]
_UNWANTED = shutil.ignore_patterns("__pycache__", ".*")


def pins() -> dict[str, str]:
    """Package -> version of constraints.txt."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if not line.startswith("#"))
    return {_canonical(name): version for name, version in pairs}


def requirements() -> list[str]:
    """The dependencies of the package and its simulator, pinned. A Space brings its own Gradio: the one that its card
    names."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["sim"], *extras["data"], *extras["plot"]]
    names = [re.match(r"[\w.-]+", requirement).group() for requirement in wanted]
    names.remove("aim-hf")  # `sim` asks for the other two
    versions = pins()
    return [f"{name}=={versions[_canonical(name)]}" for name in names]


def make_space(folder: Path) -> None:
    with written_folder(folder) as partial:
        shutil.copytree(ROOT / "src" / "aim_hf", partial / "aim_hf", ignore=_UNWANTED)
        checkpoint = Path("checkpoints", "aim-tiny")
        shutil.copytree(ROOT / checkpoint, partial / "aim_hf" / checkpoint, ignore=_UNWANTED)
        shutil.copy(ROOT / "pipelines" / "app.py", partial)
        shutil.copy(ROOT / "LICENSE", partial)
        shutil.copy(ROOT / "space" / "packages.txt", partial)
        card = Template((ROOT / "space" / "README.md").read_text())
        (partial / "README.md").write_text(card.substitute(gradio=pins()["gradio"]))
        (partial / "requirements.txt").write_text("\n".join(requirements()) + "\n")


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    make_space(args.folder)
    print(f"The Space is in {args.folder}. Send it: aim-hf publish {args.folder} org/name --push")


if __name__ == "__main__":
    main()
