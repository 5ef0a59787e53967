"""A stream gives the batches of ``ddlflow.data.shards.batches``, from memory and from maps."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from ddlflow.data.shards import order
from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.rows import Rows
from ddlflow.sweep.fused import streams

CPU = torch.device("cpu")


@pytest.mark.parametrize("fold", [None, 1])
@pytest.mark.parametrize("resident", [True, False])
def test_the_rows_of_a_solo_training(
    ground: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fold: int | None, resident: bool
) -> None:
    prepared = ground("binary", "all").prepared
    rows = prepared.folds[fold]
    if not resident:
        monkeypatch.setattr(streams, "RESIDENT_BYTES", 0)
    stream = streams.Pool(prepared).stream(fold, 5, batch_rows=50, ones=True)
    batches = Batches(
        Rows(rows.train, rows.standardisation),
        batch_rows=50,
        virtual_ranks=1,
        mine=range(1),
        seed=5,
        device=CPU,
    )
    for chunk in batches.stream(epoch=0, step=0, epochs=2):
        if chunk.step == 0:
            stream.begin(chunk.epoch)
        for features, categories, label in (one.values() for one in chunk.slices):
            part = stream.take(chunk.batch_rows)
            assert torch.equal(part.features[:, :-1], features)
            assert bool((part.features[:, -1] == 1).all())
            assert torch.equal(part.label, label)
            assert part.categories is not None
            assert torch.equal(part.categories, categories)


def test_windows_and_blocks_smaller_than_the_rows(
    ground: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order, "BLOCK_ROWS", 16)
    monkeypatch.setattr(order, "WINDOW_BLOCKS", 8)
    prepared = ground().prepared
    rows = prepared.folds[0]
    stream = streams.Pool(prepared, [0]).stream(0, 5, batch_rows=30, ones=False)
    stream.begin(3)
    found = torch.cat([stream.take(n).features for n in (1, 300, stream.rows - 301)])
    everything = Rows(rows.train, rows.standardisation)
    columns = everything.empty(everything.rows)
    everything.read(0, everything.rows, columns, 0)
    wanted = order.BatchOrder(stream.rows, 30, 1, 5, everything.row_bytes)
    assert wanted.num_windows > 3
    places = np.concatenate([wanted.batch(3, step) for step in range(wanted.steps)])
    assert torch.equal(found, torch.from_numpy(columns["features"])[places])
