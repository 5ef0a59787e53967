"""`check` proves that every worker sees the storage, by a file each way."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hosts import Host, OpenHosts, mount_over

from ddlflow.runs.check.seen import Seen, seen
from ddlflow.store.store import open_store

LOOK = """
import dataclasses, json, sys
from ddlflow.runs.check.seen import look
print(json.dumps(dataclasses.asdict(look(*sys.argv[1:]))))
"""


class Workers:
    """An engine of workers on hosts; None is this one."""

    def __init__(self, *hosts: Host | None) -> None:
        self._hosts = hosts

    def ask(self, function: Callable[[], Seen]) -> list[Seen]:
        return [function() if host is None else self._elsewhere(host, function)
                for host in self._hosts]  # fmt: skip

    def _elsewhere(self, host: Host, function: Any) -> Seen:
        done = host.run([sys.executable, "-c", LOOK, *function.args])
        return Seen(**json.loads(done.stdout))


def test_workers_that_see_the_storage_are_counted_and_nothing_is_left(
    tmp_path: Path, hosts: OpenHosts
) -> None:
    (other,) = hosts("other")
    (found,) = seen(open_store(tmp_path / "s"), Workers(None, other, None))
    assert (found.what, found.level) == ("storage", "ok")
    assert found.text == f"{tmp_path / 's'}: 3 workers read and write there."
    assert list((tmp_path / "s").iterdir()) == []


def test_a_worker_with_another_folder_there_is_told_with_its_host(
    tmp_path: Path, hosts: OpenHosts
) -> None:
    (other,) = hosts("other")
    (tmp_path / "s").mkdir()
    mount_over(other, tmp_path / "s")
    (found,) = seen(open_store(tmp_path / "s"), Workers(None, other))
    assert found.level == "error"
    assert found.text.startswith(f"A worker on other does not see storage {tmp_path / 's'}: ")
    assert "driver: No such file or directory. Mount the same folder there, or" in found.text
    assert "\n" not in found.text
    assert list((tmp_path / "s").iterdir()) == []


def test_a_worker_whose_file_is_not_seen_from_here_is_told(tmp_path: Path) -> None:
    class Apart(Workers):
        def ask(self, function: Callable[[], Seen]) -> list[Seen]:
            return [Seen("far", "", "worker-that-wrote-elsewhere")]

    (found,) = seen(open_store(tmp_path / "s"), Apart())
    assert "A worker on far does not see storage" in found.text
    assert "what it writes there is not seen from here" in found.text


def test_a_bucket_is_seen_too(bucket: str) -> None:
    (found,) = seen(open_store(bucket), Workers(None, None))
    assert found.text == f"{bucket}: 2 workers read and write there."
    assert open_store(bucket).list() == []


def test_a_storage_that_this_process_cannot_write_is_an_error_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        list(seen(open_store(tmp_path / "file" / "s"), Workers(None)))
