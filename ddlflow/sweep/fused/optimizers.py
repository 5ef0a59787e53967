"""torch's optimizers over a stack of models: each a few passes over [models, numbers].

The formulas are those of ``torch.optim`` as ``ddlflow.train.optimizers`` calls it; a setting is a
column [models, 1].
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from ddlflow.spec.pipeline import AnyOptimizer, Optimizer, Training
from ddlflow.spec.train import Adagrad, Adam, RmsProp, Sgd

# The state that each optimizer keeps beside the weights, by the pipeline's name.
STATE: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum",),
    "adagrad": ("sum",),
    "rmsprop": ("square", "momentum"),
    "adam": ("mean", "square"),
    "adamw": ("mean", "square"),
}
# One step, given the learning rates [models, 1] and the one that all models have, if they do.
Advance = Callable[[Tensor, float | None], None]
_Kind = TypeVar("_Kind", Sgd, Adagrad, RmsProp, Adam)


def kind_of(spec: AnyOptimizer) -> tuple[object, ...]:
    """What has to be equal for two optimizers to step together."""
    return (spec.use, spec.nesterov) if isinstance(spec, Sgd) else (spec.use,)


def stepping(spec: Training) -> Optimizer:
    """The optimizer of a member that may be in a stack: one that steps batch by batch."""
    assert isinstance(spec.optimizer, Optimizer)
    return spec.optimizer


def state_names(specs: Sequence[Training]) -> list[str]:
    """The state that a stack's optimizer needs: momentum only where a model has any."""
    names = STATE[specs[0].optimizer.use]
    has_momentum = any(_momentum(spec.optimizer) for spec in specs)
    return [name for name in names if name != "momentum" or has_momentum]


@dataclass(frozen=True, slots=True)
class Span:
    """Neighbouring models of a stack, as views."""

    first: int
    last: int
    specs: list[Training]
    steps: list[int]
    weights: Tensor
    grads: Tensor
    scratch: Tensor
    state: dict[str, Tensor]
    penalised: list[tuple[Tensor, Tensor]]  # (weights, gradients) that a penalty acts on
    signs: list[Tensor]

    def column(self, values: Sequence[float]) -> Tensor:
        """A number a model, [models, 1]."""
        return torch.tensor(values, dtype=torch.float32, device=self.weights.device).unsqueeze(1)


def advance_of(span: Span) -> Advance:
    """The optimizer of these models; good while they step together."""
    return _ADVANCE[span.specs[0].optimizer.use](span)


def _decay(span: Span) -> Callable[[], None]:
    """Weight decay as a part of the gradient."""
    decays = [stepping(spec).weight_decay for spec in span.specs]
    if not any(decays):
        return lambda: None
    column = span.column(decays)

    def decay() -> None:
        span.grads.addcmul_(span.weights, column)

    return decay


def _momentum(spec: AnyOptimizer) -> float:
    return spec.momentum if isinstance(spec, Sgd | RmsProp) else 0.0


def _sgd(span: Span) -> Advance:
    decay, momentum = _decay(span), span.state.get("momentum")
    first = span.specs[0].optimizer
    nesterov = isinstance(first, Sgd) and first.nesterov
    factors = span.column([_momentum(spec.optimizer) for spec in span.specs])

    def advance(lr: Tensor, _: float | None) -> None:
        decay()
        pull = span.grads
        if momentum is not None:
            momentum.mul_(factors).add_(pull)
            pull = pull.addcmul_(momentum, factors) if nesterov else momentum
        span.weights.addcmul_(pull, lr, value=-1)

    return advance


def _adagrad(span: Span) -> Advance:
    decay, total = _decay(span), span.state["sum"]
    eps = span.column([_number(spec.optimizer, Adagrad).eps for spec in span.specs])

    def advance(lr: Tensor, _: float | None) -> None:
        decay()
        total.addcmul_(span.grads, span.grads)
        torch.sqrt(total, out=span.scratch)
        torch.div(span.grads, span.scratch.add_(eps), out=span.scratch)
        span.weights.addcmul_(span.scratch, lr, value=-1)

    return advance


def _rmsprop(span: Span) -> Advance:
    decay, square, momentum = _decay(span), span.state["square"], span.state.get("momentum")
    specs = [_number(spec.optimizer, RmsProp) for spec in span.specs]
    alpha, rest = (span.column([f(s.alpha) for s in specs]) for f in (float, lambda a: 1 - a))
    eps = span.column([s.eps for s in specs])
    factors = span.column([s.momentum for s in specs])

    def advance(lr: Tensor, _: float | None) -> None:
        decay()
        torch.mul(span.grads, span.grads, out=span.scratch)
        square.mul_(alpha).addcmul_(span.scratch, rest)
        torch.sqrt(square, out=span.scratch)
        pull = torch.div(span.grads, span.scratch.add_(eps), out=span.scratch)
        if momentum is not None:
            pull = momentum.mul_(factors).add_(pull)
        span.weights.addcmul_(pull, lr, value=-1)

    return advance


def _adam(span: Span) -> Advance:
    """torch's one-pass kernel, once for each pair of betas and eps.

    Models of several learning rates step from zeros at rate 1, and the rates multiply that.
    """
    decoupled = span.specs[0].optimizer.use == "adamw"
    decays = [stepping(spec).weight_decay for spec in span.specs]
    decay = span.column(decays) if any(decays) else None
    kernels = _adam_kernels(span)

    def advance(lr: Tensor, one_lr: float | None) -> None:
        if decay is not None and decoupled:
            span.weights.mul_(1 - lr * decay)
        elif decay is not None:
            span.grads.addcmul_(span.weights, decay)
        if one_lr is not None:
            for kernel in kernels:
                kernel(span.weights, one_lr)
            return
        span.scratch.zero_()
        for kernel in kernels:
            kernel(span.scratch, 1.0)
        span.weights.addcmul_(span.scratch, lr)

    return advance


def _adam_kernels(span: Span) -> list[Callable[[Tensor, float], None]]:
    specs = [_number(spec.optimizer, Adam) for spec in span.specs]
    # Runs of neighbours with equal settings and as many steps behind them.
    keyed = [(*spec.betas, spec.eps, steps) for spec, steps in zip(specs, span.steps, strict=True)]
    runs: dict[tuple[float, float, float], list[tuple[int, int, int]]] = {}
    at = 0
    for (beta1, beta2, eps, steps), group in groupby(keyed):
        stop = at + len(list(group))
        runs.setdefault((beta1, beta2, eps), []).append((at, stop, steps))
        at = stop

    def kernel_of(
        settings: tuple[float, float, float], pieces: list[tuple[int, int, int]]
    ) -> Callable[[Tensor, float], None]:
        cut = [slice(start, stop) for start, stop, _ in pieces]
        grads = [span.grads[rows] for rows in cut]
        means = [span.state["mean"][rows] for rows in cut]
        squares = [span.state["square"][rows] for rows in cut]
        device = span.weights.device
        steps = [torch.tensor(float(done), device=device) for _, _, done in pieces]
        views: dict[int, list[Tensor]] = {}

        def kernel(target: Tensor, lr: float) -> None:
            cuts = views.get(id(target))
            if cuts is None:
                cuts = views[id(target)] = [target[rows] for rows in cut]
            for one in steps:
                one.add_(1)
            torch._fused_adam_(
                cuts,
                grads,
                means,
                squares,
                [],
                steps,
                lr=lr,
                beta1=settings[0],
                beta2=settings[1],
                weight_decay=0.0,
                eps=settings[2],
                amsgrad=False,
                maximize=False,
            )

        return kernel

    return [kernel_of(settings, pieces) for settings, pieces in runs.items()]


def _number(spec: AnyOptimizer, kind: type[_Kind]) -> _Kind:
    assert isinstance(spec, kind)
    return spec


_ADVANCE: dict[str, Callable[[Span], Advance]] = {
    "sgd": _sgd,
    "adagrad": _adagrad,
    "rmsprop": _rmsprop,
    "adam": _adam,
    "adamw": _adam,
}
