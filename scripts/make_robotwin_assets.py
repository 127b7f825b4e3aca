"""Writes stand-ins for RoboTwin's assets, with which RoboTwin's code runs on any machine:

    python scripts/make_robotwin_assets.py outputs/robotwin-assets

A folder that has them already is left as it is: some of RoboTwin's scenes depend on the order in which the file system
lists it, and another program may be using it. See docs/robotwin.md.
"""

from pathlib import Path

from aim_hf.commands import PathParser
from aim_hf.envs.robotwin.standin import has_assets, write_assets


def main() -> None:
    parser = PathParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    if not has_assets(folder):
        write_assets(folder)


if __name__ == "__main__":
    main()
