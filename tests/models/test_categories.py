import pytest
import torch

from ddlflow.errors import SpecError
from ddlflow.models.categories import Embeddings, embedding_width


@pytest.mark.parametrize(("size", "width"), [(1, 1), (2, 1), (3, 2), (99, 50), (10_000, 50)])
def test_width_is_half_the_codes_and_at_most_fifty(size, width):
    assert embedding_width(size) == width


def test_vectors_follow_the_features_column_by_column():
    embeddings = Embeddings([5, 9], width=None, deviation=1.0)
    features, codes = torch.randn(4, 2), torch.tensor([[0, 8], [4, 0], [1, 1], [2, 7]])
    rows = embeddings(features, codes.to(torch.int32))
    assert embeddings.width == 3 + 5
    assert rows.shape == (4, 2 + 8)
    assert torch.equal(rows[:, :2], features)
    assert torch.equal(rows[1, 2:5], embeddings.tables[0].weight[4])
    assert torch.equal(rows[0, 5:], embeddings.tables[1].weight[8])


def test_an_unseen_category_starts_as_the_zero_vector():
    for table in Embeddings([5, 9], width=3, deviation=1.0).tables:
        assert table.weight[0].abs().max() == 0
        assert table.weight[1:].abs().min() > 0


def test_codes_that_are_not_given_are_asked_for():
    with pytest.raises(SpecError, match=r"built for 2 categorical column"):
        Embeddings([5, 9], width=3, deviation=1.0)(torch.randn(4, 2), None)


def test_without_columns_the_features_pass_through():
    features = torch.randn(4, 2)
    assert Embeddings([], width=None, deviation=1.0)(features, None) is features
