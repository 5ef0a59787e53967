"""The pipeline's own rules: defaults, what excludes what, and that it survives being written."""

import re
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from ddlflow.spec.pipeline import (
    Adagrad,
    Adam,
    Data,
    Pipeline,
    RmsProp,
    Sgd,
    Split,
    UserCode,
    UserObjective,
)
from ddlflow.spec.site import EngineSection, Site

MINIMAL = """
name: first
data: {source: t.parquet, label: y}
model: {use: linear}
train: {objective: binary}
"""


def pipeline(**sections: Any) -> Pipeline:
    return Pipeline.model_validate({**yaml.safe_load(MINIMAL), **sections})


def test_the_defaults_that_the_documents_name() -> None:
    spec = pipeline()
    assert (spec.data.split.validation, spec.data.split.test, spec.data.seed) == (0.1, 0.1, 7)
    assert (spec.data.missing, spec.data.infinite) == ("impute", "impute")
    assert (spec.train.epochs, spec.train.batch_rows, spec.train.seed) == ("auto", "auto", 7)
    assert spec.train.optimizer == Adam(use="adam", lr=0.001)
    assert spec.train.checkpoint_every_s == 30
    assert spec.train.virtual_ranks == "auto"
    assert spec.register_as is None
    assert Site() == Site(engine=EngineSection(use="dask", workers="auto"), device="auto")


@pytest.mark.parametrize(
    ("optimizer", "kind", "lr"),
    [
        ("sgd", Sgd, 0.001),
        ("adagrad", Adagrad, 0.01),
        ("rmsprop", RmsProp, 0.001),
        ("adam", Adam, 0.001),
        ("adamw", Adam, 0.001),
    ],
)
def test_use_names_the_optimizer(optimizer: str, kind: type, lr: float) -> None:
    spec = pipeline(train={"objective": "binary", "optimizer": {"use": optimizer}})
    assert isinstance(spec.train.optimizer, kind)
    assert spec.train.optimizer.lr == lr


@pytest.mark.parametrize(
    ("split", "said"),
    [
        ({"validation": 0.6, "test": 0.4}, "validation 0.6 and test 0.4 leave no row to train on"),
        ({"column": "s", "validation": 0.1}, "either fractions or a column"),
        ({"validation": 1.0}, "less than 1"),
    ],
)
def test_a_split_that_cannot_be(split: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        Split(**split)


def test_a_test_source_is_the_only_test_split() -> None:
    spec = Data(source="a", label="y", test_source="b", split=Split(validation=0.2))
    assert spec.split == Split(validation=0.2, test=0)
    for split in (Split(test=0.2), Split(column="s")):
        with pytest.raises(ValidationError, match="exclude each other"):
            Data(source="a", label="y", test_source="b", split=split)


def test_nesterov_needs_momentum() -> None:
    with pytest.raises(ValidationError, match="momentum above 0"):
        Sgd(use="sgd", nesterov=True)
    assert Sgd(use="sgd", nesterov=True, momentum=0.9).nesterov


def test_user_code_keeps_its_arguments() -> None:
    spec = pipeline(model={"use": "net:Wide", "width": 3, "names": ["a"]})
    assert isinstance(spec.model, UserCode)
    assert spec.model.arguments == {"width": 3, "names": ["a"]}


def test_labels_are_read_as_the_objective_says() -> None:
    assert pipeline().labels == "binary"
    own = pipeline(train={"objective": {"use": "l:f", "like": "multiclass", "gamma": 2}})
    assert own.labels == "multiclass"
    assert isinstance(own.train.objective, UserObjective)
    assert own.train.objective.arguments == {"gamma": 2}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"use": "local", "address": "tcp://h:1"}, "address is for use: dask or spark, and use is"),
        ({"use": "dask", "address": "spark://h:7077"}, "which is Spark's. Set use: spark"),
        ({"use": "spark", "address": "local[2]"}, "For a session on this machine remove address"),
        ({"use": "spark", "address": "yarn-client"}, "expected spark://HOST:7077, yarn, "),
        ({"use": "dask", "conf": {"spark.ui.port": 0}}, "conf is for use: spark, and use is dask"),
    ],
)
def test_an_address_and_settings_fit_the_engine(section: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=re.escape(said)):
        EngineSection(**section)


@pytest.mark.parametrize(
    "address", ["spark://h:7077", "yarn", "k8s://https://h:6443", "sc://h:15002"]
)
def test_spark_has_these_addresses(address: str) -> None:
    assert EngineSection(use="spark", address=address).address == address


def test_yes_is_no_number_but_a_flag() -> None:
    with pytest.raises(ValidationError, match="epochs"):
        pipeline(train={"objective": "binary", "epochs": True})
    assert pipeline(model={"use": "mlp", "batch_norm": True}).model.batch_norm  # type: ignore[union-attr]


def test_values_do_not_change() -> None:
    spec = pipeline()
    with pytest.raises(ValidationError, match="frozen"):
        spec.train.epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"register": "best", "report": {"histogram": "m"}, "infer": {"keys": ["id"]}},
        {"data": {"source": {"use": "collider", "rows": 10}, "label": "label"}},
        {"model": {"use": "net:Wide", "width": 3}},
        {"train": {"objective": {"use": "l:f", "like": "binary"}, "optimizer": {"use": "adamw"}}},
    ],
)
def test_it_survives_being_written_and_read(sections: dict[str, Any]) -> None:
    """A run's record is its pipeline as YAML: reading that gives the same pipeline."""
    spec = pipeline(**sections)
    text = yaml.safe_dump(spec.model_dump(mode="json", by_alias=True, exclude_unset=True))
    assert Pipeline.model_validate(yaml.safe_load(text)) == spec


@pytest.mark.parametrize("data", [{"test_source": "b"}, {"split": {"column": "s"}}, {}])
def test_the_whole_record_is_a_valid_pipeline(data: dict[str, Any]) -> None:
    """With every default written out, as MLflow keeps it."""
    spec = pipeline(data={"source": "a", "label": "y", **data})
    values = spec.model_dump(mode="json", by_alias=True)
    assert Pipeline.model_validate(values).model_dump() == spec.model_dump()


@pytest.mark.parametrize(
    ("train", "said"),
    [
        (
            {"determinism": "world", "virtual_ranks": 4},
            "virtual_ranks 4 is for determinism: elastic; with world a rank has one slice. Remove",
        ),
        (
            {"batch_rows": 100, "virtual_ranks": 3, "micro_batch_rows": 30},
            "3 virtual_ranks cut a batch into slices of 34 rows, more than micro_batch_rows 30. "
            "Set virtual_ranks to 4 or more",
        ),
    ],
)
def test_settings_that_say_two_things_of_a_slice(train: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        pipeline(train={"objective": "binary", **train})


def test_off_is_a_word_without_quotes() -> None:
    """YAML 1.1 reads it as false."""
    train = yaml.safe_load("{objective: binary, determinism: off}")
    assert pipeline(train=train).train.determinism == "off"
    with pytest.raises(ValidationError, match="determinism"):
        pipeline(train={"objective": "binary", "determinism": True})


@pytest.mark.parametrize("written", ["\t", "\\t"])
def test_a_tab_is_a_tab_with_and_without_yamls_double_quotes(written: str) -> None:
    assert Data(source="t.csv", label="y", delimiter=written).delimiter == "\t"
