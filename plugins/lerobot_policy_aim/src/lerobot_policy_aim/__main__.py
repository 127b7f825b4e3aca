"""Converts an AIM pipeline into a policy of LeRobot, and a policy into a pipeline:

python -m lerobot_policy_aim checkpoints/aim-tiny outputs/policy
python -m lerobot_policy_aim outputs/policy outputs/pipeline
"""

import argparse
import json
from pathlib import Path

from aim_hf.model.checkpoint import local_folder

from . import AIMPolicy, make_aim_pre_post_processors


def main() -> None:
    parser = argparse.ArgumentParser(
        "lerobot_policy_aim", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="pipeline or policy, a folder or a repo id")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument(
        "--cameras",
        type=json.loads,
        default={},
        help="JSON, AIM's camera -> the policy's feature; observation.images.<camera> where not given",
    )
    arguments = parser.parse_args()
    folder = local_folder(arguments.source)
    if not (folder / "model_index.json").is_file():
        try:
            pipeline = AIMPolicy.from_pretrained(folder).to_pipeline()
        except ValueError as error:
            parser.error(f"{folder}: {error}")
        pipeline.save_pretrained(arguments.output)
        return
    policy = AIMPolicy.from_pipeline(folder, arguments.cameras)
    policy.save_pretrained(arguments.output)
    for processor in make_aim_pre_post_processors(policy.config):
        processor.save_pretrained(arguments.output)


main()
