import fcntl
import math
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ddlflow.errors import SpecError, TrackingError
from ddlflow.tracking import open_run, send_pending
from ddlflow.tracking.read import Reader

# MLflow 3.17 calls what SQLAlchemy 2.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy:DeprecationWarning")


def begin(uri, spool, said, experiment="runs", **more):
    settings = {"name": "a run", "tags": {"kind": "test"}} | more
    return open_run(uri, spool, experiment=experiment, say=said.append, **settings)


def history(client, run_id, key):
    return [(m.step, m.timestamp, m.value) for m in client.get_metric_history(run_id, key)]


def test_all_that_is_logged_arrives(uri, client, said, tmp_path):
    (tmp_path / "plot.txt").write_text("plot")
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    (tmp_path / "folder" / "deep" / "x.txt").write_text("x")
    with begin(uri, tmp_path / "spool", said) as run:
        assert run.run_id is not None
        run.log_params({"lr": 0.1, "hidden": [1, 2], "long": "y" * 7000})
        run.log_params({f"p{n}": n for n in range(250)})
        run.log_params({"data.derive.delay (min)": "arr_delay", "ok": 1})
        run.log_tags({"a": 1})
        run.log_tags({"a": 2, "long": "z" * 9000})
        for step in range(1500):
            run.log_metrics({"loss": 1 / (step + 1)}, step, timestamp_ms=step)
        run.log_metrics({"bad": math.nan, "huge": math.inf}, 0)
        run.log_text("grün", "notes/a.txt")
        run.log_file(tmp_path / "plot.txt", "plots")
        run.log_file(tmp_path / "folder")
        run.log_dataset(
            "rows",
            "0123456789" * 6,
            source="/data/x.parquet",
            schema={"pt": "float"},
            profile={"rows": 3},
            context="training",
        )
    assert said == []
    assert not (tmp_path / "spool").exists()

    found = client.get_run(run.run_id)
    assert (found.info.status, found.info.run_name) == ("FINISHED", "a run")
    assert found.data.params["lr"] == "0.1"
    assert found.data.params["hidden"] == "[1, 2]"
    assert len(found.data.params["long"]) == 6000
    assert found.data.params["p249"] == "249"
    assert found.data.params["data.derive.delay _min_"] == "arr_delay"
    assert (found.data.tags["a"], found.data.tags["kind"]) == ("2", "test")
    assert found.data.tags["ddlflow.run"] == run.local_id
    assert history(client, run.run_id, "loss") == [(n, n, 1 / (n + 1)) for n in range(1500)]
    assert math.isnan(found.data.metrics["bad"])
    artifacts = Path(found.info.artifact_uri)
    assert (artifacts / "notes" / "a.txt").read_text() == "grün"
    assert (artifacts / "plots" / "plot.txt").read_text() == "plot"
    assert (artifacts / "deep" / "x.txt").read_text() == "x"
    (dataset,) = found.inputs.dataset_inputs
    assert (dataset.dataset.name, len(dataset.dataset.digest)) == ("rows", 36)
    assert '"pt"' in dataset.dataset.schema
    assert dataset.tags[0].value == "training"


def test_artifacts_lie_beside_the_database_and_not_in_the_working_directory(
    uri, client, said, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with begin(uri, tmp_path / "spool", said, "beside") as run:
        run.log_text("x", "x.txt")
    database = Path(uri.removeprefix("sqlite:///"))
    assert client.get_run(run.run_id).info.artifact_uri.startswith(
        str(database.parent / "mlartifacts")
    )
    assert list(tmp_path.iterdir()) == []


def test_sending_twice_doubles_nothing(uri, client, said, tmp_path):
    run = begin(uri, tmp_path / "spool", said, "twice")
    run.log_params({"a": 1})
    run.log_metrics({"loss": 1.0, "bad": math.nan}, 0)
    run.log_dataset("rows", "d", source="s", schema={}, profile={}, context="training")
    run.set_terminated("FAILED")
    run.close()
    # As after a crash between sending and remembering that: the position is gone.
    (tmp_path / "spool" / "sent.json").write_text("")
    (sentence,) = send_pending(tmp_path)
    assert "were sent" in sentence
    experiment = client.get_experiment_by_name("twice")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.run_id == run.run_id
    assert found.info.status == "FAILED"
    assert len(history(client, run.run_id, "loss")) == 1
    assert len(history(client, run.run_id, "bad")) == 1
    assert len(found.inputs.dataset_inputs) == 1
    assert send_pending(tmp_path) == []


def test_a_killed_process_leaves_a_run_that_the_next_command_completes(uri, client, said, tmp_path):
    code = f"""
import os, pathlib
from ddlflow.tracking import open_run
spool = pathlib.Path({str(tmp_path / "a")!r})
run = open_run({uri!r}, spool, experiment="killed", name="k", tags={{}})
for step in range(100):
    run.log_metrics({{"loss": float(step)}}, step)
os.kill(os.getpid(), {signal.SIGKILL.value})
"""
    ended = subprocess.run([sys.executable, "-c", code], check=False)
    assert ended.returncode == -signal.SIGKILL
    (sentence,) = send_pending(tmp_path)
    assert "run k were sent" in sentence
    experiment = client.get_experiment_by_name("killed")
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "KILLED"
    assert found.info.end_time >= found.info.start_time
    assert len(history(client, found.info.run_id, "loss")) == 100

    # The same command goes on: in the same run, and what it logs again shows once.
    with begin(uri, tmp_path / "a", said, "killed") as run:
        assert run.run_id == found.info.run_id
        for step in range(90, 110):
            run.log_metrics({"loss": float(step)}, step)
    values = [value for _, _, value in history(client, run.run_id, "loss")]
    assert sorted(values) == [float(n) for n in range(110)]
    assert client.get_run(run.run_id).info.status == "FINISHED"


def test_a_living_run_is_left_alone(uri, said, tmp_path):
    with begin(uri, tmp_path / "a", said):
        assert send_pending(tmp_path) == []


def test_a_run_goes_on_by_its_id_where_its_spool_is_gone(uri, client, said, tmp_path):
    with begin(uri, tmp_path / "a", said) as run:
        run.log_metrics({"loss": 1.0}, 1)
    with begin(uri, tmp_path / "b", said, resume=run.run_id) as again:
        assert again.run_id == run.run_id
        assert client.get_run(run.run_id).info.status == "RUNNING"
        again.log_metrics({"loss": 2.0}, 2)
    assert [step for step, _, _ in history(client, run.run_id, "loss")] == [1, 2]
    with begin(uri, tmp_path / "c", said, resume=run.local_id) as again:
        assert again.run_id == run.run_id
    with pytest.raises(TrackingError, match="is not in the tracking store"):
        begin(uri, tmp_path / "d", said, resume="0" * 32)
    assert not (tmp_path / "d").exists()


@pytest.mark.parametrize("by", ["run_id", "local_id"])
def test_a_trial_names_its_parent(uri, client, said, tmp_path, by):
    with begin(uri, tmp_path / "a", said) as parent:
        with begin(uri, tmp_path / "b", said, parent=getattr(parent, by)) as child:
            pass
        tags = client.get_run(child.run_id).data.tags
        assert tags["mlflow.parentRunId"] == parent.run_id


def test_a_deleted_experiment_is_an_error_with_advice(uri, client, said, tmp_path):
    client.delete_experiment(client.create_experiment("deleted"))
    with pytest.raises(TrackingError, match=r"'deleted' was deleted.*mlflow experiments restore"):
        begin(uri, tmp_path / "spool", said, "deleted")
    assert not (tmp_path / "spool").exists()


def test_a_record_that_mlflow_refuses_is_set_aside_and_the_others_arrive(
    uri, client, said, tmp_path
):
    with begin(uri, tmp_path / "spool", said) as run:
        run.log_metrics({"good": 1.0}, 0)
        run.log_metrics({"bad?name": 1.0}, 0)
        run.log_metrics({"good": 2.0}, 1)
        run.log_file(tmp_path / "gone.txt")
    found = client.get_run(run.run_id)
    assert found.data.metrics == {"good": 2.0}
    assert found.info.status == "FINISHED"
    (sentence,) = said
    assert "bad?name" in sentence
    refused = (tmp_path / "spool" / "refused.jsonl").read_text().splitlines()
    assert len(refused) == 2
    assert "gone.txt is gone." in refused[1]


@pytest.mark.parametrize(
    ("error", "status"),
    [(ValueError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_how_a_run_ends_by_what_ended_it(uri, client, tmp_path, error, status):
    with pytest.raises(error), begin(uri, tmp_path / "spool", []) as run:
        raise error
    assert client.get_run(run.run_id).info.status == status


def test_a_spool_of_another_store_is_refused(uri, said, tmp_path):
    run = begin(uri, tmp_path / "spool", said)
    run.close()
    with pytest.raises(TrackingError, match="Go on with the store it began in"):
        begin("http://127.0.0.1:9", tmp_path / "spool", said)


def test_a_uri_that_is_no_store_is_refused_before_anything_is_written(said, tmp_path):
    with pytest.raises(SpecError, match="cannot log to"):
        begin("file:///runs", tmp_path / "spool", said)
    assert list(tmp_path.iterdir()) == []


def test_an_outage_is_said_once_without_secrets_and_the_run_goes_on(said, tmp_path):
    uri = "http://ann:pw-7@127.0.0.1:9"  # the discard port: nobody listens
    with begin(uri, tmp_path / "a", said) as run:
        assert run.run_id is None
        for step in range(10):
            run.log_metrics({"loss": 0.0}, step)
    first, last = said
    assert "http://ann:***@127.0.0.1:9 does not answer" in first
    assert "12 tracking records of this run wait" in last
    spooled = "".join(path.read_text() for path in (tmp_path / "a").iterdir())
    assert "pw-7" not in spooled + first + last
    (sentence,) = send_pending(tmp_path)
    assert "use a site with that tracking.uri" in sentence
    (sentence,) = send_pending(tmp_path, uri)
    assert "does not answer" in sentence


def test_two_processes_make_the_same_new_database_and_experiment_at_once(tmp_path):
    code = """
import pathlib, sys
from ddlflow.tracking import open_run
sys.stdin.readline()
run = open_run("sqlite:///new/mlflow.db", pathlib.Path(sys.argv[1]), experiment="e", name="n",
               tags={}, wait_s=60, say=lambda text: sys.exit(text))
assert run.run_id
run.close(60)
"""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=tmp_path,
            text=True,
        )
        for name in "ab"
    ]
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    ends = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert [error for _, error in ends] == ["", ""]


def test_a_full_disk_ends_no_run(uri, client, said, tmp_path):
    run = begin(uri, tmp_path / "spool", said)
    with Path("/dev/full").open("ab", buffering=0) as full:
        run._spool._file, real = full, run._spool._file
        run.log_metrics({"loss": 1.0}, 0)
        run.log_metrics({"loss": 1.0}, 1)
        run.close()
        real.close()
    (sentence,) = said
    assert "No space left" in sentence
    assert (tmp_path / "spool").exists()


def test_opening_and_looking_for_leftovers_imports_no_mlflow(tmp_path):
    code = f"""
import pathlib, sys
import ddlflow.tracking
ddlflow.tracking.send_pending(pathlib.Path({str(tmp_path)!r}))
assert "mlflow" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_slow_store_is_waited_for_so_that_the_id_told_is_the_one_that_works(
    uri, client, said, tmp_path
):
    """A busy machine: the database is held by another for longer than a glance."""
    database = Path(uri.removeprefix("sqlite:///"))
    held = database.with_name(f"{database.name}.lock").open("ab")
    fcntl.flock(held, fcntl.LOCK_EX)
    threading.Timer(7.0, held.close).start()
    with begin(uri, tmp_path / "a", said) as run:
        told = run.id_for_people(wait_s=60.0)
    assert said == []
    assert client.get_run(told).info.status == "FINISHED"


def test_an_id_that_was_told_during_an_outage_is_found_once_the_run_has_arrived(
    uri, said, tmp_path
):
    with begin("http://127.0.0.1:9", tmp_path / "spools" / "a", said) as run:
        told = run.id_for_people(wait_s=60.0)
    assert told == run.local_id
    records = tmp_path / "spools" / "a" / "ops.jsonl"
    records.write_text(records.read_text().replace("http://127.0.0.1:9", uri))
    send_pending(tmp_path / "spools", uri)
    found = Reader(uri).run(told)
    assert (found.name, found.status, found.experiment) == ("a run", "FINISHED", "runs")
