"""What the workers have, of this machine or elsewhere: GPUs to train on, cores."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ddlflow.engines import Engine
from ddlflow.errors import SpecError
from ddlflow.machine import has_gpu_driver

if TYPE_CHECKING:
    from ddlflow.train.facts import Facts  # which imports PyTorch


def count_gpus(device: str) -> int:
    """GPUs to train on, by the site's ``device``.

    Raises:
        SpecError: ``cuda`` is asked for and there is none.
    """
    if device == "cpu" or (device == "auto" and not has_gpu_driver()):
        return 0  # without a look by PyTorch, which takes seconds to import
    import torch

    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "cuda" and not found:
        raise SpecError(
            "device is cuda, but PyTorch finds no GPU here. Set device: auto or cpu, or install "
            "a CUDA build of PyTorch on a machine with a GPU."
        )
    return found


def gpus_of(device: str, workers: "Sequence[Facts]") -> int:
    """Workers elsewhere that train on a GPU each; 0: all train on CPUs.

    Raises:
        SpecError: ``cuda`` is asked for and one of them has none.
    """
    without = sorted({facts.host for facts in workers if not facts.gpus})
    if without and device == "cuda":
        raise SpecError(
            f"device is cuda, but workers find no GPU on {', '.join(without)}. Set device: auto or "
            "cpu, or start workers where there are GPUs alone."
        )
    return 0 if without else len(workers)


def least_cores(workers: "Sequence[Facts]") -> int:
    """Cores of a worker, where the workers of a host share its cores."""
    hosts = [facts.host for facts in workers]
    return max(1, min(facts.cores // hosts.count(facts.host) for facts in workers))


def close_engine(engine: Engine, say: Callable[[str], None]) -> None:
    """Ends the engine. What was done stays done: that it ends badly is said, and is no error.

    Its processes end with this one in any case.
    """
    try:
        engine.close()
    except Exception as error:  # whatever a cluster's shutdown raises on a busy machine
        say(f"note: the engine was slow to end ({type(error).__name__}). What was done stands.")
