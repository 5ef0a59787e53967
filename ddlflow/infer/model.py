"""A trained model's folder -> something that turns tables into predictions.

Weights are read as tensors alone (``weights_only=True``); the only code that runs is ddlflow's and,
where the pipeline named any, the user's own modules that travel with the model.
"""

import hashlib
import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from ddlflow.data.columns import Columns, Encoded
from ddlflow.data.sources.frames import batches, is_pandas, names_of, table_of
from ddlflow.data.sources.schema import meant
from ddlflow.errors import DataError, DdlflowError, SpecError
from ddlflow.infer.passes import passes
from ddlflow.infer.reading import Reading
from ddlflow.models import build
from ddlflow.models.label_scale import LabelScale
from ddlflow.models.standardise import Predictor, Standardise, standardises
from ddlflow.spec.code import check_trusted, resolve
from ddlflow.spec.pipeline import UserCode
from ddlflow.store.store import Place, store_of
from ddlflow.train.saved.description import FORMAT, SEAL, ModelDescription, sealed
from ddlflow.train.tasks.table import LabelTask, resolved_task
from ddlflow.train.tasks.target import LabelTarget

if TYPE_CHECKING:
    import pandas as pd

# Rows of one forward pass. Measured with mlp [100] on one core: 2,048 rows 9.1 M rows/s, 4,096 to
# 262,144 rows 1.5 to 2.5 M: the hidden layer of 2,048 rows (0.8 MB) stays in the cache.
PASS_ROWS = 2_048
OUTPUTS = "outputs"  # a column of predictions for those who ask
FRAME_ROWS = 128 * PASS_ROWS  # of a table in memory that are held as numbers at once

# What json and torch say of a file that is cut off, overwritten or of something else.
_DAMAGED = (
    AttributeError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    RuntimeError,
    pickle.UnpicklingError,
)


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """A model ready to predict.

    Attributes:
        predictor: raw features to raw outputs, in evaluation mode.
        task: what the outputs mean.
        reading: what of a table becomes its inputs, and how.
        classes: of the label, in the order of the outputs; none for a regression.
        digest: of the parameters.
        identity: of all that decides a prediction (``identity_of``).
        missing: by numeric column, the share of missing values in the rows trained on.
    """

    predictor: Predictor
    task: LabelTask
    reading: Reading
    classes: tuple[Any, ...]
    digest: str
    identity: str
    missing: dict[str, float]

    @property
    def columns(self) -> Columns:
        """How a table's columns become inputs."""
        return self.reading.columns

    @property
    def features(self) -> list[str]:
        """The columns that the model is called with."""
        return self.reading.features

    @property
    def inputs(self) -> list[str]:
        """The columns that a table must have: the features, or what they are derived from."""
        return self.reading.inputs

    @property
    def output_names(self) -> list[str]:
        """The columns of `predict`."""
        return self.task.column_names()

    @property
    def output_schema(self) -> pa.Schema:
        """The columns of `predict` with their types."""
        is_many = self.task.family == "categorical"
        outputs = torch.zeros(0, len(self.classes)) if is_many else torch.zeros(0)
        return self._named([self.task.predictions(outputs)]).schema

    @property
    def usual(self) -> dict[str, float]:
        """By column, the share of training values that are missing, or no category of the model."""
        return {**self.missing, **{c.name: c.rest for c in self.columns.categories}}

    def predict(self, batch: pa.RecordBatch, *, with_outputs: bool = False) -> pa.RecordBatch:
        """A row of predictions for each row of a table with the columns ``inputs``.

        Returns:
            The columns of `ddlflow.train.tasks.predictions`; see `predict_encoded` for more.
        """
        features = self.reading.derived(batch) if self.columns.derive else batch
        return self.predict_encoded(self.columns.encode(features), with_outputs=with_outputs)

    def predict_encoded(self, encoded: Encoded, *, with_outputs: bool = False) -> pa.RecordBatch:
        """As `predict`, for rows that are encoded; null for one that lacks a tensor.

        Args:
            encoded: the rows.
            with_outputs: also what the net itself gives, a list a row, as column ``OUTPUTS``.
        """
        parts = []
        with torch.inference_mode():
            for batch, rows in passes(encoded, self.columns, PASS_ROWS):
                outputs = self.predictor(batch)
                told = {**self.task.predictions(outputs), OUTPUTS: outputs}
                parts.append({name: of[:rows] for name, of in told.items()})
        predicted = self._named(parts)
        if with_outputs:
            whole = torch.cat([part[OUTPUTS] for part in parts]).reshape(predicted.num_rows, -1)
            lists = pa.FixedSizeListArray.from_arrays(whole.numpy().ravel(), whole.shape[1])
            predicted = predicted.append_column(OUTPUTS, lists.cast(pa.list_(pa.float32())))
        if encoded.absent is None:
            return predicted
        absent = pa.array(encoded.absent)
        nulls = [pc.if_else(absent, None, column) for column in predicted.columns]
        return pa.RecordBatch.from_arrays(nulls, schema=predicted.schema)

    def _named(self, parts: Sequence[Mapping[str, torch.Tensor]]) -> pa.RecordBatch:
        """The columns that the task's predictions of rows are, pass after pass."""
        arrays = {name: torch.cat([part[name] for part in parts]).numpy() for name in parts[0]}
        return pa.RecordBatch.from_pydict(self.task.columns(arrays))

    def predict_frame(self, frame: Any) -> "pd.DataFrame":
        """As `predict`, for a table in memory; this is what MLflow serves.

        Args:
            frame: a pandas frame, whose index the result has too; or a Polars or Arrow table.

        Raises:
            DataError: a column is missing, or holds what the model cannot read.
        """
        table = table_of(frame, self.inputs)
        for name in self.features:
            if name not in table.schema.names and name not in self.columns.derive:
                raise DataError(
                    f"The table lacks column {name}, which the model needs."
                    f"{meant(name, names_of(frame))}"
                )
        parts = [self.predict(batch) for batch in batches(table, FRAME_ROWS)]
        result: pd.DataFrame = pa.Table.from_batches(parts).to_pandas()
        if is_pandas(frame):
            result.index = frame.index
        return result


def load_model(place: Place, *, trust_code: bool = False) -> TrainedModel:
    """Loads a model's folder, as a training wrote it.

    Args:
        place: of the model's folder.
        trust_code: run the Python code that the model brings or names, if it does. Without it
            nothing of a model is run: it is tensors and plain values.

    Raises:
        SpecError: not such a folder, or one of a newer ddlflow; user code that cannot be bound, is
            not the recorded one, or is not trusted.
    """
    folder = Path(str(place))
    try:
        if not isinstance(place, Path):
            folder = store_of(place).local_folder()
        described = json.loads((folder / "model.json").read_text())
        written_in = described["format"]
        weights = torch.load(folder / "weights.pt", weights_only=True, map_location="cpu")
        with (folder / "weights.pt").open("rb") as file:
            found = sealed(described, hashlib.file_digest(file, "sha256").hexdigest())
    except FileNotFoundError as error:
        raise SpecError(
            f"{folder} is no ddlflow model: it has no {Path(error.filename).name}. Give the folder "
            "or MLflow URI that `ddlflow run` names as model."
        ) from None
    except _DAMAGED as error:
        raise SpecError(_damaged(folder, error)) from error
    if written_in != FORMAT:
        what_to_do = "Install that version" if written_in > FORMAT else "Train the model again"
        raise DdlflowError(
            f"{folder} was written by ddlflow {described['ddlflow']}, in format "
            f"{written_in}; this one reads {FORMAT}. {what_to_do}."
        )
    if described.get(SEAL, found) != found:  # json and torch see no changed number
        raise SpecError(_damaged(folder, "model.json or weights.pt is not what was written"))
    try:
        description = ModelDescription.from_json(described)
        return _rebuilt(folder, description, weights, trusted=trust_code)
    except (*_DAMAGED, AttributeError) as error:  # what user code raises is a SpecError already
        raise SpecError(_damaged(folder, error)) from error


def _rebuilt(
    folder: Path,
    description: ModelDescription,
    weights: Mapping[str, torch.Tensor],
    *,
    trusted: bool,
) -> TrainedModel:
    """The model that a description and its weights are of."""
    columns, spec = description.columns, description.model
    code = _code(folder, description, trusted=trusted)
    label = LabelScale(**description.label_scale)
    classes = columns.label.classes
    target = LabelTarget(num_classes=len(classes) or None, classes=classes, scale=label)
    task = resolved_task(description.objective, code, target)
    net = build(
        spec,
        num_features=len(columns.numeric),
        category_sizes=[category.size for category in columns.categories],
        num_outputs=task.num_outputs or 1,
        user_class=resolve(spec.use, code) if isinstance(spec, UserCode) else None,
        names=columns.features,
        tensors=columns.tensors,
    )
    num = len(columns.numeric)
    standardise = Standardise(np.zeros(num), np.ones(num))
    tensors = standardises(columns.tensors)
    predictor = Predictor(standardise, net, label, columns.inputs, tensors)
    predictor.load_state_dict(weights)
    predictor.eval()
    return TrainedModel(
        predictor=predictor,
        task=task,
        reading=Reading.of_description(description),
        classes=classes,
        digest=description.model_digest,
        identity=identity_of(folder),
        missing=dict(description.missing),
    )


def _code(folder: Path, description: ModelDescription, *, trusted: bool) -> Path | None:
    """The folder of the model's own code, to be imported; None where it brings none.

    Raises:
        SpecError: it is not the recorded one; or the model brings or names code, and is not
            trusted: a name alone (``module:function`` of anything installed) can do harm too.
    """
    sections = (description.model, description.objective)
    named = [section.use for section in sections if isinstance(section, UserCode)]
    if not named:
        return None
    code = folder / "code"
    if code.is_dir():
        check_trusted(code, description.code_digest, of=f"Model {folder}", trusted=trusted)
        return code
    if not trusted:
        raise SpecError(
            f"Model {folder} names installed code to run: {', '.join(named)}. If you trust it, add "
            "--trust-code (in Python: trust_code=True), or set trust_code: true in the site file."
        )
    return None


def identity_of(folder: Path) -> str:
    """SHA-256 of a model's description and weights: what tells it from every other model.

    The digest of the parameters does not: the same weights may name other classes or columns. Its
    code is told by the description.
    """
    found = hashlib.sha256()
    for name in ("model.json", "weights.pt"):
        content = (folder / name).read_bytes()
        found.update(f"{name}\0{len(content)}\0".encode() + content)
    return found.hexdigest()


def _damaged(folder: Path, error: Exception | str) -> str:
    said = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".:")
    return f"The model in {folder} is damaged: {said}. Give another copy of it, or train again."
