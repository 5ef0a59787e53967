"""Export: a table of an engine's own framework, written to the storage by its workers.

The engine plans the table, its workers hand the rows of each partition to a function of ours, and
the driver hears what that told: never a row.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import pyarrow as pa

from ddlflow.errors import SpecError
from ddlflow.rank_protocol import JsonObject
from ddlflow.spec.tables import Table

# Called on a worker with a partition's number and its rows (record batches, or frames).
WritePart = Callable[[int, Iterable[Any]], JsonObject]


@dataclass(frozen=True, slots=True)
class TableCall:
    """The user's function of a table, ready to be called on this side.

    Attributes:
        function: it.
        failed: what to raise where it raises.
    """

    function: Callable[..., Any]
    failed: Callable[[Exception], SpecError]

    def __call__(self, *arguments: Any) -> Any:
        """What it gives.

        Raises:
            SpecError: it raises.
        """
        try:
            return self.function(*arguments)
        except Exception as error:
            raise self.failed(error) from error


@dataclass(frozen=True, slots=True)
class TableOrder:
    """A table to be exported.

    Attributes:
        table: of the pipeline.
        at: where it stands there: ``data.source``.
        data_root: what relative paths lie under.
        make: the function that makes it, of a table of Dask's.
        transform: the function that changes it, if one is named.
        modules: of the user's, which workers need not have installed.
        code: location of a folder with their files, which every worker sees; empty: there are none.
    """

    table: Table
    at: str
    data_root: Path
    make: TableCall | None = None
    transform: TableCall | None = None
    modules: tuple[ModuleType, ...] = ()
    code: str = ""


class TableExport(Protocol):
    """A table that is planned: what can be known of it, and no row is read.

    Attributes:
        schema: its columns as an export has them, vectors as lists of numbers; None: not known yet.
        vectors: columns of pyspark.ml's vectors.
        left_out: columns whose values are not exported: structs and maps are no features.
        state: a text that is another one where its rows may be others: a table's version, or its
            files with size and time. Empty where nothing tells that.
    """

    schema: pa.Schema | None
    vectors: tuple[str, ...]
    left_out: tuple[str, ...]
    state: str

    def write(self, write: WritePart) -> list[JsonObject]:
        """Has the workers write every partition, sorted by the table's key if it has one.

        Args:
            write: importable by name on the workers.

        Returns:
            What ``write`` told of each partition, in the order of the rows.

        Raises:
            InputError: the table's rows cannot be read, or ``write`` says so.
            EngineError: the cluster failed.
        """


def not_here(order: TableOrder, engine: str) -> SpecError:
    """That an engine does not know a table of another one's."""
    of = order.table.engine
    return SpecError(
        f"{order.at} is {order.table.shown}, and the site's engine is {engine}. Run it on a site "
        f"with engine.use: {of} (--on), or name files."
    )
