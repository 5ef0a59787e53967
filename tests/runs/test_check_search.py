"""``check`` and the search section: each thing that cannot be is one line with its place."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from ddlflow.errors import SpecError
from ddlflow.runs.check import check, errors, precheck
from ddlflow.runs.check.finding import Finding
from ddlflow.spec import code
from ddlflow.spec.load import load

NET = """\
from torch import nn

class Net(nn.Module):
    def __init__(self, num_features, width=3):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_features, width), nn.Linear(width, 1))

    def forward(self, x):
        return self.layers(x).squeeze(1)
"""
Make = Callable[..., None]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a project: ``make({search section}, train={...})``."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    pq.write_table(pa.table({"a": [0.5, 1.5] * 50, "label": [0, 1] * 50}), "data/t.parquet")
    Path("conf/local.yaml").write_text("engine: {use: local, workers: 1}\n")
    Path("pipelines/net.py").write_text(NET)

    def write(search: dict[str, Any], **sections: Any) -> None:
        base = {"data": {"source": "t.parquet", "label": "label"}, "model": {"use": "mlp"}}
        base |= {"train": {"objective": "binary", "batch_rows": 50, "epochs": 10}}
        values = {"name": "p"}
        values |= {name: base[name] | sections.get(name, {}) for name in base}
        values["search"] = {"method": "random", "trials": 4} | search
        if values["search"]["method"] == "grid":
            del values["search"]["trials"]
        Path("pipelines/p.yaml").write_text(yaml.safe_dump(values, sort_keys=False))

    return write


def of_search(level: str = "error") -> list[Finding]:
    return [f for f in check("p") if f.what == "search" and f.level == level]


def only_error() -> str:
    """The one error, which is that of a run too; less its file and line."""
    found = check("p")
    assert errors(found) == 1
    (finding,) = [f for f in found if f.level == "error"]
    with pytest.raises(SpecError) as raised:
        precheck(load("p"))
    assert str(raised.value) == finding.text
    place, _, text = finding.text.partition(": ")
    file, _, line = place.partition(":")
    assert file == "pipelines/p.yaml"
    lines = Path(file).read_text().splitlines()
    key = text.split(" ")[0].rstrip(":").removeprefix("search.space.").rpartition("search.")[2]
    nearest = lines[int(line) - 1].strip()
    named = (key, key.rpartition(".")[2], "search", "space")
    assert nearest.startswith(tuple(f"{name}:" for name in named))
    return text


LR = {"train.optimizer.lr": [0.1, 0.2]}


def test_what_will_be_tried(make: Make) -> None:
    make({"method": "grid", "space": LR | {"model.hidden": [[3], [4], [5]]}})
    assert errors(check("p")) == 0
    (found,) = of_search("ok")
    assert found.text == "6 trials (grid) of 2 settings; the highest auroc wins."
    make(
        {
            "method": "tpe",
            "trials": 9,
            "space": LR,
            "metric": "rmse",
            "pruning": {"use": "halving"},
        },
        train={"objective": "regression"},
    )
    (found,) = of_search("ok")
    assert found.text == (
        "9 trials (tpe) of 1 setting, ended early by halving; the lowest rmse wins."
    )


def test_async_halving_says_that_it_is_not_repeatable(make: Make) -> None:
    make({"space": LR, "pruning": {"use": "async_halving"}})
    (note,) = of_search("note")
    assert "two searches may differ" in note.text
    precheck(load("p"))


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (
            {"space": LR, "metric": "aurc"},
            "search.metric is 'aurc', which objective binary does not have. Did you mean 'auroc'?",
        ),
        (
            {"space": LR, "metric": "r2"},
            "search.metric is 'r2', which objective binary does not have. It has: loss, auroc,",
        ),
        (
            {"space": LR, "pruning": {"use": "halving", "min_epochs": 10}},
            "search.pruning.min_epochs is 10, and a training has 10 epochs (train.epochs), so no",
        ),
        ({"space": LR, "cv": True}, "search.cv is true, and the pipeline has no folds. Add a sec"),
        (
            {"space": {"train.optimizer.lrr": [1]}},
            "search.space.train.optimizer.lrr: train.optimizer.lrr is no known key. Did you mean",
        ),
        (
            {"space": {"trian.optimizer.lr": [1]}},
            "search.space.trian.optimizer.lr: a search varies model.* and train.*, and trian.opti",
        ),
        (
            {"space": {"train.optimizer.lr": {"uniform": [-1, 1]}}},
            "search.space.train.optimizer.lr: train.optimizer.lr is -1.0; expected a number > 0.",
        ),
        (
            {"space": {"train.virtual_ranks": [1, 64]}},
            "search.space: with train.virtual_ranks 64: train.virtual_ranks is 64, more than the 5",
        ),
        (
            {"method": "grid", "space": {"train.seed": {"int": [1, 10**6]}}},
            "search.space.train.seed: the grid has more than 10,000 points. Use method: random",
        ),
        (
            {"space": {"model.use": ["mlp", "net:Wide"]}},
            "search.space: with model.use 'net:Wide': model.use is net:Wide: pipelines/net.py has",
        ),
        (
            {"space": {"model": [{"use": "net:Net", "wdith": 3}]}},
            "search.space: with model {'use': 'net:Net', 'wdith': 3}: ",
        ),
    ],
)
def test_a_search_that_cannot_be(make: Make, search: dict[str, Any], said: str) -> None:
    make(search)
    assert only_error().startswith(said)


def test_all_errors_come_at_once_each_with_its_line(make: Make) -> None:
    space = {"train.optimizer.lr": [0.1, -1], "model.hiden": [[3]], "train.seed": [1]}
    make({"space": space, "metric": "auc", "pruning": {"use": "halving", "min_epochs": 99}})
    lines = Path("pipelines/p.yaml").read_text().splitlines()
    found = [finding.text.split(" ")[:2] for finding in of_search()]
    keys = ["metric", "min_epochs", "model.hiden", "train.optimizer.lr"]
    assert len(found) == len(keys)
    for key in keys:
        (number,) = (k for k, line in enumerate(lines, 1) if line.strip().startswith(f"{key}:"))
        assert [f"pipelines/p.yaml:{number}:"] in [text[:1] for text in found]


def test_no_rows_to_score_trials_by(make: Make) -> None:
    make({"space": LR}, data={"split": {"validation": 0}})
    assert only_error().startswith("search scores its trials by validation rows, and there are no")


def test_an_error_of_the_pipeline_itself_is_said_once(make: Make) -> None:
    make({"space": LR}, train={"virtual_ranks": 64})
    (found,) = [f for f in check("p") if f.level == "error"]
    assert found.what == "train"


def test_user_models_of_the_space_are_tried_and_travel(make: Make) -> None:
    make({"method": "grid", "space": {"model.use": ["mlp", "net:Net"], **LR}})
    assert errors(check("p")) == 0
    assert list(code.files(load("p"))) == ["net.py"]
    before = code.fingerprint(load("p"))
    Path("pipelines/net.py").write_text(NET.replace("width=3", "width=4"))
    assert code.fingerprint(load("p")) != before
    make({"space": {"model": [{"use": "net:Net"}, {"use": "linear"}]}})
    assert list(code.files(load("p"))) == ["net.py"]
    make({"space": {"model.use": ["mlp"]}})
    assert code.files(load("p")) == {}


def test_cma_es_without_its_package(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddlflow.runs.check import search

    monkeypatch.setattr(search, "find_spec", lambda _: None)
    make({"method": "cma_es", "space": {"train.optimizer.lr": {"uniform": [0.1, 1]}}})
    assert only_error().startswith("search.method is cma_es, which needs the package cmaes.")
