"""Tensors and sequences in batches: every row's own numbers, whatever the batch and the world."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from ddlflow.data.prepare.prepare import prepare
from ddlflow.data.shards import rows as rows_module
from ddlflow.data.shards.batches import Batches, Tensors
from ddlflow.data.shards.manifest import Manifest
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.data.sources import source as source_module
from ddlflow.errors import DataError
from ddlflow.models.standardise import Predictor, Standardise, standardises
from ddlflow.spec.pipeline import Data
from ddlflow.train.split_rows import standardisation_of

ROWS = 5_003
RANDOM = np.random.default_rng(8)
IMAGES = RANDOM.integers(0, 256, (ROWS, 3, 2), dtype=np.uint8)
VECTORS = (RANDOM.standard_normal((ROWS, 3)) * [1, 30, 0.1] + 4).astype(np.float32)
VECTORS[RANDOM.random((ROWS, 3)) < 0.01] = np.nan
STEPS = [RANDOM.standard_normal((n, 2)).astype(np.float32) for n in RANDOM.integers(0, 12, ROWS)]
WHOLE = [RANDOM.integers(0, 500, n).astype(np.int16) for n in RANDOM.integers(0, 5, ROWS)]
SPLIT = {"validation": 0.1, "test": 0}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    root = tmp_path_factory.mktemp("tensors")
    image = pa.fixed_shape_tensor(pa.uint8(), [3, 2])
    flat = pa.array(IMAGES.reshape(ROWS, 6).tolist(), image.storage_type)
    table = pa.table(
        {
            "image": pa.ExtensionArray.from_storage(image, flat),
            "vector": pa.array(VECTORS.tolist(), pa.list_(pa.float32(), 3)),
            "steps": pa.array([one.tolist() for one in STEPS], pa.list_(pa.list_(pa.float32(), 2))),
            "whole": pa.array([one.tolist() for one in WHOLE], pa.list_(pa.int16())),
            "y": np.arange(ROWS) % 3,
        }
    )
    pq.write_table(table, root / "t.parquet", row_group_size=1_000)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(source_module, "PIECE_ROWS", 1_000)
        patched.setattr(source_module, "PIECE_BYTES", 40_000)
        manifest = prepare(
            Data(source="t.parquet", label="y", split=SPLIT),
            "multiclass",
            data_root=root,
            folder=root / "ds",
            map=lambda function, items, _: map(function, items),
        )
    return root / "ds", manifest


def rows_of(made: tuple[Path, Manifest], *, standardised: bool = True) -> Rows:
    folder, manifest = made
    files = ShardFiles.in_folder(folder, manifest.shards_of("train"))
    return Rows(files, standardisation_of(manifest) if standardised else None)


def numbers(rows: Rows) -> np.ndarray:
    """Which row of the source each row is."""
    found = np.empty(rows.rows, np.int64)
    rows.read(0, rows.rows, {"row": found}, 0)
    return found


@pytest.fixture(scope="module")
def expected(made: tuple[Path, Manifest]) -> dict[str, list[np.ndarray]]:
    """Each row's numbers as a model gets them, computed by numpy from the source."""
    train = numbers(rows_of(made))
    found: dict[str, list[np.ndarray]] = {}

    def scaled(values: Any, mean: Any, deviation: Any) -> np.ndarray:
        wide = np.asarray(values, np.float32)
        mean, scale = np.float32(mean), np.float32(1 / deviation)
        return np.nan_to_num((wide - mean) * scale, nan=0.0)

    pixels = IMAGES[train].astype(np.float64)
    found["image"] = [scaled(one, pixels.mean(), pixels.std()) for one in IMAGES]
    wide = VECTORS[train].astype(np.float64)
    mean, deviation = np.nanmean(wide, axis=0), np.nanstd(wide, axis=0)
    found["vector"] = [scaled(one, mean, deviation) for one in VECTORS]
    steps = np.concatenate([STEPS[row] for row in train]).astype(np.float64)
    found["steps"] = [scaled(one, steps.mean(0), steps.std(0)) for one in STEPS]
    whole = np.concatenate([WHOLE[row] for row in train]).astype(np.float64)
    found["whole"] = [scaled(one, whole.mean(), whole.std()) for one in WHOLE]
    return found


def batches(made: tuple[Path, Manifest], mine: list[int], epochs: int = 1) -> Iterator[Any]:
    settings: Any = {"batch_rows": 700, "virtual_ranks": 3, "mine": mine, "seed": 5}
    found = Batches(rows_of(made), **settings, device=torch.device("cpu"))
    return found.stream(epoch=0, step=0, epochs=epochs)


def check(batch: Tensors, rows: np.ndarray, expected: dict[str, list[np.ndarray]]) -> None:
    """A batch has these rows of the source."""
    for name in ("image", "vector"):
        assert batch[name].dtype == torch.float32
        wanted = np.stack([expected[name][row] for row in rows])
        np.testing.assert_allclose(batch[name].numpy(), wanted, rtol=0, atol=2e-6)
    for name in ("steps", "whole"):
        lengths = batch[f"{name}_length"]
        assert lengths.dtype == torch.int64
        assert lengths.tolist() == [len(expected[name][row]) for row in rows]
        assert batch[name].shape[:2] == (len(rows), max(1, int(lengths.max())))
        for at, row in enumerate(rows):
            own = batch[name][at]
            np.testing.assert_allclose(own[: lengths[at]], expected[name][row], rtol=0, atol=2e-6)
            assert not own[lengths[at] :].any()


def by_label(batch: Tensors, rows: np.ndarray) -> None:
    assert batch["label"].tolist() == [row % 3 for row in rows]


def test_rows_in_the_order_of_the_shards(
    made: tuple[Path, Manifest], expected: dict[str, list[np.ndarray]]
) -> None:
    rows = rows_of(made)
    assert len(made[1].shards_of("train")) > 10
    assert rows.inputs == ["image", "vector", "steps", "steps_length", "whole", "whole_length"]
    buffer, at = rows.empty(977), numbers(rows)
    for start in range(0, rows.rows, 977):
        stop = min(start + 977, rows.rows)
        found = rows.batch(start, stop, buffer)
        check({n: torch.from_numpy(a) for n, a in found.items()}, at[start:stop], expected)


def test_every_row_once_an_epoch_whatever_the_ranks(
    made: tuple[Path, Manifest], expected: dict[str, list[np.ndarray]]
) -> None:
    train = numbers(rows_of(made))
    # What a row is can be told by its numbers: no two images and vectors are alike.
    known = {expected["vector"][row].tobytes() + IMAGES[row].tobytes(): row for row in train}
    assert len(known) == len(train)
    slices: dict[tuple[int, int], dict[str, Any]] = {}
    for mine in ([0, 1, 2], [0], [1, 2]):
        seen: list[int] = []
        for chunk in batches(made, mine):
            for k, batch in enumerate(chunk.slices):
                place = chunk.step + k // len(mine), mine[k % len(mine)]
                scale = standardisation_of(made[1]).tensors["image"]
                pixels = np.rint(batch["image"].numpy() / scale.scale + scale.mean)
                keys = zip(batch["vector"].numpy(), pixels.astype(np.uint8), strict=True)
                rows = np.array([known[v.tobytes() + i.tobytes()] for v, i in keys])
                check(batch, rows, expected)
                by_label(batch, rows)
                seen += rows.tolist()
                copy = {name: tensor.clone() for name, tensor in batch.items()}
                if place in slices:  # the same slice as on other ranks, bit for bit
                    assert all(torch.equal(copy[n], slices[place][n]) for n in copy)
                slices[place] = copy
        assert len(seen) == len(set(seen))
    assert sum(len(batch["label"]) for batch in slices.values()) == len(train)


def test_training_and_inference_see_the_same_bits(made: tuple[Path, Manifest]) -> None:
    manifest = made[1]
    tensors = standardises(manifest.tensors, manifest.tensor_statistics())
    ready, raw = rows_of(made), rows_of(made, standardised=False)

    class Own(torch.nn.Module):
        def forward(self, **fields: torch.Tensor) -> Any:
            return fields

    predictor = Predictor(Standardise([], []), Own(), inputs=ready.inputs, tensors=tensors)
    given = raw.batch(0, 900, raw.empty(900))
    assert given["image"].dtype == np.uint8
    found: Any = predictor.outputs({n: torch.from_numpy(a) for n, a in given.items()})
    wanted = ready.batch(0, 900, ready.empty(900))
    for name in ready.inputs:
        assert np.array_equal(found[name].numpy(), wanted[name])


def test_memory_is_bounded_by_bytes(
    made: tuple[Path, Manifest], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(made)
    longest = max(len(STEPS[row]) for row in numbers(rows))
    raw = 6 + 3 * 4 + 16 + 16 + 8
    steps = longest * 2 * 4 + max(len(WHOLE[row]) for row in numbers(rows)) * 4
    assert rows.row_bytes == raw + 6 * 4 + 3 * 4 + steps
    monkeypatch.setattr(rows_module, "PIECE_BYTES", 10 * rows.row_bytes + 1)
    assert rows.piece_rows(65_536) == 10
    assert rows.piece_rows(4) == 4


def test_damaged_values_are_found(made: tuple[Path, Manifest], tmp_path: Path) -> None:
    import shutil

    folder, manifest = made
    shutil.copytree(folder, tmp_path / "ds")
    values = tmp_path / "ds" / manifest.shards_of("train")[3].values[0].path
    content = bytearray(values.read_bytes())
    content[len(content) // 2] ^= 1
    values.write_bytes(content)
    rows = rows_of((tmp_path / "ds", manifest))
    with pytest.raises(DataError, match=r"values\d\.arrow is damaged"):
        rows.batch(0, rows.rows, rows.empty(rows.rows))
