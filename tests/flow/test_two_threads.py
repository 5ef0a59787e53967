"""Flows of two threads of one process use one server, until the last of them has ended."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from ddlflow.flow import command


@pytest.mark.parametrize("second", ["the same server", None])
def test_the_first_to_end_leaves_the_other_its_server(
    second: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread that finds the first one's variable takes it for one that was there."""
    server: Any = SimpleNamespace(api_url="http://127.0.0.1:1/api")
    monkeypatch.setattr(command, "wait_until_ready", lambda server: server)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    one, other = command.ready(server), command.ready(server if second else None)
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    assert os.environ["PREFECT_API_URL"] == server.api_url
    other.__exit__(None, None, None)
    assert "PREFECT_API_URL" not in os.environ


def test_a_server_that_the_user_named_stays_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect.example/api")
    with command.ready(None):
        assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
    assert os.environ["PREFECT_API_URL"] == "http://prefect.example/api"
