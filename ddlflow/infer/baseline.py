"""What a model that looks at no feature would score, and words on a model that does no better."""

from typing import Any

import torch
from torch import Tensor

from ddlflow.data.shards.manifest import Manifest
from ddlflow.spec.pipeline import Train, UserCode
from ddlflow.train.tasks.scores import BETTER, Kind, metric_names
from ddlflow.train.validation import PREDICTED

# By what a model is held against its baseline: what it minimises.
MAIN = {"binary": "log_loss", "multiclass": "log_loss", "regression": "mse"}


def constant_outputs(manifest: Manifest, mean: float | None = None) -> Tensor:
    """The outputs of the best model without a feature, by the training rows: [outputs].

    Of classes the logits of their shares in the training rows, weighted as the rows are; of a
    regression their labels' mean, as the shards have it. A class that no row has counts as half a
    row.

    Args:
        manifest: of the data set.
        mean: of a regression whose rows have weights, their labels' weighted mean.
    """
    if manifest.label.kind == "regression":
        return torch.tensor(manifest.label_statistics("train").mean if mean is None else [mean])
    sums, rows = manifest.weights("train")
    counts = torch.tensor(sums, dtype=torch.float64) * (rows / sum(sums))
    logs = counts.clamp(min=0.5).log()
    if manifest.label.kind == "binary":
        return (logs[1:] - logs[:1]).float()
    return logs.log_softmax(0).float()


def repeated(outputs: Tensor, rows: int) -> Tensor:
    """The same outputs for each row, in the shape that a model's have."""
    return outputs.expand(rows) if len(outputs) == 1 else outputs.expand(rows, -1)


def notes(
    kind: Kind,
    spec: Train,
    split: str,
    *,
    metrics: dict[str, float],
    baseline: dict[str, float],
    predicted_classes: int | None,
) -> list[str]:
    """What a user should read of a model's scores, a sentence or two each.

    Args:
        kind: how labels are read.
        spec: how it was trained.
        split: the rows that were scored.
        metrics: of the model.
        baseline: of the constant outputs.
        predicted_classes: how many classes it predicts on these rows.
    """
    found = []
    # Weights of classes move the probabilities, so that the loss without them blames the model.
    own_loss = isinstance(spec.objective, UserCode) or spec.class_weights is not None
    name = "loss" if own_loss else MAIN[kind]
    sign = 1 if BETTER[name] == "higher" else -1
    ours, theirs = metrics[name], baseline[name]
    if sign * (ours - theirs) <= 0:  # not where one of them is no number
        what = "mean label" if kind == "regression" else "classes' shares"
        found.append(
            f"{name} on the {split} rows is {ours:.4g}, no better than the {theirs:.4g} of a "
            f"baseline that knows the {what} of the training rows and no feature. Try more epochs, "
            "another train.optimizer.lr or other features, and see that data.label is the right "
            "column."
        )
    if predicted_classes == 1 and metrics["accuracy"] < 1:
        found.append(one_class(f"the {split} rows"))
    return found


def kept_notes(trained: dict[str, Any]) -> list[str]:
    """As ``notes``, of the epoch whose weights were kept, by what a training said at its end."""
    row: dict[str, float] = next(
        (r for r in trained["history"] if r["epoch"] == trained["best_epoch"]), {}
    )
    if row.get(PREDICTED) == 1 and row["val_accuracy"] < 1:
        return [one_class(f"the validation rows in the kept epoch {trained['best_epoch']}")]
    return []


def one_class(rows: str) -> str:
    """The words where all predictions are one class though the rows are of several."""
    return (
        f"All predictions of {rows} are one class. Try train.class_weights: balanced, more epochs "
        "or another train.optimizer.lr; or choose a threshold of your own for the probabilities."
    )


def of_names(kind: Kind, computed: dict[str, float]) -> dict[str, float]:
    """The metrics alone, without the numbers of rows."""
    return {name: computed[name] for name in metric_names(kind)}
