"""How much each row counts: the source's weights, and those of its class.

The loss of a batch is the sum of weight times loss over its rows, divided by their number: slices
add up exactly, whoever computes them. So weights have the mean 1 over the rows that are trained on.
Metrics are weighted by the source's weights alone, but for the loss itself, which is what the
training minimises. Features are standardised without any weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ddlflow.data.shards.manifest import Manifest
from ddlflow.errors import SpecError
from ddlflow.spec.pipeline import Train

if TYPE_CHECKING:
    from torch import Tensor  # a run whose stages are all cached needs names alone

# Parts of a row of mean weight. A weight is rounded by half a part, 3e-8 of a mean row, and so are
# the metrics at most; 2^39 rows of mean weight can be counted.
UNIT = 1 << 24
YAML_WORDS = {"true": ("yes", "on", "true"), "false": ("no", "off", "false")}


@dataclass(frozen=True, slots=True)
class Weighting:
    """What the weights of rows are made of.

    Attributes:
        has_column: whether rows have a weight of their own, in the source's units.
        by_class: what a row of each class, of a regression any row, has in the loss for one unit
            of its own weight; empty where every row counts 1.
        mean: of the training rows' own weights.
    """

    has_column: bool = False
    by_class: tuple[float, ...] = ()
    mean: float = 1.0

    def of_loss(self, labels: "Tensor", own: "Tensor | None") -> "Tensor":
        """Float32 [n]: the weight of each row in the loss.

        Args:
            labels: [n], of classes their numbers.
            own: [n] the rows' own weights, where they have any.
        """
        import torch

        table = torch.tensor(self.by_class, dtype=torch.float64, device=labels.device)
        factors = table[labels.long()] if len(table) > 1 else table.expand(len(labels))
        return (factors if own is None else factors * own).float()

    def of_scores(self, own: "Tensor | None") -> "Tensor | None":
        """Int64 [n]: the weight of each row in the metrics, in parts of ``UNIT``."""
        return None if own is None else (own.double() * (UNIT / self.mean)).round().long()


ALL_ALIKE = Weighting()


def weighting(spec: Train, manifest: Manifest, fold: int | None = None) -> Weighting:
    """The weights of a data set's rows, by the statistics of those that are trained on.

    Args:
        spec: the pipeline's ``train`` section.
        manifest: of the data set.
        fold: whose training rows; None: all.

    Raises:
        SpecError: ``class_weights`` names what is no class.
    """
    has_column = manifest.has_weights
    if not has_column and spec.class_weights is None:
        return ALL_ALIKE
    sums, rows = manifest.weights("train", fold)
    of_class = _of_classes(spec.class_weights, manifest.label.classes, sums)
    total = sum(weight * one for weight, one in zip(sums, of_class, strict=True))
    by_class = tuple(one * rows / total for one in of_class)
    return Weighting(has_column, by_class, sum(sums) / rows)


def _of_classes(
    wanted: dict[str, float] | str | None, classes: Sequence[object], sums: Sequence[float]
) -> list[float]:
    """The weight of each class as the pipeline has it; balanced: each class weighs as much."""
    if wanted is None:
        return [1.0] * len(sums)
    if isinstance(wanted, str):
        return [1 / weight if weight else 0.0 for weight in sums]
    names = [str(name).lower() if isinstance(name, bool) else str(name) for name in classes]
    wanted = {_class_of(name, names): weight for name, weight in wanted.items()}
    unknown = [name for name in wanted if name not in names]
    if unknown:
        known = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
        raise SpecError(
            f"train.class_weights names {unknown[0]!r}, which is no class of the label. "
            f"Its classes: {known}."
        )
    return [wanted.get(name, 1.0) for name in names]


def _class_of(name: str, names: Sequence[str]) -> str:
    """The class that a name is meant for: YAML takes a bare yes for true, and no for false."""
    meant = [one for one in names if one.lower() in YAML_WORDS.get(name, ())]
    return meant[0] if name not in names and len(meant) == 1 else name
