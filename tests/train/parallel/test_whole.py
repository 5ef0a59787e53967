"""The gradient of a global batch: exact for any slices, and the same bits for any world."""

import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from ddlflow.data.shards.order import slice_edges
from ddlflow.models import build
from ddlflow.spec import pipeline
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.precision import loss_of
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.criterion import Criterion
from ddlflow.train.tasks.regression import RegressionTask
from ddlflow.train.tasks.table import task_for
from ddlflow.train.tasks.task import Task

SIZES = [4, 9]  # codes of the categorical columns
MODELS = {
    "linear": pipeline.LinearSection(use="linear"),
    "mlp": pipeline.MlpSection(use="mlp", hidden=[7, 5]),
    "dropout": pipeline.MlpSection(use="mlp", hidden=[16], dropout=0.4),
    "batch norm": pipeline.MlpSection(use="mlp", hidden=[6], batch_norm=True),
    "all": pipeline.MlpSection(
        use="mlp", hidden=[6], batch_norm=True, dropout=0.3, activation="gelu"
    ),
}


class Unused(nn.Module):
    """A layer that no output needs, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(3, 1)
        self.unused = nn.Linear(3, 2)
        self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

    def forward(self, features: torch.Tensor, categories: torch.Tensor) -> torch.Tensor:
        return self.used(features * self.frozen).squeeze(1)


def model(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == "unused":
        return Unused()
    return build(MODELS[name], num_features=3, category_sizes=SIZES, num_outputs=1)


def rows(number: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(number)
    codes = [torch.randint(size, (number,), generator=random) for size in SIZES]
    features = torch.randn(number, 3, generator=random)
    return features, torch.stack(codes, 1), torch.rand(number, generator=random).round()


def computed(
    net: nn.Module,
    number: int,
    virtual_ranks: int,
    *,
    rank: int = 0,
    world: int = 1,
    group: Any = None,
    step: int = 5,
    task: Task | None = None,
    precision: Literal["float32", "bf16"] = "float32",
) -> torch.Tensor:
    """One rank's call; returns the loss, gradients are the net's."""
    layout = RankLayout(rank, world, virtual_ranks)
    edges = list(pairwise(slice_edges(number, virtual_ranks)))
    names = ("features", "categories", "label")
    columns = dict(zip(names, rows(number), strict=True))
    slices = [{name: column[a:b] for name, column in columns.items()} for a, b in edges]
    replica = WholeReplica(
        net.train(),
        loss_of(net, task or task_for("binary"), precision, "cpu", inputs=names[:2]),
        layout,
        group,
        seed=3,
    )
    own = [slices[v] for v in layout.mine]
    loss = replica.gradient(own, step=step, sharing=min(number, virtual_ranks))
    assert int(loss.count) == number
    return loss.total


def of_the_whole(net: nn.Module, number: int) -> torch.Tensor:
    """The mean loss over all rows in one pass, and its gradient by plain torch."""
    *inputs, labels = rows(number)
    loss = task_for("binary").criterion.sum(net(*inputs), labels)
    (loss / number).backward()
    return loss


def grads(net: nn.Module) -> dict[str, torch.Tensor]:
    return {n: p.grad for n, p in net.named_parameters() if p.grad is not None}


@given(st.sampled_from(["linear", "mlp"]), st.integers(1, 40), st.integers(1, 9))
def test_the_sum_over_slices_is_the_gradient_of_the_mean_loss(
    name: str, number: int, virtual_ranks: int
) -> None:
    net, whole = model(name), model(name)
    loss = computed(net, number, virtual_ranks)
    torch.testing.assert_close(loss, of_the_whole(whole, number).detach())
    torch.testing.assert_close(grads(net), grads(whole), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["batch norm", "dropout"])
def test_where_rows_depend_on_their_slice_it_is_the_sum_of_the_slices(name: str) -> None:
    number, virtual_ranks = 11, 3
    net = model(name)
    loss = computed(net, number, virtual_ranks)
    total, losses, running = {}, [], []
    for v, (a, b) in enumerate(pairwise(slice_edges(number, virtual_ranks))):
        part = model(name).train()
        *inputs, labels = (column[a:b] for column in rows(number))
        seed_random(torch.device("cpu"), 3, 5, v)
        one = task_for("binary").criterion.sum(part(*inputs), labels)
        (one / number).backward()
        losses.append(one.detach())
        running.append({n: b.clone() for n, b in part.named_buffers()})
        for n, gradient in grads(part).items():
            total[n] = total.get(n, 0) + gradient
    torch.testing.assert_close(grads(net), total, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(loss, torch.stack(losses).sum())
    for n, buffer in net.named_buffers():  # running statistics: the mean over the slices'
        torch.testing.assert_close(buffer, torch.stack([r[n] for r in running]).mean(0))


@pytest.mark.parametrize("name", [*MODELS, "unused"])
@pytest.mark.parametrize(("number", "virtual_ranks"), [(37, 5), (3, 5), (8, 4)])
def test_the_same_bits_for_every_world(
    ranks: Callable[..., Any], name: str, number: int, virtual_ranks: int
) -> None:
    """Also where some slices are empty, which is the last batch of an epoch."""

    def state(rank: int, world: int, group: Any) -> dict[str, torch.Tensor]:
        net = model(name)
        for step in (5, 6):  # the second step starts from the first one's running statistics
            loss = computed(
                net, number, virtual_ranks, rank=rank, world=world, group=group, step=step
            )
        return {"loss": loss, **grads(net), **{f"buffer {n}": b for n, b in net.named_buffers()}}

    (wanted,) = ranks(1, lambda rank, _: state(rank, 1, None))
    assert len(wanted) > 2
    for world in range(2, virtual_ranks + 1):
        for found in ranks(world, lambda rank, group, world=world: state(rank, world, group)):
            assert found.keys() == wanted.keys()
            for key, tensor in found.items():
                assert torch.equal(tensor, wanted[key]), key


@pytest.mark.parametrize("name", ["mlp", "all"])
def test_bf16_has_the_same_bits_for_every_world(ranks: Callable[..., Any], name: str) -> None:
    def state(rank: int, world: int, group: Any) -> dict[str, torch.Tensor]:
        net = model(name)
        more = {"rank": rank, "world": world, "group": group}
        loss = computed(net, 50, 4, precision="bf16", **more)
        return {"loss": loss, **grads(net)}

    (wanted,) = ranks(1, lambda rank, _: state(rank, 1, None))
    for world in (2, 3, 4):
        for found in ranks(world, lambda rank, group, world=world: state(rank, world, group)):
            for key, tensor in found.items():
                assert tensor.dtype == torch.float32
                assert torch.equal(tensor, wanted[key]), key
    net = model(name)
    loss = computed(net, 50, 4)
    assert not torch.equal(loss, wanted["loss"])
    torch.testing.assert_close(loss, wanted["loss"], rtol=0.02, atol=0)


def test_a_parameter_that_no_row_reaches_has_a_gradient_of_zero() -> None:
    net = model("unused")
    computed(net, 6, 2)
    found = grads(net)
    assert found["used.weight"].any()
    assert not found["unused.weight"].any()
    assert "frozen" not in found


def test_dropout_follows_seed_step_and_virtual_rank_and_nothing_else() -> None:
    def gradient(step: int) -> torch.Tensor:
        net = model("dropout")
        torch.manual_seed(step * 100)  # what was drawn before does not enter
        computed(net, 20, 2, step=step)
        return grads(net)["layers.0.weight"]

    assert torch.equal(gradient(1), gradient(1))
    assert not torch.equal(gradient(1), gradient(2))


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**63), st.integers(0, 2**40), st.integers(-1, 63))
def test_any_seed_step_and_virtual_rank_seed_the_generator(seed: int, step: int, v: int) -> None:
    seed_random(torch.device("cpu"), seed, step, v)
    first = torch.rand(4)
    seed_random(torch.device("cpu"), seed, step, v)
    assert torch.equal(first, torch.rand(4))
    for other in ((seed + 1, step, v), (seed, step + 1, v), (seed, step, v + 1)):
        seed_random(torch.device("cpu"), *other)
        assert not torch.equal(first, torch.rand(4))


def test_a_loss_in_another_precision_is_gathered_with_empty_slices(
    ranks: Callable[..., Any],
) -> None:
    """A user's loss may sum in float64; a rank whose slices are empty cannot know that."""

    def loss(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return (outputs.double() - labels).square()

    task = RegressionTask(Criterion("user", loss))

    def state(rank: int, group: Any) -> dict[str, torch.Tensor]:
        net = model("linear")
        world = 1 if group is None else 3
        total = computed(net, 2, 3, rank=rank, world=world, group=group, task=task)
        return {"loss": total, **grads(net)}

    (wanted,) = ranks(1, lambda rank, _: state(rank, None))
    for found in ranks(3, state):
        for key, tensor in found.items():
            assert torch.equal(tensor, wanted[key]), key


@settings(suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_world_and_virtual_ranks_in_one_process(
    ranks: Callable[..., Any], data: st.DataObject
) -> None:
    name = data.draw(st.sampled_from(sorted(MODELS)))
    virtual_ranks = data.draw(st.integers(1, 9))
    world = data.draw(st.integers(1, virtual_ranks))
    number = data.draw(st.integers(1, 60))

    def state(rank: int, world: int, group: Any) -> list[torch.Tensor]:
        net = model(name)
        loss = computed(net, number, virtual_ranks, rank=rank, world=world, group=group)
        return [loss, *grads(net).values(), *net.buffers()]

    (wanted,) = ranks(1, lambda rank, _: state(rank, 1, None))
    for found in ranks(world, lambda rank, group: state(rank, world, group if world > 1 else None)):
        assert all(map(torch.equal, found, wanted))


def test_worlds_of_3_5_and_8_with_8_virtual_ranks_in_real_processes(tmp_path: Path) -> None:
    """Over gloo and over sockets of the host, float32 and bf16, at once and in pieces."""
    script = Path(__file__).with_name("whole_rank.py")
    numbers = ["8", "8"]
    processes = [
        subprocess.Popen(
            [sys.executable, script, *numbers, str(rank), tmp_path, "1", "3", "5", "8"],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(8)
    ]
    for process in processes:
        error = process.communicate(timeout=300)[1]
        assert process.returncode == 0, error
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(8)]
    wanted = found[0]["1"]
    assert wanted[0] == wanted[1]  # in pieces as at once
    assert wanted[0] != wanted[2]  # bf16 is something else
    assert [*found[0]] == ["1", "3", "3 near", "5", "5 near", "8", "8 near"]
    assert [*found[7]] == ["8", "8 near"]
    assert {tuple(hashes) for one in found for hashes in one.values()} == {tuple(wanted)}
