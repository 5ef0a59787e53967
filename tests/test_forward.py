"""Forward selection beside scikit-learn's, over folds of a column, and the model that it gives."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from pydantic import ValidationError
from sklearn.feature_selection import SequentialFeatureSelector
from sklearn.linear_model import LinearRegression
from sklearn.model_selection import PredefinedSplit
from sklearn.preprocessing import OneHotEncoder

from ddlflow.errors import SpecError
from ddlflow.infer.coefficients import coefficients
from ddlflow.infer.model import load_model
from ddlflow.models import positions
from ddlflow.report.screen import Screen
from ddlflow.runs import stages, sweeps
from ddlflow.runs.check import check
from ddlflow.runs.session import Session
from ddlflow.spec.load import load
from ddlflow.spec.pipeline import Search
from ddlflow.sweep.choose.sampler import Forward, total_trials

NUMBERS = ["a", "b", "c", "d", "e"]


def table() -> pd.DataFrame:
    random = np.random.default_rng(2)
    frame = pd.DataFrame(random.normal(size=(900, 5)), columns=NUMBERS)
    frame["b"] += 0.8 * frame.a
    frame["town"] = random.choice(["x", "y", "z"], 900)
    frame["fold"] = random.integers(0, 3, 900)
    score = 2 * frame.a - frame.d + 0.3 * frame.e + np.where(frame.town == "y", 1.5, 0)
    frame["y"] = 100 + 50 * (score + random.normal(size=900))
    return frame


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    site = {"engine": {"use": "local", "workers": 1, "threads": 1}}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))
    table().to_parquet("data/t.parquet")
    pipeline = {
        "name": "p",
        "data": {"source": "t.parquet", "label": "y", "split": {"validation": 0, "test": 0}},
        "model": {"use": "linear"},
        "train": {"objective": "regression", "optimizer": {"use": "lbfgs"}},
        "cv": {"kind": "predefined", "by": "fold"},
        "search": {
            "method": "forward",
            "cv": True,
            "space": {"model.features": [*NUMBERS, "town"]},
        },
    }
    Path("pipelines/p.yaml").write_text(yaml.safe_dump(pipeline))
    return pipeline


@pytest.mark.usefixtures("project")
def test_as_scikit_learn() -> None:
    with Session(load("p", "local", []), Screen(io.StringIO())) as session:
        prepared = stages.prepare(session)
        searched = sweeps.search(session, prepared)
        sweeps.use_best(session, searched)
        trained = stages.train(session, prepared)
        how: dict[str, Any] = {"spec": session.request.pipeline.train, "threads": 1}
        found = coefficients(
            Path(trained.value.model),
            Path(prepared.folder),
            map_over=session.map_over,
            **how,
        )
    frame = table()
    best = searched.value.best.values["model.features"]

    def loss(names: list[str]) -> float:
        """The mean over the folds of the squared error of ordinary least squares."""
        parts = [frame[[name for name in names if name != "town"]].to_numpy()]
        if "town" in names:
            parts.append(OneHotEncoder(sparse_output=False).fit_transform(frame[["town"]]))
        values = np.concatenate(parts, 1)
        errors = []
        for train, held in PredefinedSplit(frame.fold).split():
            fitted = LinearRegression().fit(values[train], frame.y.iloc[train])
            errors.append(np.mean((fitted.predict(values[held]) - frame.y.iloc[held]) ** 2))
        return float(np.mean(errors))

    taken: list[str] = []
    while left := [name for name in (*NUMBERS, "town") if name not in taken]:
        name = min(left, key=lambda name: loss([*taken, name]))
        if taken and loss([*taken, name]) >= loss(taken):
            break
        taken.append(name)
    assert best == taken
    assert {"a", "d", "town"} <= set(best)
    assert searched.value.best.score == pytest.approx(loss(taken), rel=1e-5)
    # The model that is trained with them has their coefficients alone.
    numbers = [name for name in NUMBERS if name in best]
    names = [term.name for term in found.terms]
    assert names == ["intercept", *numbers, "town=y", "town=z"]
    assert found.undefined is None
    expected = LinearRegression().fit(
        pd.get_dummies(frame[[*numbers, "town"]], drop_first=True, dtype=float), frame.y
    )
    mine = [term.coefficient for term in found.terms]
    assert mine == pytest.approx([expected.intercept_, *expected.coef_], rel=1e-5)
    predicted = load_model(Path(trained.value.model)).predict_frame(frame)
    assert len(predicted) == 900


def test_scikit_learn_takes_the_same_numbers() -> None:
    """The oracle above against scikit-learn's own selector, for numbers alone."""
    frame = table()
    selector = SequentialFeatureSelector(
        LinearRegression(),
        n_features_to_select=2,
        scoring="neg_mean_squared_error",
        cv=PredefinedSplit(frame.fold),
    ).fit(frame[NUMBERS], frame.y)
    assert list(selector.get_feature_names_out()) == ["a", "d"]


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_rounds_and_their_end(better: Any) -> None:
    spec = Search(method="forward", space={"model.features": ["a", "b", "c"]})
    sampler = Forward(spec, better)
    assert total_trials(spec) == sampler.num_trials == 6
    sign = 1 if better == "higher" else -1
    scores = [[1, 3, None], [4, float("nan")], [4]]
    asked = []
    for found in scores:
        trials = sampler.ask(len(found))
        asked.append([trial.values["model.features"] for trial in trials])
        for trial, score in zip(trials, found, strict=True):
            sampler.tell(trial.number, None if score is None else sign * score)
    assert asked == [[["a"], ["b"], ["c"]], [["b", "a"], ["b", "c"]], [["b", "a", "c"]]]
    assert sampler.ask(1) == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"space": {"model.features": ["a"], "train.seed": [1, 2]}},
        {"space": {"train.optimizer.lr": {"uniform": [0.1, 0.2]}}},
        {"space": {"model.features": ["a"]}, "pruning": {"use": "halving"}},
    ],
)
def test_what_forward_does_not_take(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="method forward"):
        Search(method="forward", **wrong)


def test_a_feature_that_is_none_is_found_by_check(project: dict[str, Any]) -> None:
    del project["search"]
    project["model"]["features"] = ["a", "twon"]
    Path("pipelines/p.yaml").write_text(yaml.safe_dump(project))
    texts = [finding.text for finding in check("p", "local", []) if finding.level == "error"]
    (text,) = texts
    assert text.endswith("model.features names twon, which is no feature. Did you mean 'town'?")
    with pytest.raises(SpecError, match=r"names twon, which is no feature of the data\. Did you"):
        positions(["twon"], ["a", "town"])
    assert positions(["town", "a"], ["a", "b", "town"]) == [0, 2]
