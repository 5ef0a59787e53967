import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddlflow.train.tasks.histogram import FeatureHistogram, histogram_edges, histogram_range


@pytest.mark.parametrize(
    ("statistics", "expected"),
    [
        ((0.0, 1.0, -100.0, 2.5), (-4.0, 2.5)),
        ((5.0, 1.0, 0.0, 100.0), (1.0, 9.0)),
        ((3.0, 0.0, 3.0, 3.0), (2.5, 3.5)),
    ],
)
def test_range_is_four_deviations_inside_the_data(statistics, expected):
    assert histogram_range(*statistics) == expected


values = st.floats(-3, 3, width=32) | st.sampled_from([-1.0, 0.0, 1.0])


@given(
    rows=st.lists(st.tuples(values, st.integers(0, 2)), max_size=60),
    cut=st.integers(0, 60),
    edges=st.sampled_from([histogram_edges(-1.0, 1.0, 8), [-1.0, 0.0, 0.25, 1.0]]),
)
def test_counts_are_numpys_in_any_parts(rows, cut, edges):
    # A column of a table of rows, as the shards hold it.
    feature = torch.tensor([[value, 0.0] for value, _ in rows], dtype=torch.float32)
    feature = feature.reshape(-1, 2)[:, 0]
    labels = torch.tensor([label for _, label in rows], dtype=torch.int64)
    histogram, rest = (FeatureHistogram("m_bb", edges, 3) for _ in range(2))
    histogram.update(feature[:cut], labels[:cut])
    rest.update(feature[cut:], labels[cut:])
    histogram.merge(rest)
    curves = histogram.curves()
    for label in range(3):
        mine = feature[labels == label].numpy()
        assert curves.counts[label] == np.histogram(mine, np.float32(edges))[0].tolist()
        assert curves.below[label] == int((mine < edges[0]).sum())
        assert curves.above[label] == int((mine > edges[-1]).sum())


def test_missing_and_infinite_values_have_their_places():
    histogram = FeatureHistogram("pt", histogram_edges(0.0, 1.0, 4), 2)
    bad = torch.tensor([float("nan"), float("inf"), float("-inf")])
    histogram.update(bad, torch.tensor([0.0, 1.0, 1.0]))
    curves = histogram.curves()
    assert (curves.missing, curves.above, curves.below) == ([1, 0], [0, 1], [0, 1])


def test_one_class_reads_no_labels():
    histogram = FeatureHistogram("bmi", histogram_edges(0.0, 1.0, 2), 1)
    histogram.update(torch.tensor([0.1, 0.9]), torch.tensor([151.0, 75.5]))
    assert histogram.curves().counts == [[1, 1]]


def test_different_edges_do_not_merge():
    one, other = (FeatureHistogram("pt", histogram_edges(0.0, high, 4), 2) for high in (1.0, 2.0))
    with pytest.raises(ValueError, match="differ in name or edges"):
        one.merge(other)
