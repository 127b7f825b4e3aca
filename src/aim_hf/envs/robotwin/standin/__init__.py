"""Stand-ins for RoboTwin's assets, made of primitives, so that RoboTwin's code runs where its assets aren't.

Pictures and results differ from those of RoboTwin's assets: a policy that is trained or evaluated with stand-ins can't
be compared with published results. Nothing of RoboTwin is in them but the names and the formats of its files.
"""

from .assets import has_assets, write_assets

__all__ = ["has_assets", "write_assets"]
