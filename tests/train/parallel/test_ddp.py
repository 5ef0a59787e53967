"""Gradients by DistributedDataParallel, in real processes over gloo, against one pass in one."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ddlflow.train.parallel import ddp
from ddlflow.train.seeding import seed_random
from ddlflow.train.tasks.table import task_for

SCRIPT = Path(__file__).with_name("ddp_rank.py")
spec = importlib.util.spec_from_file_location("ddp_rank", SCRIPT)
assert spec is not None
assert spec.loader is not None
replica = importlib.util.module_from_spec(spec)
spec.loader.exec_module(replica)


WORLD = 3
Found = list[dict[str, dict[str, torch.Tensor]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each rank of a gang found, by case."""
    folder = tmp_path_factory.mktemp("ddp")
    ranks = [
        subprocess.Popen(
            [sys.executable, SCRIPT, str(WORLD), str(rank), folder],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for process in ranks:
        _, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
    return [torch.load(folder / f"{rank}.pt") for rank in range(WORLD)]


def by_hand(case: str, world: int) -> dict[str, torch.Tensor]:
    """Each rank's slice apart, in float64 sums: what the ranks should agree on."""
    name, number, _ = replica.CASES[case]
    net = replica.model(name).train()
    found: dict[str, Any] = {}
    for step in replica.STEPS:
        first = {n: b.clone() for n, b in net.named_buffers()}
        buffers = []
        total = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
        losses = torch.zeros(())
        for v in range(world):
            features, labels = replica.joined(case, v, world, step)
            if not len(labels):
                continue
            for n, buffer in net.named_buffers():
                buffer.copy_(first[n])
            seed_random(torch.device("cpu"), 3, step, v)
            net.zero_grad()
            loss = task_for("binary").criterion.sum(net(features), labels)
            (loss / number).backward()
            losses += loss.detach()
            for n, p in net.named_parameters():
                if p.grad is not None:
                    total[n] += p.grad
            buffers.append({n: b.clone() for n, b in net.named_buffers()})
        for n, buffer in net.named_buffers():
            mean = torch.stack([one[n].double() for one in buffers]).mean(0)
            buffer.copy_(mean)
            found[f"{step} buffer {n}"] = buffer.clone()
        found[f"{step} loss"] = losses
        found |= {f"{step} {n}": gradient for n, gradient in total.items()}
    return found


@pytest.mark.parametrize("case", list(replica.CASES))
def test_all_ranks_have_the_gradient_of_the_global_batch(found: Found, case: str) -> None:
    first, *others = (rank[case] for rank in found)
    torch.testing.assert_close(first, by_hand(case, WORLD), rtol=1e-4, atol=1e-6)
    for other in others:
        for key, tensor in first.items():
            assert torch.equal(tensor, other[key]), key


def test_one_rank_needs_no_group() -> None:
    for case in ("mlp", "micro batches", "batch norm", "lost ranks"):
        alone = replica.gradients(case, 0, 1, None)
        torch.testing.assert_close(alone, by_hand(case, 1), rtol=1e-4, atol=1e-6)


def test_micro_batches_were_cut(found: Found) -> None:
    whole, pieces = found[0]["mlp"], found[0]["micro batches"]
    assert any(not torch.equal(whole[key], pieces[key]) for key in whole)


def test_the_same_world_has_the_same_bits(found: Found) -> None:
    one, again = found[0]["dropout"], found[0]["dropout again"]
    for key, tensor in one.items():
        assert torch.equal(tensor, again[key]), key


def test_slices_of_sequences_are_padded_to_the_longest_of_all() -> None:
    slices = [
        {"sequence": torch.full((rows, steps, 2), float(steps)), "label": torch.ones(rows)}
        for rows, steps in ((3, 4), (0, 0), (2, 7))
    ]
    found = ddp._joined(slices)
    assert found["sequence"].shape == (5, 7, 2)
    assert found["label"].shape == (5,)
    assert found["sequence"][:, :, 0].sum(1).tolist() == [16.0] * 3 + [49.0] * 2
    assert not found["sequence"][:3, 4:].any()
