"""Tables of Dask: made by a function of the user's, written to the storage by the workers."""

import contextlib
import importlib
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import dask
import pyarrow as pa
from dask.delayed import Delayed
from distributed import Client, LocalCluster, WorkerPlugin

from ddlflow.engines.dask_ranks import one_line
from ddlflow.engines.exporting import TableOrder, WritePart
from ddlflow.engines.mapping import ItemOutcome, call
from ddlflow.errors import DataError, DdlflowError, EngineError, SpecError
from ddlflow.rank_protocol import JsonObject
from ddlflow.spec.tables import DaskTable
from ddlflow.store.store import open_store


class DaskExport:
    """See `ddlflow.engines.exporting.TableExport`. Nothing tells when such a table is another."""

    schema: pa.Schema | None = None  # of delayed frames it is not known
    vectors: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    state = ""

    def __init__(self, client: Client, order: TableOrder) -> None:
        """Call the function that makes a table.

        Raises:
            SpecError: it raises, or gives something else.
            DataError: two columns of one name, a key that is no column.
        """
        assert isinstance(order.table, DaskTable)
        assert order.make is not None
        self._client, self._order, self._table = client, order, order.table
        with self._planning():
            made = order.make()
            if order.transform is not None:
                made = order.transform(made)
            self._parts = self._parts_of(made)

    def write(self, write: WritePart) -> list[JsonObject]:
        """See `TableExport.write`."""
        tasks = [
            dask.delayed(call, pure=False, traverse=False)(_Written(write, number), part)
            for number, part in enumerate(self._parts)
        ]
        with self._planning():
            futures = self._client.compute(tasks)
            try:
                outcomes: list[ItemOutcome] = self._client.gather(futures)
            except DdlflowError:
                raise
            except Exception as error:
                text = f"{self._order.at}: {self._table.shown}: {one_line(error)}"
                raise (EngineError if _is_of_dask(error) else DataError)(text) from error
            finally:
                self._client.cancel(futures)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]

    @contextlib.contextmanager
    def _planning(self) -> Iterator[None]:
        """What the user's code computes is computed by our client, and its modules travel."""
        code, tops = self._order.code, {m.__name__.partition(".")[0] for m in self._order.modules}
        with contextlib.ExitStack() as undo, self._client.as_current():
            if code:
                self._client.register_plugin(_CodeOnWorkers(code, tops))
                undo.callback(self._client.unregister_worker_plugin, _CodeOnWorkers.name)
                if not isinstance(self._client.cluster, LocalCluster):  # else it is this process
                    self._client.run_on_scheduler(use_code, code, tops)
            yield

    def _parts_of(self, made: Any) -> list[Delayed]:
        """The partitions of what a function gave, sorted by the key."""
        key, at = self._table.key, self._order.at
        if isinstance(made, Delayed):
            made = [made]
        is_list = isinstance(made, list | tuple) and bool(made)
        if is_list and all(isinstance(one, Delayed) for one in made):
            return [*self._sorted(self._as_dataframe(made))] if key else [*made]
        if not hasattr(made, "to_delayed"):
            name = self._table.transform or self._table.dask
            raise SpecError(
                f"{at} is {self._table.shown}: {name} gave a {type(made).__name__}. Return a Dask "
                "DataFrame, or a list of delayed frames (pandas, Polars, Arrow); a frame in memory "
                "goes into ddlflow.run(..., source=frame)."
            )
        if not hasattr(made, "columns"):  # a bag of frames
            if key:
                raise SpecError(f"{at}.key sorts a DataFrame, and this is a bag. Return the first.")
            return [*made.to_delayed()]
        names = [str(name) for name in made.columns]
        doubled = sorted({name for name in names if names.count(name) > 1})
        if doubled:
            text = f"{at}: {self._table.shown} has more than one column named {', '.join(doubled)}."
            raise DataError(f"{text} Give each a name of its own.")
        return self._sorted(made) if key else [*made.to_delayed()]

    def _as_dataframe(self, parts: Iterable[Delayed]) -> Any:
        try:
            import dask.dataframe as dd
        except ImportError as error:
            raise SpecError(
                f"{self._order.at}.key sorts delayed frames, which needs dask.dataframe "
                f"({one_line(error)}). pip install 'dask[dataframe]' on this side and the workers, "
                "or leave the key out."
            ) from error
        return dd.from_delayed([*parts])

    def _sorted(self, frame: Any) -> list[Delayed]:
        for name in self._table.key:
            if name not in frame.columns:
                raise DataError(
                    f"{self._order.at}.key names column {name}, which {self._table.shown} lacks. "
                    f"The columns are: {', '.join(map(str, frame.columns[:20]))}."
                )
        return [*frame.sort_values(list(self._table.key)).to_delayed()]


class _CodeOnWorkers(WorkerPlugin):  # type: ignore[misc]  # distributed ships no types
    """Lets workers import the user's modules, those too that come while it is registered."""

    name = "ddlflow-table-code"

    def __init__(self, code: str, tops: set[str]) -> None:
        self._code, self._tops = code, tops

    def setup(self, worker: Any) -> None:
        use_code(self._code, self._tops)


def use_code(code: str, tops: set[str]) -> None:
    """Modules of these names are those of a folder, whatever this process had imported before."""
    folder = str(open_store(code).local_folder())
    sys.path[:] = [folder, *(path for path in sys.path if path != folder)]
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        del sys.modules[name]
    importlib.invalidate_caches()


class _Written:
    """Writes one partition, on its worker."""

    def __init__(self, write: WritePart, number: int) -> None:
        self._write, self._number = write, number

    def __call__(self, frame: Any) -> JsonObject:
        frames = frame if isinstance(frame, list | tuple) else [frame]
        return self._write(self._number, frames)


def _is_of_dask(error: Exception) -> bool:
    """Whether an error is the cluster's; else a task of the user's raised it."""
    return type(error).__module__.partition(".")[0] in ("distributed", "dask")
