"""A task of its own kind: nothing to predict but the inputs, and a loss that counts numbers.

Through batches, gradients, the loop, validation and predictions, as a training takes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn

from ddlflow.data.shards.batches import Batches
from ddlflow.data.shards.rows import Rows, ShardFiles
from ddlflow.spec.pipeline import Training
from ddlflow.train.auto import resolve
from ddlflow.train.loop import Surroundings, train
from ddlflow.train.optimizers import make_optimizer
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.precision import loss_of
from ddlflow.train.saved.digests import digest
from ddlflow.train.saved.state import State
from ddlflow.train.split_rows import standardisation_of
from ddlflow.train.tasks.measures import Measures, Metric
from ddlflow.train.tasks.scores import HEAD, Scores, ratio
from ddlflow.train.tasks.task import (
    WHOLE_NET,
    Loss,
    ModelPart,
    Task,
    TrainingLabels,
)
from ddlflow.train.validation import Validation

CPU = torch.device("cpu")
VIRTUAL_RANKS = 4


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(2, 1), nn.Linear(1, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        outputs: torch.Tensor = self.up(self.down(features))
        return outputs


class ErrorScores(Scores):
    """The mean squared error of numbers that were there."""

    def __init__(self) -> None:
        self.counts = torch.zeros(1, dtype=torch.int64)  # unscored
        self.sums = torch.zeros(HEAD, dtype=torch.float64)

    def predicted_classes(self) -> None:
        return None

    def compute(self) -> dict[str, float]:
        loss, numbers, rows, _ = self.sums.tolist()
        return {"loss": ratio(loss, numbers), "rows": rows}


@dataclass(frozen=True, slots=True)
class Reconstruction:
    """Squared errors of the features, those alone that are above 0: so rows do not count alike."""

    name: ClassVar[str] = "reconstruction"
    targets: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[Measures] = Measures(
        (Metric("loss", "lower"),), "loss", "loss", "loss", "mean"
    )
    parts: ClassVar[tuple[ModelPart, ...]] = WHOLE_NET
    num_outputs: ClassVar[int | None] = None
    loss_unit: ClassVar[float] = 1.0

    def loss(self, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]) -> Loss:
        known = batch["features"] > 0
        errors = (outputs - batch["features"]).square() * known
        return Loss(errors.sum(), known.sum())

    def empty_scores(self) -> Scores:
        return ErrorScores()

    def score(
        self, scores: Scores, outputs: torch.Tensor, batch: Mapping[str, torch.Tensor]
    ) -> None:
        loss = self.loss(outputs, batch)
        rows = float(len(outputs))
        scores.sums += torch.tensor([float(loss.total), float(loss.count), rows, 0.0]).double()

    def example(self, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
        return {}

    def advice(self, outputs: torch.Tensor) -> str | None:
        return None

    def baseline(self, known: TrainingLabels) -> torch.Tensor | None:
        return None

    def predictions(self, outputs: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"restored": outputs}

    def column_names(self) -> list[str]:
        return ["restored"]

    def columns(self, found: Mapping[str, np.ndarray]) -> dict[str, pa.Array]:
        return {"restored": pa.array(list(found["restored"]))}

    def described(self) -> dict[str, Any]:
        return {}


def rows_of(here: Any) -> Rows:
    shards = here.manifest.shards_of("train")
    files = ShardFiles.in_folder(here.dataset, shards)
    return Rows(files, standardisation_of(here.manifest))


def trained(here: Any, rank: int, group: Any, world: int) -> tuple[State, dict[str, float]]:
    torch.manual_seed(0)
    net, rows = Autoencoder(), rows_of(here)
    raw = here.job(here.dataset, batch_rows=90, epochs=2).train
    spec: Training = resolve(raw, rows.rows, 0)
    task: Task = Reconstruction()
    state = State(net, make_optimizer(spec.optimizer, net.parameters(), device=CPU))
    layout = RankLayout(rank, world, VIRTUAL_RANKS)
    batches = Batches(
        rows,
        batch_rows=90,
        virtual_ranks=VIRTUAL_RANKS,
        mine=layout.mine,
        seed=spec.seed,
        device=CPU,
    )
    loss = loss_of(net, task, "float32", "cpu", inputs=rows.inputs)
    validate = Validation(rows, net, task, rank, world, group, CPU)
    around = Surroundings(
        batches=batches,
        replica=WholeReplica(net, loss, layout, group, seed=spec.seed),
        task=task,
        validate=validate,
        tell=lambda event: None,
        must_stop=lambda: False,
        pulse=SimpleNamespace(at=0.0, step=0, resting=False),  # type: ignore[arg-type]
        name_rows=lambda epoch, step: "",
        ledger=SimpleNamespace(  # type: ignore[arg-type]
            begin=lambda chunk, slices: None, count=lambda: None
        ),
        writer=None,
        compare=lambda state, digest: None,
        settings={},
        rows=rows.rows,
        sharing=layout.sharing,
        num_slices=len(layout.mine),
    )
    train(state, spec, around)
    net.eval()
    return state, validate()


@pytest.fixture(scope="module")
def here(bench: Callable[..., Any]) -> Any:
    return bench("regression", "numbers")


def test_it_is_trained_and_scored_the_same_by_any_world(
    here: Any, ranks: Callable[..., list[Any]]
) -> None:
    ((state, metrics),) = ranks(1, lambda rank, _: trained(here, rank, None, 1))
    assert state.history[-1]["loss"] < state.history[0]["loss"]
    assert state.history[-1]["val_loss"] == metrics["loss"]
    for world in (2, 3):
        for other, same in ranks(
            world, lambda rank, group, world=world: trained(here, rank, group, world)
        ):
            assert digest(other.net) == digest(state.net)
            assert same == pytest.approx(metrics, rel=1e-12)


def test_its_steps_are_those_of_plain_torch(here: Any, ranks: Callable[..., list[Any]]) -> None:
    """The mean over the numbers that count, of each global batch in one piece."""
    ((state, metrics),) = ranks(1, lambda rank, _: trained(here, rank, None, 1))
    torch.manual_seed(0)
    net, rows = Autoencoder(), rows_of(here)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    batches = Batches(
        rows,
        batch_rows=90,
        virtual_ranks=VIRTUAL_RANKS,
        mine=range(VIRTUAL_RANKS),
        seed=state_seed(here),
        device=CPU,
    )
    for chunk in batches.stream(epoch=0, step=0, epochs=2):
        for at in range(0, len(chunk.slices), VIRTUAL_RANKS):
            features = torch.cat(
                [one["features"] for one in chunk.slices[at : at + VIRTUAL_RANKS]]
            ).clone()
            wanted = features[features > 0]
            mean = (net(features)[features > 0] - wanted).square().mean()
            optimizer.zero_grad()
            mean.backward()
            optimizer.step()
    for name, parameter in net.named_parameters():
        found = dict(state.net.named_parameters())[name]
        torch.testing.assert_close(found, parameter, rtol=1e-4, atol=1e-5)

    columns = rows.empty(rows.rows)
    rows.read(0, rows.rows, columns, 0)
    features = torch.from_numpy(columns["features"])
    with torch.no_grad():
        outputs = net(features)
    error = (outputs - features)[features > 0].square().mean()
    assert metrics["loss"] == pytest.approx(float(error), rel=1e-3)

    task = Reconstruction()
    found_by_name = {n: t.numpy() for n, t in task.predictions(outputs).items()}
    table = pa.table(task.columns(found_by_name))
    assert table.column_names == task.column_names()
    np.testing.assert_allclose(np.stack(table["restored"].to_pylist()), outputs, rtol=1e-6)


def state_seed(here: Any) -> int:
    seed: int = here.job(here.dataset).train.seed
    return seed
