"""Sources that are tables of Spark's or Dask's: exported once a command, read by every stage."""

import contextlib
import uuid
from functools import partial
from pathlib import Path

import pyarrow as pa

from ddlflow.data.roles import choose
from ddlflow.data.sources.derive import bind
from ddlflow.data.sources.export_part import ExportedPart, PartWriter
from ddlflow.data.sources.exported import NAME, seal
from ddlflow.engines.exporting import TableCall, TableExport, TableOrder
from ddlflow.redact import redacted_values
from ddlflow.runs.finished import hashed
from ddlflow.runs.results import ExportResult
from ddlflow.runs.samples import make_sample
from ddlflow.runs.session import Session
from ddlflow.spec import code
from ddlflow.spec.data import AnySource, Data, Made
from ddlflow.spec.table_code import files_of, modules_of, raised_by
from ddlflow.spec.tables import Table, code_of
from ddlflow.store.store import Store

EXPORT_VERSION = 1  # raised when an export's rows change for the same settings
NO_KEY = (
    "{at} has no key: the order of its rows is the cluster's own, so another export may give other "
    "shards, and this run cannot be repeated exactly. Set {at}.key to columns that tell the rows "
    "apart."
)


def located(session: Session) -> Data:
    """The data section with a place for each source: what is to be made or exported is that."""
    data = session.request.pipeline.data
    places = {"source": place_of(session, data.source, "data.source")}
    if data.test_source is not None:
        places["test_source"] = place_of(session, data.test_source, "data.test_source")
    return data.model_copy(update=places)


def place_of(session: Session, source: AnySource, at: str) -> str:
    """Where the rows of a source are; what is no place yet becomes one.

    Args:
        session: with the engine to work on.
        source: of the pipeline.
        at: where it stands there: ``data.source``.

    Raises:
        InputError: a table that cannot be read, or whose columns the pipeline does not allow.
    """
    if isinstance(source, str):
        return source
    if isinstance(source, Made):
        return make_sample(session, source).folder
    asked = hashed(source.model_dump(mode="json"))
    if asked not in session.exported:  # a table that changes meanwhile is one table for all stages
        session.exported[asked] = _export(session, source, at)
    return session.exported[asked]


def _export(session: Session, table: Table, at: str) -> str:
    """Exports a table to the storage, unless it is there and tells that it has not changed."""
    files = files_of(code_of(table, at).values(), session.request.code_folder)
    shipped = session.store.at(f"export-code/{uuid.uuid4().hex}")
    try:
        for name, path in files.items():
            shipped.write(name, path.read_bytes())
        return _exported(session, table, at, files, shipped.location if files else "")
    finally:
        with contextlib.suppress(OSError):
            shipped.remove_all()


def _exported(session: Session, table: Table, at: str, files: dict[str, Path], shipped: str) -> str:
    planned = session.engine.export(_order(session, table, at, files, shipped))
    if at == "data.source" and planned.schema is not None:
        _check_columns(session, planned.schema)
    settings = {
        "version": EXPORT_VERSION,
        "table": redacted_values(table.model_dump(mode="json")),  # a password may change
        "data_root": str(session.data_root),
        "code": code.hashed_files(files),
        "state": planned.state,
    }
    work = partial(_work, session, table, at, planned)
    done = session.stage(
        "export", settings, work, ExportResult, results=[NAME], fresh=not planned.state
    )
    return f"{done.folder}/{NAME}"


def _work(
    session: Session, table: Table, at: str, planned: TableExport, folder: Store
) -> ExportResult:
    write = PartWriter(folder.location, tuple(table.key), planned.vectors)
    parts = [ExportedPart.from_json(told) for told in planned.write(write)]
    exported = seal(
        folder,
        parts,
        shown=table.shown,
        notes=[] if table.key else [NO_KEY.format(at=at)],
        key=f"{at}.key",
        left_out=_left_out(planned),
        map_over=session.map_over,
    )
    return ExportResult(exported.rows, len(exported.files), exported.fingerprint, planned.state)


def _left_out(planned: TableExport) -> pa.Schema:
    """The columns that are there and not exported."""
    fields = [] if planned.schema is None else [planned.schema.field(n) for n in planned.left_out]
    return pa.schema(fields)


def _order(
    session: Session, table: Table, at: str, files: dict[str, Path], shipped: str
) -> TableOrder:
    """The table with the user's functions, which are imported here."""
    folder = session.request.code_folder
    calls = {}
    for key, name in code_of(table, at).items():
        failed = partial(raised_by, name, key, folder)
        calls[key] = TableCall(code.resolve(name, folder, key), failed)
    return TableOrder(
        table,
        at,
        session.data_root,
        make=calls.get(f"{at}.dask"),
        transform=calls.get(f"{at}.transform"),
        modules=modules_of(files.values()),
        code=shipped,
    )


def _check_columns(session: Session, schema: pa.Schema) -> None:
    """What the columns alone show to be wrong is said before a row is read."""
    pipeline = session.request.pipeline
    types = dict(zip(schema.names, schema.types, strict=True))
    derived = bind(types, pipeline.data)
    types |= {column.name: column.type for column in derived}
    choose(types, pipeline.data, pipeline.labels, pipeline.cv, derived=derived)
