"""A model as one value that travels to workers, which need not see the driver's disk."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from ddlflow.data.sources.export_part import canonical, dense
from ddlflow.data.sources.schema import meant
from ddlflow.errors import DataError
from ddlflow.infer.model import TrainedModel, identity_of, load_model
from ddlflow.infer.vectors import is_vectors, spread
from ddlflow.store.store import Place, store_of


@dataclass(frozen=True, slots=True)
class ShippedModel:
    """A model's folder.

    Attributes:
        identity: of the model: a process loads it once, however often it arrives.
        files: of the folder, by their paths in it.
    """

    identity: str
    files: tuple[tuple[str, bytes], ...] = field(compare=False, repr=False)

    @classmethod
    def of(cls, place: Place) -> "ShippedModel":
        """Of a model's folder, which is known to be whole."""
        folder = place if isinstance(place, Path) else store_of(place).local_folder()
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        files = tuple((path.relative_to(folder).as_posix(), path.read_bytes()) for path in paths)
        return cls(identity_of(folder), files)

    def load(self, *, trust_code: bool) -> TrainedModel:
        """The model on this side; see ``load_model``."""
        with tempfile.TemporaryDirectory(prefix="ddlflow-model-") as folder:
            for name, content in self.files:
                path = Path(folder) / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            return load_model(Path(folder), trust_code=trust_code)

    def on_worker(self) -> TrainedModel:
        """The model, loaded once a process, which then computes with one thread.

        Code that it brings is run: whoever ships a model has asked.
        """
        return _on_worker(self)


@lru_cache(maxsize=4)
def _on_worker(shipped: ShippedModel) -> TrainedModel:
    import torch

    torch.set_num_threads(1)  # the workers of a host share its cores already
    return shipped.load(trust_code=True)


def predict_columns(
    model: TrainedModel,
    columns: Sequence[pa.Array],
    wanted: str | None = None,
    *,
    with_outputs: bool = False,
) -> pa.Array:
    """Predictions for rows whose columns come by their place, or together as one struct.

    Args:
        model: that predicts.
        columns: n values each, in the order of ``model.inputs``; or one struct whose fields are
            found by their names, and may be more; or one of pyspark.ml's vectors of as many numbers
            as the model reads columns.
        wanted: one column of the predictions; None: a struct of all.
        with_outputs: see ``model.predict_encoded``.

    Returns:
        What ``model.predict`` gives; null for a row that is itself null.

    Raises:
        DataError: a column is missing, or holds what the model cannot read.
    """
    absent = None
    if len(columns) == 1 and pa.types.is_struct(columns[0].type) and not is_vectors(columns[0]):
        (rows,) = columns
        absent = rows.is_null() if rows.null_count else None
        columns = _fields_of(rows, model.inputs)
    elif len(columns) == 1 < len(model.inputs) and is_vectors(columns[0]):
        vectors = dense(columns[0])
        absent = vectors.is_null() if vectors.null_count else None
        columns = spread(vectors, model.inputs)
    elif len(columns) != len(model.inputs):
        raise DataError(
            f"The model reads {_shown(model.inputs)}, and {len(columns)} columns were given. Give "
            "them in that order, or the whole row as struct('*')."
        )
    plain = [dense(one) if is_vectors(one) else canonical(one) for one in columns]
    rows_read = pa.RecordBatch.from_arrays(plain, names=model.inputs)
    predicted = model.predict(rows_read, with_outputs=with_outputs)
    if wanted is None:
        fields = list(predicted.schema)
        return pa.StructArray.from_arrays(predicted.columns, fields=fields, mask=absent)
    found = predicted.column(wanted)
    return found if absent is None else pc.if_else(absent, None, found)


def _fields_of(rows: pa.StructArray, wanted: Sequence[str]) -> list[pa.Array]:
    names = [rows.type.field(k).name for k in range(rows.type.num_fields)]
    for name in wanted:
        if names.count(name) > 1:
            raise DataError(f"The rows have more than one column {name}, which the model reads.")
        if name not in names:
            raise DataError(
                f"The rows lack column {name}, which the model reads.{meant(name, names)}"
            )
    values = rows.flatten()  # where a row is null, so are its values
    return [values[names.index(name)] for name in wanted]


def _shown(names: Sequence[str]) -> str:
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return f"{len(names)} columns ({shown})"
