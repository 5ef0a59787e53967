import hashlib
import struct

import pytest
import torch
from torch import nn

from ddlflow.models.mlp import Mlp
from ddlflow.train.saved.digests import digest


def test_it_is_the_hash_of_the_bytes_in_the_order_of_the_names():
    tensors = {"b": torch.tensor([[1.5, -2.0]]), "a": torch.tensor(3, dtype=torch.int64)}
    expected = hashlib.sha256(struct.pack("<q", 3) + struct.pack("<2f", 1.5, -2.0)).hexdigest()
    assert digest(tensors) == expected
    assert digest(dict(reversed(tensors.items()))) == expected


def test_a_module_by_its_parameters_without_its_buffers():
    model = Mlp(num_features=3, category_sizes=[4], num_outputs=1, batch_norm=True)
    before = digest(model)
    assert digest(dict(model.named_parameters())) == before
    model(torch.randn(5, 3), torch.zeros(5, 1, dtype=torch.int64))  # moves the running averages
    assert digest(model) == before
    with torch.no_grad():
        weight = model.layers[0].weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    assert digest(model) != before


def test_a_tied_parameter_counts_once():
    one = nn.Linear(2, 2)
    assert digest(nn.Sequential(one, one)) == digest(nn.Sequential(one))


def test_strides_do_not_matter():
    tensor = torch.randn(6, 5)
    assert digest({"w": tensor.t().contiguous().t()}) == digest({"w": tensor})
    assert digest({"w": torch.randn(6, 10).copy_(tensor.repeat(1, 2))[:, :5]}) == digest(
        {"w": tensor}
    )
    assert digest({"w": tensor.t()}) != digest({"w": tensor})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.bool])
def test_any_dtype(dtype):
    tensor = torch.tensor([0.0, 1.0, -2.5]).to(dtype)
    raw = bytes(tensor.untyped_storage())
    assert digest({"w": tensor}) == hashlib.sha256(raw).hexdigest()


def test_empty_tensors_add_nothing():
    assert digest({"w": torch.empty(0, 3)}) == hashlib.sha256().hexdigest()


def test_a_big_endian_machine_turns_its_bytes(monkeypatch):
    tensor = torch.tensor([1.0, -2.5])
    monkeypatch.setattr("sys.byteorder", "big")
    assert digest({"w": tensor}) == hashlib.sha256(struct.pack(">2f", 1.0, -2.5)).hexdigest()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_does_not_matter():
    tensor = torch.randn(6, 5)
    assert digest({"w": tensor.cuda().t()}) == digest({"w": tensor.t()})
