"""Modules imported beside other work."""

import importlib
import threading
from contextlib import suppress


def begin_import(modules: tuple[str, ...]) -> threading.Thread:
    """Begin to import modules in this process; one that cannot be is left to whoever needs it."""

    def bring() -> None:
        for module in modules:
            with suppress(Exception):
                importlib.import_module(module)

    thread = threading.Thread(target=bring, name="ddlflow-import", daemon=True)
    thread.start()
    return thread
