"""Writes LeRobot datasets v3.0, and reads v3.0, v2.1 and v2.0, without the package `lerobot`.

`clips` copies compressed video between files, `format` has the names that reading and writing share, `export` writes a
dataset, `source` reads one, `robot` maps its columns and cameras, and `importer` converts its episodes.
"""

from ...utils.extras import extra

with extra("data"):
    import av  # noqa: F401
    import pyarrow  # noqa: F401
