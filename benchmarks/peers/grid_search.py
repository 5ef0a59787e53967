"""scikit-learn's GridSearchCV over skorch, two jobs at once, five folds.

    python benchmarks/peers/grid_search.py ROWS.npz --settings 4

What is not counted: a first search, which starts the two processes and imports torch there.
"""

import argparse
import json
import time

import numpy as np
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetBinaryClassifier
from torch import nn


class Mlp(nn.Module):
    def __init__(self, features: int = 28) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(features, 100), nn.ReLU(), nn.Linear(100, 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self.layers(rows).squeeze(1)


def search(features: np.ndarray, label: np.ndarray, rates: list[float], batch_rows: int) -> object:
    net = NeuralNetBinaryClassifier(
        Mlp,
        module__features=features.shape[1],
        optimizer=torch.optim.Adam,
        optimizer__fused=True,
        max_epochs=1,
        batch_size=batch_rows,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=4096,
        train_split=None,
        verbose=0,
    )
    grid = GridSearchCV(net, {"lr": rates}, scoring="roc_auc", cv=5, n_jobs=2, refit=False)
    return grid.fit(features, label)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows")
    parser.add_argument("--settings", type=int, default=4)
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    with np.load(arguments.rows) as saved:
        features, label = saved["features"], saved["label"]
    search(features[:10_000], label[:10_000], [0.001], arguments.batch)
    rates = np.geomspace(1e-4, 1e-2, arguments.settings).tolist()
    began = time.perf_counter()
    found = search(features, label, rates, arguments.batch)
    seconds = time.perf_counter() - began
    trainings = 5 * arguments.settings
    print(
        json.dumps({"trainings": trainings, "seconds": seconds, "auroc": float(found.best_score_)})
    )


if __name__ == "__main__":
    main()
