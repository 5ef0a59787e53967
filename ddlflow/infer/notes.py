"""Words on a model that does no better than one that looks at no feature, and on its history."""

from collections.abc import Mapping, Sequence

from ddlflow.data.scored import Scored
from ddlflow.spec.pipeline import Train, UserCode
from ddlflow.train.tasks.measures import PREDICTED, Measures


def notes(measures: Measures, spec: Train, split: str, scored: Scored) -> list[str]:
    """What a user should read of a model's scores, a sentence or two each.

    Args:
        measures: what is measured of the task.
        spec: how it was trained.
        split: the rows that were scored.
        scored: what came of it; the baseline is that of the constant outputs.
    """
    found = []
    # Weights of classes move the probabilities, so that the loss without them blames the model.
    own_loss = isinstance(spec.objective, UserCode) or spec.class_weights is not None
    name = "loss" if own_loss else measures.judged
    sign = 1 if measures.better(name) == "higher" else -1
    ours, theirs = scored.metrics[name], scored.baseline[name]
    if sign * (ours - theirs) <= 0:  # not where one of them is no number
        found.append(
            f"{name} on the {split} rows is {ours:.4g}, no better than the {theirs:.4g} of a "
            f"baseline that knows the {measures.baseline} of the training rows and no feature. "
            "Try more epochs, another train.optimizer.lr or other features, and see that "
            "data.label is the right column."
        )
    if scored.predicted_classes == 1 and scored.metrics["accuracy"] < 1:
        found.append(one_class(f"the {split} rows"))
    return found


def kept_notes(history: Sequence[Mapping[str, float | None]], best_epoch: int) -> list[str]:
    """As ``notes``, of the epoch whose weights were kept, by what a training said at its end."""
    row: Mapping[str, float | None] = next(
        (row for row in history if row["epoch"] == best_epoch), {}
    )
    accuracy = row.get("val_accuracy")
    if row.get(PREDICTED) == 1 and accuracy is not None and accuracy < 1:
        return [one_class(f"the validation rows in the kept epoch {best_epoch}")]
    return []


def one_class(rows: str) -> str:
    """The words where all predictions are one class though the rows are of several."""
    return (
        f"All predictions of {rows} are one class. Try train.class_weights: balanced, more epochs "
        "or another train.optimizer.lr; or choose a threshold of your own for the probabilities."
    )


def of_names(measures: Measures, computed: dict[str, float]) -> dict[str, float]:
    """The metrics alone, without the numbers of rows."""
    return {name: computed[name] for name in measures.names}
