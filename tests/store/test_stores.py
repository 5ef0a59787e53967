"""One contract of stores, over a folder and over a bucket of a real server."""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from ddlflow.errors import DataError, DdlflowError, SpecError
from ddlflow.store import cache, lease, object_client
from ddlflow.store.entries import Entry
from ddlflow.store.owner import this_owner
from ddlflow.store.store import Store, open_store

# argv: location, key, number, and what is done by all of them at once, after a line.
RACER = """
import sys
from ddlflow.store.store import open_store

store, key, number = open_store(sys.argv[1]), sys.argv[2], sys.argv[3]
store.exists("warm")
print("ready", flush=True)
for round_ in range(10):
    sys.stdin.readline()
    print(store.write_if_absent(f"{key}-{round_}", f"{number} was first".encode()), flush=True)
"""
# argv: location, log, whose. Holds a lease again and again.
HOLDER = """
import os
import sys
import time
from ddlflow.store import lease
from ddlflow.store.store import open_store

lease.LOOK_S = 0.005
log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
claims = open_store(sys.argv[1]).claims("lease")
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    with lease.held(claims, "it", say=lambda _: None, on_lost=lambda e: os.write(log, b"lost\\n")):
        os.write(log, f"in {sys.argv[3]}\\n".encode())
        time.sleep(0.01)
        os.write(log, f"out {sys.argv[3]}\\n".encode())
"""


@pytest.fixture(params=["folder", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(tmp_path / "kept")
    return open_store(request.getfixturevalue("bucket"))


def started(code: str, *arguments: object) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process


def line(process: "subprocess.Popen[str]", text: str | None = None) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    if text is not None:
        process.stdin.write(f"{text}\n")
        process.stdin.flush()
    return process.stdout.readline().strip()


def test_files_are_written_read_listed_and_removed(store: Store) -> None:
    assert store.list() == []
    assert not store.exists("a/b.json")
    with pytest.raises(FileNotFoundError) as caught:
        store.read("a/b.json")
    assert str(caught.value.filename) == f"{store.location}/a/b.json"
    with pytest.raises(FileNotFoundError):
        store.size("a/b.json")
    store.write("a/b.json", b"first")
    store.write("a/b.json", b"second and longer", durable=True)
    store.write("a/bc.json", b"")
    store.write("top", b"x" * 3_000_001)
    assert store.read("a/b.json") == b"second and longer"
    assert (store.size("a/b.json"), store.size("a/bc.json"), store.size("top")) == (17, 0, 3000001)
    assert store.list() == ["a/b.json", "a/bc.json", "top"]
    assert store.list("a") == ["a/b.json", "a/bc.json"]
    assert store.list("a/b") == []  # a prefix is a folder's
    assert store.at("a").list() == ["b.json", "bc.json"]
    assert store.sizes() == {"a/b.json": 17, "a/bc.json": 0, "top": 3000001}
    assert (store.parts(), store.at("a").parts(), store.at("b").parts()) == (["a"], [], [])
    assert (store.at("a").make(), store.at("new").make()) == (False, True)
    assert store.at("a").read("b.json") == b"second and longer"
    store.remove("a/b.json")
    store.remove("a/b.json")  # gone is gone
    assert store.list() == ["a/bc.json", "top"]
    store.at("a").remove_all()
    assert store.list() == ["top"]
    store.at("nothing").remove_all()


def test_a_store_travels_by_its_location_and_as_a_value(store: Store) -> None:
    inner = store.at("a/b")
    inner.write("c", b"1")
    assert open_store(inner.location).read("c") == b"1"
    assert pickle.loads(pickle.dumps(inner)).read("c") == b"1"
    assert inner.location == f"{store.location}/a/b"
    assert open_store(inner.location) == inner
    assert len({inner, open_store(inner.location)}) == 1


def test_what_fails_half_way_leaves_what_was_there(store: Store) -> None:
    store.write("a", b"before")
    with contextlib.suppress(ZeroDivisionError), store.writing("a") as path:
        path.write_bytes(b"half")
        raise ZeroDivisionError
    assert store.read("a") == b"before"
    with store.writing("b/c") as path:
        path.write_bytes(b"z" * 20_000_001)  # in several parts
        assert not store.exists("b/c")
    assert store.list() == ["a", "b/c"]
    assert hashlib.sha256(store.read("b/c")).digest() == hashlib.sha256(b"z" * 20000001).digest()


def test_a_folder_comes_whole_and_replaces_another(store: Store) -> None:
    with store.writing_folder("m", last="model.json") as folder:
        (folder / "code").mkdir()
        (folder / "code" / "net.py").write_text("x = 1")
        (folder / "model.json").write_text("{}")
    assert store.list("m") == ["m/code/net.py", "m/model.json"]
    before = store.local_folder("m")
    assert (before / "code" / "net.py").read_text() == "x = 1"
    with (
        contextlib.suppress(ZeroDivisionError),
        store.writing_folder("m", last="model.json") as folder,
    ):
        (folder / "model.json").write_text("other")
        raise ZeroDivisionError
    assert store.list("m") == ["m/code/net.py", "m/model.json"]
    with store.writing_folder("m", last="model.json") as folder:
        (folder / "weights").write_bytes(b"w")
        (folder / "model.json").write_text("new")
    assert store.list("m") == ["m/model.json", "m/weights"]
    after = store.local_folder("m")
    assert sorted(path.name for path in after.iterdir()) == ["model.json", "weights"]
    with pytest.raises(FileNotFoundError):
        _ = store.local_folder("none").joinpath("x").read_bytes()


def test_a_file_is_had_as_a_path_with_the_bytes_that_are_asked_for(store: Store) -> None:
    data = os.urandom(5_000_003)
    store.write("s/a.arrow", data)
    digest = hashlib.sha256(data).hexdigest()
    assert store.local("s/a.arrow", digest).read_bytes() == data
    assert store.local("s/a.arrow", digest) == store.local("s/a.arrow", digest)
    assert store.local("s/a.arrow").read_bytes() == data
    store.write("s/a.arrow", b"new")
    assert store.local("s/a.arrow").read_bytes() == b"new"  # never the copy of before
    with pytest.raises(FileNotFoundError):
        store.local("s/b.arrow").read_bytes()


def test_of_many_who_write_if_absent_one_alone_is_told_so(store: Store) -> None:
    racers = [started(RACER, store.location, "r/k", number) for number in range(4)]
    try:
        assert [line(racer) for racer in racers] == ["ready"] * 4
        for round_ in range(10):
            for racer in racers:
                assert racer.stdin is not None
                racer.stdin.write("\n")
            for racer in racers:
                racer.stdin.flush()  # type: ignore[union-attr] # a pipe
            said = [line(racer) for racer in racers]
            assert sorted(said) == ["False"] * 3 + ["True"]
            assert store.read(f"r/k-{round_}") == f"{said.index('True')} was first".encode()
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate()
    assert len(store.list("r")) == 10
    assert not store.write_if_absent("r/k-0", b"")
    assert store.write_if_absent("r/empty", b"")
    assert not store.write_if_absent("r/empty", b"not")
    assert store.read("r/empty") == b""


def test_a_lease_is_held_by_one_process_at_a_time(store: Store, tmp_path: Path) -> None:
    work, log = store.at("prepare/key"), tmp_path / "log"
    holders = [started(HOLDER, work.location, log, number) for number in range(3)]
    try:
        assert [line(holder) for holder in holders] == ["ready"] * 3
        for holder in holders:
            holder.communicate("\n", timeout=120)
            assert holder.returncode == 0
    finally:
        for holder in holders:
            holder.kill()
    words = [one.split() for one in log.read_text().splitlines()]
    assert len(words) == 30
    for come, go in zip(words[::2], words[1::2], strict=True):
        assert (come[0], go[0], come[1]) == ("in", "out", go[1])
    assert lease.current(work.claims("lease")) is None
    assert work.list() == []  # it stands beside, not inside


def test_a_lease_of_a_dead_process_is_taken_over_and_a_lost_one_is_told(store: Store) -> None:
    work, said, lost = store.at("prepare/key"), [], []
    held = {"say": said.append, "on_lost": lost.append, "beat_s": 600.0}
    with lease.held(work.claims("lease"), "it", **held) as mine:  # type: ignore[arg-type]
        mine.confirm()
        entry = lease.current(work.claims("lease"))
        assert entry is not None
        assert (entry.beat, entry.owner) == (1, this_owner())
        theirs = Entry("f" * 32, 0, entry.owner)
        stale = Entry(entry.token, 0, entry.owner)
        assert not work.claims("lease").replace(stale, theirs)  # it has beaten meanwhile
        assert not work.claims("lease").take(theirs)
        assert work.claims("lease").replace(entry, theirs)
        with pytest.raises(DdlflowError, match="has taken over the work of this one"):
            mine.confirm()
    assert lease.current(work.claims("lease")) == theirs  # our end harmed nobody
    # No process has that token any more: it is dead at the first look.
    with lease.held(work.claims("lease"), "it", **held):  # type: ignore[arg-type]
        assert said == [f"taken over from process {os.getpid()} on {os.uname().nodename}, "
                        "which is gone: it"]  # fmt: skip


def test_several_use_what_one_then_waits_for(store: Store) -> None:
    users = store.at("prepare/key").claims("users", shared=True)
    first, second = (Entry(letter * 32, 0, this_owner()) for letter in "ab")
    users.join(first)
    users.join(second)
    later = Entry("a" * 32, 1, this_owner())
    assert users.replace(first, later)
    assert not users.replace(first, Entry("a" * 32, 2, this_owner()))
    assert users.entries() == [second, later]
    users.remove(second)
    users.remove(second)
    assert users.entries() == [later]
    users.remove(later)
    assert users.entries() == []


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3:///prefix", "which names no bucket; expected s3://BUCKET/PREFIX"),
        (
            "ftp://host/x",
            "storage is ftp://host/x; expected a folder that every worker sees, or a",
        ),
        ("s3://AKIA:hunter2@bucket/x", "Give credentials by the environment"),
        ("s3://hunter2@bucket/x", "Give credentials by the environment"),
        ("s3://bucket/x?X-Amz-Signature=hunter2", "more than a bucket and a prefix"),
    ],
)
def test_a_url_that_names_no_bucket_is_told_in_a_sentence(url: str, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_store(url)
    assert words in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_wrong_keys_and_a_bucket_that_is_not_there_are_no_missing_files(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_store(bucket).write("a", b"1")
    none = open_store("s3://there-is-none/x")
    for ask in (none.read, none.list):
        with pytest.raises(OSError) as caught:
            ask("a")
        assert not isinstance(caught.value, FileNotFoundError)
        assert caught.value.strerror == "there is no such bucket"
        assert caught.value.filename == "s3://there-is-none"
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    object_client.forget_clients()
    with pytest.raises(PermissionError) as denied:
        open_store(bucket).read("a")
    assert denied.value.filename == f"{bucket}/a"
    assert denied.value.strerror == "access is denied (SignatureDoesNotMatch)"
    text = f"{denied.value} {denied.value!r}"
    assert "secret" not in text
    assert os.environ["AWS_ACCESS_KEY_ID"] not in text
    assert denied.value.__cause__ is None
    assert denied.value.__suppress_context__
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    monkeypatch.setattr(object_client, "RETRY_S", 0.5)
    object_client.forget_clients()
    with pytest.raises(OSError, match="the service does not answer") as away:
        open_store(bucket).read("a")
    assert away.value.filename == f"{bucket}/a"


def test_a_copy_with_other_bytes_is_refused_and_not_kept(bucket: str) -> None:
    store = open_store(bucket)
    store.write("a", b"damaged")
    expected = hashlib.sha256(b"written").hexdigest()
    with pytest.raises(DataError, match="a is damaged: its bytes have the SHA-256"):
        store.local("a", expected)
    store.write("a", b"written")
    assert store.local("a", expected).read_bytes() == b"written"


def test_a_cache_holds_no_more_than_its_bound_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    kept = cache.Cache(tmp_path / "c", 1000)
    fetched: list[str] = []

    def parts(name: str, size: int = 300) -> cache.Parts:
        def fetch() -> Iterator[bytes]:
            fetched.append(name)
            yield name.encode().ljust(size - 100, b".")
            yield bytes(100)

        return fetch

    paths = {}
    for name in "abc":
        paths[name] = kept.file(name, parts(name), name=f"s/{name}.arrow")
        os.utime(paths[name].parent, (ord(name), ord(name)))  # clocks of files are coarse
    assert paths["a"].name == "a.arrow"
    assert kept.file("a", parts("a"), name="s/a.arrow") == paths["a"]  # used last now
    opened = paths["b"].open("rb")
    paths["d"] = kept.file("d", parts("d"), name="d")
    assert fetched == ["a", "b", "c", "d"]
    assert sorted(name for name, path in paths.items() if path.exists()) == ["a", "c", "d"]
    with opened:  # whoever has it goes on
        assert len(opened.read()) == 300
    big = kept.file("big", parts("big", 5000), name="big")  # alone if need be
    assert big.stat().st_size == 5000
    assert [*(tmp_path / "c" / "copies").iterdir()] == [big.parent]


def fetch_slowly(folder: str, log: str, start: "multiprocessing.synchronize.Event") -> None:
    def parts() -> Iterator[bytes]:
        with Path(log).open("a") as file:
            file.write("fetched\n")
        for _ in range(20):
            time.sleep(0.01)
            yield b"x" * 1000

    start.wait()
    path = cache.Cache(Path(folder), 10**9).file("tag", parts, name="tag")
    assert path.stat().st_size == 20_000


def test_of_a_hosts_processes_one_fetches_and_a_killed_one_leaves_nothing_half(
    tmp_path: Path,
) -> None:
    context = multiprocessing.get_context("fork")
    start, folder, log = context.Event(), tmp_path / "c", tmp_path / "log"
    log.touch()
    arguments = (str(folder), str(log), start)
    group = [context.Process(target=fetch_slowly, args=arguments) for _ in range(4)]
    for one in group:
        one.start()
    start.set()
    while not log.read_text():
        time.sleep(0.001)
    files = folder / "copies"
    while not list(files.glob(".*.tmp")):
        time.sleep(0.001)
    owner = next(one for one in group if f".{one.pid}-" in next(files.glob(".*.tmp")).name)
    owner.kill()
    for one in group:
        one.join()
    assert sorted(one.exitcode or 0 for one in group) == [-9, 0, 0, 0]
    assert log.read_text().count("fetched") == 2  # by the one that was killed, and by the next
    other = cache.Cache(folder, 20_500).file("other", lambda: [bytes(1000)], name="other")
    assert [*files.iterdir()] == [other.parent]


def test_what_comes_next_is_fetched_before_it_is_asked_for(bucket: str) -> None:
    store = open_store(bucket)
    data = {f"s/{number}": os.urandom(100_000 + number) for number in range(5)}
    digests = {key: hashlib.sha256(value).hexdigest() for key, value in data.items()}
    for key, value in data.items():
        store.write(key, value)
    store.ahead([(key, digests[key]) for key in data])
    give_up = time.monotonic() + 60
    here = cache.cache_here().scratch().parent / "copies"
    while len([p for p in here.iterdir() if not p.name.startswith(".")]) < 5:
        assert time.monotonic() < give_up
        time.sleep(0.01)
    for key in data:
        store.remove(key)  # they are here all the same
    assert {key: store.local(key, digests[key]).read_bytes() for key in data} == data


def test_a_bound_that_is_no_number_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDLFLOW_CACHE_GB", "much")
    with pytest.raises(SpecError, match="DDLFLOW_CACHE_GB is much; expected a number of gigabyt"):
        cache.cache_here()
