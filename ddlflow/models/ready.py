"""A user's model as training needs it: every layer has its shape, and one row is enough."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from ddlflow.data.fields import Field
from ddlflow.errors import SpecError
from ddlflow.models.call import call
from ddlflow.models.example import has_features, made_tensors
from ddlflow.models.user import one_line


def ready(
    name: str,
    model: nn.Module,
    *,
    num_features: int,
    num_categories: int = 0,
    tensors: Sequence[Field] = (),
) -> nn.Module:
    """Gives lazy layers their shapes, and lets batch norm train on a slice of one row.

    Args:
        name: ``module:name`` as the pipeline has it, for messages.
        model: changed in place, and returned.
        num_features: columns of ``features``.
        num_categories: columns of ``categories``; 0 where the model is called without them.
        tensors: the data's tensors and sequences.

    Raises:
        SpecError: the forward pass raises, or leaves a lazy layer out.
    """
    if _lazy(model):
        inputs: dict[str, Tensor] = {}
        if has_features(num_features, tensors):
            inputs["features"] = torch.zeros(2, num_features)
        if num_categories:
            inputs["categories"] = torch.zeros(2, num_categories, dtype=torch.int32)
        own = torch.Generator().manual_seed(0)
        inputs |= made_tensors(tensors, 2, own, torch.device("cpu"))
        _materialise(name, model, inputs)
    for part in model.modules():
        if isinstance(part, _BatchNorm):
            part.register_forward_pre_hook(_before)
            part.register_forward_hook(_after, always_call=True)
    return model


def _lazy(model: nn.Module) -> list[str]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return [name for name, tensor in named if is_lazy(tensor)]


def _materialise(name: str, model: nn.Module, inputs: dict[str, Tensor]) -> None:
    """One forward pass over made rows: the first weights are drawn in it, layer by layer.

    In prediction mode: no dropout draws between them, and no running statistics change. So the
    weights are a function of torch's generator alone, as those of other layers are.
    """
    modes = [(part, part.training) for part in model.modules()]
    try:
        with torch.no_grad():
            call(model.eval(), [*inputs])(inputs)
    except SpecError:
        raise
    except Exception as error:
        shapes = ", ".join(f"{n} {list(one.shape[1:])}" for n, one in inputs.items())
        if [*inputs] == ["features"]:
            shapes = f"{inputs['features'].shape[1]} features"
        raise SpecError(
            f"{name} raised on 2 rows of {shapes}, which give its lazy layers their shapes: "
            f"{one_line(error)}."
        ) from error
    for part, training in modes:
        part.training = training
    left = _lazy(model)
    if left:
        raise SpecError(
            f"{name} has lazy layers that its forward pass in prediction mode leaves out: "
            f"{', '.join(left[:5])}. Give them their sizes, or remove them."
        )


# ---- batch norm of one value ---------------------------------------------------------------------


def _before(layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """One value a channel has no variance, and torch refuses it.

    But the last global batch of an epoch may leave a slice one row. It is normalised by the running
    statistics, and these stay, as in ``models.mlp.BatchNorm``. Where the layer keeps none, the row
    counts twice: what batch statistics make of equal rows.
    """
    (rows,) = inputs
    alone = layer.training and rows.dim() > 1 and 0 < rows.numel() == rows.shape[1]
    if not alone or (isinstance(layer, nn.SyncBatchNorm) and _shares_rows(layer)):
        return None
    mean: Tensor | None = vars(layer)["_buffers"]["running_mean"]
    if mean is None:
        layer._twice = True  # type: ignore[assignment] # for `_after`
        return (torch.cat([rows, rows]),)
    layer._alone, layer.training = True, False  # type: ignore[assignment]
    return None


def _after(layer: nn.Module, _inputs: tuple[Any, ...], outputs: Tensor | None) -> Tensor | None:
    if vars(layer).pop("_alone", False):
        layer.training = True
    if vars(layer).pop("_twice", False) and outputs is not None:
        return outputs[:1]
    return None


def _shares_rows(layer: nn.SyncBatchNorm) -> bool:
    """Whether the layer takes its statistics over the rows of several processes."""
    return dist.is_initialized() and dist.get_world_size(layer.process_group) > 1
