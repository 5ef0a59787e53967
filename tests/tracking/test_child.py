"""Child runs: whole, once, and never lost."""

import math

import pytest

from ddlflow.tracking import open_run, send_pending
from ddlflow.tracking.child import Child, log_child
from ddlflow.tracking.pending import waiting

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def child_of(number, **more):
    values = {
        "name": f"trial {number}",
        "tags": {"ddlflow.trial": number, "ddlflow.status": "done"},
        "params": {"train.optimizer.lr": 0.1, "model.hidden": [3, 4]},
        "metrics": [(1, {"val_auroc": 0.5}), (2, {"auroc": 0.6, "fold_0/auroc": 0.7})],
        "status": "FINISHED",
        "seconds": 12.5,
    }
    return Child(number=number, **(values | more))


@pytest.fixture
def parent(uri, tmp_path, said, request):
    """A run under way, in an experiment of the test's own."""
    spool = tmp_path / "spools" / "parent"
    name = request.node.name
    with open_run(uri, spool, experiment=name, name="p", tags={}, say=said.append) as run:
        yield run


@pytest.fixture
def log(uri, tmp_path, parent, request):
    def log(child, to=uri, **more):
        return log_child(tmp_path / "spools", to, request.node.name, parent.local_id, child, **more)

    return log


@pytest.fixture
def children(client, parent):
    def found():
        experiment = client.get_run(parent.run_id).info.experiment_id
        text = f"tags.`mlflow.parentRunId` = '{parent.run_id}'"
        runs = client.search_runs([experiment], text)
        return sorted(runs, key=lambda run: run.info.run_name)

    return found


def test_a_child_has_all_that_it_says(client, log, children):
    assert log(child_of(0)) is None
    status = {"status": "FAILED", "tags": {"ddlflow.reason": "nan"}, "metrics": []}
    assert log(child_of(1, **status)) is None
    first, second = children()
    assert (first.info.run_name, first.info.status) == ("trial 0", "FINISHED")
    assert first.data.params == {"train.optimizer.lr": "0.1", "model.hidden": "[3, 4]"}
    assert first.data.metrics == {"val_auroc": 0.5, "auroc": 0.6, "fold_0/auroc": 0.7}
    assert first.data.tags["ddlflow.trial"] == "0"
    assert 12_500 <= first.info.end_time - first.info.start_time < 60_000
    history = client.get_metric_history(first.info.run_id, "auroc")
    assert [(one.step, one.value) for one in history] == [(2, 0.6)]
    assert (second.info.status, second.data.tags["ddlflow.reason"]) == ("FAILED", "nan")


def test_logged_twice_it_is_one_run(client, log, children, tmp_path):
    """As a search that goes on does, which tells of its finished trials again."""
    for _ in range(2):
        assert log(child_of(0)) is None
        assert log(child_of(1, status="FAILED")) is None
    assert [run.info.run_name for run in children()] == ["trial 0", "trial 1"]
    (history,) = client.get_metric_history(children()[0].info.run_id, "auroc")
    assert history.value == 0.6
    paths = [path for path in (tmp_path / "spools").glob("[!.]*") if path.is_dir()]
    assert [path.name for path in paths] == ["parent"]


def test_a_process_that_was_killed_while_it_wrote_leaves_one_run(log, children, tmp_path, uri):
    """A number that JSON has no word for ends the writing, as a kill would."""
    with pytest.raises(TypeError):
        log(child_of(0, metrics=[(1, {"val_auroc": 0.5}), (2, {"auroc": None})]))
    assert log(child_of(0)) is None
    (run,) = children()
    assert (run.info.status, run.data.metrics["auroc"]) == ("FINISHED", 0.6)


def test_while_the_server_is_away_it_waits_and_the_next_command_sends_it(
    log, children, tmp_path, uri
):
    from ddlflow.tracking import child as module  # noqa: F401 - imported before the store is gone

    gone = tmp_path / "gone"
    gone.write_text("no folder")
    away = {}
    sentence = log(child_of(0), f"sqlite:///{gone}/mlflow.db", away=away)
    assert "tracking records of the run trial 0 wait in" in sentence
    assert list(away) == [f"sqlite:///{gone}/mlflow.db"]
    assert "wait in" in log(child_of(1), f"sqlite:///{gone}/mlflow.db", away=away)
    assert children() == []
    assert len(waiting(tmp_path / "spools")) == 2


def test_before_its_parent_is_known_it_waits(uri, client, tmp_path, said):
    spools = tmp_path / "spools"
    assert "its parent run has not arrived yet" in log_child(
        spools, uri, "orphans", "unknown", child_of(0)
    )
    assert log_child(spools, uri, "orphans", "unknown", child_of(0)) is not None
    with open_run(uri, tmp_path / "p", experiment="orphans", name="p", tags={}) as run:
        record = spools / "children-unknown"
        assert record.read_text() == "0\n"
        parent = run.run_id
        client.set_tag(parent, "ddlflow.run", "unknown")
    (sentence,) = send_pending(spools, uri)
    assert "run trial 0 were sent" in sentence
    experiment = client.get_run(parent).info.experiment_id
    text = f"tags.`mlflow.parentRunId` = '{parent}'"
    assert len(client.search_runs([experiment], text)) == 1
    assert log_child(spools, uri, "orphans", "unknown", child_of(0)) is None
    assert len(client.search_runs([experiment], text)) == 1
    assert send_pending(spools, uri) == []


def test_numbers_that_are_none_are_kept_as_mlflow_has_them(log, children):
    log(child_of(0, metrics=[(1, {"auroc": math.nan})]))
    assert math.isnan(children()[0].data.metrics["auroc"])
