"""The rows that a model is logged with, and what it says to them: made once, as the model is.

A run that finds all of its stages done logs its model again, for MLflow wants one a run; the model
itself, and PyTorch, are not needed for that.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddlflow.infer.reading import Reading
from ddlflow.redact import redacted
from ddlflow.runs.finished import Stage
from ddlflow.runs.inference import inferred_source
from ddlflow.runs.results import ExampleResult, PrepareResult, TrainResult
from ddlflow.runs.session import Session
from ddlflow.runs.versions import VERSION
from ddlflow.store.store import Store, open_store

if TYPE_CHECKING:
    import pandas as pd  # which takes a while

ROWS = 5
INPUTS, PREDICTIONS = "inputs.parquet", "predictions.parquet"


@dataclass(frozen=True, slots=True)
class ModelExample:
    """The first rows of the source that the model is for, and its predictions of them."""

    inputs: "pd.DataFrame"
    predictions: "pd.DataFrame"


def model_example(
    session: Session, prepared: Stage[PrepareResult], trained: Stage[TrainResult]
) -> ModelExample | None:
    """The example of a trained model; None for tensors: MLflow's tables are of single values.

    Args:
        session: whose pipeline names the source.
        prepared: of the source, where it was made.
        trained: has the model.

    Raises:
        DataError: see ``Reading.open``.
    """
    reading = Reading.of(trained.value.model)
    if reading.columns.tensors:
        return None
    location = inferred_source(session, prepared)
    found = reading.open(location, session.data_root)
    settings: dict[str, Any] = {
        "version": VERSION["example"],
        "trained": trained.key,
        "source": [redacted(found.address), found.fingerprint],
    }

    def work(folder: Store) -> ExampleResult:
        from ddlflow.data.sources.derive_dates import without_zones
        from ddlflow.data.sources.source import ranges, read
        from ddlflow.infer.model import load_model

        model = load_model(trained.value.model, trust_code=True)  # it is this pipeline's own
        first = next(iter(read(found, ranges(found)[0], reading.inputs)))
        inputs = without_zones(first.slice(0, ROWS)).to_pandas()
        for name, frame in ((INPUTS, inputs), (PREDICTIONS, model.predict_frame(inputs))):
            with folder.writing(name) as temporary:
                frame.to_parquet(temporary)
        return ExampleResult(len(inputs))

    stage = session.stage("example", settings, work, ExampleResult, results=["*.parquet"])
    return ModelExample(*(_read(open_store(stage.folder).local(n)) for n in (INPUTS, PREDICTIONS)))


def _read(path: Path) -> "pd.DataFrame":
    import pandas as pd

    return pd.read_parquet(path)
