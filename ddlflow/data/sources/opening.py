"""What a location is: a source that can be read."""

from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from ddlflow.data.sources import jsonl, source_notes
from ddlflow.data.sources import schema as schema_
from ddlflow.data.sources.derive import bind, expressions, read_by
from ddlflow.data.sources.derive_products import wants_products
from ddlflow.data.sources.dialect import Dialect, dialect_of
from ddlflow.data.sources.exported import NAME, open_exported
from ddlflow.data.sources.file_schema import FileSchema, file_schema
from ddlflow.data.sources.files import File, reading, resolve, stamped
from ddlflow.data.sources.listing import list_files
from ddlflow.data.sources.source import Source
from ddlflow.data.sources.table_files import TableFiles, fingerprint_of
from ddlflow.data.sources.trained_types import Types, type_to_parse
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data


def open_source(location: str, spec: Data, data_root: Path, known: Types | None = None) -> Source:
    """Opens what lies at a location.

    Args:
        location: a file, a glob, a folder, or an fsspec URL of these; a relative path lies under
            ``data_root``. Or the manifest of a table that was exported.
        spec: format, header and delimiter; which columns may hold decimals in a text format; what
            is derived.
        data_root: the site's folder of sources.
        known: what columns of a text format are parsed as, where a model was trained on them
            (``Columns.parsed``) or another source has them; else their first rows suggest it.

    Raises:
        DataError: nothing there, unreadable, empty, damaged, or files that differ in columns.
    """
    if location.endswith(f"/{NAME}"):
        return open_exported(location, spec)
    return open_files(location, spec, data_root, known or {})


def open_files(location: str, spec: Data, data_root: Path, known: Types) -> TableFiles:
    """Finds the files, reads their headers and checks that they agree; else as `open_source`."""
    texts = [name for name, type_ in known.items() if pa.types.is_string(type_)]
    spec = spec.model_copy(update={"categorical": [*spec.categorical, *texts]})
    address = resolve(location, data_root)
    kind, files = list_files(address, spec.format)
    dialect = dialect_of(kind, spec)
    found = _layouts(address, files, dialect, spec)
    files = [replace(file, units=each.units) for file, each in zip(files, found, strict=True)]
    over_files = jsonl.types_of_files if kind == "jsonl" else schema_.types_of
    types = over_files([each.schema for each in found])
    names = tuple(types)
    blank = source_notes.blank_columns(types, dialect, spec)
    read = read_by(expressions(spec))
    wide = {*types} if wants_products(spec) else read & {*types}
    types |= schema_.widened([each.schema for each in found], wide)
    types = {
        name: (type_to_parse(name, type_, known, kind) if dialect.is_text else None)
        or schema_.as_read(name, type_, spec, is_text_format=dialect.is_text, computed_from=read)
        for name, type_ in types.items()
        if name not in blank
    }
    rows = sum(sum(file.units) for file in files) if not dialect.is_text else None
    if rows == 0:
        raise DataError(f"{address} holds no row. Correct data.source.")
    index = tuple(name for name in found[0].index if all(name in each.index for each in found))
    notes = [
        *source_notes.note_unnamed(names, blank, index, dialect),
        *source_notes.note_index(index, spec),
    ]
    notes += [*found[0].notes, *source_notes.note_hashed(files)]
    types |= schema_.folder_columns(files, types, spec)
    derived = bind(types | {name: known[name] for name in read & {*known} & {*types}}, spec, index)
    return TableFiles(
        location=location,
        address=address,
        dialect=dialect,
        schema=types | {column.name: column.type for column in derived},
        files=dict(enumerate(files)),
        names=names,
        fingerprint=fingerprint_of([stamped(address, file) for file in files], dialect),
        rows=rows,
        index=index,
        notes=tuple(notes),
        derived=derived,
    )


def _layouts(address: str, files: list[File], dialect: Dialect, spec: Data) -> list[FileSchema]:
    """What each file says of itself: all have the same columns."""
    found: list[FileSchema] = []
    for file in files:
        with reading(file.path):
            each = file_schema(address, file, dialect, spec, is_first=not found)
        schema_.check_names(file, each.schema)
        if found:
            schema_.check_same(file, each.schema, files[0], found[0].schema, dialect.format)
        found.append(each)
    return found
