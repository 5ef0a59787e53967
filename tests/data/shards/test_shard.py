"""What is written is mapped without a copy; damage is told, a failure leaves nothing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from ddlflow.data.shards.shard import map_shard, sha256, write_shard
from ddlflow.errors import DataError


def _tensors(rows: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(rows)
    return {
        "features": random.standard_normal((rows, 3)).astype(np.float32),
        "categories": random.integers(0, 9, (rows, 2)).astype(np.int32),
        "label": random.integers(0, 2, rows).astype(np.float32),
        "row": np.arange(rows),
    }


@pytest.mark.parametrize("rows", [1, 7, 1001])
def test_round_trip(tmp_path: Path, rows: int) -> None:
    tensors = _tensors(rows)
    digest = write_shard(tmp_path / "a" / "s.arrow", tensors)
    mapped = map_shard(tmp_path / "a" / "s.arrow")
    assert list(mapped) == list(tensors)
    for name, tensor in tensors.items():
        assert mapped[name].dtype == tensor.dtype
        assert np.array_equal(mapped[name], tensor)
        assert mapped[name].flags.c_contiguous
        assert mapped[name].ctypes.data % 8 == 0
        assert not mapped[name].flags.owndata
    assert sha256(tmp_path / "a" / "s.arrow") == digest
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["s.arrow"]


def test_any_arrow_reader_sees_fixed_shape_tensors(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.arrow", _tensors(5))
    batch = pa.ipc.open_file(tmp_path / "s.arrow").read_all()
    assert batch.schema.field("features").type == pa.fixed_shape_tensor(pa.float32(), [3])
    assert batch.schema.field("label").type == pa.fixed_shape_tensor(pa.float32(), [])


def test_writing_to_a_mapped_array_leaves_the_file_alone(tmp_path: Path) -> None:
    digest = write_shard(tmp_path / "s.arrow", _tensors(5))
    map_shard(tmp_path / "s.arrow")["features"][:] = 0
    assert sha256(tmp_path / "s.arrow") == digest


def test_a_damaged_or_missing_shard_is_told(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.arrow", _tensors(50))
    whole = (tmp_path / "s.arrow").read_bytes()
    for damaged in (b"", whole[:100], whole[:-5]):
        (tmp_path / "s.arrow").write_bytes(damaged)
        with pytest.raises(DataError, match=r"s\.arrow is missing or damaged"):
            map_shard(tmp_path / "s.arrow")
    with pytest.raises(DataError, match="is missing or damaged"):
        map_shard(tmp_path / "none.arrow")


_MANY = """
import resource, sys
import subprocess
import sys
from pathlib import Path
from ddlflow.data.shards.shard import map_shard
from ddlflow.errors import DdlflowError

resource.setrlimit(resource.RLIMIT_NOFILE, tuple(map(int, sys.argv[2:])))
try:
    held = [map_shard(Path(sys.argv[1])) for _ in range(1500)]
except DdlflowError as error:
    sys.exit(f"{type(error).__name__}: {error}")
print(sum(int(shard["row"].sum()) for shard in held))
"""


def _map_many(path: Path, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", _MANY, str(path), str(soft), str(hard)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_more_shards_than_a_process_may_open_at_first(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.arrow", _tensors(5))
    done = _map_many(tmp_path / "s.arrow", 256, 2000)
    assert (done.returncode, done.stdout) == (0, f"{1500 * 10}\n"), done.stderr


def test_more_shards_than_a_process_may_ever_open(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.arrow", _tensors(5))
    done = _map_many(tmp_path / "s.arrow", 256, 300)
    assert done.returncode == 1
    assert "DdlflowError: " in done.stderr
    assert "s.arrow cannot be opened: this process may have 300 files open. Raise" in done.stderr
