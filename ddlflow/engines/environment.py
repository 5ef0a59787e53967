"""The environment variables of a rank and of data work."""

import os
from collections.abc import Mapping, Sequence


def thread_variables(threads: int) -> dict[str, str]:
    """What tells numeric libraries how many threads to use."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    return dict.fromkeys(names, str(threads))


def rank_environment(
    threads: int, more: Mapping[str, str] | None = None, python_path: Sequence[str] = ()
) -> dict[str, str]:
    """The worker's environment, made the same for ranks on every engine.

    Args:
        threads: of a rank.
        more: variables on top.
        python_path: folders in front of ``PYTHONPATH``.
    """
    environment = dict(os.environ)
    # Dask's nannies set this for their workers; in a training loop glibc would hand memory back
    # to the system and fault it in again at every step.
    environment.pop("MALLOC_TRIM_THRESHOLD_", None)
    environment |= {**(more or {}), **thread_variables(threads)}
    path = [*python_path, *filter(None, [environment.get("PYTHONPATH")])]
    if path:
        environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment
