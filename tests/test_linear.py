"""Linear models beside statsmodels and scikit-learn: coefficients, standard errors and p-values.

From the source to the table, over a Session; the rows are more than one piece holds, and lie in
files of unlike formats.
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf
import yaml
from sklearn.linear_model import LogisticRegression, Ridge

from ddlflow.infer.model import load_model
from ddlflow.infer.predict import infer
from ddlflow.report.coefficients import draw_coefficients, write_coefficients
from ddlflow.report.screen import Screen
from ddlflow.report.style import save_all
from ddlflow.report.terms import notes_of
from ddlflow.runs import stages
from ddlflow.runs.evaluated import coefficients_of
from ddlflow.runs.session import Session
from ddlflow.spec.load import load

ROWS = 20_000
Fit = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    """Features of unlike scales, correlated, with a category, and three labels."""
    random = np.random.default_rng(5)
    a = random.normal(1000, 50, ROWS)
    b = 1e-4 * (a - 1000) + random.normal(0, 0.01, ROWS)
    c = random.integers(0, 5, ROWS)
    stamp = 1_700_000_000_000 + random.integers(0, 10**9, ROWS)  # milliseconds: shifted in float64
    town = random.choice(["Oslo", "Bonn", "Rome"], ROWS, p=[0.5, 0.3, 0.2])
    score = 0.02 * (a - 1000) + 40 * b - 0.3 * c + 1e-9 * (stamp - 1.7e12)
    score += np.select([town == "Rome", town == "Oslo"], [0.7, -0.4])
    number = 2e5 + 3e4 * score + random.normal(0, 2e4, ROWS)
    chance = 1 / (1 + np.exp(-score))
    logits = np.stack([np.zeros(ROWS), score, -0.5 * score + 0.2], 1)
    kind = (logits + random.gumbel(size=logits.shape)).argmax(1)
    frame = pd.DataFrame({"a": a, "b": b, "c": c, "stamp": stamp, "town": town, "number": number})
    frame["yes"] = (random.random(ROWS) < chance).astype(int)
    frame["kind"] = np.array(["low", "mid", "top"])[kind]
    # What the shards hold: float32, but for the stamp, which is shifted before.
    for name in ("a", "b", "number"):
        frame[name] = frame[name].astype(np.float32).astype(np.float64)
    return frame


@pytest.fixture
def fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fit:
    """Fits a linear model to a frame's training rows and returns its table of coefficients."""
    monkeypatch.chdir(tmp_path)
    for folder in ("pipelines", "conf", "data"):
        (tmp_path / folder).mkdir()
    site = {"engine": {"use": "local", "workers": 1, "threads": 1}}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))

    def fitted(
        frame: pd.DataFrame,
        label: str,
        objective: str,
        *changes: str,
        data: dict[str, Any] | None = None,
        train: dict[str, Any] | None = None,
        model: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        frame.to_parquet("data/t.parquet", row_group_size=3_000)
        pipeline = {
            "name": "p",
            "data": {
                "source": "t.parquet",
                "label": label,
                "split": {"validation": 0, "test": 0},
                **(data or {}),
            },
            "model": {"use": "linear", **(model or {})},
            "train": {"objective": objective, "optimizer": {"use": "lbfgs"}, **(train or {})},
        }
        Path("pipelines/p.yaml").write_text(yaml.safe_dump(pipeline))
        said = io.StringIO()
        with Session(load("p", "local", list(changes)), Screen(said)) as session:
            prepared = stages.prepare(session)
            trained = stages.train(session, prepared)
            evaluated = stages.evaluate(session, prepared, trained)
        found: dict[str, Any] = json.loads(
            (Path(evaluated.folder) / "coefficients.json").read_text()
        )
        return found | {"trained": trained.value, "said": said.getvalue(), "stage": evaluated}

    return fitted


def by_name(found: dict[str, Any], value: str, of_class: str | None = None) -> dict[str, float]:
    return {t["name"]: t[value] for t in found["terms"] if t["of_class"] == of_class}


def renamed(values: pd.Series) -> dict[str, float]:
    """patsy's names, as the table has them."""
    names = {
        name: name.replace("C(town)[T.", "town=").replace("]", "").replace("Intercept", "intercept")
        for name in values.index
    }
    return {names[name]: float(value) for name, value in values.items()}


def close(found: dict[str, float], expected: dict[str, float], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert value == pytest.approx(expected[name], rel=rtol, abs=1e-300), name


FEATURES = ["a", "b", "c", "stamp", "town"]
# Centred, as statsmodels' own solvers lose digits otherwise: no slope and no p-value of one moves.
FORMULA = "a + b + c + C(town) + stamp"


def centred(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(stamp=frame.stamp - 1_700_000_000_000)


def test_regression_as_ols(fit: Fit, rows: pd.DataFrame) -> None:
    found = fit(rows, "number", "regression", data={"features": FEATURES})
    expected = smf.ols(f"number ~ {FORMULA}", centred(rows)).fit()
    assert found["references"] == {"town": "Bonn"}
    assert found["undefined"] is None
    for ours, theirs in (("coefficient", "params"), ("std_error", "bse"), ("p_value", "pvalues")):
        values = renamed(getattr(expected, theirs))
        mine = by_name(found, ours)
        del values["intercept"], mine["intercept"]  # of a stamp that is not shifted
        close(mine, values)


def test_binary_as_logit(fit: Fit, rows: pd.DataFrame) -> None:
    frame = centred(rows)
    found = fit(frame, "yes", "binary", data={"features": FEATURES})
    scaled = frame.assign(stamp=frame.stamp / 1e9, a=frame.a / 1000)
    expected = smf.logit(f"yes ~ {FORMULA}", scaled).fit(disp=0, tol=1e-12, method="newton")
    unit = {"stamp": 1e9, "a": 1000}
    for ours, theirs in (("coefficient", "params"), ("std_error", "bse")):
        values = renamed(getattr(expected, theirs))
        close(by_name(found, ours), {k: v / unit.get(k, 1) for k, v in values.items()})
    close(by_name(found, "p_value"), renamed(expected.pvalues), rtol=1e-3)


def test_several_classes_as_mnlogit(fit: Fit, rows: pd.DataFrame) -> None:
    frame = rows.drop(columns="stamp")
    found = fit(frame, "kind", "multiclass", data={"features": ["a", "b", "c", "town"]})
    scaled = frame.assign(a=frame.a / 1000, code=pd.Categorical(frame.kind).codes)
    expected = smf.mnlogit("code ~ a + b + c + C(town)", scaled).fit(
        disp=0, tol=1e-12, method="newton"
    )
    assert found["reference_class"] == "low"
    for ours, theirs in (("coefficient", "params"), ("std_error", "bse"), ("p_value", "pvalues")):
        for number, of_class in enumerate(["mid", "top"]):
            values = renamed(getattr(expected, theirs).iloc[:, number])
            if ours != "p_value":
                values["a"] /= 1000
            close(by_name(found, ours, of_class), values, rtol=1e-3)


# ---- what a penalty, a search and columns that say the same do ------------------------------


def standardised(frame: pd.DataFrame, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    values = frame[names].to_numpy()
    deviations = values.std(0)
    return (values - values.mean(0)) / deviations, deviations


def test_ridge_as_scikit_learn(fit: Fit, rows: pd.DataFrame) -> None:
    names = ["a", "b", "c"]
    penalty = {"penalty": {"l2": 0.2}}
    found = fit(rows, "number", "regression", data={"features": names}, train=penalty)
    values, deviations = standardised(rows, names)
    expected = Ridge(alpha=0.2 * ROWS, solver="cholesky").fit(values, rows.number)
    mine = by_name(found, "coefficient")
    assert [mine[name] for name in names] == pytest.approx(expected.coef_ / deviations, rel=1e-5)
    assert "shrunk by a penalty" in found["undefined"]
    assert all(term["std_error"] is None for term in found["terms"])


def test_penalised_logistic_as_scikit_learn(fit: Fit, rows: pd.DataFrame) -> None:
    names = ["a", "b", "c"]
    penalty = {"penalty": {"l2": 0.01}}
    found = fit(rows, "yes", "binary", data={"features": names}, train=penalty)
    values, deviations = standardised(rows, names)
    model = LogisticRegression(C=1 / (2 * 0.01 * ROWS), tol=1e-12, max_iter=10_000)
    expected = model.fit(values, rows.yes).coef_[0] / deviations
    mine = by_name(found, "coefficient")
    assert [mine[name] for name in names] == pytest.approx(expected, rel=1e-5)


def test_columns_that_others_determine_have_no_errors(fit: Fit, rows: pd.DataFrame) -> None:
    frame = rows[["a", "b", "c", "number"]].assign(twice=2 * rows.a + rows.c, one=3.0)
    frame["again"] = np.where(rows.town == "Rome", "R", "O")
    frame["town"] = np.where(rows.town == "Rome", "Rome", "other")
    found = fit(frame, "number", "regression")
    assert found["undefined"].startswith("columns are linearly dependent on those before them: ")
    assert "twice, town=other (list" in found["undefined"]
    assert all(term["p_value"] is None for term in found["terms"])
    without = fit(frame, "number", "regression", data={"exclude": ["twice", "town"]})
    assert without["undefined"] is None
    assert "one" not in by_name(without, "coefficient")  # a constant has none


def test_a_training_that_is_not_at_the_optimum_has_no_errors(fit: Fit, rows: pd.DataFrame) -> None:
    adam = {"optimizer": {"use": "adam"}, "epochs": 1}
    found = fit(rows[["a", "c", "yes"]], "yes", "binary", train=adam)
    assert "standard errors away from the optimum" in found["undefined"]
    assert found["terms"][0]["std_error"] is None


def test_classes_without_overlap_have_no_errors(fit: Fit) -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 300))
    frame = pd.DataFrame({"a": a, "b": b, "yes": (a > 0).astype(int)})
    found = fit(frame, "yes", "binary", train={"epochs": 60})
    assert found["undefined"].startswith("the classes can be told apart without error")


def test_weighted_rows_have_no_errors(fit: Fit, rows: pd.DataFrame) -> None:
    frame = rows[["a", "b", "number"]].assign(w=1.0 + rows.c)
    found = fit(frame, "number", "regression", data={"weight": "w"})
    expected = smf.wls("number ~ a + b", frame, weights=frame.w).fit()
    close(by_name(found, "coefficient"), renamed(expected.params), rtol=1e-5)
    assert "rows have weights" in found["undefined"]


def test_a_report_has_the_table(fit: Fit, rows: pd.DataFrame, tmp_path: Path) -> None:
    found = fit(rows[["a", "town", "kind"]], "kind", "multiclass")
    (tmp_path / "report").mkdir()
    table = coefficients_of(found["stage"])
    assert table is not None
    path = write_coefficients(tmp_path / "report" / "coefficients.csv", table)
    read = pd.read_csv(path, keep_default_na=False)
    assert list(read.columns[:3]) == ["of_class", "name", "coefficient"]
    assert list(read.name[:4]) == ["intercept", "a", "town=Oslo", "town=Rome"]
    assert notes_of(table) == [
        "Log odds of each class against low.",
        "Levels of categories are compared with town=Bonn.",
    ]
    (plot,) = save_all(tmp_path / "report", {"c": lambda: draw_coefficients(table)}, "title")
    assert plot.stat().st_size > 1_000


def test_powers_and_products_as_statsmodels(fit: Fit, rows: pd.DataFrame, tmp_path: Path) -> None:
    """Columns that are nearly each other's multiples: a and a^2 correlate by 0.999."""
    frame = rows[["a", "b", "c", "number"]].assign(c=rows.c.astype(float))
    made = {"polynomial": 2, "interactions": True}
    found = fit(frame, "number", "regression", data=made)
    centre = frame.assign(a=frame.a - 1000)
    formula = "a + b + c + I(a**2) + I(b**2) + I(c**2) + a:b + a:c + b:c"
    expected = smf.ols(f"number ~ {formula}", centre).fit()
    assert found["undefined"] is None
    # What shifting a does not change: the terms of the highest degree.
    for ours, theirs in {
        "a^2": "I(a ** 2)",
        "b^2": "I(b ** 2)",
        "a*b": "a:b",
        "b*c": "b:c",
    }.items():
        for value, of in (("coefficient", "params"), ("std_error", "bse"), ("p_value", "pvalues")):
            mine = by_name(found, value)[ours]
            assert mine == pytest.approx(getattr(expected, of)[theirs], rel=1e-3), (ours, value)
    model = load_model(Path(found["trained"].model))
    new = frame.sample(500, random_state=1)
    wanted = expected.predict(new.assign(a=new.a - 1000))
    predicted = model.predict_frame(new[["c", "b", "a"]])  # another order, and no label
    assert predicted["prediction"].to_numpy() == pytest.approx(wanted.to_numpy(), rel=1e-5)
    new.drop(columns="number").to_csv(tmp_path / "data/new.csv", index=False)
    infer(
        Path(found["trained"].model),
        "new.csv",
        tmp_path / "predictions",
        keys=[],
        data_root=tmp_path / "data",
        threads=1,
        map_over=lambda function, items, name: map(function, items),
    )
    read = pd.concat(map(pd.read_parquet, sorted((tmp_path / "predictions").glob("*.parquet"))))
    assert read["prediction"].to_numpy() == pytest.approx(wanted.to_numpy(), rel=1e-5)


def test_two_ranks_of_their_own_give_the_same_bits(fit: Fit, rows: pd.DataFrame) -> None:
    """Processes that meet by torch.distributed, against one rank."""
    frame, train = rows[["a", "b", "town", "yes"]], {"virtual_ranks": 2}
    one = fit(frame, "yes", "binary", train=train)
    site = {"engine": {"use": "local", "workers": 2, "threads": 1}, "storage": ".ddlflow-2"}
    Path("conf/local.yaml").write_text(yaml.safe_dump(site))
    two = fit(frame, "yes", "binary", train=train)
    assert (one["trained"].world, two["trained"].world) == (1, 2)
    assert one["trained"].model_digest == two["trained"].model_digest
    assert one["terms"] == two["terms"]
