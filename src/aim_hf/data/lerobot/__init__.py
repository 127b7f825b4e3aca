"""LeRobot's dataset format, v3.0 out and v3.0 or v2.1 in, written and read without `lerobot` itself.

`clips` moves compressed video between files, `format` names what both sides share, `export` writes a dataset, `source`
reads one, `robot` describes a robot's columns and cameras, `importer` makes our episodes of them.
"""

from ...utils.extras import extra

with extra("data"):
    import av  # noqa: F401
    import pyarrow  # noqa: F401
