"""What predictions of a source are of, and what comes of them: ``_job.json`` and ``_SUCCESS``."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ddlflow.infer.unfamiliar import Counts


@dataclass(frozen=True, slots=True)
class PredictionJob:
    """What predictions are of: those of another job are not gone on with.

    Attributes:
        format: of the predictions.
        model: its identity.
        source: its address without secrets, and its fingerprint.
        keys: columns copied beside the predictions.
        split: digest of the data set that the rows' splits are of; None without them.
    """

    format: int
    model: str
    source: list[str]
    keys: list[str]
    split: str | None


@dataclass(frozen=True, slots=True)
class PredictedRange:
    """What came of a range.

    Attributes:
        file: its name in the folder of the predictions; None: it has no rows.
        rows: that were predicted.
        counts: of what the model's training rows did not hold.
    """

    file: str | None
    rows: int
    counts: Counts


@dataclass(frozen=True, slots=True)
class Predictions:
    """What ``_SUCCESS`` says.

    Attributes:
        job: what they are of.
        model_digest: of the model's parameters.
        location: of the source, without secrets.
        rows: of all files.
        described: what the task says of the columns (``Task.described``).
        columns: of each column that the model reads, what its training rows did not hold.
        notes: sentences for the user.
        files: of each range, in the source's order.
    """

    job: PredictionJob
    model_digest: str
    location: str
    rows: int
    described: Mapping[str, Any]
    columns: Counts
    notes: list[str]
    files: list[PredictedRange]

    def to_json(self) -> dict[str, Any]:
        """All of it on one level, as ``_SUCCESS`` has it."""
        return {
            **asdict(self.job),
            "model_digest": self.model_digest,
            "location": self.location,
            "rows": self.rows,
            **self.described,
            "columns": self.columns,
            "notes": self.notes,
            "files": [{"file": one.file, "rows": one.rows} for one in self.files],
        }
