"""What MLflow has of a training whose driver and whose server were killed: all of it, once."""

from pathlib import Path
from typing import Any

from ddlflow.tracking.connect import connect
from ddlflow.tracking.pending import send_pending


def check_record(uri: str, storage: Path, number: int, trained: dict[str, Any]) -> None:
    """Checks the newest run, once the next command has sent what still waits.

    Args:
        uri: of the server, which runs again.
        storage: of the training.
        number: of recorded trainings so far: each is one run.
        trained: what the training says of itself.
    """
    for sentence in send_pending(storage / "tracking", uri):
        print(f"  {sentence}")
    client = connect(uri)
    experiment = client.get_experiment_by_name("ddlflow")
    assert experiment is not None, "MLflow has no experiment"
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time DESC"])
    assert len(runs) == number, f"{len(runs)} runs of {number} trainings"
    run = runs[0]
    assert run.info.status == "FINISHED", f"the run is {run.info.status}"
    assert run.data.tags["ddlflow.model_digest"] == trained["model_digest"]
    told = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
    assert sorted(told) == [row["epoch"] for row in trained["history"]], f"epochs {told}"
    ledgers = client.list_artifacts(run.info.run_id, "training/ledger")
    assert ledgers, "no ledger is recorded"
