import numpy as np
import pytest

from aim_hf.envs.seeds import SEED_RANGES, check_seed, episode_seeds, scene_generator, seed_range


def test_ranges_are_disjoint():
    ranges = sorted(SEED_RANGES.values(), key=lambda r: r.start)
    assert all(first.stop <= second.start for first, second in zip(ranges, ranges[1:], strict=False))


def test_episode_seeds_stay_in_their_range():
    for purpose, allowed in SEED_RANGES.items():
        seeds = episode_seeds(purpose, 10, 5)
        assert seeds == list(range(allowed.start + 10, allowed.start + 15))
        assert [check_seed(seed, purpose) for seed in seeds] == seeds
    with pytest.raises(ValueError, match="has 1000000 seeds"):
        episode_seeds("train", 999_999, 2)


@pytest.mark.parametrize("seed", [100_000_000, -1, 1_000_000, 0.5, True, "3", None])
def test_train_refuses_other_seeds(seed):
    with pytest.raises(ValueError, match="out of range"):
        check_seed(seed, "train")


def test_any_range_serves_when_no_purpose_is_named():
    assert check_seed(np.int64(100_000_000)) == 100_000_000
    with pytest.raises(ValueError, match="evaluation: 100000000"):
        check_seed(50_000_000)


def test_unknown_purpose():
    with pytest.raises(ValueError, match="expected one of"):
        seed_range("test")


def test_streams_are_independent_and_reproducible():
    def draw(*key):
        return scene_generator(*key).random()

    key = ("click_bell", "easy", 3, "objects")
    assert draw(*key) == draw(*key)
    other_stream = draw("click_bell", "easy", 3, "look")
    other_split = draw("click_bell", "hard", 3, "objects")
    other_seed = draw("click_bell", "easy", 4, "objects")
    assert len({draw(*key), other_stream, other_split, other_seed}) == 4
