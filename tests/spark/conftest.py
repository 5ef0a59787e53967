"""Small trained models, and a project's folder with a site."""

from pathlib import Path

import pytest
from small_models import trained as trained

SITE = """
engine: {use: spark, workers: 1, threads: 1}
device: cpu
data_root: .
storage: storage
tracking: {uri: "sqlite:///mlflow.db"}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prefect_server: str) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "site.yaml").write_text(SITE)
    return tmp_path
