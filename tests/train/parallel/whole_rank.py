"""One real process of `test_whole.py`: hashes of gradients in several worlds, as JSON.

python whole_rank.py VIRTUAL_RANKS PROCESSES RANK FOLDER WORLD...
"""

import hashlib
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from ddlflow.data.shards.order import slice_edges
from ddlflow.models import build
from ddlflow.spec.pipeline import MlpSection
from ddlflow.train.parallel import tree
from ddlflow.train.parallel.layout import RankLayout
from ddlflow.train.parallel.same_host import meet
from ddlflow.train.parallel.tree import Gather
from ddlflow.train.parallel.whole import WholeReplica
from ddlflow.train.precision import loss_of
from ddlflow.train.tasks.table import task_for

ROWS = 37
PRECISIONS = ("float32", "bf16")
CUTS = (0, tree.CUT_FROM)  # vectors in pieces, and at once


def hashes(
    rank: int, world: int, virtual_ranks: int, group: Any, gather: Gather | None
) -> list[str]:
    """Of loss, gradients and buffers after two steps, in each way of computing and sending."""
    found = []
    for precision in PRECISIONS:
        for tree.CUT_FROM in CUTS:
            torch.manual_seed(1)
            spec = MlpSection(use="mlp", hidden=[9, 5], batch_norm=True, dropout=0.3)
            net = build(spec, num_features=3, category_sizes=[], num_outputs=1).train()
            layout = RankLayout(rank, world, virtual_ranks)
            loss = loss_of(net, task_for("binary"), precision, "cpu", inputs=["features"])
            replica = WholeReplica(net, loss, layout, group, gather=gather, seed=3)
            random = torch.Generator().manual_seed(5)
            features = torch.randn(ROWS, 3, generator=random)
            labels = torch.rand(ROWS, generator=random).round()
            edges = list(pairwise(slice_edges(ROWS, virtual_ranks)))
            cuts = [slice(*edges[v]) for v in layout.mine]
            slices = [{"features": features[c], "label": labels[c]} for c in cuts]
            content = hashlib.sha256()
            for step in (7, 8):
                summed = replica.gradient(slices, step=step, sharing=virtual_ranks)
                kept = [
                    summed.total,
                    summed.count,
                    *(p.grad for p in net.parameters()),
                    *net.buffers(),
                ]
                for tensor in kept:
                    content.update(tensor.detach().numpy().tobytes())
            found.append(content.hexdigest())
    return found


def main(virtual_ranks: int, processes: int, rank: int, folder: Path, worlds: list[int]) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), processes)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=processes)
    found: dict[str, list[str]] = {}
    for world in worlds:
        group = dist.new_group(list(range(world)))
        if rank < world:
            near = meet(rank, world, group) if world > 1 else None
            found[str(world)] = hashes(rank, world, virtual_ranks, group, None)
            if near is not None:
                ways = hashes(rank, world, virtual_ranks, group, near.all_gather)
                found[f"{world} near"] = ways
                near.close()
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    numbers = list(map(int, sys.argv[1:4]))
    main(*numbers, Path(sys.argv[4]), list(map(int, sys.argv[5:])))
