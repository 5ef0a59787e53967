"""Powers and products of numeric features as features: ``data.polynomial``, ``data.interactions``.

They are derived columns like any other, computed in float64 and only then standardised, so that
their statistics are exact. Each is named after what it is made of: ``a^2``, ``a*b``.
"""

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations

import pyarrow as pa

from ddlflow.data.sources.derive_dates import parts
from ddlflow.data.sources.schema import kind_of
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

MOST = 2_000  # columns that are made
KEY = "data.polynomial and data.interactions"  # for messages

Schema = Mapping[str, pa.DataType]


def wants_products(spec: Data) -> bool:
    """Whether a data section asks for any."""
    return spec.polynomial > 1 or spec.interactions


def products(known: Schema, spec: Data, index: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """The columns with their factors; none where the data section asks for none.

    Args:
        known: column name -> type, derived columns among them.
        spec: which of them are features.
        index: columns that were the index of a frame: features only where they are named.

    Raises:
        DataError: too many, a name that is taken, or names that SQL does not tell apart.
    """
    if not wants_products(spec):
        return {}
    numbers = _numbers(known, spec, index)
    folded = {name.casefold(): name for name in numbers}
    alike = [name for name in numbers if folded[name.casefold()] != name]
    if alike:
        raise DataError(
            f"{KEY}: SQL does not tell the columns {alike[0]} and {folded[alike[0].casefold()]} "
            "apart, which differ by case alone. Rename one in the source."
        )
    # The powers of a truth value are itself.
    powered = [name for name in numbers if not pa.types.is_boolean(known[name])]
    pairs = len(numbers) * (len(numbers) - 1) // 2 if spec.interactions else 0
    count = len(powered) * (spec.polynomial - 1) + pairs
    if count > MOST:
        raise DataError(
            f"data.polynomial {spec.polynomial} and data.interactions "
            f"{str(spec.interactions).lower()} of {len(numbers)} numeric features make {count:,} "
            f"columns, more than {MOST:,}. Name fewer columns in data.features, or write those "
            "that you mean in data.derive."
        )
    found = {
        f"{name}^{power}": (name,) * power
        for name in powered
        for power in range(2, spec.polynomial + 1)
    }
    for one, other in combinations(numbers, 2) if spec.interactions else ():
        found[f"{one}*{other}"] = (one, other)
    for name in found:
        if name in known:
            raise DataError(f"{KEY}: the source has a column {name} already. Rename it.")
    return found


def product_of(names: Sequence[str]) -> str:
    """The expression of a product, in float64 whatever its factors are."""
    quoted = ('"' + name.replace('"', '""') + '"' for name in names)
    return " * ".join(f"CAST({name} AS DOUBLE)" for name in quoted)


def _numbers(known: Schema, spec: Data, index: Collection[str]) -> list[str]:
    """The numeric columns that may be features, by the data section."""
    if spec.features == "all":
        no_feature = {spec.label, *spec.exclude, spec.split.column, spec.weight, *index}
        names = [name for name in known if name not in no_feature]
    else:
        apart = [
            list(parts(name, known[name], spec.dates)) or [name]
            for name in spec.features
            if name in known
        ]
        names = [name for own in apart for name in own if name in known]
    return [
        name
        for name in dict.fromkeys(names)
        if kind_of(known[name]) == "number" and name not in (*spec.categorical, *spec.text)
    ]
