import functools

import pytest
import torch

from ddlflow.errors import SpecError
from ddlflow.models.user import bind, one_line


def raised(function):
    with pytest.raises(Exception) as caught:
        function()
    return caught.value


def test_one_line_names_the_users_frame_not_torchs():
    def users_code():
        torch.nn.Linear(3, 1)(torch.zeros(2, 4))

    text = one_line(raised(users_code))
    assert text.startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert f"test_user.py:{users_code.__code__.co_firstlineno + 1})" in text


def test_one_line_without_words():
    def users_code():
        raise KeyError

    assert one_line(raised(users_code)).startswith("KeyError (")


def test_one_line_without_any_frame():
    assert one_line(ValueError("plain")) == "ValueError: plain"


def test_bind_leaves_positional_parameters_to_the_call():
    def loss(outputs, labels, *, power):
        return outputs, labels, power

    assert bind("m:loss", loss, {"power": 2}, offered={}, num_positional=2) == {"power": 2}
    with pytest.raises(SpecError, match="no parameter 'outputs'; it takes power"):
        bind("m:loss", loss, {"outputs": 2, "power": 1}, offered={}, num_positional=2)


def test_bind_sees_through_partial():
    def code(a, b):
        return a, b

    assert bind("m:code", functools.partial(code, b=1), {"a": 2}, offered={"b": 5}) == {
        "a": 2,
        "b": 5,
    }
