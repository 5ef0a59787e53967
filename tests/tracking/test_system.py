import threading
import time

import pytest

from ddlflow.tracking import open_run
from ddlflow.tracking.system import system_metrics

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def test_the_machine_is_watched_until_the_block_ends(uri, client, tmp_path):
    run = open_run(uri, tmp_path / "spool", experiment="system", name="s", tags={})
    with run:
        with system_metrics(run, every_s=0.01):
            while run._spool.sent.offset == 0 or not client.get_run(run.run_id).data.metrics:
                time.sleep(0.05)
        assert "ddlflow-system-metrics" not in [t.name for t in threading.enumerate()]
    metrics = client.get_run(run.run_id).data.metrics
    assert metrics["system/system_memory_usage_megabytes"] > 0
    assert {"system/cpu_utilization_percentage", "system/disk_usage_percentage"} <= set(metrics)


def test_an_error_in_the_block_ends_the_watch_and_goes_on(uri, tmp_path):
    run = open_run(uri, tmp_path / "spool", experiment="system", name="s", tags={})
    with pytest.raises(ValueError, match="mine"), run, system_metrics(run):
        raise ValueError("mine")
    assert "ddlflow-system-metrics" not in [t.name for t in threading.enumerate()]
