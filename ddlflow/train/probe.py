"""A trial of model and loss on a few made rows, before any cluster starts.

Code of the user's that raises, gives the wrong shape or cuts the gradient is found here, in one
line with its place, and not by a hundred ranks an hour later.
"""

import copy
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ddlflow.data.fields import Field
from ddlflow.errors import SpecError
from ddlflow.models.call import Batch, call
from ddlflow.models.example import has_features, made_tensors
from ddlflow.models.user import one_line
from ddlflow.train.tasks.table import LabelTask
from ddlflow.train.tasks.target import LABEL
from ddlflow.train.tasks.task import Task

HINT_ROWS, HINT_SPREAD = 64, 10.0


def check_loss(task: LabelTask) -> None:
    """Try a loss on two and three rows.

    Args:
        task: the built-ins pass; it is the user's functions that need it.

    Raises:
        SpecError: it raises, gives neither a number nor one number a row, cuts the gradient, or
            is no sum over rows (a mean, or rows that depend on each other).
    """
    for num_rows in (2, 3):
        outputs = _made_outputs(task, num_rows)
        labels = _labels(task, num_rows, outputs.device)
        whole = _loss(task, outputs.requires_grad_(), labels).detach()
        rows = [_loss(task, outputs[i : i + 1], labels[i : i + 1]) for i in range(num_rows)]
        parts = torch.stack(rows).sum().detach()
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-6, equal_nan=True):
            is_mean = torch.allclose(whole * num_rows, parts, rtol=1e-3, atol=1e-6)
            found = "the mean" if is_mean else f"{whole.item():.6g}, not {parts.item():.6g},"
            raise SpecError(
                f"{task.name} gives {found} over {num_rows} rows; expected the sum of the "
                "rows' losses, because slices of a batch are computed apart and added. "
                "Use reduction='sum', or return one loss a row."
            )


def check_weighted(task: LabelTask) -> None:
    """Try a loss on rows that have weights.

    Raises:
        SpecError: it gives the sum over the rows alone.
    """
    outputs = _made_outputs(task, 3)
    task.criterion.weighted_sum(outputs, _labels(task, 3, outputs.device), torch.ones(3))


def check_model(
    model: nn.Module,
    task: LabelTask,
    *,
    num_features: int,
    category_sizes: Sequence[int] = (),
    tensors: Sequence[Field] = (),
    row_counts: Sequence[int] = (2, 3),
) -> tuple[str, ...]:
    """Train a copy of the model on a few made rows, and predict one.

    Neither the model nor torch's random state changes.

    Args:
        model: called as ``ddlflow.models`` says.
        task: what it is trained for. Where its classes are not counted yet, the model's outputs
            may be of any number.
        num_features: columns of ``features``.
        category_sizes: codes of each categorical column.
        tensors: the data's tensors and sequences.
        row_counts: rows of each trial slice; include 1 where a virtual rank may get one row.

    Returns:
        The names of parameters that no gradient reached. That is allowed: a missing gradient
        counts as zero in training. Worth a warning, because it is seldom meant.

    Raises:
        SpecError: the model has nothing to train, cannot be copied, raises, gives outputs of
            another shape or dtype than the task needs, or no gradient reaches any of it;
            or the loss fails ``check_loss``.
    """
    name = type(model).__qualname__
    trainable = {key: p for key, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise SpecError(f"{name} has no parameter that requires a gradient: nothing to train.")
    device = next(iter(trainable.values())).device
    try:
        trial = copy.deepcopy(model).train()
    except Exception as error:
        raise SpecError(f"{name} cannot be copied: {one_line(error)}.") from error
    reached: set[str] = set()
    if task.num_outputs is None:
        with _own_randomness(device):
            width = _width(trial, _inputs(2, num_features, category_sizes, tensors, device))
        task = replace(task, label=replace(task.label, num_classes=width))
    check_loss(task)
    num_outputs = task.num_outputs or 1
    with _own_randomness(device):
        for num_rows in row_counts:
            inputs = _inputs(num_rows, num_features, category_sizes, tensors, device)
            outputs = _outputs(trial, name, inputs, num_rows, num_outputs)
            labels = _labels(task, num_rows, device)
            trial.zero_grad(set_to_none=True)
            try:
                _loss(task, outputs, labels).backward()  # type: ignore[no-untyped-call]
            except RuntimeError as error:
                raise SpecError(f"{name} has no backward pass: {one_line(error)}.") from error
            reached |= {key for key, p in trial.named_parameters() if p.grad is not None}
        with torch.no_grad():
            inputs = _inputs(1, num_features, category_sizes, tensors, device)
            _outputs(trial.eval(), name, inputs, 1, num_outputs)
    if not reached:
        raise SpecError(f"No gradient reaches any parameter of {name}: is its output detached?")
    return tuple(key for key in trainable if key not in reached)


def looks_like(
    model: nn.Module,
    task: Task,
    *,
    num_features: int,
    category_sizes: Sequence[int] = (),
    tensors: Sequence[Field] = (),
) -> str | None:
    """What the outputs seem to be, with advice, where they seem to be wrong; else None."""
    device = next(model.parameters()).device
    trial = copy.deepcopy(model).eval()
    with _own_randomness(device), torch.no_grad():
        inputs = _inputs(HINT_ROWS, num_features, category_sizes, tensors, device)
        # Far apart, so that logits would leave 0 to 1.
        inputs |= {n: x * HINT_SPREAD for n, x in inputs.items() if x.is_floating_point()}
        return task.advice(call(trial, [*inputs])(inputs))


def _width(model: nn.Module, inputs: Batch) -> int:
    """Columns of the outputs, 2 or more: what fewer, or an error, means is said by ``_outputs``."""
    with torch.no_grad():
        try:
            outputs = call(model, [*inputs])(inputs)
        except Exception:
            return 2
    columns = outputs.shape[1] if isinstance(outputs, Tensor) and outputs.dim() == 2 else 2
    return max(2, int(columns))


def _advice(shape: list[int], expected: list[int]) -> str:
    """A sentence on how outputs of a shape become those that are expected."""
    if shape == expected:  # of another type
        return ""
    if shape[:1] != expected[:1]:
        return (
            " Squeeze the last axis alone: squeeze(1)."
            if shape == expected[1:]
            else " Give each row of the features its outputs."
        )
    if len(expected) == 2:
        return f" The label has {expected[1]} classes: take num_outputs as an argument."
    if shape[1:] == [1]:
        return " Drop the last axis with squeeze(1)."
    return " Give one number a row: a last layer of one column, then squeeze(1)."


def _outputs(model: nn.Module, name: str, inputs: Batch, num_rows: int, num_outputs: int) -> Tensor:
    mode = "training" if model.training else "prediction"
    expected = [num_rows] if num_outputs == 1 else [num_rows, num_outputs]
    try:
        outputs = call(model, [*inputs])(inputs)
    except SpecError:
        raise
    except Exception as error:
        raise SpecError(
            f"{name} raised on {num_rows} row(s) in {mode}: {one_line(error)}."
        ) from error
    if not isinstance(outputs, Tensor):
        raise SpecError(
            f"{name} gave a {type(outputs).__name__} for {num_rows} row(s) in {mode}; "
            f"expected a float32 tensor of shape {expected}."
        )
    if list(outputs.shape) != expected or not outputs.is_floating_point():
        raise SpecError(
            f"{name} gave {outputs.dtype} of shape {list(outputs.shape)} for {num_rows} row(s) "
            f"in {mode}; expected floating point of shape {expected}."
            f"{_advice(list(outputs.shape), expected)}"
        )
    if model.training and not outputs.requires_grad:
        raise SpecError(f"No gradient reaches any parameter of {name}: is its output detached?")
    return outputs


def _loss(task: LabelTask, outputs: Tensor, labels: Tensor) -> Tensor:
    num_rows = len(outputs)
    try:
        loss = task.criterion.function(outputs, labels)
    except Exception as error:
        raise SpecError(f"{task.name} raised on {num_rows} row(s): {one_line(error)}.") from error
    if not isinstance(loss, Tensor) or list(loss.shape) not in ([], [num_rows]):
        shape = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise SpecError(
            f"{task.name} gave {shape} for {num_rows} row(s); expected a tensor: the sum of "
            f"the rows' losses (shape []) or one loss a row (shape [{num_rows}])."
        )
    if not loss.requires_grad:
        raise SpecError(
            f"The loss of {task.name} has no gradient. Compute it from the outputs with "
            "torch alone: no detach(), item() or numpy."
        )
    return task.criterion.sum(outputs, labels) if loss.dim() else loss


def _inputs(
    num_rows: int,
    num_features: int,
    category_sizes: Sequence[int],
    tensors: Sequence[Field],
    device: torch.device,
) -> dict[str, Tensor]:
    own = torch.Generator().manual_seed(0)
    found: dict[str, Tensor] = {}
    if has_features(num_features, tensors):
        found["features"] = torch.randn(num_rows, num_features, generator=own).to(device)
    if category_sizes:
        columns = [torch.randint(size, (num_rows,), generator=own) for size in category_sizes]
        found["categories"] = torch.stack(columns, dim=1).to(device)
    return found | made_tensors(tensors, num_rows, own, device)


def _labels(task: Task, num_rows: int, device: torch.device) -> Tensor:
    """Labels as training has them: float32, or int64 class indices."""
    return task.example(num_rows, device)[LABEL]


def _made_outputs(task: Task, num_rows: int) -> Tensor:
    shape = [num_rows] if task.num_outputs == 1 else [num_rows, task.num_outputs or 2]
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """What is drawn inside (dropout, a user's noise) leaves the generators as they were."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
