"""A shard is read once a host before it is used, and one that is damaged is used by nobody."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hosts import OpenHosts

from ddlflow.data.prepare import small_ranges
from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards import verified as module
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.shard import map_shard
from ddlflow.data.shards.verified import verified
from ddlflow.errors import DataError
from ddlflow.spec.pipeline import Data

# argv: the data set. Says which shards it read itself.
READER = """
import sys
from pathlib import Path

from ddlflow.data.shards import verified as module
from ddlflow.data.shards.manifest import Manifest

folder = Path(sys.argv[1])
manifest = Manifest.load(folder)
read, real = [], module.check


def check(path, expected):
    read.append(path.name)
    real(path, expected)


module.check = check
print("ready", flush=True)
sys.stdin.readline()
module.verified(folder, manifest.shards)
print(*read)
"""
# argv: the shard, a number to fill it with. Writes half of it, says so, and the rest when told to.
WRITER = """
import os
import sys
from pathlib import Path

from ddlflow.store.files import replacing

with replacing(Path(sys.argv[1])) as temporary, temporary.open("wb") as file:
    file.write(sys.argv[2].encode() * 100_000)
    file.flush()
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    file.write(sys.argv[2].encode() * 100_000)
"""


@pytest.fixture(autouse=True)
def notes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host of the test's own, as far as its notes go."""
    place = tmp_path / "host"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(module, "_seen", set())
    return place


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set of many shards."""
    monkeypatch.setattr(small_ranges, "SMALL", 10**9)  # none is: else they would share shards
    random = np.random.default_rng(1)
    (tmp_path / "t").mkdir()
    for part in range(10):
        columns = {f"x{k}": random.standard_normal(200) for k in range(4)}
        table = pa.table(columns | {"y": random.integers(0, 2, 200)})
        pq.write_table(table, tmp_path / f"t/{part}.parquet")
    spec = Data(source="t", label="y")
    prepare(
        spec, "binary", data_root=tmp_path, folder=tmp_path / "ds", map=lambda f, i, _: map(f, i)
    )
    return tmp_path / "ds"


def damage(path: Path) -> None:
    """One bit is another; size and time stay."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_damaged_shard_is_named_with_what_to_do(dataset: Path) -> None:
    shards = Manifest.load(dataset).shards
    assert verified(dataset, shards[:-1]) == [dataset / shard.path for shard in shards[:-1]]
    path = dataset / shards[-1].path
    map_shard(path)
    damage(path)
    map_shard(path)  # nothing else sees it
    with pytest.raises(DataError, match=r"is damaged: .* with --fresh\.") as caught:
        verified(dataset, shards)
    assert str(path) in str(caught.value)
    assert hashlib.sha256(path.read_bytes()).hexdigest()[:16] in str(caught.value)
    with pytest.raises(DataError, match="is damaged"):  # and again, by whoever asks
        verified(dataset, shards)
    path.unlink()
    with pytest.raises(DataError, match=r"cannot be read: No such file"):
        verified(dataset, shards)


def test_a_shard_that_was_seen_and_is_another_file_now_is_read_again(dataset: Path) -> None:
    shards = Manifest.load(dataset).shards
    verified(dataset, shards)
    path = dataset / shards[0].path
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes(len(content)))
    with pytest.raises(DataError, match="is damaged"):
        verified(dataset, shards)


def test_processes_of_a_host_read_each_shard_once_among_them(dataset: Path) -> None:
    num_shards = len(Manifest.load(dataset).shards)
    assert num_shards > 20
    for expected in (num_shards, 0):  # the second time it is known
        readers = [
            subprocess.Popen(
                [sys.executable, "-c", READER, str(dataset)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for _ in range(3)
        ]
        for reader in readers:
            assert reader.stdout is not None
            assert reader.stdout.readline() == "ready\n"
        for reader in readers:
            assert reader.stdin is not None
            reader.stdin.write("go\n")
            reader.stdin.flush()
        read = [name for reader in readers for name in reader.communicate()[0].split()]
        assert len(read) == expected


def test_where_nothing_can_be_noted_shards_are_read_all_the_same(
    dataset: Path, notes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (notes / f"ddlflow-shards-{os.getuid()}").write_text("a file where the folder would be")
    shards = Manifest.load(dataset).shards
    verified(dataset, shards)
    monkeypatch.setattr(module, "_seen", set())
    damage(dataset / shards[0].path)
    with pytest.raises(DataError, match="is damaged"):
        verified(dataset, shards)


def test_two_containers_that_write_one_shard_at_once_leave_it_whole(
    tmp_path: Path, hosts: OpenHosts
) -> None:
    """As where a worker was taken for dead: one of the two is in the middle as the other ends."""
    path = tmp_path / "shard"
    writers = [
        host.start(
            [sys.executable, "-c", WRITER, str(path), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number, host in enumerate(hosts("node", "node"))
    ]
    numbers = {writer.stdout.readline() for writer in writers if writer.stdout}
    assert len(numbers) == 1  # they are the same process, by its number
    for number, writer in enumerate(writers):
        writer.communicate("go on\n")
        assert writer.returncode == 0
        assert path.read_bytes() == str(number).encode() * 200_000
    assert [file.name for file in tmp_path.iterdir() if file.is_file()] == ["shard"]
