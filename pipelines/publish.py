"""Publish a folder on the Hub: a dataset of episodes, a pipeline, or a Space (see scripts/make_space.py).

    python pipelines/publish.py DIR org/name            # a dry run: checks the folder and lists what would be sent
    python pipelines/publish.py DIR org/name --push     # sends it, as one commit

What the folder is, is told by what is in it: `data/*.parquet`, `model_index.json`, or a card that names an SDK. Hidden
files (unfinished shards, temporary names) are never sent.
"""

import argparse
from pathlib import Path

from huggingface_hub import HfApi, RepoCard

from aim_hf.data.shards import UNFINISHED, check_folder


def files_of(folder: Path) -> list[Path]:
    """The files that are sent: all but hidden ones."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return [path for path in files if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def space_sdk(folder: Path) -> str | None:
    """What the folder's card says that it is run by, if it is a Space."""
    return RepoCard.load(folder / "README.md").data.get("sdk")


def repo_type(folder: Path) -> str:
    """`dataset`, `model` or `space`, by what the folder holds, which is checked.

    Raises:
        ValueError: if it is neither, has no card, or holds an unfinished shard; `check_folder`'s of a dataset.
    """
    if not (folder / "README.md").is_file():
        raise ValueError(f"{folder} has no README.md; the Hub needs a card. Write it before publishing.")
    if (folder / "model_index.json").is_file():
        return "model"
    if space_sdk(folder):
        return "space"
    if (folder / "data").is_dir():
        check_folder(folder)
        if pieces := sorted(folder.glob(f"{UNFINISHED}/*")):
            raise ValueError(f"{pieces[0]} is an unfinished shard; run dataset_scripts/collect.py again to finish it.")
        return "dataset"
    raise ValueError(
        f"{folder} holds neither data/*.parquet nor model_index.json, and its card names no sdk; expected episodes, a "
        "pipeline or a Space."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("repo_id", help="org/name")
    parser.add_argument("--push", action="store_true", help="really send it")
    parser.add_argument("--private", action="store_true", help="of a repo that this makes")
    parser.add_argument("--revision", help="branch that gets the commit; default: main")
    parser.add_argument("--message", default="Publish with aim-hf", help="of the commit")
    args = parser.parse_args()

    try:
        kind = repo_type(args.folder)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    files = files_of(args.folder)
    for path in files:
        print(f"{path.stat().st_size / 1e6:10.2f} MB  {path.relative_to(args.folder)}")
    total = sum(path.stat().st_size for path in files) / 1e6
    print(f"{total:10.2f} MB in {len(files)} files, to the {kind} repo {args.repo_id}")
    if not args.push:
        print("Nothing was sent. Add --push to send it.")
        return
    api = HfApi()
    sdk = space_sdk(args.folder) if kind == "space" else None
    api.create_repo(args.repo_id, repo_type=kind, space_sdk=sdk, private=args.private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=args.repo_id,
        repo_type=kind,
        folder_path=args.folder,
        ignore_patterns=[".*", "**/.*"],
        revision=args.revision,
        commit_message=args.message,
    )
    print(commit.commit_url)


if __name__ == "__main__":
    main()
