"""Any model that ``torch.func.vmap`` takes, the user's included: many at once through autograd."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from ddlflow.models.call import Batch, call
from ddlflow.sweep.fused import dropout
from ddlflow.sweep.fused.head import Head
from ddlflow.sweep.fused.program import Inputs, Step, aligned, row_of
from ddlflow.train.penalty import penalised

Shared = dict[str, Tensor]


class Vmapped:
    """A stack of models that differ in their numbers alone; a ``Program``.

    Args:
        net: one of them; its forward pass is that of all.
        head: their loss.
        inputs: gives made inputs of so many rows, to see what dropout draws.
    """

    wants_ones = False

    def __init__(self, net: nn.Module, head: Head, *, device: torch.device) -> None:
        self.head = head
        self.device = device
        self._solo = copy.deepcopy(net).to(device)
        self._net = copy.deepcopy(net).to(device)
        self._waiting = dropout.mask(self._net)
        self._has_dropout = bool(dropout.layers(self._solo))
        self._calls: dict[int, list[tuple[int, tuple[int, ...]]]] = {}
        acts_on = {id(parameter) for parameter in penalised(net)}
        self._columns: dict[str, tuple[int, torch.Size]] = {}
        self.penalised: list[slice] = []
        at = 0
        for name, parameter in net.named_parameters():
            if not parameter.requires_grad:
                continue
            self._columns[name] = (at, parameter.shape)
            if id(parameter) in acts_on:
                self.penalised.append(slice(at, at + parameter.numel()))
            at = aligned(at + parameter.numel())
        self.numbers = at
        self.example: Batch | None = None  # a row of inputs

    def pack(self, net: nn.Module, row: Tensor) -> None:
        known = dict(net.named_parameters())
        for name, (at, shape) in self._columns.items():
            row[at : at + shape.numel()] = known[name].detach().reshape(-1)

    def unpack(self, row: Tensor, net: nn.Module) -> None:
        known = dict(net.named_parameters())
        for name, (at, shape) in self._columns.items():
            known[name].data.copy_(row[at : at + shape.numel()].view(shape))

    def bind(self, weights: Tensor, grads: Tensor, nets: Sequence[nn.Module]) -> None:
        self._weights = {n: row_of(weights, *place) for n, place in self._columns.items()}
        self._grads = {n: row_of(grads, *place) for n, place in self._columns.items()}
        self._fixed: Shared = {}
        for name, _ in [*nets[0].named_parameters(), *nets[0].named_buffers()]:
            if name not in self._columns:
                values = [_named(net, name) for net in nets]
                self._fixed[name] = torch.stack(values).to(self.device)

    def dropouts(self, rows: int) -> list[tuple[int, tuple[int, ...]]]:
        if not self._has_dropout:
            return []
        if rows not in self._calls:
            assert self.example is not None
            inputs = {n: one.expand(rows, *one.shape[1:]) for n, one in self.example.items()}
            with dropout.recorded(self._solo.train()) as calls, torch.no_grad():
                call(self._solo, [*inputs])(inputs)
            self._calls[rows] = calls
        return self._calls[rows]

    def gradients(self, step: Step) -> Tensor | None:
        models = slice(step.first, step.last)
        leaves = {n: w[models].detach().requires_grad_() for n, w in self._weights.items()}
        outputs = self._forward(leaves, step)
        share = 1.0 / step.labels.shape[1]
        step.outputs.copy_(outputs.detach())
        z_grad = torch.empty_like(outputs)
        losses = self.head.gradient(step.outputs, step.labels, share, z_grad)
        found = torch.autograd.grad(
            outputs, list(leaves.values()), z_grad, allow_unused=True, materialize_grads=True
        )
        for name, grad in zip(leaves, found, strict=True):
            self._grads[name][models] = grad
        return losses

    def outputs(self, inputs: Inputs, out: Tensor) -> None:
        # Copies: a user's forward pass may change its inputs in place, and validation rows are
        # held for other stacks and epochs.
        features = inputs.features[0].clone().expand(inputs.features.shape)
        categories = None if inputs.categories is None else inputs.categories.clone()
        inputs = Inputs(inputs.first, inputs.last, features, categories)
        step = Step(inputs.first, inputs.last, [inputs], out, out)
        models = slice(step.first, step.last)
        self._net.eval()
        with torch.no_grad():
            out.copy_(self._forward({n: w[models] for n, w in self._weights.items()}, step))
        self._net.train()

    def _forward(self, weights: Shared, step: Step) -> Tensor:
        models = slice(step.first, step.last)
        fixed = {name: value[models] for name, value in self._fixed.items()}
        features, features_dim = _joined([part.features for part in step.inputs])
        batch, dims = {"features": features}, {"features": features_dim}
        codes = [part.categories for part in step.inputs if part.categories is not None]
        if codes:
            sizes = [part.last - part.first for part in step.inputs]
            spread = [c.expand(n, *c.shape) for c, n in zip(codes, sizes, strict=True)]
            categories, categories_dim = _joined(spread)
            batch["categories"], dims["categories"] = categories, categories_dim
        noise = self._noise(step)
        known = call(self._net, [*batch])

        def one(weights: Shared, fixed: Shared, batch: Shared, noise: list[Tensor]) -> Tensor:
            self._waiting[:] = noise
            args, named = known.arguments(batch)
            result: Tensor = functional_call(self._net, {**weights, **fixed}, args, named)
            return result

        batched = vmap(one, in_dims=(0, 0, dims, 0), randomness="error")
        outputs: Tensor = batched(weights, fixed, batch, noise)
        return outputs

    def _noise(self, step: Step) -> list[Tensor]:
        """Each draw's factors for all models of the step, [models, ...]; 1 where there are none."""
        if not self._net.training or not self._has_dropout:
            return []
        calls = self.dropouts(step.labels.shape[1])
        models = step.last - step.first
        factors = [torch.ones(models, *shape, device=self.device) for _, shape in calls]
        for first, last, drawn in step.noise:
            for whole, piece in zip(factors, drawn, strict=True):
                if piece is not None:
                    whole[first - step.first : last - step.first] = piece
        return factors


def _joined(parts: list[Tensor]) -> tuple[Tensor, int | None]:
    """The models' values [models, ...] with axis 0, or what all share with None."""
    if len(parts) == 1 and (parts[0].stride(0) == 0 or len(parts[0]) == 1):
        return parts[0][0], None
    return torch.cat(parts), 0


def _named(net: nn.Module, name: str) -> Tensor:
    found = dict(net.named_parameters()) | dict(net.named_buffers())
    return found[name].detach()
