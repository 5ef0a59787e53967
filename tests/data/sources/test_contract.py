"""What every kind of source gives (`ddlflow.data.sources.source.Source`): one contract for all.

A new kind is one more entry of ``KINDS``: it writes a table where it keeps tables, and opens it.
"""

import gzip
import inspect
import itertools
import json
import math
import os
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ddlflow.data.sources import source as source_module
from ddlflow.data.sources import text
from ddlflow.data.sources.export_part import ExportedPart, PartWriter
from ddlflow.data.sources.exported import NAME, seal
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.schema import kind_of
from ddlflow.data.sources.source import Range, Source, ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data
from ddlflow.store.folder import FolderStore

ROWS = 203  # no multiple of a piece, a row group or a block
TABLE = pa.table(
    {
        "y": [i % 3 for i in range(ROWS)],
        "a": [i / 8 if i % 7 != 6 else None for i in range(ROWS)],
        "n": list(range(ROWS)),
        "city": [("Köln", 'Bonn, "new"', "two\nlines", None)[i % 4] for i in range(ROWS)],
    }
)
Writer = Callable[[pa.Table, Path], str]  # the location of what is written into a folder


def _parquet(table: pa.Table, folder: Path) -> str:
    pq.write_table(table, folder / "t.parquet", row_group_size=30)
    return "t.parquet"


def _arrow(table: pa.Table, folder: Path) -> str:
    with pa.OSFile(str(folder / "t.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as w:
        w.write_table(table, max_chunksize=30)
    return "t.arrow"


def _csv(table: pa.Table, folder: Path) -> str:
    pa.csv.write_csv(table, folder / "t.csv")
    return "t.csv"


def _json_lines(table: pa.Table, folder: Path) -> str:
    rows = ({k: v for k, v in row.items() if v is not None} for row in table.to_pylist())
    (folder / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "t.jsonl"


def _json_array(table: pa.Table, folder: Path) -> str:
    (folder / "t.json").write_text(json.dumps(table.to_pylist(), indent=1, ensure_ascii=False))
    return "t.json"


def _exported(table: pa.Table, folder: Path) -> str:
    """As workers leave a table of three partitions, each in batches of their own size."""
    write = PartWriter(str(folder.resolve()), ("n",))
    bounds = [0, 50, 51, len(table)]
    cuts = [table.slice(a, b - a) for a, b in itertools.pairwise(bounds)]
    told = [ExportedPart.from_json(write(n, cut.to_batches(20))) for n, cut in enumerate(cuts)]
    store = FolderStore(folder.resolve())
    seal(store, told, shown="table t", notes=(), key="data.source.key", map_over=_here)
    return f"{folder.resolve()}/{NAME}"


def _here(function: Callable[[Any], Any], items: list[Any], _: str) -> list[Any]:
    return [function(item) for item in items]


def _packed(write: Writer) -> Writer:
    def written(table: pa.Table, folder: Path) -> str:
        plain = folder / write(table, folder)
        packed = plain.with_name(f"{plain.name}.gz")
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        return packed.name

    return written


def _many(write: Writer) -> Writer:
    """Files of unlike sizes in a folder, one of them with no row at all."""

    def written(table: pa.Table, folder: Path) -> str:
        bounds = [0, 1, 1, 70, 150, len(table)]
        if write is not _parquet:
            bounds.remove(1)  # an empty text file is an error, a Parquet file without rows is none
        for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
            own = folder / "many"
            own.mkdir(exist_ok=True)
            path = own / write(table.slice(start, stop - start), own)
            path.rename(path.with_name(f"{number}-{path.name}"))
        return "many"

    return written


def _url(write: Writer) -> Writer:
    def written(table: pa.Table, folder: Path) -> str:
        name = write(table, folder)
        fsspec.filesystem("memory").pipe(f"/contract/{name}", (folder / name).read_bytes())
        return f"memory://contract/{name}"

    return written


KINDS: dict[str, Writer] = {
    "parquet": _parquet,
    "arrow": _arrow,
    "csv": _csv,
    "csv.gz": _packed(_csv),
    "json lines": _json_lines,
    "json lines, gz": _packed(_json_lines),
    "json array": _json_array,
    "parquet files": _many(_parquet),
    "csv files": _many(_csv),
    "json files": _many(_json_lines),
    "parquet by URL": _url(_parquet),
    "csv by URL": _url(_csv),
    "exported table": _exported,
}
ONE_RANGE = {"csv.gz", "json lines, gz", "json array"}  # their bytes mean nothing by themselves


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """So that every source has more rows than any of them."""
    monkeypatch.setattr(source_module, "PIECE_ROWS", 16)
    monkeypatch.setattr(text, "RANGE_BYTES", 700)
    monkeypatch.setattr(text, "BLOCK_BYTES", 150)
    yield
    memory = fsspec.filesystem("memory")
    if memory.exists("/contract"):
        memory.rm("/contract", recursive=True)


def _opened(kind: str, folder: Path, table: pa.Table = TABLE, **spec: Any) -> Source:
    data = Data(**({"source": "x", "label": "y"} | spec))
    return open_source(KINDS[kind](table, folder), data, folder)


def _rows(source: Source, part: Range, names: list[str]) -> list[dict[str, Any]]:
    return [row for batch in read(source, part, names) for row in batch.to_pylist()]


def _sent(source: Source) -> Source:
    """The source as a worker has it."""
    return pickle.loads(pickle.dumps(source))  # type: ignore[no-any-return]


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_it_has_what_the_protocol_names(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    members = {n for n, _ in inspect.getmembers(Source) if not n.startswith("_")}
    assert len(members) > 15
    assert {name for name in members if not hasattr(source, name)} == set()
    assert list(source.schema) == TABLE.column_names
    assert source.location in source.address
    assert source.rows in (None, ROWS)
    assert source.num_bytes is None or source.num_bytes > 100
    assert source.summary
    assert "\n" not in source.summary


@every_kind
def test_its_ranges_are_numbered_and_the_same_wherever_they_are_asked_for(
    tmp_path: Path, kind: str
) -> None:
    source = _opened(kind, tmp_path)
    parts = ranges(source)
    assert [part.index for part in parts] == list(range(len(parts)))
    assert (len(parts) == 1) == (kind in ONE_RANGE)
    assert ranges(_sent(source)) == ranges(source) == parts
    assert all(source.place(part) for part in parts)
    assert all(math.isfinite(source.share(part)) and source.share(part) > 0 for part in parts)


@every_kind
def test_every_row_comes_once_in_order_from_what_a_worker_is_sent(
    tmp_path: Path, kind: str
) -> None:
    source = _opened(kind, tmp_path)
    names = list(source.schema)
    sent = [(_sent(source.only(part)), part) for part in reversed(ranges(source))]
    found = [_rows(own, part, names) for own, part in sent][::-1]
    assert [row for rows in found for row in rows] == TABLE.to_pylist()


@every_kind
def test_several_ranges_are_sent_together(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    parts = ranges(source)[-3:]
    own = _sent(source.only(*parts))
    assert [_rows(own, p, ["n"]) for p in parts] == [_rows(source, p, ["n"]) for p in parts]


@every_kind
def test_batches_are_of_one_schema_and_pieces_of_one_size(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    for part in ranges(source):
        (schema,) = {batch.schema for batch in source.batches(part, ["city", "a", "n"])}
        assert schema.names == ["city", "a", "n"]
        assert all(_is_of_kind(schema, source, name) for name in schema.names)
        sizes = [batch.num_rows for batch in read(source, part, ["a"])]
        assert sizes[:-1] == [16] * (len(sizes) - 1)
        assert 0 < sizes[-1] <= 16


def _is_of_kind(schema: pa.Schema, source: Source, name: str) -> bool:
    """Whether a batch's column is of the kind that the source says: numbers may differ in width."""
    return kind_of(schema.field(name).type) == kind_of(source.schema[name])


@every_kind
def test_derived_columns_are_computed_from_the_sources_own(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path, derive={"twice": "n * 2", "long": "length(city)"})
    assert [column.name for column in source.derived] == ["twice", "long"]
    assert list(source.schema)[-2:] == ["twice", "long"]
    found = [row for p in ranges(source) for row in _rows(source, p, ["long", "twice", "n"])]
    assert [row["twice"] for row in found] == [2 * n for n in range(ROWS)]
    lengths = [None if c is None else len(c) for c in TABLE["city"].to_pylist()]
    assert [row["long"] for row in found] == lengths
    assert [list(row) for row in found[:1]] == [["long", "twice", "n"]]


@every_kind
def test_it_holds_no_file_open(tmp_path: Path, kind: str) -> None:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - a path of the kernel's
    source = _opened(kind, tmp_path)
    part = ranges(source)[0]
    rows = read(source, part, ["n"])
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    _rows(source, part, ["n"])
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


@every_kind
def test_the_fingerprint_is_of_the_rows(tmp_path: Path, kind: str) -> None:
    once = _opened(kind, tmp_path).fingerprint
    location = _opened(kind, tmp_path).location
    assert open_source(location, Data(source="x", label="n"), tmp_path).fingerprint
    again = open_source(location, Data(source="x", label="y"), tmp_path)
    assert open_source(location, Data(source="x", label="n"), tmp_path).fingerprint == (
        again.fingerprint
    )
    (tmp_path / "other").mkdir()
    other = _opened(kind, tmp_path / "other", TABLE.slice(0, ROWS - 1))
    assert other.fingerprint not in (once, again.fingerprint)


@every_kind
def test_what_it_says_of_extremes_is_true(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    for part in ranges(source):
        said = source.extremes(part, ["n", "a", "city"])
        rows = _rows(source, part, ["n", "a"])
        for name, extent in said.items():
            own = [row[name] for row in rows if row[name] is not None]
            assert extent == (min(own), max(own))
    assert "n" in said or not kind.startswith("parquet")


@every_kind
def test_columns_without_types_are_told_as_they_stand(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    untyped = [name for name in source.schema if name in source.untyped]
    as_text = source.as_text(["n"])
    if not untyped:
        assert as_text.schema == source.schema
        return
    assert pa.types.is_string(as_text.schema["n"])
    found = [row["n"] for p in ranges(as_text) for row in _rows(as_text, p, ["n"])]
    assert found == [str(n) for n in range(ROWS)]
    plain = source.verbatim(untyped)
    rows = [row for p in ranges(plain) for row in _rows(plain, p, ["a", "city"])]
    assert [row["city"] for row in rows] == pc.fill_null(TABLE["city"], "").to_pylist()
    written = ["" if a is None else f"{a:g}" for a in TABLE["a"].to_pylist()]
    assert [row["a"] for row in rows] == written
    assert "" in source.missing_words


@every_kind
def test_what_is_kept_of_it_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path, derive={"twice": "n * 2"})
    kept = source.converted(FolderStore(tmp_path / "kept"), ["a", "n", "city"])
    assert ranges(kept) == ranges(source)
    assert kept.fingerprint == source.fingerprint
    for part in ranges(source):
        own = _sent(kept.only(part))
        for names in (["n"], ["city", "n", "twice", "a"], ["y", "city"]):
            assert _rows(own, part, names) == _rows(source, part, names)
            assert _rows(own, part, names) == _rows(source, part, names)


@every_kind
def test_what_is_gone_since_is_told_in_one_line(tmp_path: Path, kind: str) -> None:
    source = _opened(kind, tmp_path)
    part = ranges(source)[0]
    for path in [p for p in tmp_path.rglob("*") if p.is_file()]:
        path.unlink()
    memory = fsspec.filesystem("memory")
    if memory.exists("/contract"):
        memory.rm("/contract", recursive=True)
    with pytest.raises(DataError) as told:
        _rows(source, part, ["n"])
    assert "\n" not in str(told.value)
    assert source.place(part) in str(told.value)


@every_kind
def test_a_column_that_is_not_there_is_told(tmp_path: Path, kind: str) -> None:
    with pytest.raises(DataError, match="it reads column nn, which the source lacks"):
        _opened(kind, tmp_path, derive={"twice": "nn * 2"})


@pytest.mark.parametrize("kind", ["parquet files", "csv files", "json files"])
def test_what_is_sent_stays_small_among_many_files(tmp_path: Path, kind: str) -> None:
    location = KINDS[kind](TABLE, tmp_path)
    first = min((tmp_path / location).iterdir())
    for number in range(300):
        (tmp_path / location / f"more-{number:04d}-of-a-long-name-{first.name}").write_bytes(
            first.read_bytes()
        )
    source = open_source(location, Data(source="x", label="y"), tmp_path)
    part = ranges(source)[-1]
    assert len(pickle.dumps(source.only(part))) < 3000 < len(pickle.dumps(source))
