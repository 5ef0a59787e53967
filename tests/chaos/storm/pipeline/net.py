"""A model that takes its time, so that there is a moment to hit it."""

import time

import torch


class Slow(torch.nn.Module):
    """A small net with dropout that sleeps in each pass."""

    def __init__(self, num_features, num_outputs, pause_s):
        super().__init__()
        self.inner = torch.nn.Sequential(
            torch.nn.Linear(num_features, 8), torch.nn.Dropout(0.3), torch.nn.Linear(8, num_outputs)
        )
        self.pause_s = pause_s

    def forward(self, x):
        time.sleep(self.pause_s)
        return self.inner(x).squeeze(-1)
