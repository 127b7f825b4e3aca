"""`aim-hf encode-latents`; see src/aim_hf/commands/encode_latents.py."""

import sys

from aim_hf.commands import run

if __name__ == "__main__":
    run(["encode-latents", *sys.argv[1:]])
