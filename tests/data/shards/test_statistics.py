"""Merged statistics equal numpy's on all the data."""

import json

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.data.shards.statistics import Statistics, empty, merge, of_column

SPECIAL = st.sampled_from([float("nan"), float("inf"), float("-inf")])
VALUES = st.lists(st.one_of(st.floats(-1e6, 1e6, width=32), SPECIAL), min_size=0, max_size=60)


def _of(values: np.ndarray) -> Statistics:
    facts = of_column(values.copy())
    whole, decimal = (np.array([v]) for v in facts[:1]), (np.array([v]) for v in facts[1:5])
    rest = (np.array([v]) for v in facts[5:])
    return Statistics(len(values), *whole, *decimal, *rest, np.zeros(0, dtype=np.int64))


@given(st.lists(VALUES, min_size=1, max_size=5))
def test_merged_equal_numpys(parts: list[list[float]]) -> None:
    arrays = [np.array(part, dtype=np.float32) for part in parts]
    found = merge([_of(array) for array in arrays], empty(1, 0))
    everything = np.concatenate(arrays).astype(np.float64)
    finite = everything[np.isfinite(everything)]
    assert found.rows == len(everything)
    assert found.count[0] == len(finite)
    assert found.missing[0] == np.isnan(everything).sum()
    assert found.infinite[0] == np.isinf(everything).sum()
    if len(finite):
        scale = np.abs(finite).max() + 1e-30
        assert np.isclose(found.mean[0], finite.mean(), rtol=1e-12, atol=1e-12 * scale)
        assert np.isclose(found.variance[0], finite.var(), rtol=1e-9, atol=1e-12 * scale**2)
        assert (found.minimum[0], found.maximum[0]) == (finite.min(), finite.max())
    else:
        assert np.isnan(found.mean[0])


def test_infinite_values_become_missing_in_place() -> None:
    values = np.array([1, np.inf, 3, np.nan], dtype=np.float32)
    assert of_column(values) == (2, 2.0, 2.0, 1.0, 3.0, 1, 1)
    assert np.array_equal(np.isnan(values), [False, True, False, True])


def test_a_large_mean_does_not_eat_the_variance() -> None:
    values = (1e6 + np.random.default_rng(0).integers(0, 2, 10_000)).astype(np.float32)
    found = merge([_of(values[:5000]), _of(values[5000:])], empty(1, 0))
    assert np.isclose(found.variance[0], values.astype(np.float64).var(), rtol=1e-12)


@given(VALUES)
def test_json_keeps_every_bit(values: list[float]) -> None:
    before = _of(np.array(values, dtype=np.float32))
    after = Statistics.from_json(json.loads(json.dumps(before.to_json(), allow_nan=False)))
    for name in Statistics.__slots__:
        assert np.array_equal(getattr(before, name), getattr(after, name), equal_nan=True)
