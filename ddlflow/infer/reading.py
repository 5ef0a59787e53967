"""What a trained model reads of a source: its columns, and the features that are derived from them.

It stands in the model's ``model.json`` and is known without PyTorch: a stage that is done is found
again by the fingerprint of what the model would read.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa

from ddlflow.data.columns import Columns
from ddlflow.data.sources.derive import bind, needed, read_by, sources_read
from ddlflow.data.sources.derive_rows import evaluate
from ddlflow.data.sources.listing import names_format
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source
from ddlflow.data.tensors import without_rows
from ddlflow.errors import DataError
from ddlflow.redact import redacted
from ddlflow.spec.explain import nearest
from ddlflow.spec.pipeline import Data
from ddlflow.store.store import Place, store_of
from ddlflow.train.saved.description import ModelDescription


@dataclass(frozen=True, slots=True)
class Reading:
    """How tables become what a model is called with.

    Attributes:
        columns: how a table's columns become inputs.
        data: the pipeline's data section, for reading further sources alike: what its features
            derive from other columns, and no condition on the rows.
    """

    columns: Columns
    data: Data

    @classmethod
    def of_description(cls, description: ModelDescription) -> Self:
        """Of a model that is described so."""
        columns = description.columns
        plain: dict[str, Any] = {
            "where": None,
            "dates": "refuse",
            "polynomial": 1,
            "interactions": False,
        }
        plain |= {"derive": dict(columns.derive)}
        return cls(columns, Data.model_validate(description.data).model_copy(update=plain))

    @classmethod
    def of(cls, place: Place) -> Self:
        """Of a model's folder that is known to be whole."""
        described = json.loads(store_of(place).read("model.json"))
        return cls.of_description(ModelDescription.from_json(described))

    @property
    def features(self) -> list[str]:
        """The columns that the model is called with."""
        return self.columns.features

    @property
    def inputs(self) -> list[str]:
        """The columns that a table must have: the features, or what they are derived from."""
        return sources_read(self.columns.derive, self.features)

    def open(self, location: str, data_root: Path) -> Source:
        """Opens a source that is read as the training's was, whatever its rows look like.

        Raises:
            DataError: as ``open_source``; a column is missing, or of a type that does not tell
                what the model was trained on.
        """
        # What the model does not read may hold anything.
        reads: dict[str, Any] = {"features": self.features, "exclude": [], "categorical": []}
        reads["text"] = [name for name in self.data.text if name not in self.inputs]
        is_own = redacted(location) in (self.data.source, self.data.test_source)
        if self.data.format != "auto" and not is_own and names_format(location, data_root):
            reads["format"] = "auto"  # else it is as the training's: table.json, of JSON lines
        spec = self.data.model_copy(update=reads)
        plain = (self.data.decimal, self.data.thousands) == (".", None)
        source = open_source(location, spec, data_root, self.columns.parsed(are_plain=plain))
        for name in self.inputs:
            if name not in source.schema:
                near = nearest(name, source.schema)
                raise DataError(
                    f"{source.location} has no column {name!r} that the model reads.{near}"
                )
        derived, own = needed(self.features, source.derived)
        empty = without_rows({name: source.schema[name] for name in own})
        self.columns.encode(evaluate(empty, self.features, derived))  # of what types?
        return source

    def derived(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The features, as far as the batch has them or what they are derived from."""
        schema = dict(zip(batch.schema.names, batch.schema.types, strict=True))
        read = read_by(self.columns.derive) & {*schema}
        known = {name: type_ for name, type_ in self.columns.known.items() if name in read}
        derived, _ = needed(self.features, bind(schema | known, self.data))
        names = [name for name in self.features if name in {*schema, *self.columns.derive}]
        return evaluate(batch, names, derived)
