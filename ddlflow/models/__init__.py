"""Models: plain ``nn.Module``, one file a family.

Every model, built-in or the user's, is made from keyword arguments (its own from the pipeline,
plus ``num_features``, ``category_sizes``, ``num_outputs`` and ``fields``) and called with the
data's fields that its ``forward`` names (``ddlflow.models.call``), of

    features         float32 [n, F], standardised
    categories       int32 or int64 [n, C], where the data has categories
    <tensor>         float32 [n, *shape], standardised, of each column of tensors
    <sequence>       float32 [n, T, *shape], standardised, then padded with zeros to the longest
    <sequence>_length int64 [n], steps of each; T is 1 at least

It gives float32 [n] for binary and regression, [n, classes] for multiclass.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ddlflow.data.fields import LENGTH, Field
from ddlflow.errors import SpecError
from ddlflow.models.example import has_features
from ddlflow.models.flatten import Flattened, check_flat
from ddlflow.models.linear import Linear
from ddlflow.models.mlp import Mlp
from ddlflow.models.pca import Projected
from ddlflow.models.ready import ready
from ddlflow.models.user import build_user
from ddlflow.spec import pipeline
from ddlflow.spec.explain import nearest

BUILT_IN: dict[str, type[nn.Module]] = {"linear": Linear, "mlp": Mlp}


def build(
    spec: pipeline.Model,
    *,
    num_features: int,
    category_sizes: Sequence[int],
    num_outputs: int,
    user_class: Callable[..., Any] | None = None,
    from_zero: bool = False,
    names: Sequence[str] = (),
    tensors: Sequence[Field] = (),
) -> nn.Module:
    """Make the model that a pipeline names.

    Its first weights depend on torch's default generator alone: seed that to repeat them.

    Args:
        spec: the pipeline's ``model`` section.
        num_features: numeric columns; may be 0 where there are categories.
        category_sizes: codes of each categorical column, the bucket of unseen ones included.
        num_outputs: 1 for binary and regression, else the number of classes.
        user_class: for user code, what ``spec.use`` was resolved to. Of the three above it gets
            those that it has parameters for.
        from_zero: whether a built-in model's outputs start at 0. Where the label is standardised
            that is its mean, the best that is known before the first step; random outputs would
            first have to be unlearnt. Source: measured with mlp [100], Adam and early stopping on
            353 rows of a weak relation, 12 seeds: R2 0.05 behind ridge from random outputs at
            their best, 0.01 from 0.
        names: of the columns, the numeric ones first: for a model that uses some of them.
        tensors: the data's tensors and sequences. User code may have their shapes, and those of
            features and categories, as ``fields`` (of a sequence, the first axis is None). A
            built-in model takes tensors flattened, beside the features.

    Raises:
        SpecError: no columns at all, one that is used and not there, a sequence for a built-in
            model, or user code that cannot be bound, raises or makes no ``nn.Module``, or whose
            lazy layers find no shape.
    """
    if num_features == 0 and not category_sizes and not tensors:
        raise SpecError("The model has no inputs. Name at least one feature in data.features.")
    shape = {
        "num_features": num_features,
        "category_sizes": list(category_sizes),
        "num_outputs": num_outputs,
    }
    if isinstance(spec, pipeline.UserCode):
        if user_class is None:
            raise SpecError(f"model.use is {spec.use}, which has not been resolved to a class.")
        offered: dict[str, Any] = {**shape}
        if tensors or "fields" in inspect.signature(user_class).parameters:
            offered["fields"] = _shapes(num_features, category_sizes, tensors)
        made = build_user(spec.use, user_class, spec.arguments, offered=offered)
        num_categories = len(category_sizes)
        known = {"num_features": num_features, "num_categories": num_categories}
        return ready(spec.use, made, **known, tensors=tensors)
    arguments = spec.model_dump(exclude={"use", "features", "pca"})
    used = tensors
    if isinstance(spec, pipeline.LinearSection) and spec.features is not None:
        at = positions(spec.features, names)
        used = [field for field in tensors if field.name in spec.features]
        numbers, columns = num_features, num_features + len(category_sizes)
        numeric = [k for k in at if k < numbers]
        numeric += range(numbers, numbers + sum(field.size for field in used))
        arguments["only"] = tuple(numeric), tuple(k - numbers for k in at if numbers <= k < columns)
    check_flat(spec.use, used)
    if spec.pca is not None and tensors:
        raise SpecError(
            f"model.pca is fitted to numeric features, and {tensors[0].shown} is a tensor. Leave "
            "model.pca out, or list the column in data.exclude."
        )
    shape["num_features"] = spec.pca or num_features + sum(field.size for field in used)
    net = BUILT_IN[spec.use](**shape, **arguments)
    if from_zero and isinstance(net, Mlp):
        nn.init.zeros_(net.last.weight)
    if spec.pca is not None:
        return Projected(net, num_features=num_features, components=spec.pca)
    if tensors:
        inputs = [*_shapes(num_features, category_sizes, tensors)]
        return Flattened(net, inputs=inputs, tensors=[field.name for field in used])
    return net


def _shapes(
    num_features: int, category_sizes: Sequence[int], tensors: Sequence[Field]
) -> dict[str, tuple[int | None, ...]]:
    """The shape of one sample of each input field; None: as long as the longest sequence."""
    found: dict[str, tuple[int | None, ...]] = {}
    if has_features(num_features, tensors):
        found["features"] = (num_features,)
    if category_sizes:
        found["categories"] = (len(category_sizes),)
    for field in tensors:
        found[field.name] = field.batch_shape
        if field.is_sequence:
            found[field.name + LENGTH] = ()
    return found


def positions(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Where the columns that a model uses stand among all, in the order of all.

    Raises:
        SpecError: one of them is no feature of the data.
    """
    for name in wanted:
        if name not in names:
            raise SpecError(
                f"model.features names {name}, which is no feature of the data."
                f"{nearest(name, names)} The features are: {', '.join(list(names)[:20])}."
            )
    return [k for k, name in enumerate(names) if name in wanted]
