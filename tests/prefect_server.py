"""A Prefect server for as long as another process lives: ``prefect_server.py PORT OWNER_PID``."""

import subprocess
import sys
import time

import psutil


def main() -> None:
    port, owner = int(sys.argv[1]), psutil.Process(int(sys.argv[2]))
    command = [sys.executable, "-m", "prefect", "server", "start", "--no-ui"]
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)])
    while server.poll() is None and owner.is_running():
        time.sleep(1.0)
    server.terminate()
    server.wait(30)


if __name__ == "__main__":
    main()
