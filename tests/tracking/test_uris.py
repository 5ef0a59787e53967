import pytest

from ddlflow.errors import SpecError
from ddlflow.tracking import uris
from ddlflow.tracking.connect import one_sentence


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("sqlite:///.ddlflow/mlflow.db", "sqlite:///.ddlflow/mlflow.db"),
        ("http://host:5000", "http://host:5000"),
        ("http://ann:pa%40ss@host:5000/x", "http://ann:***@host:5000/x"),
        ("https://t0ken@host", "https://***@host"),
        ("postgresql+psycopg2://ann:pw@db/mlflow", "postgresql+psycopg2://ann:***@db/mlflow"),
        ("mysql://ann@db/mlflow?password=pw&ssl=1", "mysql://ann@db/mlflow?password=***&ssl=1"),
    ],
)
def test_secrets_of_a_uri_are_not_shown(uri, shown):
    assert uris.redacted(uri) == shown


def test_secrets_are_cut_out_of_messages_that_quote_them():
    uri = "http://ann:pw-7@host:5000"
    text = f"request to {uri}/api failed; ann:pw-7 is wrong, so is pw-7"
    assert "pw-7" not in uris.without_secrets(text, uri)
    assert "host:5000" in uris.without_secrets(text, uri)


def test_a_relative_database_stays_the_same_when_the_working_directory_changes(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert uris.absolute("sqlite:///a/m.db") == f"sqlite:///{tmp_path}/a/m.db"
    assert uris.absolute("sqlite:////x/m.db") == "sqlite:////x/m.db"


@pytest.mark.parametrize(
    "uri", ["mlruns", "file:///mlruns", "s3://bucket", "sqlite:///", "sqlite:///:memory:", ""]
)
def test_a_store_that_mlflow_cannot_log_to_is_refused(uri):
    with pytest.raises(SpecError, match=r"Give a server .* or a database"):
        uris.absolute(uri)


def test_the_page_of_a_run():
    assert (
        uris.page("http://ann:pw@host:5000/base/", "3", "abc")
        == "http://host:5000/base/#/experiments/3/runs/abc"
    )
    assert uris.page("http://host:5000", None, None) == "http://host:5000"
    assert uris.page("sqlite:////x y/m.db", "3", "abc") == (
        "mlflow ui --backend-store-uri 'sqlite:////x y/m.db'"
    )


def test_the_cause_of_a_database_error_is_told_whatever_flushed_it():
    cause = "(sqlite3.OperationalError) database or disk is full\n[SQL: INSERT INTO tags ...]"
    flush = "(raised as a result of Query-invoked autoflush; consider using a session ...)\n"
    for text in (cause, flush + cause):
        found = one_sentence(ValueError(text), "sqlite:///x.db")
        assert found == "(sqlite3.OperationalError) database or disk is full."
