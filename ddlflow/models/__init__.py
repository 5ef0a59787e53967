"""Models: plain ``nn.Module``, one file a family.

Every model, built-in or the user's, is made from keyword arguments (its own from the pipeline,
plus ``num_features``, ``category_sizes`` and ``num_outputs``) and called with the data's fields
that its ``forward`` names (``ddlflow.models.call``), of

    features      float32 [n, F], standardised
    categories    int32 or int64 [n, C], where the data has categories

It gives float32 [n] for binary and regression, [n, classes] for multiclass.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from ddlflow.errors import SpecError
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

    Raises:
        SpecError: no columns at all, one that is used and not there, or user code that cannot be
            bound, raises or makes no ``nn.Module``, or whose lazy layers find no shape.
    """
    if num_features == 0 and not category_sizes:
        raise SpecError("The model has no inputs. Name at least one feature in data.features.")
    shape = {
        "num_features": num_features,
        "category_sizes": list(category_sizes),
        "num_outputs": num_outputs,
    }
    if isinstance(spec, pipeline.UserCode):
        if user_class is None:
            raise SpecError(f"model.use is {spec.use}, which has not been resolved to a class.")
        made = build_user(spec.use, user_class, spec.arguments, offered=shape)
        return ready(spec.use, made, num_features=num_features, num_categories=len(category_sizes))
    arguments = spec.model_dump(exclude={"use", "features", "pca"})
    if isinstance(spec, pipeline.Linear) and spec.features is not None:
        at = positions(spec.features, names)
        numeric = tuple(k for k in at if k < num_features)
        arguments["only"] = numeric, tuple(k - num_features for k in at if k >= num_features)
    if spec.pca is not None:
        shape["num_features"] = spec.pca
    net = BUILT_IN[spec.use](**shape, **arguments)
    if from_zero and isinstance(net, Mlp):
        nn.init.zeros_(net.last.weight)
    if spec.pca is not None:
        return Projected(net, num_features=num_features, components=spec.pca)
    return net


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
