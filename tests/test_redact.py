"""No secret is shown or kept: not of a URL, not of a setting, wherever it was given."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from ddlflow.errors import DataError, SpecError
from ddlflow.redact import (
    hidden,
    keep_out_of_logs,
    redacted,
    redacted_change,
    redacted_text,
    redacted_values,
    revealed,
)
from ddlflow.spec.load import load

SECRET = "5ecretSignature"


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        (
            "https://h/p.parquet?sv=2024&sig=abc%2Fd&se=1",
            "https://h/p.parquet?sv=2024&sig=***&se=1",
        ),
        (
            "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=c&X-Amz-Signature=s",
            "https://b.s3.amazonaws.com/k?X-Amz-Algorithm=A&X-Amz-Credential=***&X-Amz-Signature=***",
        ),
        ("https://h/x?X-Goog-Signature=s&page=3", "https://h/x?X-Goog-Signature=***&page=3"),
        ("postgresql://ann:pw@db/flow", "postgresql://ann:***@db/flow"),
        ("https://token@h/x", "https://***@h/x"),
        ("s3://ann@bucket/x", "s3://ann@bucket/x"),
        ("simplecache::https://u:p@h/x", "simplecache::https://u:***@h/x"),
        ("https://h/monkey?keyword=x", "https://h/monkey?keyword=x"),
        ("data/*.parquet", "data/*.parquet"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db"),
        (f"cannot open 'https://u:{SECRET}@h/x'.", "cannot open 'https://u:***@h/x'."),
    ],
)
def test_what_is_shown_of_a_url(given: str, shown: str) -> None:
    assert redacted_text(given) == shown
    assert redacted_text(shown) == shown
    assert redacted_values({"a": [given]}) == {"a": [shown]}


def test_settings_by_their_names() -> None:
    values = {"conf": {"fs.s3a.secret.key": "x", "spark.cores": "2"}, "password": "x", "rows": 3}
    assert redacted_values(values) == {
        "conf": {"fs.s3a.secret.key": "***", "spark.cores": "2"},
        "password": "***",
        "rows": 3,
    }
    assert redacted_change("engine.conf.my_token=abc") == "engine.conf.my_token=***"
    assert redacted_change("train.epochs=3") == "train.epochs=3"
    assert redacted("http://[") == "***"


def test_an_error_says_no_secret() -> None:
    error = DataError(f"https://h/x.csv?sig={SECRET} cannot be listed.")
    assert str(error) == "https://h/x.csv?sig=*** cannot be listed."


def test_a_change_is_shown_without_its_secret_and_used_with_it(tmp_path: Path) -> None:
    change = f"data.source=https://u:{SECRET}@h/x.parquet"
    shown = hidden(change)
    assert SECRET not in shown
    assert revealed(shown) == change
    assert revealed("data.source=y") == "data.source=y"
    source = load("quickstart", "local", [shown]).pipeline.data.source
    assert source == f"https://u:{SECRET}@h/x.parquet"
    with pytest.raises(SpecError) as caught:
        load("quickstart", "local", [hidden(f"data.sourc=https://u:{SECRET}@h/x")])
    assert SECRET not in str(caught.value)


def test_no_log_record_holds_a_secret_even_in_a_traceback() -> None:
    before = logging.getLogRecordFactory()
    try:
        keep_out_of_logs()
        keep_out_of_logs()
        make = logging.getLogRecordFactory()
        try:
            raise OSError(f"no answer from https://u:{SECRET}@h/x")
        except OSError:
            record = make(
                "other", logging.ERROR, "f.py", 1, "at %s", (f"s3://k:{SECRET}@b",), sys.exc_info()
            )
        text = logging.Formatter().format(record)
    finally:
        logging.setLogRecordFactory(before)
    assert "at s3://k:***@b" in text
    assert "no answer from https://u:***@h/x" in text
    assert SECRET not in text


class _Signed(BaseHTTPRequestHandler):
    """Gives one file, by ranges, to those who know the signature."""

    content: bytes = b""

    def _answer(self, *, with_body: bool) -> None:
        if f"sig={SECRET}" not in self.path:
            self.send_error(403)
            return
        first, last, size = 0, len(self.content) - 1, len(self.content)
        asked = self.headers.get("Range")
        if asked:
            low, _, high = asked.removeprefix("bytes=").partition("-")
            first, last = int(low), min(int(high or last), last)
        self.send_response(206 if asked else 200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"1"')
        self.send_header("Content-Length", str(last - first + 1))
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        if with_body:
            self.wfile.write(self.content[first : last + 1])

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Nothing on the tests' screen."""


@pytest.fixture
def signed_url() -> Iterator[str]:
    random = np.random.default_rng(0)
    a, b = random.normal(size=(2, 400))
    table = pd.DataFrame({"a": a, "b": b, "y": (a > 0).astype(int)})
    _Signed.content = table.to_csv(index=False).encode()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Signed) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/t.csv?sig={SECRET}"
        server.shutdown()


# Of MLflow, where a command runs in this process.
@pytest.mark.filterwarnings(
    "ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::FutureWarning"
)
def test_a_run_of_a_signed_url_leaves_its_signature_nowhere(
    tmp_path: Path,
    signed_url: str,
    prefect_database: Path,
    monkeypatch: pytest.MonkeyPatch,
    command_here: Callable[..., tuple[int, str, str]],
) -> None:
    """Storage, MLflow's database and artifacts, Prefect's database and the screen are searched."""
    (tmp_path / "pipelines").mkdir()
    (tmp_path / "conf").mkdir()
    pipeline = {
        "name": "signed",
        "data": {"source": "given-by-set", "label": "y"},
        "model": {"use": "linear"},
        "train": {"objective": "binary", "epochs": 1, "batch_rows": 100},
    }
    site = {
        "engine": {"use": "local", "workers": 1},
        "device": "cpu",
        "tracking": {"uri": "sqlite:///.ddlflow/mlflow.db"},
    }
    (tmp_path / "pipelines/signed.yaml").write_text(yaml.safe_dump(pipeline))
    (tmp_path / "conf/local.yaml").write_text(yaml.safe_dump(site))
    environment = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect")}

    monkeypatch.chdir(tmp_path)
    given = ("--set", f"data.source={signed_url}")
    status, *checked = command_here("check", "signed", *given)
    assert status == 0, checked
    _, *as_json = command_here("check", "signed", *given, "--json")
    done = subprocess.run(
        [sys.executable, "-m", "ddlflow", "run", "signed", *given, "--json"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert sum(1 for _ in Path(result["predictions"]).glob("*.parquet")) == 1
    status, *refused = command_here("reproduce", result["run_id"])
    assert status == 2
    assert "recorded without the secrets in data.source" in refused[1]
    status, *again = command_here("reproduce", result["run_id"], *given)
    assert status == 0, again

    said = "".join([*checked, *as_json, done.stdout, done.stderr, *refused, *again])
    assert SECRET not in said
    kept = [path for path in prefect_database.parent.iterdir() if path.is_file()]
    assert any(b"signed on local" in path.read_bytes() for path in kept)
    kept.append(prefect_database.parents[1] / "prefect.log")
    files = [*kept, *(path for path in tmp_path.rglob("*") if path.is_file())]
    assert any(path.name == "mlflow.db" for path in files)
    holding = [str(path) for path in files if SECRET.encode() in path.read_bytes()]
    assert holding == []
