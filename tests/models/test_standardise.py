import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from ddlflow.models.mlp import Mlp
from ddlflow.models.standardise import Predictor, Standardise

any_float32 = st.floats(width=32, allow_nan=True, allow_infinity=True)


def in_numpy(rows, module, out=None):
    """As training does it, a window in advance."""
    with np.errstate(all="ignore"):
        done = np.subtract(rows, module.mean.numpy(), out=out)
        np.multiply(done, module.scale.numpy(), out=done)
    np.copyto(done, 0, where=np.isnan(done))
    return done


def bits(array):
    return np.ascontiguousarray(array).view(np.uint32)


@given(
    rows=arrays.arrays(np.float32, st.tuples(st.integers(1, 40), st.just(5)), elements=any_float32),
    mean=arrays.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)),
    variance=arrays.arrays(np.float64, 5, elements=st.floats(0, 1e12)),
    cut=st.integers(0, 40),
)
def test_numpy_torch_and_any_slicing_give_the_same_bits(rows, mean, variance, cut):
    module = Standardise(mean, variance)
    tensor = torch.from_numpy(rows)
    whole = module(tensor).numpy()
    apart = torch.cat([module(tensor[:cut]), module(tensor[cut:])]).numpy()
    in_advance = in_numpy(rows, module)
    assert np.array_equal(bits(whole), bits(apart))
    assert np.array_equal(bits(whole), bits(in_advance))


def test_same_bits_on_many_ordinary_numbers_whatever_the_strides():
    random = np.random.default_rng(0)
    rows = random.normal(3, 20, (4097, 29)).astype(np.float32)
    rows[random.random(rows.shape) < 0.05] = np.nan
    module = Standardise(np.nanmean(rows, 0, dtype=np.float64), np.nanvar(rows, 0))
    mean, scale = module.mean.numpy(), module.scale.numpy()
    whole = module(torch.from_numpy(rows)).numpy()
    in_place = rows.copy()
    in_numpy(in_place, module, out=in_place)
    assert np.array_equal(bits(whole), bits(in_place))
    assert np.array_equal(bits(whole[1::3]), bits(module(torch.from_numpy(rows)[1::3]).numpy()))
    row_by_row = torch.stack([module(row[None])[0] for row in torch.from_numpy(rows[:50])])
    assert np.array_equal(bits(whole[:50]), bits(row_by_row.numpy()))
    # A fused multiply-add would round once instead of twice; on these numbers that shows.
    exact = ((rows.astype(np.float64) - mean) * scale).astype(np.float32)
    assert not np.array_equal(bits(np.nan_to_num(exact)), bits(whole))


def test_missing_becomes_the_mean_and_infinity_stays():
    module = Standardise([10.0, 10.0], [4.0, 4.0])
    rows = torch.tensor([[12.0, float("nan")], [float("inf"), float("-inf")]])
    assert module(rows).tolist() == [[1.0, 0.0], [float("inf"), float("-inf")]]


@pytest.mark.parametrize("variance", [0.0, float("nan"), float("inf"), 1e-90, 1e300])
def test_a_feature_without_a_usable_variance_is_only_shifted(variance):
    module = Standardise([1.0], [variance])
    assert module.scale.item() == 1.0
    assert module(torch.tensor([[3.0]])).item() == 2.0


def test_a_feature_that_no_row_has_is_zero():
    module = Standardise([float("nan")], [float("nan")])
    assert module(torch.tensor([[float("nan")], [5.0]])).tolist() == [[0.0], [5.0]]


def test_statistics_travel_with_the_state():
    made = Standardise([1.0, 2.0], [4.0, 9.0])
    loaded = Standardise(np.zeros(2), np.ones(2))
    loaded.load_state_dict(made.state_dict())
    assert torch.equal(loaded.mean, made.mean)
    assert torch.equal(loaded.scale, made.scale)
    assert not list(made.parameters())


def test_predictor_is_standardise_then_net_and_can_be_exported_for_any_number_of_rows():
    torch.manual_seed(0)
    net = Mlp(num_features=2, category_sizes=[4], num_outputs=1, hidden=[4], batch_norm=True)
    inputs = ("features", "categories")
    predictor = Predictor(Standardise([5.0, 5.0], [4.0, 4.0]), net, inputs=inputs).eval()
    features, codes = torch.randn(6, 2) * 2 + 5, torch.arange(6).reshape(6, 1) % 4
    batch = {"features": features, "categories": codes}
    outputs = predictor(batch)
    assert torch.equal(outputs, net(predictor.standardise(features), codes))
    rows = torch.export.Dim("rows", min=1)
    program = torch.export.export(
        predictor, (batch,), dynamic_shapes=({name: {0: rows} for name in batch},)
    )
    for num_rows in (1, 4):
        torch.testing.assert_close(
            program.module()({n: t[:num_rows] for n, t in batch.items()}), outputs[:num_rows]
        )


def test_predictor_without_categories():
    net = torch.nn.Linear(2, 1)
    predictor = Predictor(Standardise([0.0, 0.0], [1.0, 1.0]), net)
    assert predictor({"features": torch.ones(3, 2)}).shape == (3, 1)
