"""One training of mlp [100] by the loop that an expert would write, scored on the rows held out.

    python benchmarks/peers/expert.py ROWS.npz --settings 2      one after another, in this process

What is not counted: a first training.
"""

import argparse
import json
import time

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch import nn

FOLDS = 5


def train(features: np.ndarray, label: np.ndarray, fold: int, lr: float, batch_rows: int) -> float:
    """One epoch over all rows but the fold's, in an order of its own; the AUROC of the fold.

    Args:
        features: standardised float32 [rows, features].
        label: float32 [rows], 0 or 1.
        fold: every fifth row, from this one on, is held out.
        lr: of Adam.
        batch_rows: rows a step.
    """
    torch.set_num_threads(1)
    is_held_out = np.arange(len(label)) % FOLDS == fold
    rows, truth = map(torch.from_numpy, (features[~is_held_out], label[~is_held_out]))
    net = nn.Sequential(nn.Linear(rows.shape[1], 100), nn.ReLU(), nn.Linear(100, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    loss_of = nn.BCEWithLogitsLoss()
    for index in torch.randperm(len(rows)).split(batch_rows):
        optimizer.zero_grad(set_to_none=True)
        outputs = net(rows.index_select(0, index)).squeeze(1)
        loss_of(outputs, truth.index_select(0, index)).backward()
        optimizer.step()
    with torch.no_grad():
        outputs = net(torch.from_numpy(features[is_held_out])).squeeze(1)
    return float(roc_auc_score(label[is_held_out], outputs.numpy()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows")
    parser.add_argument("--settings", type=int, default=2)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    with np.load(arguments.rows) as saved:
        features, label = saved["features"], saved["label"]
    train(features, label, 0, 0.001, 16_384)
    rates = np.geomspace(1e-4, 1e-2, arguments.settings).tolist()
    began = time.perf_counter()
    means = [
        np.mean([train(features, label, k, lr, arguments.batch) for k in range(FOLDS)])
        for lr in rates
    ]
    seconds = time.perf_counter() - began
    trainings = FOLDS * len(rates)
    print(json.dumps({"trainings": trainings, "seconds": seconds, "auroc": float(max(means))}))


if __name__ == "__main__":
    main()
