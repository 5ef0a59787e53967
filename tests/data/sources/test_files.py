"""What lies at a location: links are followed, and what changed is known to have changed."""

import os
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ddlflow.data.sources.files import reading
from ddlflow.data.sources.opening import open_source
from ddlflow.data.sources.source import Source, ranges, read
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

FRAME = pd.DataFrame({"y": [0, 1] * 50, "a": np.arange(100.0)})


def _open(location: str, root: Path, **spec: str) -> Source:
    return open_source(location, Data(**({"source": "x", "label": "y"} | spec)), root)  # type: ignore[arg-type]


def _values(source: Source) -> list[float]:
    batches = (batch for part in ranges(source) for batch in read(source, part, ["a"]))
    return [value for batch in batches for value in batch.column(0).to_pylist()]


# ---- links ---------------------------------------------------------------------------------


@pytest.fixture
def linked(tmp_path: Path) -> Path:
    """Blobs by hash, and a snapshot whose names are links to them, as download caches have it."""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "elsewhere" / "year=2025").mkdir(parents=True)
    snapshot = tmp_path / "snap"
    (snapshot / "year=2024").mkdir(parents=True)
    FRAME[:30].to_parquet(tmp_path / "blobs" / "0a", index=False)
    (snapshot / "year=2024" / "part-0.parquet").symlink_to("../../blobs/0a")
    FRAME[30:60].to_parquet(snapshot / "year=2024" / "part-1.parquet", index=False)
    FRAME[60:].to_parquet(tmp_path / "elsewhere" / "year=2025" / "part.parquet", index=False)
    (snapshot / "year=2025").symlink_to(tmp_path / "elsewhere" / "year=2025")
    (snapshot / "circle").symlink_to(snapshot)
    return tmp_path


@pytest.mark.parametrize(
    "location",
    ["snap", "snap/*/*.parquet", "snap/**/*.parquet", "snap/year=*/part*.parquet", "file://snap"],
)
def test_links_are_followed_in_folders_and_globs(linked: Path, location: str) -> None:
    location = location.replace("file://", f"file://{linked}/")
    source = _open(location, linked)
    wanted = FRAME["a"].tolist()
    assert _values(source) == wanted
    if "*/" not in location.replace("year=*", ""):
        assert source.schema["year"] == "int64"
    alone = _open("snap/year=2024/part-0.parquet", linked)
    assert _values(alone) == wanted[:30]


def test_what_a_link_leads_to_may_change(linked: Path) -> None:
    before = _open("snap", linked).fingerprint
    assert _open("snap", linked).fingerprint == before
    blob = linked / "blobs" / "0a"
    later = blob.stat().st_mtime + 10
    os.utime(blob, (later, later))
    assert _open("snap", linked).fingerprint != before
    assert _open("snap/**/*.parquet", linked).fingerprint != before


def test_a_link_to_nothing_is_named(linked: Path) -> None:
    (linked / "blobs" / "0a").unlink()
    for location in ("snap", "snap/*/*.parquet"):
        with pytest.raises(DataError, match=r"part-0.parquet is a link to .*0a, which is not"):
            _open(location, linked)
    (linked / "snap" / "readme").symlink_to("nowhere")
    (linked / "blobs" / "0a").write_bytes(
        (linked / "snap" / "year=2024" / "part-1.parquet").read_bytes()
    )
    _open("snap", linked)  # a link that is no table does not matter


# ---- web servers ---------------------------------------------------------------------------


class _Whole(SimpleHTTPRequestHandler):
    """Python's own: it states Last-Modified and no ETag, and gives no parts of a file."""

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Says nothing."""


class _Parts(_Whole):
    """Gives parts too."""

    def do_GET(self) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if not wanted:
            super().do_GET()
            return
        data = Path(self.translate_path(self.path)).read_bytes()
        first, last = int(wanted[1]), min(int(wanted[2]), len(data) - 1)
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Content-Length", str(last + 1 - first))
        self.end_headers()
        self.wfile.write(data[first : last + 1])


class _NoStamp(_Parts):
    """States no time."""

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Last-Modified":
            super().send_header(keyword, value)


class _Forbidden(BaseHTTPRequestHandler):
    """Answers to nobody."""

    log_message = _Whole.log_message

    def do_GET(self) -> None:
        self.send_error(403)

    def do_HEAD(self) -> None:
        self.send_error(403)


@pytest.fixture(params=[_Parts, _NoStamp], ids=["last-modified", "no-stamp"])
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, bool]]:
    yield from _serve(partial(request.param, directory=str(tmp_path)), request.param is _NoStamp)


def _serve(handler: object, flag: bool) -> Iterator[tuple[str, bool]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)  # type: ignore[arg-type]
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", flag
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_source_on_the_web_that_changes_is_known_to(
    served: tuple[str, bool], tmp_path: Path
) -> None:
    address, no_stamp = served
    path = tmp_path / "t.csv"
    FRAME.to_csv(path, index=False)
    first = _open(f"{address}/t.csv", tmp_path)
    assert _values(first) == FRAME["a"].tolist()
    assert _open(f"{address}/t.csv", tmp_path).fingerprint == first.fingerprint
    size = path.stat().st_size
    FRAME.assign(a=FRAME["a"].to_numpy()[::-1]).to_csv(path, index=False)
    later = path.stat().st_mtime + 10  # the header counts whole seconds
    os.utime(path, (later, later))
    assert path.stat().st_size == size
    assert _open(f"{address}/t.csv", tmp_path).fingerprint != first.fingerprint
    hashed = [note for note in first.notes if "it is read whole (0.0 MB) each time" in note]
    assert len(hashed) == no_stamp


def test_the_cause_keeps_its_name(tmp_path: Path) -> None:
    serving = _serve(_Forbidden, flag=False)
    address, _ = next(serving)
    with pytest.raises(DataError, match="cannot be read: ClientResponseError: 403") as caught:
        _open(f"{address}/t.csv", tmp_path)
    assert "no such file" not in str(caught.value)
    next(serving, None)  # and now nobody listens there
    with pytest.raises(DataError, match=r"Connect") as caught:
        _open(f"{address}/t.csv", tmp_path)
    assert "no such file" not in str(caught.value)
    assert "damaged" not in str(caught.value)


def test_a_server_without_parts_is_told(tmp_path: Path) -> None:
    serving = _serve(partial(_Whole, directory=str(tmp_path)), flag=False)
    address, _ = next(serving)
    FRAME.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(DataError, match=r"gives files whole alone.*Download it first") as caught:
        _values(_open(f"{address}/t.csv", tmp_path))
    assert "damaged" not in str(caught.value)
    next(serving, None)


@pytest.mark.parametrize("error", [PermissionError, ConnectionRefusedError, TimeoutError])
def test_what_the_system_says_keeps_its_name(error: type[OSError]) -> None:
    with pytest.raises(DataError) as caught, reading("t.csv"):
        raise error(13, "the system's own words")
    assert f"t.csv cannot be read: {error.__name__}: [Errno 13] the system's own" in str(
        caught.value
    )
    assert "damaged" not in str(caught.value)


# ---- JSON beside tables --------------------------------------------------------------------


def test_json_beside_tables_is_no_table(tmp_path: Path) -> None:
    FRAME.to_parquet(tmp_path / "t.parquet", index=False)
    (tmp_path / "about.json").write_text('{"rows": 100}')
    assert _values(_open(".", tmp_path)) == FRAME["a"].tolist()
    assert _values(_open("*", tmp_path)) == FRAME["a"].tolist()
    (tmp_path / "t.parquet").unlink()
    FRAME.to_json(tmp_path / "about.json", orient="records")
    assert _values(_open(".", tmp_path)) == FRAME["a"].tolist()


# ---- the fingerprint -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "latin-1"},
        {"decimal": ","},
        {"thousands": "'"},
        {"missing_values": [""]},
        {"text": ["a"]},
    ],
)
def test_how_it_is_read_is_part_of_the_fingerprint(tmp_path: Path, change: dict[str, str]) -> None:
    FRAME.astype(int).to_csv(tmp_path / "t.csv", index=False)
    assert _open("t.csv", tmp_path).fingerprint != _open("t.csv", tmp_path, **change).fingerprint


@pytest.mark.parametrize("location", ["t.csv", "*.csv", "."])
def test_new_bytes_of_the_same_size_and_time_are_known_to(tmp_path: Path, location: str) -> None:
    """As tar and rsync leave them: the time of change is another all the same."""
    path, prints = tmp_path / "t.csv", set()
    for text in ("a\n1\n", "a\n2\n"):
        path.write_text(text)
        os.utime(path, (1_700_000_000, 1_700_000_000))
        prints.add(_open(location, tmp_path).fingerprint)
        assert _open(location, tmp_path).fingerprint in prints
    assert len(prints) == 2
