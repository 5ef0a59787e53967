"""Which members train together: what parts stacks, and why a member is trained apart."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import UserCode
from ddlflow.sweep.fused import dense
from ddlflow.sweep.fused.feasible import why_apart
from ddlflow.sweep.fused.optimizers import kind_of
from ddlflow.sweep.member import Member, Prepared, first_nets, resolved, task_of

Fuse = Literal["auto", "always", "never"]


_MODULES_OWN = set(vars(nn.Module()))  # what every module has, ``training`` among it


@dataclass(frozen=True, slots=True)
class MemberGroup:
    """Members of one kind.

    Attributes:
        members: whose models may share a stack; they may be cut into several.
        apart: a clause that says why each of them is trained apart; None where they need not be.
    """

    members: tuple[Member, ...]
    apart: str | None


def plan_stacks(
    members: Sequence[Member], prepared: Prepared, *, fuse: Fuse = "auto"
) -> list[MemberGroup]:
    """Groups members by what parts stacks.

    That is the shape and kind of the model, the kind of optimizer, the objective and whether its
    label is standardised, the rows of a batch and the precision. Numbers may differ: lr, weight
    decay, momentum, betas, eps, dropout, penalties, schedule, clipping, early stopping, epochs,
    seed, fold.

    Args:
        members: of one data set.
        prepared: the data set.
        fuse: never: all are apart. always: a member that has to be apart is an error.

    Returns:
        Groups in the order of their first members.

    Raises:
        SpecError: a model or loss of the user's that cannot be made; with ``always``, a member
            that has to be trained apart.
    """
    nets = first_nets(members, prepared)
    groups: dict[str, list[tuple[Member, nn.Module]]] = {}
    for member, net in zip(members, nets, strict=True):
        groups.setdefault(_key(member, net), []).append((member, net))
    planned = []
    for group in groups.values():
        apart = "sweep.fuse is never" if fuse == "never" else _why_apart(*group[0], prepared)
        if apart and fuse == "always":
            raise SpecError(
                f"sweep.fuse is always, but {group[0][0].id} has to be trained apart: {apart}. "
                "Use fuse: auto."
            )
        planned.append(MemberGroup(tuple(member for member, _ in group), apart))
    return planned


def _why_apart(member: Member, net: nn.Module, prepared: Prepared) -> str | None:
    manifest = prepared.manifest
    if manifest.has_weights or member.train.class_weights is not None:
        return "rows that count unlike (data.weight, train.class_weights) are trained apart"
    if manifest.tensors:
        names = ", ".join(field.name for field in manifest.tensors[:5])
        return f"a stack has features and categories alone, and there are tensors: {names}"
    return why_apart(
        net,
        task_of(member, prepared),
        member.train,
        num_features=len(manifest.feature_names),
        category_sizes=[category.size for category in manifest.categories],
        device=prepared.device,
    )


def _key(member: Member, net: nn.Module) -> str:
    """Equal for members that may share a stack."""
    train = member.train
    objective: Any = train.objective
    return json.dumps(
        [
            resolved(objective) if isinstance(objective, UserCode) else objective,
            train.standardises_label,
            train.class_weights,
            train.batch_rows,
            train.precision,
            kind_of(train.optimizer),
            _shape(member, net),
        ],
        sort_keys=True,
    )


def _shape(member: Member, net: nn.Module) -> Any:
    """What tells models of unlike forward passes apart.

    Of a built-in model its section but for what sets first weights and dropout alone. Of the
    user's its modules with their plain attributes, the rates of dropout left out; where a module
    has other attributes, the arguments it was made with.
    """
    if dense.takes(net):
        section = resolved(member.model)
        return {k: v for k, v in section.items() if k not in {"dropout", "start"}}
    parts: list[Any] = []
    for name, part in net.named_modules():
        free = _MODULES_OWN | ({"p"} if type(part) is nn.Dropout else set())
        attributes = {k: v for k, v in vars(part).items() if k not in free}
        if not all(_is_plain(value) for value in attributes.values()):
            return [resolved(member.model), _tensors(net)]
        parts.append([name, f"{type(part).__module__}.{type(part).__qualname__}", attributes])
    return [parts, _tensors(net)]


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(inner) for inner in value)
    return value is None or isinstance(value, bool | int | float | str)


def _tensors(net: nn.Module) -> list[Any]:
    named: list[tuple[str, torch.Tensor]] = [*net.named_parameters(), *net.named_buffers()]
    return [[name, list(t.shape), str(t.dtype), t.requires_grad] for name, t in named]
