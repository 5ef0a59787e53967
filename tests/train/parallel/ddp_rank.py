"""One real process of `test_ddp.py`: its gradients of some steps of every case, saved.

python ddp_rank.py WORLD RANK FOLDER
"""

import sys
from itertools import pairwise
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from ddlflow.data.shards.order import slice_edges
from ddlflow.models import build
from ddlflow.spec.pipeline import MlpSection
from ddlflow.train.parallel.ddp import DdpReplica
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.precision import loss_of
from ddlflow.train.tasks.table import task_for

STEPS = (4, 5, 6)
# What is computed: name -> (model, rows of the global batch, micro_batch_rows).
CASES: dict[str, tuple[str, int, int | None]] = {
    "mlp": ("mlp", 37, None),
    "dropout": ("dropout", 37, None),
    "dropout again": ("dropout", 37, None),
    "batch norm": ("batch norm", 24, None),
    "unused": ("unused", 11, None),
    "fewer rows than ranks": ("mlp", 2, None),  # the last batch of an epoch
    "batch norm, fewer rows than ranks": ("batch norm", 2, None),
    "micro batches": ("mlp", 37, 5),
    "lost ranks": ("batch norm", 37, None),
    "lost ranks, few rows": ("mlp", 2, None),
    "lost ranks, micro batches": ("mlp", 37, 5),
}
LANES = 7  # slices of a global batch where ranks were lost: those that are left have several


class Unused(nn.Module):
    """A layer that no output needs."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(3, 1), nn.Linear(3, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.used(features).squeeze(1)


def model(name: str) -> nn.Module:
    torch.manual_seed(1)
    if name == "unused":
        return Unused()
    more = {"dropout": {"dropout": 0.4}, "batch norm": {"batch_norm": True}}.get(name, {})
    spec = MlpSection(use="mlp", hidden=[9, 5], **more)
    return build(spec, num_features=3, category_sizes=[], num_outputs=1)


def rows(number: int, step: int) -> tuple[torch.Tensor, ...]:
    random = torch.Generator().manual_seed(100 * number + step)
    features = torch.randn(number, 3, generator=random)
    return features, torch.rand(number, generator=random).round()


def slices_of(case: str, rank: int, world: int, step: int) -> list[tuple[torch.Tensor, ...]]:
    """A rank's slices of a global batch."""
    number = CASES[case][1]
    lanes = LANES if case.startswith("lost") else world
    edges = list(pairwise(slice_edges(number, lanes)))
    columns = rows(number, step)
    return [tuple(c[slice(*edges[v])] for c in columns) for v in range(rank, lanes, world)]


def joined(case: str, rank: int, world: int, step: int) -> tuple[torch.Tensor, ...]:
    return tuple(map(torch.cat, zip(*slices_of(case, rank, world, step), strict=True)))


def gradients(
    case: str, rank: int, world: int, group: dist.ProcessGroup | None
) -> dict[str, torch.Tensor]:
    """By "step name": the loss, each parameter's gradient, each buffer."""
    name, number, micro = CASES[case]
    net = model(name).train()
    replica = DdpReplica(
        net,
        loss_of(net, task_for("binary"), "float32", "cpu", inputs=["features"]),
        RankLayout(rank, world, world, is_elastic=False),
        group,
        seed=3,
        micro_batch_rows=micro,
    )
    found = {}
    parts = sum(
        bool(len(labels)) for _, labels in (joined(case, r, world, 0) for r in range(world))
    )
    for step in STEPS:
        slices = [
            {"features": features, "label": labels}
            for features, labels in slices_of(case, rank, world, step)
        ]
        loss = replica.gradient(slices, step=step, sharing=parts)
        assert int(loss.count) == number
        found[f"{step} loss"] = loss.total.clone()
        found |= {f"{step} {n}": p.grad.clone() for n, p in net.named_parameters()}
        found |= {f"{step} buffer {n}": b.clone() for n, b in net.named_buffers()}
    return found


def main(world: int, rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    found = {case: gradients(case, rank, world, dist.group.WORLD) for case in CASES}
    torch.save(found, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
