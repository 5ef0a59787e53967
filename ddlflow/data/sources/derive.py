"""Columns that are computed from others, row by row: ``data.derive``, ``data.where``, dates.

A derived column is evaluated where a source is read, so that everything after sees plain columns.
It may read others that are derived. A date that is a feature becomes derived columns too, named
after it: ``time.hour``.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from ddlflow.data.sources.derive_dates import part_of, parts
from ddlflow.data.sources.derive_products import KEY as PRODUCTS
from ddlflow.data.sources.derive_products import product_of, products
from ddlflow.data.sources.derive_sql import computed, names_read, shown
from ddlflow.errors import DataError
from ddlflow.spec.explain import nearest
from ddlflow.spec.pipeline import Data

WHERE = "data.where"  # what the column is called that says which rows are learnt from

Schema = Mapping[str, pa.DataType]


@dataclass(frozen=True, slots=True)
class Derived:
    """A column that is computed.

    Attributes:
        name: the column's.
        sql: the expression.
        reads: the columns that it reads, derived ones among them.
        takes: their types: one for the whole source, whatever the number type of each file.
        type: of its values.
        key: where the expression stands in the pipeline, for messages.
    """

    name: str
    sql: str
    reads: tuple[str, ...]
    takes: tuple[pa.DataType, ...]
    type: pa.DataType
    key: str


def expressions(spec: Data) -> dict[str, str]:
    """The expressions of the data section by column."""
    return {**spec.derive, **({WHERE: spec.where} if spec.where is not None else {})}


def read_by(wanted: Mapping[str, str]) -> set[str]:
    """The columns that some expressions read, of a source that need not be known yet."""
    return {read[0] for name, sql in wanted.items() for read in names_read(sql, key_of(name))}


def sources_read(derive: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """The columns of a source that some columns are or come from, by the expressions alone."""
    left, found = list(names)[::-1], dict[str, None]()
    while left:
        name = left.pop()
        if name in derive:
            read = names_read(derive[name], key_of(name))
            left += [names[0] for names in read][::-1]
        else:
            found[name] = None
    return list(found)


def key_of(name: str) -> str:
    """Where the expression of a column stands in the pipeline."""
    return WHERE if name == WHERE else f"data.derive.{name}"


def bind(schema: Schema, spec: Data, index: Collection[str] = ()) -> tuple[Derived, ...]:
    """What the data section derives from a source's columns, in the order of evaluation.

    Args:
        schema: column name -> type, of the source as it stands.
        spec: derive, where, dates; columns in exclude are not taken apart. And which features are
            multiplied.
        index: columns that were the index of a frame.

    Raises:
        DataError: an expression that cannot be read or is not allowed, a column that it reads and
            the source lacks, a name that is taken, a cycle, or a condition that is none.
    """
    wanted = expressions(spec)
    reads: dict[str, tuple[str, ...]] = {}
    for name, sql in wanted.items():
        if not name or name in schema:
            raise DataError(
                f"{key_of(name)}: the source has a column {name} already. Rename one of the two."
                if name
                else f"data.derive has an expression without a name: {shown(sql)}. Name it."
            )
        reads[name] = _columns_read(name, sql, {*schema, *wanted})
    known = dict(schema)
    derived = []
    for name in _in_order(reads):
        found = _typed(name, wanted[name], reads[name], known, key_of(name))
        known[name] = found.type
        derived.append(found)
    if spec.where is not None and not pa.types.is_boolean(known[WHERE]):
        raise DataError(
            f"{WHERE} is {shown(spec.where)}, which is of type {known[WHERE]}. Write a condition, "
            "such as: distance > 100 and carrier is not null."
        )
    derived += _dates(known, spec)
    known |= {column.name: column.type for column in derived}
    for name, factors in products(known, spec, index).items():
        own = tuple(dict.fromkeys(factors))
        takes = tuple(known[column] for column in own)
        derived.append(Derived(name, product_of(factors), own, takes, pa.float64(), PRODUCTS))
    return tuple(derived)


def made_of_features(derived: Sequence[Derived]) -> list[str]:
    """The columns that are powers and products of features."""
    return [column.name for column in derived if column.key == PRODUCTS]


def _columns_read(name: str, sql: str, known: set[str]) -> tuple[str, ...]:
    """The columns that an expression reads; ``a.b`` is field b of a column a."""
    found = []
    for names in names_read(sql, key_of(name)):
        if names[0] not in known or names[0] == WHERE:
            whole = ".".join(names)
            quoted = f' Write "{whole}" in double quotes.' if whole in known else ""
            others = sorted(known - {name, WHERE})
            hint = quoted or nearest(names[0], others) or f" There are: {', '.join(others[:20])}."
            raise DataError(
                f"{key_of(name)} is {shown(sql)}: it reads column {names[0]}, which the source "
                f"lacks.{hint} (A text stands in single quotes.)"
            )
        found.append(names[0])
    read = tuple(dict.fromkeys(found))
    folded = [column.casefold() for column in read]
    if len(set(folded)) < len(folded):
        alike = ", ".join(c for c in read if folded.count(c.casefold()) > 1)
        raise DataError(
            f"{key_of(name)} is {shown(sql)}: SQL does not tell the columns {alike} apart, which "
            "differ by case alone. Rename one in the source."
        )
    return read


def _in_order(reads: Mapping[str, Sequence[str]]) -> list[str]:
    """The derived columns as they are listed, but each after those that it reads."""
    order: dict[str, None] = {}

    def put(name: str, waiting: tuple[str, ...]) -> None:
        if name in waiting:
            cycle = [*waiting[waiting.index(name) :], name]
            raise DataError(
                f"{key_of(name)} needs itself: {' reads '.join(cycle)}. Take one of them apart."
            )
        for read in reads[name]:
            if read in reads and read not in order:
                put(read, (*waiting, name))
        order[name] = None

    for name in reads:
        put(name, ())
    return list(order)


def _typed(name: str, sql: str, reads: tuple[str, ...], known: Schema, key: str) -> Derived:
    """The column with the type that the expression gives for columns of these types."""
    takes = tuple(known[column] for column in reads)
    empty = {column: pa.array([], of) for column, of in zip(reads, takes, strict=True)}
    return Derived(name, sql, reads, takes, computed(sql, key, empty).type, key)


def _dates(known: Schema, spec: Data) -> list[Derived]:
    """The parts of each date and time that may be a feature."""
    found = []
    for name, type_ in known.items():
        own = parts(name, type_, spec.dates)
        listed = spec.features == "all" or bool({name, *own} & {*spec.features})
        if name in spec.exclude or not listed:
            continue
        for part, sql in own.items():
            if part in known:
                raise DataError(
                    f"data.dates takes {name} apart, and the source has a column {part} already. "
                    f"List {name} in data.exclude, or set data.dates to refuse."
                )
            found.append(_typed(part, sql, (name,), known, "data.dates"))
    return found


def needed(names: Iterable[str], derived: Sequence[Derived]) -> tuple[list[Derived], list[str]]:
    """What has to be evaluated and read to have some columns.

    Returns:
        The derived columns, in the order of evaluation, and the columns of the source itself.
    """
    wanted = dict.fromkeys(names)
    found = []
    for column in reversed(derived):  # each stands after those that it reads
        if column.name in wanted:
            found.append(column)
            wanted |= dict.fromkeys(column.reads)
    own = {column.name for column in found}
    return found[::-1], [name for name in wanted if name not in own]


def sources_of(name: str, derived: Sequence[Derived]) -> set[str]:
    """The columns of the source that a column's values come from; of one of its own, that one."""
    return set(needed([name], derived)[1])


def only(spec: Data, names: Iterable[str], *, where: bool) -> Data:
    """The data section with the expressions alone that some columns need.

    So a source can be opened that lacks what the others read, such as what the label is made of.

    Args:
        spec: the data section.
        names: columns that are wanted, of a source that need not be known yet.
        where: keep the condition on the rows.
    """
    left = list(names)
    if where and spec.where is not None:
        left.append(WHERE)
    known, kept = expressions(spec), set[str]()
    while left:
        name = left.pop()
        for column in (name, part_of(name)):
            if column in known and column not in kept:
                kept.add(column)
                left += [read[0] for read in names_read(known[column], key_of(column))]
    derive = {name: sql for name, sql in spec.derive.items() if name in kept}
    return spec.model_copy(update={"derive": derive, "where": spec.where if where else None})
