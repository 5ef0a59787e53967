"""Hosts in one machine are what tests take them for: apart, but for the disk."""

import signal
import subprocess
import sys
from pathlib import Path

from hosts import Host, OpenHosts, mount_over

# Says its process number and its host's name, and waits for a word.
WHO = "import os; print(os.getpid(), os.uname().nodename, flush=True); input()"


def who(host: Host) -> "tuple[subprocess.Popen[str], list[str]]":
    process = host.start(
        [sys.executable, "-S", "-c", WHO], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().split()


def test_two_hosts_share_a_name_and_process_numbers_and_are_not_the_same(hosts: OpenHosts) -> None:
    first, second = hosts("node", "node")
    (a, said), (b, also) = who(first), who(second)
    assert said == also
    assert said[1] == "node"
    assert first.process(a).pid != second.process(b).pid
    seen = [sys.executable, "-c", "import psutil; print(*psutil.pids())"]
    assert len(first.run(seen).stdout.split()) == 3  # process 1, the one that waits, and this
    first.signal(a, signal.SIGKILL)
    a.communicate()
    assert a.returncode != 0
    b.communicate("go on\n")
    assert b.returncode == 0


def test_a_host_that_loses_power_ends_with_all_that_runs_there(hosts: OpenHosts) -> None:
    first, second = hosts("a", "b")
    (a, _), (b, _) = who(first), who(second)
    first.end()
    a.communicate()
    assert a.returncode != 0
    assert second.process(b).is_running()
    b.communicate("go on\n")


def test_the_disk_is_shared_but_for_what_a_host_mounts(hosts: OpenHosts, tmp_path: Path) -> None:
    first, second = hosts("a", "b")
    assert first.run(["touch", str(tmp_path / "it")]).returncode == 0
    assert second.run(["ls"], cwd=tmp_path).stdout == "it\n"
    mount_over(second, tmp_path)
    assert second.run(["ls", str(tmp_path)]).stdout == ""
    assert (tmp_path / "it").exists()


def test_hosts_reach_each_other_by_a_network_of_their_own(hosts: OpenHosts) -> None:
    first, second = hosts("a", "b", network=True)
    assert first.address != second.address
    serve = (
        "import socket; s = socket.create_server(('', 5000)); print('ready', flush=True);"
        "c, who = s.accept(); c.sendall(who[0].encode())"
    )
    server = first.start([sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True)
    assert server.stdout is not None
    assert server.stdout.readline() == "ready\n"
    ask = f"import socket; print(socket.create_connection(('{first.address}', 5000)).recv(99))"
    assert second.run([sys.executable, "-c", ask]).stdout == f"b'{second.address}'\n"
    server.communicate()
