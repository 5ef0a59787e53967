"""Batches: whatever the world and the windows, together the ranks get the order's rows."""

import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ddlflow.data.shards import batches, order
from ddlflow.data.shards import rows as rows_module
from ddlflow.data.shards.batches import Batches, Chunk
from ddlflow.data.shards.manifest import Shard
from ddlflow.data.shards.order import BatchOrder
from ddlflow.data.shards.rows import Rows, ShardFiles, Standardisation
from ddlflow.data.shards.shard import map_shard, sha256, write_shard
from ddlflow.errors import DataError
from ddlflow.models.standardise import Standardise

CPU = torch.device("cpu")
MEAN, VARIANCE = np.array([0.3, -7.0, 1e4]), np.array([1.7, 0.0, 3e-5])


class AtOnce:
    """An executor that has always looked ahead already: a thread at its fastest.

    What it reads ahead is read before the chunk in use is looked at, so a buffer that is written
    to too early shows every time.
    """

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __enter__(self) -> "AtOnce":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shutdown(self, **_: object) -> None:
        pass

    def submit(self, function: Any, *arguments: Any) -> "Future[Any]":
        future: Future[Any] = Future()
        future.set_result(function(*arguments))
        return future


@contextmanager
def small(*, window_rows: int, block_rows: int, resident: bool = False) -> Iterator[None]:
    """Windows and blocks of a few rows, and a thread that is always ahead."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "BLOCK_ROWS", block_rows)
        patch.setattr(order, "WINDOW_BLOCKS", window_rows // block_rows)
        patch.setattr(order, "LANE_WINDOW_BLOCKS", 1)
        patch.setattr(batches, "ThreadPoolExecutor", AtOnce)
        patch.setattr(batches, "fits_on", lambda *_: resident)
        yield


@dataclass
class Table:
    """Rows on the disk and in memory; a row's label is its number."""

    paths: list[Path]
    features: np.ndarray
    categories: np.ndarray
    label: np.ndarray

    @property
    def standardised(self) -> np.ndarray:
        return Standardise(MEAN, VARIANCE)(torch.from_numpy(self.features)).numpy()


def table(folder: str | Path, sizes: list[int], *, missing: bool = True) -> Table:
    random = np.random.default_rng(sum(sizes))
    rows = sum(sizes)
    features = (random.standard_normal((rows, 3)) * 100).astype(np.float32)
    if missing:
        features[random.random((rows, 3)) < 0.1] = np.nan
    categories = random.integers(0, 9, (rows, 2)).astype(np.int32)
    label = np.arange(rows, dtype=np.float32)
    found = Table([], features, categories, label)
    for number, (start, size) in enumerate(zip(np.cumsum([0, *sizes]), sizes, strict=False)):
        part = slice(start, start + size)
        found.paths.append(Path(folder) / f"{number}.arrow")
        columns = {"features": features, "categories": categories, "label": label}
        parts = {name: column[part].copy() for name, column in columns.items()}
        write_shard(found.paths[-1], parts | {"row": np.arange(start, start + size)})
    return found


def files_at(paths: Sequence[Path]) -> ShardFiles:
    """Shards that no manifest tells of."""
    rows = {path: len(map_shard(path)["row"]) for path in paths}
    shards = tuple(Shard(str(path), "train", None, n, "") for path, n in rows.items())
    return ShardFiles(shards, lambda some: [Path(shard.path) for shard in some])


def standardisation(*, has_missing: bool = True) -> Standardisation:
    buffers = Standardise(MEAN, VARIANCE)
    return Standardisation(buffers.mean.numpy(), buffers.scale.numpy(), has_missing)


def stream(
    rows: Rows, *, rank: int = 0, world: int = 1, begin: tuple[int, int] = (0, 0), **settings: Any
) -> Iterator[Chunk]:
    """A rank's chunks; what else it takes: batch_rows, virtual_ranks, seed, epochs."""
    epochs = settings.pop("epochs")
    mine = order.virtual_ranks_of(rank, world, settings["virtual_ranks"])
    found = Batches(rows, mine=mine, device=CPU, **settings)
    return found.stream(epoch=begin[0], step=begin[1], epochs=epochs)


def copied(chunks: Iterator[Chunk], num_mine: int) -> dict[tuple[int, int], list[list[np.ndarray]]]:
    """Each step's slices, copied while their chunk is valid."""
    steps: dict[tuple[int, int], list[list[np.ndarray]]] = {}
    for chunk in chunks:
        count, rest = divmod(len(chunk.slices), num_mine)
        assert not rest
        for k in range(count):
            slices = chunk.slices[k * num_mine : (k + 1) * num_mine]
            assert (chunk.epoch, chunk.step + k) not in steps
            steps[chunk.epoch, chunk.step + k] = [
                [t.numpy().copy() for t in s.values()] for s in slices
            ]
    return steps


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    sizes = draw(st.lists(st.integers(1, 60), min_size=1, max_size=4))
    batch_rows = draw(st.integers(1, 150))
    virtual_ranks = draw(st.integers(1, min(6, batch_rows, sum(sizes))))
    block_rows = draw(st.integers(1, 30))
    return {
        "sizes": sizes,
        "batch_rows": batch_rows,
        "virtual_ranks": virtual_ranks,
        "world": draw(st.integers(1, virtual_ranks)),
        "window_rows": draw(st.integers(block_rows, 80)),
        "block_rows": block_rows,
        "begin": draw(st.integers(0, 400)),
        "resident": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**62)),
    }


def case(sizes: list[int], **more: Any) -> dict[str, Any]:
    standard = {"window_rows": 8, "block_rows": 2, "begin": 0, "resident": False, "seed": 1}
    return {"sizes": sizes, "world": 1, "virtual_ranks": 1} | standard | more


@given(cases())
# A rank whose slice of the last batch lies wholly before the epoch's last window.
@example(case([16], batch_rows=16, virtual_ranks=4, world=4))
# A batch over several windows: its first rows wait while the next windows are read.
@example(case([40, 25], batch_rows=33))
@example(case([23], batch_rows=7, virtual_ranks=3, world=2))  # a short last batch
@example(case([12], batch_rows=100, virtual_ranks=5, world=3))  # larger than the data
@example(case([21], batch_rows=10, virtual_ranks=4, world=4))  # a last batch of one row
def test_the_ranks_slices_are_the_orders_rows(given_case: dict[str, Any]) -> None:
    sizes, size, world = given_case["sizes"], given_case["batch_rows"], given_case["world"]
    virtual_ranks, seed = given_case["virtual_ranks"], given_case["seed"]
    rows, epochs = sum(sizes), 2
    size = min(size, rows)
    per_epoch = order.num_steps(rows, size)
    begin = divmod(given_case["begin"] % (epochs * per_epoch), per_epoch)
    with (
        tempfile.TemporaryDirectory() as folder,
        small(
            window_rows=given_case["window_rows"],
            block_rows=given_case["block_rows"],
            resident=given_case["resident"],
        ),
    ):
        made = table(folder, sizes)
        row_bytes = 3 * 4 + 2 * 4 + 4
        wanted_order = BatchOrder(rows, size, virtual_ranks, seed, row_bytes)
        orders = {(e, s): wanted_order.batch(e, s) for e in range(epochs) for s in range(per_epoch)}
        ranks = [
            copied(
                stream(
                    Rows(files_at(made.paths), standardisation()),
                    rank=rank,
                    world=world,
                    begin=begin,
                    batch_rows=given_case["batch_rows"],
                    virtual_ranks=virtual_ranks,
                    seed=seed,
                    epochs=epochs,
                ),
                len(order.virtual_ranks_of(rank, world, virtual_ranks)),
            )
            for rank in range(world)
        ]
    every = [(e, s) for e in range(epochs) for s in range(per_epoch) if (e, s) >= begin]
    for steps in ranks:
        assert list(steps) == every
    for epoch, step in every:
        slices = [
            ranks[v % world][epoch, step][v // world] for v in range(virtual_ranks)
        ]  # dealt to the ranks in turn
        wanted = orders[epoch, step]
        edges = order.slice_edges(len(wanted), virtual_ranks)
        assert [len(one[-1]) for one in slices] == list(np.diff(edges))
        features, categories, label = (np.concatenate(parts) for parts in zip(*slices, strict=True))
        np.testing.assert_array_equal(label, made.label[wanted])
        np.testing.assert_array_equal(categories, made.categories[wanted])
        # Bit for bit what the model's own standardisation gives, NaN as 0 (never as -0).
        expected = made.standardised[wanted]
        np.testing.assert_array_equal(features.view(np.int32), expected.view(np.int32))


@settings(deadline=None)
@given(cases())
@example(case([16], batch_rows=16, virtual_ranks=4, world=4))
@example(case([16], batch_rows=8, virtual_ranks=4, world=2, window_rows=7, block_rows=1))
def test_every_rank_sees_every_epochs_end_and_the_batches_size(given_case: dict[str, Any]) -> None:
    """A rank that missed an end would wait for the others for ever."""
    rows, world = sum(given_case["sizes"]), given_case["world"]
    size, epochs = min(given_case["batch_rows"], rows), 2
    with (
        tempfile.TemporaryDirectory() as folder,
        small(window_rows=given_case["window_rows"], block_rows=given_case["block_rows"]),
    ):
        made = table(folder, given_case["sizes"])
        for rank in range(world):
            chunks = stream(
                Rows(files_at(made.paths), None),
                rank=rank,
                world=world,
                batch_rows=given_case["batch_rows"],
                virtual_ranks=given_case["virtual_ranks"],
                seed=given_case["seed"],
                epochs=epochs,
            )
            mine = len(order.virtual_ranks_of(rank, world, given_case["virtual_ranks"]))
            ends, sizes = [], []
            for chunk in chunks:
                steps = len(chunk.slices) // mine
                sizes += [chunk.batch_rows] * steps
                if chunk.ends_epoch:
                    ends.append((chunk.epoch, chunk.step + steps))
            assert ends == [(e, order.num_steps(rows, size)) for e in range(epochs)]
            one_epoch = [size] * (rows // size) + ([rows % size] if rows % size else [])
            assert sizes == one_epoch * epochs


@pytest.mark.parametrize("rows", [12, 13])
@pytest.mark.parametrize("resident", [False, True])
def test_after_an_epochs_last_step_its_end_is_still_to_come(
    tmp_path: Path, rows: int, resident: bool
) -> None:
    """A checkpoint may be made between the last step and the end that follows it."""
    made = table(tmp_path, [rows])
    per_epoch = order.num_steps(rows, 4)
    with small(window_rows=6, block_rows=2, resident=resident):
        settings = {"batch_rows": 4, "virtual_ranks": 2, "seed": 4, "epochs": 2}
        chunks = stream(Rows(files_at(made.paths), None), begin=(0, per_epoch), **settings)
        seen = [(c.epoch, c.step, len(c.slices), c.ends_epoch) for c in chunks]
    assert seen[0] == (0, per_epoch, 0, True)
    assert sum(slices for *_, slices, _ in seen) == 2 * per_epoch
    assert [epoch for epoch, *_, ends in seen if ends] == [0, 1]


def test_with_the_thread_that_looks_ahead(tmp_path: Path) -> None:
    made = table(tmp_path, [500, 1, 300])
    settings = {"batch_rows": 64, "virtual_ranks": 3, "seed": 4, "epochs": 3}
    with small(window_rows=100, block_rows=10):
        wanted = copied(stream(Rows(files_at(made.paths), standardisation()), **settings), 3)
        with pytest.MonkeyPatch.context() as patch:
            from concurrent.futures import ThreadPoolExecutor

            patch.setattr(batches, "ThreadPoolExecutor", ThreadPoolExecutor)
            found = copied(stream(Rows(files_at(made.paths), standardisation()), **settings), 3)
    assert len(found) == 3 * 13
    for step, slices in wanted.items():
        for one, other in zip(slices, found[step], strict=True):
            for a, b in zip(one, other, strict=True):
                np.testing.assert_array_equal(a, b)


def test_where_nothing_is_missing_the_values_are_the_same_bits(tmp_path: Path) -> None:
    made = table(tmp_path, [300, 200], missing=False)
    out: dict[bool, Any] = {}
    for has_missing in (True, False):
        rows = Rows(files_at(made.paths), standardisation(has_missing=has_missing))
        out[has_missing] = rows.empty(500)
        rows.read(0, 500, out[has_missing], 0)
        values = out[has_missing]["features"].view(np.int32)
        np.testing.assert_array_equal(values, made.standardised.view(np.int32))


def test_rows_are_read_over_the_edges_of_shards_and_left_as_they_are(tmp_path: Path) -> None:
    made = table(tmp_path, [3, 1, 1, 5])
    rows = Rows(files_at(made.paths), None)
    assert rows.rows == 10
    assert rows.columns == ["features", "categories", "label"]
    for start in range(10):
        for stop in range(start, 11):
            out = rows.empty(12)
            rows.read(start, stop, out, 1)
            part = slice(1, 1 + stop - start)
            np.testing.assert_array_equal(out["label"][part], made.label[start:stop])
            np.testing.assert_array_equal(out["categories"][part], made.categories[start:stop])
            np.testing.assert_array_equal(out["features"][part], made.features[start:stop])
    assert [out[name].dtype for name in rows.columns] == [np.float32, np.int32, np.float32]


def test_data_without_categories_or_without_numbers(tmp_path: Path) -> None:
    label = np.arange(5, dtype=np.float32)
    features = np.arange(10, dtype=np.float32).reshape(5, 2)
    row = np.arange(5)
    write_shard(tmp_path / "numbers", {"features": features, "label": label, "row": row})
    codes = np.arange(5, dtype=np.int32).reshape(5, 1)
    write_shard(tmp_path / "codes", {"categories": codes, "label": label, "row": row})
    for name, columns in (("numbers", [features]), ("codes", [codes])):
        rows = Rows(files_at([tmp_path / name]), None)
        (chunk,) = stream(rows, batch_rows=5, virtual_ranks=1, seed=0, epochs=1)
        *inputs, found = (t.numpy() for t in chunk.slices[0].values())
        assert sorted(found) == list(label)
        if name == "codes":
            # A model is called as model(features, categories): features without columns come first.
            assert inputs[0].shape == (5, 0)
            assert inputs.pop(0).dtype == np.float32
        np.testing.assert_array_equal(inputs[0], columns[0][found.astype(int)])


def test_no_rows_at_all(tmp_path: Path) -> None:
    rows = Rows(files_at([]), standardisation())
    assert rows.rows == 0
    assert rows.columns == []


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows that are read from now on, by call."""
    read, seen = Rows.read, []

    def counted(self: Rows, start: int, stop: int, out: Any, at: int) -> None:
        if "label" in out:  # else it is the rows' numbers, for their marks
            seen.append(stop - start)
        read(self, start, stop, out, at)

    monkeypatch.setattr(Rows, "read", counted)
    return seen


@pytest.mark.parametrize(("world", "virtual_ranks"), [(4, 4), (4, 9), (3, 7)])
def test_a_rank_reads_its_share_and_no_row_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, world: int, virtual_ranks: int
) -> None:
    """Of 4 ranks each reads a quarter; a row is read by one rank, once an epoch."""
    made = table(tmp_path, [3_000, 2_000, 4_321])
    rows, epochs, read = 9_321, 2, 0
    settings = {"batch_rows": 360, "virtual_ranks": virtual_ranks, "seed": 4, "epochs": epochs}
    with small(window_rows=1_024, block_rows=64):
        for rank in range(world):
            seen = count_reads(monkeypatch)
            for _ in stream(Rows(files_at(made.paths), None), rank=rank, world=world, **settings):
                pass
            monkeypatch.undo()
            read += sum(seen)
            share = len(order.virtual_ranks_of(rank, world, virtual_ranks)) / virtual_ranks
            assert sum(seen) / rows / epochs == pytest.approx(share, abs=0.002)
            assert sum(seen) / rows / epochs <= share * 1.04  # 26 % where it is a quarter
    assert read == rows * epochs


def test_a_window_that_is_gone_on_from_is_read_but_not_the_ones_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table(tmp_path, [4_000])
    with small(window_rows=400, block_rows=50):
        seen = count_reads(monkeypatch)
        settings = {"batch_rows": 40, "virtual_ranks": 2, "seed": 4, "epochs": 1}
        for _ in stream(Rows(files_at(made.paths), None), begin=(0, 75), **settings):
            pass
    assert sum(seen) == 1_200  # windows of 10 steps: from step 70 on


def test_shards_are_located_before_they_are_read_and_only_those_of_this_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each once, those of a window together; none of what another rank reads."""
    monkeypatch.setattr(order, "LANE_BLOCKS", 1)  # a block is a shard
    made = table(tmp_path, [50] * 80)
    whole = files_at(made.paths)
    by_rank = []
    for rank in range(4):
        asked: list[list[str]] = []

        def locate(some: Sequence[Shard], asked: list[list[str]] = asked) -> Sequence[Path]:
            asked.append([shard.path for shard in some])
            return whole.locate(some)

        rows = Rows(ShardFiles(whole.shards, locate), None)
        asked.clear()
        settings = {"batch_rows": 80, "virtual_ranks": 4, "seed": 1, "epochs": 1}
        with small(window_rows=800, block_rows=50):
            chunks = stream(rows, rank=rank, world=4, **settings)
            next(chunks)
            first = len({path for paths in asked for path in paths})
            for _ in chunks:
                pass
        many = [paths for paths in asked if len(paths) > 1]
        assert many  # a window's together
        by_rank.append({path for paths in asked for path in paths} - {whole.shards[0].path})
        assert first < 20  # what the first two windows need, of 20 in all
    assert sum(map(len, by_rank)) <= 80 + 3  # a block at a lane's edge is in two
    assert len(set.union(*by_rank)) >= 79


def test_some_shards_are_mapped_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = table(tmp_path, [7] * 30)
    monkeypatch.setattr(rows_module, "MAPS", 4)
    mapped: list[str] = []
    monkeypatch.setattr(
        rows_module, "map_shard", lambda path: mapped.append(path.name) or map_shard(path)
    )
    rows = Rows(files_at(made.paths), None)
    assert rows.rows == 210
    assert not mapped  # nothing is looked at before a row is wanted
    out = rows.empty(210)
    for _ in range(2):
        rows.read(0, 210, out, 0)
        np.testing.assert_array_equal(out["label"], made.label)
        assert len(rows._maps) == 4
    assert len(mapped) == 1 + 60 - 1  # the first one was held for its columns; then each, twice
    rows.read(209, 210, out, 0)
    assert len(mapped) == 60  # it is still held


def test_a_damaged_shard_is_found_where_it_is_first_wanted(tmp_path: Path) -> None:
    made = table(tmp_path, [40, 40, 40])
    digests = [sha256(path) for path in made.paths]
    made.paths[1].write_bytes(made.paths[1].read_bytes()[:-8] + b"x" * 8)
    shards = [
        Shard(path.name, "train", None, 40, digest)
        for path, digest in zip(made.paths, digests, strict=True)
    ]
    rows = Rows(ShardFiles.in_folder(tmp_path, shards), None)
    out = rows.empty(120)
    rows.read(0, 40, out, 0)
    with pytest.raises(DataError, match=r"1\.arrow is damaged"):
        list(stream(rows, batch_rows=30, virtual_ranks=1, seed=0, epochs=1))


def test_a_hundred_thousand_shards_cost_nothing_before_they_are_read() -> None:
    shards = tuple(Shard(f"{k}.arrow", "train", None, 100, "") for k in range(100_000))

    def locate(some: Sequence[Shard]) -> Sequence[Path]:
        raise AssertionError(some)

    rows = Rows(ShardFiles(shards, locate), None)
    assert rows.rows == 10_000_000
