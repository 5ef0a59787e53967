"""Users' models with lazy layers and torch's batch norm, trained, in a sweep and loaded again."""

from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from ddlflow.infer.model import load_model
from ddlflow.sweep.member import Member, Prepared, whole
from ddlflow.sweep.run import Piece, start
from ddlflow.train.first_net import num_parameters
from ddlflow.train.saved.digests import digest

MODULE = "own_of_test_user_models"
CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Lazy layers, one of them a batch norm, and dropout."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(
            nn.LazyLinear(6), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.2)
        )
        self.last = nn.LazyLinear(1)

    def forward(self, features):
        return self.last(self.inner(features)).squeeze(1)
'''
CODE += """

class Since(nn.Linear):
    def __init__(self, since):
        super().__init__(2, 1)
        assert since == "2020-01-01"

    def forward(self, features):
        return super().forward(features).squeeze(1)
"""
MODEL = {"use": f"{MODULE}:Net"}
ROWS_LEFT = 1  # the last batch of an epoch: 560 training rows in batches of 43


@pytest.fixture
def code(tmp_path: Path) -> Path:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / f"{MODULE}.py").write_text(CODE)
    return folder


def test_the_same_bits_on_one_and_two_ranks_and_when_loaded(
    bench: Callable[..., Any], ranks: Callable[..., Any], code: Path, tmp_path: Path
) -> None:
    place = bench()
    assert place.manifest.rows("train") % 43 == ROWS_LEFT
    more = {"model": MODEL, "code": code, "batch_rows": 43, "virtual_ranks": 2, "epochs": 2}
    alone = place.train(tmp_path / "one", **more)

    def one(rank: int, group: Any) -> Any:
        return place.train(tmp_path / "two", rank=rank, world=2, group=group, **more)

    two = ranks(2, one)[0]
    assert two.result["model_digest"] == alone.result["model_digest"]
    loaded = load_model(tmp_path / "one" / "model", trust_code=True)
    assert digest(loaded.predictor.net) == loaded.digest == alone.result["model_digest"]
    found = loaded.predict(place.source.select(["a", "b"]).to_batches()[0])
    right = pa.compute.equal(found.column("prediction"), place.source["y"].chunk(0))
    assert sum(right.to_pylist()) / len(right) > 0.7


@pytest.mark.parametrize("determinism", ["world", "off"])
def test_a_last_batch_of_one_row_without_elastic(
    bench: Callable[..., Any], code: Path, tmp_path: Path, determinism: str
) -> None:
    more = {"model": MODEL, "code": code, "batch_rows": 43, "epochs": 1}
    ended = bench().train(tmp_path / "one", determinism=determinism, **more)
    assert ended.result["steps"] == 14


def test_a_sweep_trains_it_to_the_same_model(
    bench: Callable[..., Any], code: Path, tmp_path: Path
) -> None:
    place = bench()
    more = {"model": MODEL, "code": code, "batch_rows": 43, "epochs": 2}
    job = place.job(tmp_path / "one", **more)
    alone = place.train(tmp_path / "one", **more)
    prepared = Prepared(place.dataset, place.manifest, {None: whole(place.dataset, place.manifest)})
    member = Member("m", job.model, job.train, None)
    trained = start(Piece((member,), False, ""), replace(prepared, code=code))
    while trained.alive:
        trained.run_epoch()
    tensors = trained.results["m"].tensors
    assert tensors is not None
    kept = {n: t for n, t in tensors.items() if "running" not in n and "num_batches" not in n}
    assert digest(kept) == alone.result["model_digest"]


def test_an_argument_is_what_a_rank_gets_wherever_the_model_is_built(
    bench: Callable[..., Any], code: Path, tmp_path: Path
) -> None:
    """YAML makes a date of ``2020-01-01``; a rank is told JSON, in which it is a text."""
    model = {"use": f"{MODULE}:Since", "since": date(2020, 1, 1)}
    assert num_parameters(bench().job(tmp_path / "one", model=model, code=code)) == 3
