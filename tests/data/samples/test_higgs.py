import gzip
import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hosts import half_written

from ddlflow.data.samples import higgs
from ddlflow.data.samples.download import DownloadRetried, WorkProgressed
from ddlflow.data.samples.higgs import SCHEMA, fetch, to_parquet
from ddlflow.errors import DataError

BODY = np.random.default_rng(1).bytes(3_000_000)
HASH = hashlib.sha256(BODY).hexdigest()


@dataclass
class Site:
    """What the server does: the n-th request meets the n-th entry, later ones the last."""

    body: bytes = BODY
    ranges: bool = True
    tell_length: bool = True
    die_after: list[int | None] = field(default_factory=lambda: [None])  # bytes of the answer
    statuses: list[int] = field(default_factory=lambda: [200])
    asked: list[str | None] = field(default_factory=list)
    url: str = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        turn = len(self.asked)
        self.asked.append(request.headers.get("Range"))
        status = self.statuses[min(turn, len(self.statuses) - 1)]
        if status != 200:
            request.send_error(status)
            return
        start = 0
        if self.ranges and self.asked[-1]:
            start = int(self.asked[-1].removeprefix("bytes=").removesuffix("-"))
            request.send_response(206)
            last = len(self.body) - 1
            request.send_header("Content-Range", f"bytes {start}-{last}/{len(self.body)}")
        else:
            request.send_response(200)
        if self.tell_length:
            request.send_header("Content-Length", str(len(self.body) - start))
        request.end_headers()
        end = self.die_after[min(turn, len(self.die_after) - 1)]
        request.wfile.write(self.body[start : None if end is None else start + end])


@contextmanager
def serve(site: Site) -> Iterator[Site]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            site.answer(self)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        site.url = f"http://127.0.0.1:{server.server_port}/HIGGS.csv.gz"
        try:
            yield site
        finally:
            server.shutdown()
            thread.join()


def get(site: Site, out: Path, events: list | None = None, **changed) -> Path:
    settings = {"size": len(BODY), "sha256": HASH, "backoff_s": 0.001} | changed
    on_event = (events if events is not None else []).append
    return fetch(out, url=site.url, on_event=on_event, **settings)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# ---- fetch ---------------------------------------------------------------------------------


@pytest.mark.parametrize("tell_length", [True, False])
def test_a_download(tmp_path, tell_length):
    events: list[WorkProgressed | DownloadRetried] = []
    with serve(Site(tell_length=tell_length)) as site:
        path = get(site, tmp_path / "new" / "folder", events)
    assert path.read_bytes() == BODY
    assert names(path.parent) == {"HIGGS.csv.gz"}
    assert events[-1] == WorkProgressed(len(BODY), len(BODY))
    done = [event.done for event in events]
    assert done == sorted(set(done))


def test_what_is_there_is_not_fetched_again(tmp_path):
    with serve(Site()) as site:
        get(site, tmp_path)
        get(site, tmp_path)
    assert site.asked == [None]


def test_a_stopped_download_goes_on(tmp_path):
    (tmp_path / "HIGGS.csv.gz.part").write_bytes(BODY[:1_000_000])
    with serve(Site()) as site:
        path = get(site, tmp_path)
    assert path.read_bytes() == BODY
    assert site.asked == ["bytes=1000000-"]


def test_a_connection_that_dies_is_taken_up_where_it_ended(tmp_path):
    events: list[WorkProgressed | DownloadRetried] = []
    with serve(Site(die_after=[1_200_000, 0, 700_000, None])) as site:
        path = get(site, tmp_path, events)
    assert path.read_bytes() == BODY
    assert site.asked == [None, "bytes=1200000-", "bytes=1200000-", "bytes=1900000-"]
    retries = [event for event in events if isinstance(event, DownloadRetried)]
    assert len(retries) == 3
    assert "ended after 1,200,000 of 3,000,000 bytes" in retries[0].reason


def test_a_server_without_ranges_starts_again(tmp_path):
    with serve(Site(ranges=False, die_after=[1_200_000, None])) as site:
        path = get(site, tmp_path)
    assert path.read_bytes() == BODY
    assert site.asked == [None, "bytes=1200000-"]


def test_a_server_that_keeps_dying_is_given_up_and_its_bytes_kept(tmp_path):
    with serve(Site(die_after=[500_000, 0])) as site:
        with pytest.raises(DataError, match=r"6 times in a row. 500,000 of 3,000,000 bytes are"):
            get(site, tmp_path)
        assert len(site.asked) == 7
        assert (tmp_path / "HIGGS.csv.gz.part").read_bytes() == BODY[:500_000]
        site.die_after = [None]
        assert get(site, tmp_path).read_bytes() == BODY


def test_an_overloaded_server_is_asked_again(tmp_path):
    with serve(Site(statuses=[503, 429, 500, 200])) as site:
        assert get(site, tmp_path).read_bytes() == BODY
    assert len(site.asked) == 4


@pytest.mark.parametrize("status", [404, 403, 410])
def test_a_refusal_is_one_error_at_once(tmp_path, status):
    with serve(Site(statuses=[status])) as site:
        with pytest.raises(DataError, match=rf"answers {status} .*Check the address"):
            get(site, tmp_path)
        assert len(site.asked) == 1
    assert names(tmp_path) == set()


def test_nobody_listens(tmp_path):
    with serve(Site()) as site:
        pass
    with pytest.raises(DataError, match=r"cannot be read: .*refused.*, 6 times in a row"):
        get(site, tmp_path)


def test_another_hash_names_both_and_keeps_the_file(tmp_path):
    with serve(Site()) as site:
        with pytest.raises(DataError, match=rf"SHA-256 {HASH}; expected 00ff") as caught:
            get(site, tmp_path, sha256="00ff")
        assert "HIGGS.csv.gz.bad" in str(caught.value)
        assert names(tmp_path) == {"HIGGS.csv.gz.bad"}
        assert (tmp_path / "HIGGS.csv.gz.bad").read_bytes() == BODY
        assert get(site, tmp_path).read_bytes() == BODY  # and nothing stands in the way


@pytest.mark.parametrize("size", [len(BODY) - 1, len(BODY) + 1])
def test_another_size_is_refused_before_a_byte_is_kept(tmp_path, size):
    with serve(Site()) as site:
        with pytest.raises(DataError, match=rf"offers a file of 3000000 .*expected {size}"):
            get(site, tmp_path, size=size)
        assert len(site.asked) == 1
    assert names(tmp_path) == set()


def test_more_bytes_than_expected_where_no_length_is_told(tmp_path):
    with serve(Site(tell_length=False)) as site, pytest.raises(DataError, match="sends more than"):
        get(site, tmp_path, size=1_000)


def test_a_part_longer_than_the_file_is_of_something_else(tmp_path):
    (tmp_path / "HIGGS.csv.gz.part").write_bytes(bytes(len(BODY) + 1))
    with serve(Site()) as site:
        assert get(site, tmp_path).read_bytes() == BODY
    assert site.asked == [None]


def test_a_file_of_that_name_but_another_size_is_left_alone(tmp_path):
    (tmp_path / "HIGGS.csv.gz").write_bytes(b"mine")
    with serve(Site()) as site, pytest.raises(DataError, match=r"has 4 bytes; expected 3,000,000"):
        get(site, tmp_path)
    assert (tmp_path / "HIGGS.csv.gz").read_bytes() == b"mine"


def test_too_little_disk_is_said_before_the_download(tmp_path):
    with serve(Site()) as site:
        with pytest.raises(DataError, match=r"bytes free; the download needs"):
            get(site, tmp_path, size=10**18)
        assert site.asked == []


def test_only_web_addresses(tmp_path):
    with pytest.raises(DataError, match="is no web address"):
        fetch(tmp_path, url="file:///etc/hostname", on_event=print)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with serve(Site()) as site, pytest.raises(DataError, match="cannot be written"):
        get(site, tmp_path / "file")


# ---- to_parquet ----------------------------------------------------------------------------


@pytest.fixture
def parts_of_400(monkeypatch):
    monkeypatch.setattr(higgs, "PART_ROWS", 400)
    monkeypatch.setattr(higgs, "ROW_GROUP_ROWS", 150)


def table_of(rows: int) -> np.ndarray:
    values = np.random.default_rng(2).normal(size=(rows, 29)).astype(np.float32)
    values[:, 0] = values[:, 0] > 0
    return values


def csv_gz(path: Path, values: np.ndarray) -> Path:
    lines = "".join(",".join(f"{v:.18e}" for v in row) + "\n" for row in values)  # as UCI's
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=1))
    return path


def convert(source: Path, out: Path, events: list | None = None, rows: int = 1_000) -> list[Path]:
    on_event = (events if events is not None else []).append
    return to_parquet(source, out, on_event, total_rows=rows, test_rows=150)


def test_rows_keep_their_order_and_the_last_ones_are_the_test(tmp_path, parts_of_400):
    values = table_of(1_000)
    events: list[WorkProgressed | DownloadRetried] = []
    paths = convert(csv_gz(tmp_path / "h.csv.gz", values), tmp_path / "out", events)
    assert [str(path.relative_to(tmp_path / "out")) for path in paths] == [
        "train/part-000000.parquet",
        "train/part-000001.parquet",
        "train/part-000002.parquet",
        "test/part-000000.parquet",
    ]
    for folder, expected in (("train", values[:850]), ("test", values[850:])):
        table = pq.read_table(tmp_path / "out" / folder)
        assert table.schema.names == SCHEMA.names
        assert table.schema.types == SCHEMA.types
        np.testing.assert_array_equal(table.to_pandas().to_numpy(), expected)
    assert events[-1] == WorkProgressed(1_000, 1_000)
    assert pq.ParquetFile(paths[0]).metadata.num_row_groups == 3


def test_rows_over_many_blocks_of_the_reader(tmp_path, monkeypatch):
    monkeypatch.setattr(higgs, "BLOCK_BYTES", 20_000)
    values = table_of(1_000)
    convert(csv_gz(tmp_path / "h.csv.gz", values), tmp_path / "out")
    read = pq.read_table(tmp_path / "out" / "train").to_pandas().to_numpy()
    np.testing.assert_array_equal(read, values[:850])


def test_a_stopped_conversion_goes_on(tmp_path, parts_of_400):
    source = csv_gz(tmp_path / "h.csv.gz", table_of(1_000))
    paths = convert(source, tmp_path / "out")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in paths}
    assert convert(source, tmp_path / "out") == paths
    paths[1].unlink()
    paths[3].unlink()
    half_written(paths[1])
    convert(source, tmp_path / "out")
    assert {path: path.read_bytes() for path in paths} == {p: b for p, (b, _) in before.items()}
    assert paths[0].stat().st_mtime_ns == before[paths[0]][1]
    assert sorted(paths[0].parent.iterdir()) == paths[:3]


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(DataError, match=r"h\.csv\.gz is not there"):
        convert(tmp_path / "h.csv.gz", tmp_path / "out")


def cut_gzip(path: Path) -> Path:
    whole = csv_gz(path, table_of(1_000)).read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3])
    return path


def narrow(path: Path) -> Path:
    return csv_gz(path, table_of(1_000)[:, :28])


def text(path: Path) -> Path:
    path.write_bytes(gzip.compress(b"a,b,c\n" * 1_000))
    return path


def no_gzip(path: Path) -> Path:
    path.write_text("1,2,3\n")
    return path


def empty(path: Path) -> Path:
    path.write_bytes(gzip.compress(b""))
    return path


def gap(path: Path) -> Path:
    lines = [",".join(["1.0"] * 29)] * 999 + [",".join(["1.0"] * 28 + [""])]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


@pytest.mark.parametrize("source", [cut_gzip, narrow, text, no_gzip, empty, gap])
def test_a_source_that_is_not_higgs_leaves_nothing(tmp_path, parts_of_400, source):
    with pytest.raises(DataError, match=r"is not HIGGS.csv.gz: .*expected 1,000 rows of a label"):
        convert(source(tmp_path / "h.csv.gz"), tmp_path / "out")
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("rows", "found"), [(900, "more than 900 rows"), (1_100, "1,000 rows")])
def test_another_number_of_rows_is_named(tmp_path, parts_of_400, rows, found):
    source = csv_gz(tmp_path / "h.csv.gz", table_of(1_000))
    with pytest.raises(DataError, match=f"is not HIGGS.csv.gz: {found}; expected"):
        convert(source, tmp_path / "out", rows=rows)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


def test_a_folder_with_other_files_is_refused(tmp_path, parts_of_400):
    source = csv_gz(tmp_path / "h.csv.gz", table_of(1_000))
    other = tmp_path / "out" / "train" / "part-000000.parquet"
    other.parent.mkdir(parents=True)
    pq.write_table(SCHEMA.empty_table(), other)
    before = other.read_bytes()
    with pytest.raises(DataError, match="is there and is not of the rows asked for"):
        convert(source, tmp_path / "out")
    assert other.read_bytes() == before
