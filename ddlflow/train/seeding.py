"""Random numbers of a step: a function of (seed, step, virtual rank) alone."""

import torch

_MASK = (1 << 64) - 1


def seed_random(device: torch.device, seed: int, step: int, virtual_rank: int) -> None:
    """Seeds torch's generator of the device by (seed, step, virtual rank) alone.

    Source: the finaliser of SplitMix64 (Steele et al. 2014, "Fast splittable pseudorandom number
    generators") makes neighbouring keys unlike.
    """
    key = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + virtual_rank + 1) & _MASK
    key = ((key ^ (key >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    key = ((key ^ (key >> 27)) * 0x94D049BB133111EB) & _MASK
    key ^= key >> 31
    if device.type == "cuda":
        torch.cuda.manual_seed(key)
    else:
        torch.default_generator.manual_seed(key)
