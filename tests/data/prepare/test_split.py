"""Exact counts, a true bijection, and the same answer however the rows are cut into pieces."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.prepare import split

fractions = st.sampled_from([0.0, 0.05, 0.1, 0.2, 0.25, 1 / 3, 0.4, 0.29])


@given(st.lists(st.integers(0, 400), min_size=1, max_size=12), fractions, fractions)
def test_quotas_round_each_share_up_or_down(
    counts: list[int], validation: float, test: float
) -> None:
    held_validation, held_test = split.quotas(counts, validation, test)
    shares = Fraction(repr(validation)), Fraction(repr(test))
    for n, v, t in zip(counts, held_validation.tolist(), held_test.tolist(), strict=True):
        assert abs(v - shares[0] * n) < 1
        assert abs(t - shares[1] * n) < 1
        assert abs((n - v - t) - (1 - sum(shares)) * n) < 1
        assert n - v - t >= 0
    assert abs(int(held_test.sum()) - shares[1] * sum(counts)) <= 1


def test_quotas_of_whole_shares_are_exact() -> None:
    validation, test = split.quotas([100, 1000], 0.29, 0.1)
    assert validation.tolist() == [29, 290]
    assert test.tolist() == [10, 100]


@given(st.integers(1, 5000), st.integers(0, 2**40))
def test_places_are_a_bijection(size: int, seed: int) -> None:
    index = np.arange(size, dtype=np.uint64)
    place = split.places(index, np.array([size], dtype=np.uint64), split.class_keys(seed, 1))
    assert np.array_equal(np.sort(place), index)


def test_places_with_a_size_for_each_element_equal_those_with_one_size() -> None:
    sizes, keys = [5, 1000, 1], split.class_keys(3, 3)
    alone = [
        split.places(
            np.arange(n, dtype=np.uint64), np.array([n], dtype=np.uint64), keys[:, c : c + 1]
        )
        for c, n in enumerate(sizes)
    ]
    classes = np.repeat(np.arange(3), sizes)
    together = split.places(
        np.concatenate([np.arange(n, dtype=np.uint64) for n in sizes]),
        np.array(sizes, dtype=np.uint64)[classes],
        keys[:, classes],
    )
    assert np.array_equal(together, np.concatenate(alone))


def test_places_spread_evenly() -> None:
    # 100,000 rows into the first tenth: of each tenth of the source about a tenth (5 sigma).
    size = 100_000
    index = np.arange(size, dtype=np.uint64)
    place = split.places(index, np.array([size], dtype=np.uint64), split.class_keys(11, 1))
    chosen = (place < size // 10).reshape(10, -1).sum(axis=1)
    assert np.all(np.abs(chosen - 1000) < 5 * 30)


@pytest.mark.parametrize("num_classes", [1, 2, 7, 300])
def test_assign_gives_the_quotas_whatever_the_pieces(num_classes: int) -> None:
    classes = np.random.default_rng(5).integers(0, num_classes, 6000)
    counts = np.bincount(classes, minlength=num_classes)
    validation, test = split.quotas(counts.tolist(), 0.15, 0.1)
    keys = split.class_keys(7, num_classes)

    def cut(step: int) -> np.ndarray:
        parts, before = [], np.zeros(num_classes, dtype=np.int64)
        for start in range(0, len(classes), step):
            piece = classes[start : start + step]
            parts.append(
                split.assign(
                    piece, before=before, counts=counts, validation=validation, test=test, keys=keys
                )
            )
            before = before + np.bincount(piece, minlength=num_classes)
        return np.concatenate(parts)

    whole = cut(6000)
    assert np.array_equal(whole, cut(977))
    for code, quota in ((split.VALIDATION, validation), (split.TEST, test)):
        assert np.array_equal(np.bincount(classes[whole == code], minlength=num_classes), quota)


def test_another_seed_gives_another_split() -> None:
    index, size = np.arange(1000, dtype=np.uint64), np.array([1000], dtype=np.uint64)
    one = split.places(index, size, split.class_keys(1, 1))
    two = split.places(index, size, split.class_keys(2, 1))
    assert np.count_nonzero(one == two) < 20
