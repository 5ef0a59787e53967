"""Principal components beside scikit-learn's, for any world, and in folds of their own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from sklearn.decomposition import PCA
from sklearn.linear_model import LinearRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ddlflow.data.prepare.prepare import prepare
from ddlflow.errors import SpecError
from ddlflow.infer.model import load_model
from ddlflow.models import build
from ddlflow.spec.model import LinearSection, MlpSection
from ddlflow.spec.pipeline import Data, Training
from ddlflow.train import components, training
from ddlflow.train.events import Event, Noted
from ddlflow.train.job import Job

LBFGS = {"use": "lbfgs"}


@pytest.fixture
def data(tmp_path: Path) -> tuple[pa.Table, Job]:
    """20,000 rows of eight columns of three sources, at unlike scales, in several shards."""
    random = np.random.default_rng(4)
    values = random.normal(size=(20_000, 3)) @ random.normal(size=(3, 8))
    values = (values + 0.3 * random.normal(size=values.shape)) * 10.0 ** np.arange(-3, 5) + 7
    label = values[:, 0] * 1e3 + random.normal(size=len(values))
    columns = {f"x{k}": values[:, k] for k in range(8)} | {"y": label}
    table = pa.table(columns)
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=3_000)
    spec = Data(source="t.parquet", label="y", split={"validation": 0, "test": 0})
    folder = tmp_path / "dataset"
    prepare(spec, "regression", data_root=tmp_path, folder=folder, map=lambda f, i, _: map(f, i))
    job = Job(
        dataset=str(folder),
        folder=str(tmp_path / "run"),
        model=LinearSection(use="linear", pca=3),
        train=Training(objective="regression", optimizer=LBFGS, epochs=200, batch_rows=20_000),
        data=spec.model_dump(mode="json"),
        labels="regression",
        virtual_ranks=1,
        threads=1,
        device="cpu",
    )
    return table, job


def test_as_scikit_learn(data: tuple[pa.Table, Job]) -> None:
    table, job = data
    notes: list[str] = []

    def tell(event: Event) -> None:
        if isinstance(event, Noted):
            notes.append(event.text)

    training.run(job, 0, 1, None, training.torch.device("cpu"), tell=tell, must_stop=lambda: False)
    values = np.stack([table[f"x{k}"].to_numpy() for k in range(8)], 1)
    theirs = make_pipeline(StandardScaler(), PCA(3), LinearRegression())
    theirs.fit(values, table["y"].to_numpy())
    model = load_model(Path(job.model_folder.location))
    mine = model.predictor.net.components.detach().numpy()
    expected = theirs["pca"].components_
    assert np.abs((mine * expected.T).sum(0)) == pytest.approx(1, abs=1e-6)
    assert (mine[np.abs(mine).argmax(0), range(3)] > 0).all()
    held = theirs["pca"].explained_variance_ratio_.sum()
    assert notes == [f"The components of pca hold {held:.1%} of the features' variance."]
    predicted = model.predict_frame(table.drop_columns("y").to_pandas())["prediction"]
    assert predicted.to_numpy() == pytest.approx(theirs.predict(values), rel=1e-4, abs=1e-2)


@pytest.mark.parametrize("model", [{"use": "linear", "pca": 2}, {"use": "mlp", "pca": 2}])
def test_the_same_bits_for_every_world_and_they_stay(
    bench: Callable[..., Any],
    ranks: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model: dict[str, Any],
) -> None:
    monkeypatch.setattr(components, "PIECE_ROWS", 64)
    made, found = bench("multiclass", "all"), {}
    for world in (1, 3):

        def one(rank: int, group: Any, world: int = world) -> Any:
            shared = {"rank": rank, "world": world, "group": group if world > 1 else None}
            return made.train(tmp_path / str(world), virtual_ranks=3, model=model, **shared)

        found[world] = ranks(world, one)[0].result
    assert found[1]["trail"] == found[3]["trail"]
    net = load_model(tmp_path / "1" / "model").predictor.net
    mine = net.components.detach().double()
    assert (mine.T @ mine).numpy() == pytest.approx(np.eye(2), abs=1e-6)  # no step has moved them


def test_more_components_than_features_and_both_choices() -> None:
    sizes: dict[str, Any] = {"num_features": 2, "category_sizes": [], "num_outputs": 1}
    for spec in (LinearSection(use="linear", pca=3), MlpSection(use="mlp", pca=3)):
        with pytest.raises(SpecError, match="pca is 3, and the data has 2 numeric features"):
            build(spec, **sizes)
    with pytest.raises(ValidationError, match="features chooses columns and pca makes"):
        LinearSection(use="linear", pca=3, features=["a"])
