"""Annotation without RoboTwin: what is refused before a simulator is asked for."""

import pytest

from aim_hf.data.annotation import annotate


@pytest.mark.parametrize("size", [0, -1])
def test_shards_of_no_episode_are_refused_before_the_folder_is_claimed(tmp_path, size):
    with pytest.raises(ValueError, match=f"^shard_size is {size}; expected a whole number, at least 1"):
        annotate([], tmp_path / "out", size)
    assert not list(tmp_path.iterdir())
