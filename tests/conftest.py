"""What all tests share: one torch thread, and homes of Prefect and MLflow that are nobody's."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import OpenHosts, open_hosts
from hypothesis import HealthCheck, settings

# A busy machine is no error of an example's.
settings.register_profile("ddlflow", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ddlflow")

# Set before anything imports Prefect, and inherited by every command that a test starts.
_HOME = tempfile.mkdtemp(prefix="ddlflow-tests-")
os.environ["PREFECT_HOME"] = str(Path(_HOME) / "prefect")
os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] = "false"
os.environ["DO_NOT_TRACK"] = "1"
os.environ.pop("PREFECT_API_URL", None)
os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(scope="session", autouse=True)
def _one_torch_thread() -> None:
    """Tests are many small things: threads cost them more than they give."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; a test that asks for it skips where there is none."""
    folder = os.environ.get("DDLFLOW_REAL_DATA")
    if not folder:
        pytest.skip("DDLFLOW_REAL_DATA is not set: it names the folder of real data sets")
    return Path(folder)


@pytest.fixture
def hosts() -> Iterator[OpenHosts]:
    """Opens hosts in this machine, with process numbers, names and mounts of their own."""
    with ExitStack() as stack:
        yield lambda *names, network=False: stack.enter_context(open_hosts(*names, network=network))
