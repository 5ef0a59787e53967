"""What ``auto`` stands for in a training: pure functions of the numbers of rows.

Small steps are what a small table lacks: ten epochs of 1,000 rows in batches of 1,024 are ten
steps, after which a model is what it was. So batches shrink with the table until an epoch has
``EPOCH_STEPS`` steps, and epochs are counted in steps: with validation rows a training goes on
until they have not improved for ``PATIENCE_STEPS``, and without them for ``BLIND_STEPS``. A large
table, whose epochs have more steps than these, is seen at least ``LEAST_EPOCHS`` times if its
validation rows go on improving.

Source: measured with mlp [100], Adam at lr 0.001 and early stopping on made tables of 240 to 1,600
rows and on scikit-learn's small ones, over the seeds 1 to 5: from 100 to 400 steps of patience,
batches of 16 to 128 rows, and 1,000 to 2,000 steps without validation rows end within the noise of
each other. Step by step: 500 steps without validation rows are too few for ten classes, and 4,000
learn the noise of a weak relation by heart. 32 rows are the least whose gradient costs no more than
the step itself.
"""

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import EarlyStopping, Lbfgs, Train, Training

EPOCH_STEPS = 32
BATCH_ROWS = (32, 1024)  # the least and the most
MOST_STEPS = 5_000
PATIENCE_STEPS = 200
BLIND_STEPS = 1_000
LEAST_EPOCHS, LEAST_PATIENCE = 10, 5
FULL_STEPS = 1_000  # of lbfgs, the most; some dozens reach the optimum


def resolve(spec: Train, rows: int, validation_rows: int) -> Training:
    """A train section in which numbers stand for ``batch_rows: auto`` and ``epochs: auto``.

    What is a number stays as it is, so that resolving once more changes nothing.

    Args:
        spec: the pipeline's ``train`` section.
        rows: to train on.
        validation_rows: to stop by.

    Raises:
        SpecError: ``batch_rows`` of an optimizer that takes all rows in each step.
    """
    if isinstance(spec.optimizer, Lbfgs):
        return _full_batch(spec, rows)
    batch_rows = batch_rows_for(spec, rows) if spec.batch_rows == "auto" else spec.batch_rows
    found = {"batch_rows": batch_rows, "epochs": spec.epochs}
    values = spec.model_dump(mode="json") | found
    if spec.epochs == "auto":
        steps = -(-rows // min(batch_rows, rows))
        budget = MOST_STEPS if validation_rows else BLIND_STEPS
        values["epochs"] = max(LEAST_EPOCHS, -(-budget // steps))
        if validation_rows and spec.early_stopping is None:
            patience = max(LEAST_PATIENCE, -(-PATIENCE_STEPS // steps))
            values["early_stopping"] = EarlyStopping(patience=patience).model_dump()
    return Training.model_validate(values)


def _full_batch(spec: Train, rows: int) -> Training:
    """All rows in each step, and so many steps that the optimum is reached."""
    if spec.batch_rows != "auto" and spec.batch_rows < rows:
        raise SpecError(
            f"train.batch_rows is {spec.batch_rows}, and train.optimizer lbfgs takes all "
            f"{rows} training rows in each step. Remove train.batch_rows."
        )
    epochs = FULL_STEPS if spec.epochs == "auto" else spec.epochs
    return Training.model_validate(
        spec.model_dump(mode="json") | {"batch_rows": rows, "epochs": epochs}
    )


def batch_rows_for(spec: Train, rows: int) -> int:
    """The greatest power of two with which an epoch has enough steps.

    Slices that the pipeline asks for have a row at least, and no more than they may have.
    """
    low, high = BATCH_ROWS
    found = min(high, max(low, 1 << (max(rows // EPOCH_STEPS, 1).bit_length() - 1)))
    if spec.virtual_ranks != "auto":
        found = max(found, spec.virtual_ranks)
        if spec.micro_batch_rows is not None:
            found = min(found, spec.virtual_ranks * spec.micro_batch_rows)
    return found


def said(spec: Train, found: Training) -> str | None:
    """A line that says what was taken for ``auto``; None where nothing was."""
    words = []
    if spec.batch_rows == "auto":
        words.append(f"batch_rows {found.batch_rows}")
    if spec.epochs == "auto":
        stopping = found.early_stopping
        until = ""
        if stopping is not None:
            until = f" at most, until validation {stopping.metric} has not improved for "
            until += f"{stopping.patience}"
        words.append(f"epochs {found.epochs}{until}")
    return f"train: auto is {', '.join(words)}" if words else None
