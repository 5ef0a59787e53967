"""What a run's artifacts say that history asks about, read in one place.

Runs of every version are asked, so what an earlier one did not write has its default here, and
what a later one adds is passed over.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ddlflow.data.fields import Field
from ddlflow.data.shards.manifest_parts import Shard, shards_from_json
from ddlflow.errors import SpecError
from ddlflow.tracking.read import Reader
from ddlflow.train.events import DigestMarked


@dataclass(frozen=True, slots=True)
class RecordedTraining:
    """Of train.json, what a training said at its end.

    Attributes:
        epochs: that were trained.
        steps: of the optimizer, over all epochs.
        rows: trained on in an epoch.
        rows_mark: of all of them.
        trail: the digest trail.
        worlds: how many ranks its attempts had.
    """

    epochs: int
    steps: int
    rows: int
    rows_mark: int
    trail: tuple[DigestMarked, ...]
    worlds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class RecordedDataset:
    """Of manifest.json, what a data set is called by and made of.

    Attributes:
        numeric: names of the numeric features.
        vocabularies: the values of each categorical feature, by its name.
        tensors: inputs of a shape of their own, in words.
        label: its name and kind, in words.
        classes: of the label; none of a regression.
        shards: in the order of their rows in the source.
        num_folds: that the training rows were dealt to.
        range_rows: the rows of each range of the source.
    """

    numeric: Sequence[str]
    vocabularies: Mapping[str, Sequence[Any]]
    tensors: Sequence[str]
    label: str
    classes: Sequence[Any]
    shards: Sequence[Shard]
    num_folds: int
    range_rows: Sequence[int]


def recorded_training(reader: Reader, run_id: str, place: Path) -> RecordedTraining:
    """What a recorded run's training said at its end.

    Raises:
        SpecError: there is no such artifact, or it is damaged.
        TrackingError: the store does not answer.
    """
    path = "training/train.json"
    return training_of(reader.json(run_id, path, place), f"{path} of run {run_id}")


def recorded_dataset(reader: Reader, run_id: str, place: Path) -> RecordedDataset:
    """What a recorded run was trained on.

    Raises:
        SpecError, TrackingError: as ``recorded_training``.
    """
    path = "data/manifest.json"
    return dataset_of(reader.json(run_id, path, place), f"{path} of run {run_id}")


def training_of(values: Any, where: str) -> RecordedTraining:
    """A training's result, of the JSON values of its file.

    Raises:
        SpecError: they are none; it names ``where``.
    """
    with _reading(where):
        return RecordedTraining(
            epochs=int(values["epochs"]),
            steps=int(values["steps"]),
            rows=int(values["rows"]),
            rows_mark=int(values["rows_mark"]),
            trail=tuple(
                DigestMarked(entry["step"], entry["digest"], entry["loss"])
                for entry in values["trail"]
            ),
            worlds=tuple(values.get("worlds", ())),
        )


def dataset_of(values: Any, where: str) -> RecordedDataset:
    """A data set, of the JSON values of its manifest.

    Raises:
        SpecError: they are none; it names ``where``.
    """
    with _reading(where):
        columns = values["columns"]
        label = columns["label"]
        return RecordedDataset(
            numeric=columns["numeric"],
            vocabularies={one["name"]: one["values"] for one in columns["categories"]},
            tensors=[Field.from_json(one).shown for one in columns.get("tensors", ())],
            label=f"{label['name']} ({label['kind']})",
            classes=label["classes"],
            shards=shards_from_json(values["shards"]),
            num_folds=len(values.get("folds", ())),
            range_rows=values.get("range_rows", ()),
        )


@contextmanager
def _reading(where: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        what = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise SpecError(f"{where} is damaged: {what}. Take another run.") from None
