"""What only the counted rows show: by `check`, before a run starts, and after its data is there."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import InputError, SpecError
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.check import check, precheck, recheck
from ddlflow.runs.check.finding import Finding
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request, load

Write = Callable[..., None]
NET = """
from torch import nn


class Fixed(nn.Module):
    def __init__(self, num_features, width=5):
        super().__init__()
        self.last = nn.Linear(num_features, width)

    def forward(self, features):
        return self.last(features)


class Soft(Fixed):
    def forward(self, features):
        return super().forward(features).softmax(1)
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Lays out a project: ``write(labels, model=..., ending="csv", cv={...})``."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines/p", "conf", "data"):
        (tmp_path / folder).mkdir(parents=True)
    Path("pipelines/p/net.py").write_text(NET)
    site = {"engine": {"use": "local", "workers": 1, "threads": 1}, "device": "cpu"}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))

    def lay_out(
        labels: list[Any], ending: str = "parquet", objective: str = "binary", **sections: Any
    ) -> None:
        values = np.random.default_rng(1).normal(size=(3, len(labels)))
        rows = pa.table({**dict(zip("abc", values, strict=True)), "y": labels})
        if ending == "csv":
            pa.csv.write_csv(rows, "data/t.csv")
        else:
            pq.write_table(rows, "data/t.parquet")
        data = {"source": f"t.{ending}", "label": "y"} | sections.pop("data", {})
        train = {"objective": objective, "batch_rows": 10} | sections.pop("train", {})
        model = {"model": {"use": "mlp", "hidden": [4]}}
        pipeline = {"name": "p", "data": data, "train": train, **model, **sections}
        Path("pipelines/p/pipeline.yaml").write_text(yaml.safe_dump(pipeline))

    return lay_out


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every source were too large to be prepared by a look at it."""
    monkeypatch.setattr("ddlflow.runs.check.rows.SMALL_BYTES", 0)


def prepared() -> tuple[Request, Manifest]:
    """What a run prepares."""
    request = load("p")
    with Session(request, Screen(io.StringIO())) as session:
        return request, Manifest.load(Path(stages.prepare(session).folder))


def found(level: str) -> list[Finding]:
    return [finding for finding in check("p") if finding.level == level]


@pytest.mark.parametrize("ending", ["parquet", "csv"])
def test_check_says_what_a_run_would_say_of_few_rows(write: Write, ending: str) -> None:
    write([0, 1, 0, 1, 1], ending, cv={"folds": 5})
    (error,) = found("error")
    with pytest.raises(InputError) as raised:
        prepared()
    assert error.text.endswith(str(raised.value))
    assert "cv.folds is 5, and no class has so many training rows" in error.text
    with pytest.raises(InputError) as raised_first:
        precheck(load("p"))
    assert str(raised_first.value) == str(raised.value)
    assert not Path(".ddlflow/runs").exists()


def test_a_class_that_a_split_leaves_out_is_a_note(write: Write) -> None:
    write(["a"] * 60 + ["b"] * 60 + ["c"], objective="multiclass", cv={"folds": 3})
    notes = " ".join(finding.text for finding in found("note"))
    _, manifest = prepared()
    assert manifest.warnings
    for warning in manifest.warnings:
        assert warning in notes


@pytest.mark.parametrize("section", ["train", "search"])
def test_validation_rows_that_are_needed(write: Write, section: str) -> None:
    search = {"method": "grid", "space": {"train.optimizer.lr": [0.1, 0.01]}}
    rule = {"early_stopping": {"metric": "loss", "patience": 2}}
    more = {"train": rule} if section == "train" else {"search": search}
    write([0, 1, 0, 1], **more)
    with pytest.raises(SpecError, match=r"needs validation rows|by validation rows"):
        precheck(load("p"))


@pytest.mark.usefixtures("large")
def test_of_a_large_source_the_first_rows_are_looked_at_by_a_run_too(write: Write) -> None:
    write([0, 1, 2] * 40)
    (error,) = found("error")
    assert "Objective binary needs two." in error.text
    with pytest.raises(SpecError) as raised:
        precheck(load("p"))
    assert str(raised.value) == error.text


CLASSES = ["p", "q", "r", "s", "t"]


@pytest.mark.parametrize(("width", "fits"), [(5, True), (3, False), (6, False)])
def test_a_users_model_is_tried_with_the_true_number_of_classes(
    write: Write, width: int, fits: bool
) -> None:
    model = {"use": "net:Fixed", "width": width}
    write(CLASSES * 30, objective="multiclass", model=model)
    if fits:
        assert found("error") == []
        precheck(load("p"))
        assert recheck(*prepared()) == []
        return
    said = rf"Fixed gave .* \[2, {width}\] for .* shape \[2, 5\]. The label has 5 classes"
    with pytest.raises(SpecError, match=said):
        precheck(load("p"))
    (error,) = found("error")
    assert "The label has 5 classes" in error.text


@pytest.mark.usefixtures("large")
@pytest.mark.parametrize("width", [3, 5, 6])
def test_of_a_large_source_after_prepare_and_no_sooner(write: Write, width: int) -> None:
    model = {"use": "net:Fixed", "width": width}
    write(CLASSES * 30, "csv", objective="multiclass", model=model)
    precheck(load("p"))  # nobody has counted the classes
    assert found("error") == []
    request, manifest = prepared()
    if width == 5:
        assert recheck(request, manifest) == []
        return
    with pytest.raises(SpecError, match="The label has 5 classes") as raised:
        recheck(request, manifest)
    assert "pipeline.yaml" in str(raised.value)


def test_outputs_that_look_like_probabilities_are_hinted_at(write: Write) -> None:
    write(CLASSES * 30, objective="multiclass", model={"use": "net:Soft"})
    request, manifest = prepared()
    (note,) = recheck(request, manifest)
    assert note.startswith("net:Soft gives what looks like probabilities (all in 0 to 1)")
    assert note in [finding.text for finding in found("note")]
