"""pydantic's errors as sentences: what was given, what is allowed, what to do next."""

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from ddlflow.spec.explain import dotted, explain, nearest
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

GOOD: dict[str, Any] = {
    "name": "first",
    "data": {"source": "t.parquet", "label": "y"},
    "model": {"use": "mlp"},
    "train": {"objective": "binary"},
}


def said(model: type[BaseModel], values: dict[str, Any]) -> dict[str, str]:
    """The sentences, by the dotted place of what each is about."""
    with pytest.raises(ValidationError) as raised:
        model.model_validate(values)
    return {dotted(path): text for path, text in explain(model, raised.value, values, {})}


def changed(path: str, value: Any) -> dict[str, Any]:
    """A good pipeline with one value replaced."""
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in GOOD.items()}
    here = values
    *around, last = path.split(".")
    for part in around:
        here = here.setdefault(part, {})
    here[last] = value
    return values


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        # Numbers and their bounds.
        (
            "train.epochs",
            0,
            "is 0; expected auto or a whole number >= 1. Set train.epochs, or leave it",
        ),
        ("train.epochs", "two", "is 'two'; expected auto or a whole number."),
        ("train.epochs", 2.5, "is 2.5; expected auto or a whole number."),
        ("train.clip_norm", -1.0, "is -1.0; expected a number > 0. Set train.clip_norm."),
        ("data.split.test", 1.0, "is 1.0; expected a number < 1."),
        ("data.split.test", -0.5, "is -0.5; expected a number >= 0."),
        ("train.virtual_ranks", "many", "is 'many'; expected auto or a whole number."),
        ("train.virtual_ranks", 0, "is 0; expected auto or a whole number >= 1."),
        ("train.precision", "fp16", "is 'fp16'; expected float32 or bf16."),
        # Text, lists, choices.
        ("data.label", None, "is empty; expected text. Set data.label."),
        ("data.label", 5, "is 5; expected text. Put it in quotes if it is a name."),
        ("data.header", "maybe", "is 'maybe'; expected true or false."),
        ("data.features", "a", "is 'a'; expected all or a list."),
        ("data.features", [], "is []; expected all or a list of at least 1 value."),
        ("data.delimiter", ";;", "is ';;'; expected text of at most 1 character."),
        ("data.missing", "refus", "is 'refus'; expected impute, refuse or drop. Did you mean 're"),
        ("name", "a b", "is 'a b'; expected a name of letters, digits"),
        ("register", "a/b", "is 'a/b'; expected a name without '/' and ':'."),
        # Sections that `use` tells apart.
        ("model", "mlp", "is 'mlp'; expected {use: mlp} and its keys."),
        ("model", None, "is empty; expected {use: linear} and its keys."),
        ("train.optimizer", "adamm", "is 'adamm'; expected {use: sgd} and its keys. Did you mean"),
        ("train.objective", "binari", "is 'binari'; expected binary, multiclass, regression or {u"),
        ("train.objective", "loss:f", ': a loss of your own says how labels are read: {use: "loss'),
        ("train.schedule", "cosine", "is 'cosine'; expected keys and values: use, warmup_steps,"),
        ("data.split", {"column": "s", "test": 0.1}, ": a split is either fractions or a column."),
    ],
)
def test_a_wrong_value(path: str, value: Any, sentence: str) -> None:
    found = said(Pipeline, changed(path, value))
    assert list(found) == [path]
    assert found[path].startswith(f"{path}{'' if sentence[0] == ':' else ' '}{sentence}")


@pytest.mark.parametrize(
    ("section", "value", "place", "sentence"),
    [
        ("model", {"hidden": [8]}, "model.use", "is missing; expected linear, mlp or module:name."),
        ("model", {"use": "linera"}, "model.use", "is 'linera'; expected linear, mlp or module:na"),
        ("model", {"use": "net"}, "model.use", "is 'net'; expected linear, mlp or module:name."),
        ("model", {"use": "1net:X"}, "model.use", "is '1net:X'; expected module:name."),
        ("model", {"use": "mlp", "hidden": [8, 0]}, "model.hidden[1]", "is 0; expected a whole nu"),
        ("model", {"use": "mlp", "hiden": [8]}, "model.hiden", "is no known key. Did you mean 'hi"),
        ("train.optimizer", {"use": "sdg"}, "train.optimizer.use", "is 'sdg'; expected sgd, adagr"),
        (
            "train.optimizer",
            {"use": "adam", "momentum": 0.9},
            "train.optimizer.momentum",
            "is no known key. Known here: betas, eps, lr, use, weight_decay.",
        ),
        ("train.objective", {"use": "l:f"}, "train.objective.like", "is missing. Set it."),
        (
            "train.objective",
            {"use": "l:f", "like": "bin"},
            "train.objective.like",
            "is 'bin'; expected binary, multiclass or regression. Did you mean 'binary'?",
        ),
        ("data.source", {"use": "colider", "rows": 5}, "data.source.use", "is 'colider'; expected"),
        ("data.source", {"use": "collider"}, "data.source.rows", "is missing. Set it."),
    ],
)
def test_inside_of_a_section_that_use_names(
    section: str, value: Any, place: str, sentence: str
) -> None:
    found = said(Pipeline, changed(section, value))
    assert list(found) == [place]
    assert found[place].startswith(f"{place} {sentence}")


def test_a_missing_section_says_how_it_begins() -> None:
    found = said(Pipeline, {"name": "x"})
    assert found == {
        "data": "data is missing. Set it.",
        "model": "model is missing. Set it, such as {use: linear}.",
        "train": "train is missing. Set it.",
    }


def test_an_unknown_key_lists_the_known_ones_by_their_names_in_the_file() -> None:
    found = said(Pipeline, {**GOOD, "registr": "x"})
    assert found["registr"] == (
        "registr is no known key. Did you mean 'register'? "
        "Known here: cv, data, infer, model, name, register, report, search, sweep, train."
    )


def test_the_site_has_the_same_manners() -> None:
    assert said(Site, {"device": "gpu", "storage": "", "engine": {"use": "ray"}}) == {
        "engine.use": "engine.use is 'ray'; expected local, dask or spark. Set engine.use, or "
        "leave it out for dask.",
        "device": "device is 'gpu'; expected auto, cpu or cuda. Did you mean 'cpu'? Set device, or "
        "leave it out for auto.",
        "storage": "storage is ''; expected text of at least 1 character. Set storage, or leave it "
        "out for '.ddlflow'.",
    }


def test_a_long_value_is_cut() -> None:
    found = said(Pipeline, changed("train.epochs", "x" * 500))
    assert len(found["train.epochs"]) < 250


def test_nearest() -> None:
    assert nearest("epohcs", ["epochs", "seed"]) == " Did you mean 'epochs'?"
    assert nearest("zzz", ["epochs", "seed"]) == ""
