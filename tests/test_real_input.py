"""Real input through the real stages: as good as scikit-learn on the data that it knows."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.linear_model import ElasticNet, Lasso, LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddlflow.infer.model import load_model
from ddlflow.report.screen import Screen
from ddlflow.runs import stages
from ddlflow.runs.session import Session
from ddlflow.spec.load import Request, load
from ddlflow.spec.pipeline import Pipeline
from ddlflow.spec.site import Site

PROJECT = Path(__file__).resolve().parents[1]
Values = dict[str, Any]
Run = Callable[..., tuple[Values, Path]]

# A logistic regression as scikit-learn's: to its end, with steps that fall to nothing there.
LOGISTIC: Values = {
    "objective": "binary",
    "epochs": 60,
    "batch_rows": 500,
    "optimizer": {"use": "adam", "lr": 0.02},
    "schedule": {"use": "cosine"},
}


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Prepares, trains and evaluates; gives the metrics of the test split and the model's folder.

    Sources are files in ``data_root``: ``tmp_path`` unless another is named.
    """

    def run(pipeline: Values, data_root: Path = tmp_path) -> tuple[Values, Path]:
        site = {
            "engine": {"use": "local", "workers": 1, "threads": 1},
            "device": "cpu",
            "data_root": str(data_root),
            "storage": str(tmp_path / "storage"),
        }
        request = Request(
            pipeline=Pipeline.model_validate({"name": "real", **pipeline}),
            site=Site.model_validate(site),
            pipeline_path=tmp_path / "real.yaml",
            site_path=tmp_path / "site.yaml",
            code_folder=tmp_path,
        )
        with Session(request, Screen()) as session:
            prepared = stages.prepare(session)
            trained = stages.train(session, prepared)
            scored = stages.evaluate(session, prepared, trained)
        return scored.value, Path(trained.value.model)

    return run


def table_of(features: np.ndarray, names: list[str], label: Any) -> pa.Table:
    """The features as float64 columns, and the label last."""
    return pa.table({name: features[:, k] for k, name in enumerate(names)} | {"label": label})


# ---- HIGGS ---------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [7, 8])
def test_shipped_higgs_sample_separates_signal_from_background(
    run: Run, real_data: Path, seed: int
) -> None:
    shipped = load(str(PROJECT / "pipelines/higgs-sample.yaml"), str(PROJECT / "conf/local.yaml"))
    pipeline = shipped.pipeline.model_dump(mode="json", by_alias=True)
    pipeline["train"]["seed"] = seed
    scored, _ = run(pipeline, real_data)
    assert scored.split == "test"
    assert scored.metrics["auroc"] >= 0.77


def test_linear_scores_as_logistic_regression(run: Run, real_data: Path) -> None:
    scored, _ = run(
        {
            "data": {
                "source": "higgs-sample/train.parquet",
                "test_source": "higgs-sample/test.parquet",
                "label": "label",
                "split": {"validation": 0},
            },
            "model": {"use": "linear"},
            "train": LOGISTIC,
        },
        real_data,
    )
    parts = [pq.read_table(real_data / f"higgs-sample/{k}.parquet") for k in ("train", "test")]
    (features, label), (test_features, test_label) = (
        (part.drop(["label"]).to_pandas().to_numpy(), part["label"].to_numpy()) for part in parts
    )
    peer = make_pipeline(StandardScaler(), LogisticRegression(C=1e6, max_iter=1_000))
    peer.fit(features, label)
    auroc = roc_auc_score(test_label, peer.decision_function(test_features))
    assert scored.metrics["auroc"] == pytest.approx(auroc, abs=0.005)


# ---- diabetes ------------------------------------------------------------------------------

ROWS = 442


@pytest.mark.parametrize(
    ("peer", "penalty"),
    [
        (Ridge(alpha=50.0), {"l2": 50.0 / ROWS}),
        (Lasso(alpha=2.0), {"l1": 2 * 2.0}),
        (ElasticNet(alpha=0.5, l1_ratio=0.7), {"l1": 2 * 0.5 * 0.7, "l2": 0.5 * (1 - 0.7)}),
    ],
    ids=["ridge", "lasso", "elastic net"],
)
def test_penalised_coefficients_are_scikit_learns(
    run: Run, tmp_path: Path, peer: Any, penalty: Values
) -> None:
    diabetes = load_diabetes(scaled=False)
    names = list(diabetes.feature_names)
    pq.write_table(table_of(diabetes.data, names, diabetes.target), tmp_path / "diabetes.parquet")
    _, folder = run(
        {
            "data": {
                "source": "diabetes.parquet",
                "label": "label",
                "split": {"validation": 0, "test": 0},
            },
            "model": {"use": "linear"},
            "train": {
                "objective": "regression",
                "penalty": penalty,
                "epochs": 400,
                "batch_rows": ROWS,  # plain sgd on all rows: the lasso's zeros are exact
                "optimizer": {"use": "sgd", "lr": 0.1},
            },
        }
    )
    standardised = StandardScaler().fit_transform(diabetes.data)
    expected = peer.fit(standardised, diabetes.target)
    plain = LinearRegression().fit(standardised, diabetes.target)
    model = load_model(folder)
    assert model.columns.numeric == tuple(names)
    # The net learned the label by its distance from the mean, in deviations.
    found = model.predictor.net.weight.detach().double().numpy()[0] * diabetes.target.std()
    largest = np.abs(expected.coef_).max()
    np.testing.assert_allclose(found, expected.coef_, rtol=0, atol=0.01 * largest)
    np.testing.assert_array_equal(found == 0, expected.coef_ == 0)
    bias = float(model.predictor.net.bias.detach()[0])
    intercept = diabetes.target.mean() + bias * diabetes.target.std()
    assert intercept == pytest.approx(expected.intercept_, abs=0.01 * largest)
    # The fit without a penalty is far from that: it is the penalty that is compared.
    assert np.abs(expected.coef_ - plain.coef_).max() > 0.1 * largest


# ---- digits and tumours --------------------------------------------------------------------


def test_digits_are_read(run: Run, tmp_path: Path) -> None:
    digits = load_digits()
    names = [f"pixel_{k}" for k in range(64)]
    pq.write_table(table_of(digits.data, names, digits.target), tmp_path / "digits.parquet")
    scored, _ = run(
        {
            "data": {
                "source": "digits.parquet",
                "label": "label",
                "split": {"validation": 0, "test": 0.2},
                "seed": 7,
            },
            "model": {"use": "mlp", "hidden": [200, 200], "dropout": 0.4, "batch_norm": True},
            "train": {
                "objective": "multiclass",
                "epochs": 40,
                "batch_rows": 64,
                "optimizer": {"use": "adamw", "lr": 0.005, "weight_decay": 1.0},
                "schedule": {"use": "cosine"},
            },
        }
    )
    assert scored.split == "test"
    assert scored.metrics["accuracy"] > 0.97


def test_text_labels_of_tumours_are_learned_and_given_back(run: Run, tmp_path: Path) -> None:
    cancer = load_breast_cancer()
    label = cancer.target_names[cancer.target]  # "malignant" and "benign"
    names = [name.replace(" ", "_") for name in cancer.feature_names]
    kept, held_out = train_test_split(
        np.arange(len(label)), test_size=0.2, random_state=7, stratify=label
    )
    for file, rows in (("train.csv", kept), ("test.csv", held_out)):
        pa_csv.write_csv(table_of(cancer.data[rows], names, label[rows]), tmp_path / file)
    scored, folder = run(
        {
            "data": {
                "source": "train.csv",
                "test_source": "test.csv",
                "label": "label",
                "split": {"validation": 0},
            },
            "model": {"use": "linear"},
            "train": LOGISTIC,
        }
    )
    assert scored.split == "test"
    assert scored.metrics["auroc"] > 0.97
    assert scored.metrics["accuracy"] > 0.92
    model = load_model(folder)
    assert model.classes == ("benign", "malignant")  # sorted: the second is the positive class
    batch = table_of(cancer.data[held_out], names, label[held_out]).drop(["label"])
    predicted = model.predict(batch.combine_chunks().to_batches()[0])["prediction"].to_pylist()
    right = accuracy_score(label[held_out], predicted)
    assert right == pytest.approx(scored.metrics["accuracy"])
