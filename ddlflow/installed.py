"""What a result depends on beside its settings: versions, the processor's class, the commit."""

import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

import ddlflow

PACKAGES = (
    *("torch", "numpy", "pyarrow", "duckdb"),
    *("dask", "distributed", "prefect", "mlflow", "torchmetrics"),
)


def versions() -> dict[str, str]:
    """The installed versions of what a result depends on."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def machine() -> str:
    """The processor's class: two of one class give the same last bits."""
    import torch

    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}"


def requirements() -> list[str]:
    """What serving a model needs, pinned to what trained it."""
    installed = versions()
    needed = [
        f"{name}=={installed[name]}"
        for name in ("torch", "numpy", "pyarrow", "duckdb")
        if name in installed
    ]
    return [f"ddlflow=={ddlflow.__version__}", *needed]


def git_commit(folder: Path) -> str:
    """The commit of a folder, with ``+`` behind it if files differ; empty if there is none."""
    git = shutil.which("git")
    if git is None:
        return ""
    found = []
    for command in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"]):
        done = subprocess.run(
            [git, "-C", str(folder.resolve()), *command],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            return ""
        found.append(done.stdout.strip())
    return found[0] + ("+" if found[1] else "")
