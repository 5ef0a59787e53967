"""User code is found, bound to its arguments and tried on a few made rows of the data's shape."""

from collections.abc import Iterator
from dataclasses import dataclass

from ddlflow.data.fields import Field
from ddlflow.data.roles import Roles
from ddlflow.data.shards.manifest import Manifest
from ddlflow.runs.check.finding import Finding
from ddlflow.spec import code
from ddlflow.spec.load import Request
from ddlflow.spec.pipeline import UserCode

# What stands for numbers that prepare counts.
CODES, CLASSES = 5, 3


@dataclass(frozen=True, slots=True)
class Shape:
    """What a model is made for.

    Attributes:
        num_features: numeric columns.
        category_sizes: codes of each categorical column.
        tensors: the data's tensors and sequences.
        num_classes: of a class label; None: not counted yet, a model may have outputs for any
            number of them.
    """

    num_features: int
    category_sizes: tuple[int, ...]
    tensors: tuple[Field, ...]
    num_classes: int | None


def expected(request: Request, roles: Roles) -> Shape:
    """By the headers alone."""
    classes = None if request.pipeline.labels == "multiclass" else 2
    return Shape(len(roles.numeric), (CODES,) * len(roles.categorical), roles.tensors, classes)


def counted(manifest: Manifest) -> Shape:
    """Of prepared data."""
    sizes = tuple(category.size for category in manifest.categories)
    return Shape(len(manifest.feature_names), sizes, manifest.tensors, len(manifest.label.classes))


def model(request: Request, shape: Shape) -> Iterator[Finding]:
    """Tries the pipeline's model and loss, where one of them is the user's.

    Raises:
        SpecError: it cannot be trained; the text says why.
    """
    named = code.names(request.pipeline)
    if not named and not shape.tensors:
        return
    from ddlflow.models import build
    from ddlflow.train.probe import check_model, check_weighted, looks_like
    from ddlflow.train.tasks.table import resolved_task
    from ddlflow.train.tasks.target import LabelTarget

    spec, loss = request.pipeline.model, request.pipeline.train.objective
    task = resolved_task(loss, request.code_folder, LabelTarget(num_classes=shape.num_classes))
    counted = task.num_outputs or CLASSES
    user_class = None
    if isinstance(spec, UserCode):
        user_class = code.resolve(spec.use, request.code_folder)
    net = build(
        spec,
        num_features=shape.num_features,
        category_sizes=shape.category_sizes,
        num_outputs=counted,
        user_class=user_class,
        tensors=shape.tensors,
    )
    if not named:
        return
    if request.pipeline.data.weight or request.pipeline.train.class_weights:
        check_weighted(task)
    unreached = check_model(
        net,
        task,
        num_features=shape.num_features,
        category_sizes=shape.category_sizes,
        tensors=shape.tensors,
    )
    size = sum(parameter.numel() for parameter in net.parameters())
    yield Finding("model", "ok", f"{' and '.join(named.values())}: tried; {size:,} parameters.")
    if unreached:
        text = f"no gradient reaches {', '.join(unreached[:5])}: these stay as they start."
        yield Finding("model", "note", text)
    hint = looks_like(
        net,
        task,
        num_features=shape.num_features,
        category_sizes=shape.category_sizes,
        tensors=shape.tensors,
    )
    if hint is not None and isinstance(spec, UserCode):
        yield Finding("model", "note", f"{spec.use} gives what looks like {hint}")
