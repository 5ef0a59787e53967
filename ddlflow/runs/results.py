"""What the stages leave: to each other, to the flow, to the record and to the user.

Each is a frozen dataclass; ``ddlflow.runs.result_json`` makes JSON of it and brings it back.
"""

from dataclasses import dataclass
from typing import Literal

from ddlflow.data.coefficient_table import CoefficientTable
from ddlflow.sweep.choose.space import Point
from ddlflow.sweep.choose.table import Better, TrialRow
from ddlflow.train.facts import Facts

Number = int | float
Scores = dict[str, Number | None]  # by a metric's name; None where rows do not define it
EpochRow = dict[str, Number | None]  # epoch, step, loss, lr, rows_per_s, val_*


TRIALS_TABLE = "trials.json"  # in the folder of a search


@dataclass(frozen=True, slots=True)
class SampleResult:
    """Of a source that was made: rows and files."""

    rows: int
    files: int


@dataclass(frozen=True, slots=True)
class ExportResult:
    """Of a table that was exported: rows, files, their hash; and what tells that it has changed."""

    rows: int
    files: int
    digest: str
    state: str


@dataclass(frozen=True, slots=True)
class PrepareResult:
    """What the prepared data set is.

    Attributes:
        rows: of each split.
        folds: that the training rows are dealt to; 0 without ``cv``.
        digest: of all shards.
        features: numeric columns of the model's input.
        categories: the others.
        classes: of the label in words; none of a regression.
        dropped: rows that were left out, by the reason.
        replaced: values that were imputed, by the column.
        warnings: sentences for the user.
        location: of the source, without secrets.
        tensors: inputs of a shape of their own, in words.
    """

    rows: dict[str, int]
    folds: int
    digest: str
    features: int
    categories: int
    classes: tuple[str, ...]
    dropped: dict[str, int]
    replaced: dict[str, int]
    warnings: tuple[str, ...]
    location: str
    tensors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TrainAttempt:
    """One gang's life within a training.

    Attributes:
        number: from 1.
        world: its ranks.
        from_step: the step that it went on from; 0: the start.
        saved_step: of its last checkpoint; 0: none.
        ended_by: the first cause of its end; None while it runs, and of the one that finished.
    """

    number: int
    world: int
    from_step: int = 0
    saved_step: int = 0
    ended_by: str | None = None


@dataclass(frozen=True, slots=True)
class AttemptRanks:
    """What the ranks of one attempt said of themselves, by rank."""

    attempt: int
    ranks: tuple[Facts, ...]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training came to.

    Attributes:
        model_digest: of the parameters.
        epochs: that were trained.
        best_epoch: whose weights were kept.
        steps: of the optimizer, over all epochs.
        rows: trained on in an epoch.
        rows_mark: of all of them; what each epoch's ledgers have to add up to.
        seconds: that the loop took, over all attempts.
        metrics: of the kept epoch on the validation rows.
        history: a row an epoch.
        worlds: how many ranks its attempts had.
        attempts: of this command, in their order.
        ranks: of all attempts, also of earlier commands.
        model: the model's folder.
        world: ranks of the first attempt.
        virtual_ranks: slices of a global batch.
        threads: of a rank.
        device: that it was trained on.
    """

    model_digest: str
    epochs: int
    best_epoch: int
    steps: int
    rows: int
    rows_mark: int
    seconds: float
    metrics: Scores
    history: tuple[dict[str, Number], ...]
    worlds: tuple[int, ...]
    attempts: tuple[TrainAttempt, ...]
    ranks: tuple[AttemptRanks, ...]
    model: str
    world: int
    virtual_ranks: int
    threads: int
    device: Literal["cpu", "cuda"]


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """How the model scores.

    Attributes:
        split: whose rows were scored.
        metrics: of the model.
        baseline: of a model without features.
        predicted_classes: how many classes it predicts; None of a regression.
        notes: sentences for the user.
    """

    split: str
    metrics: Scores
    baseline: Scores
    predicted_classes: int | None
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReportResult:
    """Of the report that was drawn: files."""

    files: int


@dataclass(frozen=True, slots=True)
class ExampleResult:
    """Of what a model is logged with: rows."""

    rows: int


@dataclass(frozen=True, slots=True)
class InferResult:
    """What was predicted.

    Attributes:
        predictions: the folder of the Parquet files.
        location: of the source, without secrets.
        rows: that were predicted.
        columns: of each column that the model reads, how many values were missing, unseen or
            infinite.
        notes: sentences for the user.
    """

    predictions: str
    location: str
    rows: int
    columns: dict[str, dict[str, int]]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class SearchResult:
    """What a search found.

    Attributes:
        metric: that it was for.
        better: which end of it.
        best: the row of the best trial.
        trials: how many there were.
        statuses: how many of them ended how.
        trainings: that they took.
        fused: of these, in stacks.
        search_seconds: from its start to its end, over all commands.
        rows: of each split of the prepared data.
    """

    metric: str
    better: Better
    best: TrialRow
    trials: int
    statuses: dict[str, int]
    trainings: int
    fused: int
    search_seconds: float
    rows: dict[str, int]


@dataclass(frozen=True, slots=True)
class FoldResult:
    """What the training on one fold came to; ``metrics`` are of its held-out rows."""

    repeat: int
    fold: int
    status: str
    reason: str
    epochs: int
    best_epoch: int
    seconds: float
    fused: int
    history: tuple[EpochRow, ...]
    metrics: Scores


@dataclass(frozen=True, slots=True)
class ScoreSpread:
    """A metric over the folds: mean, standard deviation of the sample, standard error."""

    mean: float | None
    std: float | None
    stderr: float | None


@dataclass(frozen=True, slots=True)
class CrossValidationResult:
    """What cross-validation found; ``predictions`` is the folder of the held-out rows' ones."""

    folds: tuple[FoldResult, ...]
    scores: dict[str, ScoreSpread]
    predictions: str | None = None


@dataclass(frozen=True, slots=True)
class StageTime:
    """A line of the table of stages: seconds that its work took, when it was done."""

    name: str
    seconds: float
    cached: bool


@dataclass(frozen=True, slots=True)
class SearchSummary:
    """Of a search, what a user is told; ``best`` are the best trial's settings."""

    metric: str
    better: Better
    score: float | None
    best_trial: int
    best: Point
    statuses: dict[str, int]
    trials: tuple[TrialRow, ...]


@dataclass(frozen=True, slots=True)
class SweepSummary:
    """What ``ddlflow search --json`` and ``ddlflow cross-validate --json`` print."""

    run_id: str
    stages: tuple[StageTime, ...]
    report: str
    tracking_uri: str
    page: str
    search: SearchSummary | None = None
    cross_validation: CrossValidationResult | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What ``ddlflow run --json`` prints; ``coefficients`` of a linear model alone."""

    run_id: str
    stages: tuple[StageTime, ...]
    metrics: Scores
    baseline: Scores
    notes: tuple[str, ...]
    rows_per_s: float
    model_digest: str
    model_uri: str
    model: str
    predictions: str
    report: str
    tracking_uri: str
    page: str
    coefficients: CoefficientTable | None
    search: SearchSummary | None = None
    cross_validation: CrossValidationResult | None = None
