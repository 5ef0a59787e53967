"""One database for all tracking tests: making one costs seconds. Each test has its experiment."""

import pytest

from ddlflow.tracking.connect import connect


@pytest.fixture(scope="session")
def uri(tmp_path_factory):
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/new/mlflow.db"
    connect(uri)
    return uri


@pytest.fixture(scope="session")
def client(uri):
    return connect(uri)


@pytest.fixture
def said():
    return []
