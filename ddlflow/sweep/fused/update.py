"""One optimizer step of many models: each with its own settings, all in a few passes.

Weights, gradients and the optimizer's state are matrices [models, numbers]; a setting is a column
[models, 1]. The formulas are those of ``torch.optim`` as ``ddlflow.train.optimizers`` calls it,
with the penalties of ``ddlflow.train.penalty`` and torch's clipping by norm before them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ddlflow.spec.pipeline import Training
from ddlflow.sweep.fused.optimizers import Span, advance_of, state_names, stepping
from ddlflow.train.schedules import factor, is_constant


class Update:
    """The optimizer of a stack.

    Args:
        specs: each model's train section; of one ``kind_of``.
        steps_per_epoch: of each model.
        weights: float32 [models, numbers], changed in place.
        grads: of the same shape; used up by a step.
        penalised: the columns that a penalty acts on, as runs.

    Attributes:
        state: name -> [models, numbers].
        steps: done by each model.
    """

    def __init__(
        self,
        specs: Sequence[Training],
        steps_per_epoch: Sequence[int],
        weights: Tensor,
        grads: Tensor,
        penalised: Sequence[slice],
    ) -> None:
        self.specs = list(specs)
        self.steps_per_epoch = list(steps_per_epoch)
        self.weights, self.grads, self.penalised = weights, grads, list(penalised)
        self.scratch = torch.empty_like(weights)
        self.steps = [0] * len(specs)
        self.state = {name: torch.zeros_like(weights) for name in state_names(specs)}

    def keep(self, rows: Sequence[int], weights: Tensor, grads: Tensor) -> None:
        """The stack goes on with these of its models alone, in these matrices."""
        index = torch.tensor(rows, dtype=torch.int64, device=weights.device)
        self.specs = [self.specs[row] for row in rows]
        self.steps_per_epoch = [self.steps_per_epoch[row] for row in rows]
        self.steps = [self.steps[row] for row in rows]
        self.state = {name: value.index_select(0, index) for name, value in self.state.items()}
        self.weights, self.grads = weights, grads
        self.scratch = torch.empty_like(weights)

    def rate(self, model: int, step: int) -> float:
        """The learning rate of a model's step (from 0)."""
        spec, per_epoch = self.specs[model], self.steps_per_epoch[model]
        if is_constant(spec.schedule):
            return stepping(spec).lr
        total = per_epoch * spec.epochs
        lr = factor(spec.schedule, step, steps_per_epoch=per_epoch, total_steps=total)
        return stepping(spec).lr * lr

    def of(self, first: int, last: int) -> Callable[[], None]:
        """What does one step of the models [first, last), whose gradients are those of the mean
        loss; good until one of them does a step that the others do not, or leaves.
        """
        span = self._span(first, last)
        before = [act for act in (_penalty(span), _clipping(span)) if act is not None]
        after = _stop_at_zero(span)
        advance = advance_of(span)
        rates = _rates(self, span)

        def step() -> None:
            for act in before:
                act()
            advance(*rates())
            if after is not None:
                after()
            for model in range(first, last):
                self.steps[model] += 1

        return step

    def _span(self, first: int, last: int) -> Span:
        rows = slice(first, last)
        specs = self.specs[rows]
        weights, grads = self.weights[rows], self.grads[rows]
        penalised = [(weights[:, run], grads[:, run]) for run in self.penalised]
        has_l1 = any(spec.penalty.l1 for spec in specs)
        return Span(
            first,
            last,
            specs,
            self.steps[rows],
            weights,
            grads,
            self.scratch[rows],
            {name: value[rows] for name, value in self.state.items()},
            penalised,
            [torch.empty_like(weight) for weight, _ in penalised] if has_l1 else [],
        )


Rates = tuple[Tensor, float | None]


def _rates(update: Update, span: Span) -> Callable[[], Rates]:
    """Gives each step's learning rates [models, 1], and the one that all have, if they do."""

    def packed(rates: list[float]) -> Rates:
        return span.column(rates), rates[0] if len(set(rates)) == 1 else None

    models = range(span.first, span.last)
    if all(is_constant(spec.schedule) for spec in span.specs):
        constant = packed([update.rate(model, 0) for model in models])
        return lambda: constant

    def now() -> Rates:
        known: dict[tuple[object, ...], float] = {}  # most models share one schedule
        rates = []
        for model in models:
            spec, step = update.specs[model], update.steps[model]
            key = (id(spec.schedule), spec.epochs, update.steps_per_epoch[model], step)
            if key not in known:
                known[key] = update.rate(model, step) / stepping(spec).lr
            rates.append(known[key] * stepping(spec).lr)
        return packed(rates)

    return now


def _penalty(span: Span) -> Callable[[], None] | None:
    """Adds the penalties' gradients."""
    penalties = [spec.penalty for spec in span.specs]
    has_l1, has_l2 = any(p.l1 for p in penalties), any(p.l2 for p in penalties)
    if not (has_l1 or has_l2) or not span.penalised:
        return None
    twice_l2 = span.column([2 * p.l2 for p in penalties])
    l1 = span.column([p.l1 for p in penalties])
    active = (l1 > 0).float()

    def add() -> None:
        if has_l2:
            for weight, grad in span.penalised:
                grad.addcmul_(weight, twice_l2)
        for (weight, grad), sign in zip(span.penalised, span.signs, strict=False):
            torch.sign(weight, out=sign)
            at_zero = torch.clamp(-grad, -l1, l1)
            grad.add_(torch.where(sign == 0, at_zero, l1 * sign))
            sign.mul_(active)  # of a model without l1 no weight has to stop

    return add


def _stop_at_zero(span: Span) -> Callable[[], None] | None:
    if not span.signs:
        return None

    def stop() -> None:
        for (weight, _), sign in zip(span.penalised, span.signs, strict=True):
            weight.masked_fill_(weight * sign < 0, 0.0)

    return stop


def _clipping(span: Span) -> Callable[[], None] | None:
    """Scales the gradients of the models whose norm is too great, as torch's clip_grad_norm_."""
    norms = [spec.clip_norm for spec in span.specs]
    if all(norm is None for norm in norms):
        return None
    # 0 stands for none: a division by the norm must not touch what is not clipped.
    most = span.column([norm or 0.0 for norm in norms])
    clipped = most > 0

    def clip() -> None:
        norm = torch.linalg.vector_norm(span.grads, dim=1, keepdim=True)
        share = (most / (norm + 1e-6)).clamp_(max=1.0)
        span.grads.mul_(torch.where(clipped, share, 1.0))

    return clip
