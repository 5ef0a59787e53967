"""What the site has: storage, tracking, Prefect, device, workers."""

import os
import shutil
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from http.client import HTTPException
from pathlib import Path

from ddlflow.engines.given import given
from ddlflow.engines.resources import resources
from ddlflow.engines.spark_needs import need_spark
from ddlflow.machine import memory
from ddlflow.runs.check.finding import Finding, counted
from ddlflow.runs.check.seen import seen
from ddlflow.runs.workers import count_gpus, gpus_of
from ddlflow.spec.load import Request
from ddlflow.store.site_storage import storage_errors, storage_of, store_of_site
from ddlflow.store.store import Store, is_url


def existing(folder: Path) -> Path:
    """The folder, or the nearest around it that exists."""
    return next(path for path in (folder, *folder.parents) if path.exists())


def storage_writable(request: Request) -> Iterator[Finding]:
    if is_url(request.site.storage):
        found = _bucket(store_of_site(request.site))
        yield from (one for one in found if one.level == "error")
        return
    folder = storage_of(request.site)
    there = existing(folder)
    if not there.is_dir():
        text = f"storage is {folder}, but {there} is a file. Name a folder."
        yield Finding("storage", "error", text)
    elif not may_write(there):
        yield Finding(
            "storage",
            "error",
            f"storage {folder} cannot be written: {there} is read-only for you. Set storage in "
            "the site file to a folder that you may write.",
        )


def may_write(folder: Path) -> bool:
    """Whether files can be made in a folder, as far as rights and mounts tell."""
    read_only = os.statvfs(folder).f_flag & os.ST_RDONLY
    return os.access(folder, os.W_OK | os.X_OK) and not read_only


def storage(request: Request) -> Iterator[Finding]:
    if is_url(request.site.storage):
        yield from _bucket(store_of_site(request.site))
        return
    folder = storage_of(request.site)
    free = shutil.disk_usage(existing(folder)).free
    yield Finding("storage", "ok", f"{folder}: {free / 1e9:.0f} GB free.")


def _bucket(store: Store) -> Iterator[Finding]:
    """Whether objects can be written, read and removed, and of two writers one is refused."""
    place, began = store.at(f"check-{uuid.uuid4().hex}"), time.monotonic()
    with storage_errors(store.location):
        wrote = place.write_if_absent("token", b"1"), place.write_if_absent("token", b"2")
        read = place.read("token")
        place.remove_all()
    if (wrote, read) != ((True, False), b"1"):
        text = (
            f"{store.location}: its service writes over an object that is to be written only where "
            "there is none (If-None-Match), so two commands could work on one thing. Use a service "
            "that keeps this promise of S3."
        )
        yield Finding("storage", "error", text)
    else:
        text = f"{store.location}: four requests took {time.monotonic() - began:.2f} s."
        yield Finding("storage", "ok", text)


def tracking_uri(request: Request) -> Iterator[Finding]:
    from ddlflow.tracking.uris import absolute

    absolute(request.site.tracking.uri)
    yield from ()


def tracking(request: Request) -> Iterator[Finding]:
    from ddlflow.redact import redacted
    from ddlflow.tracking.uris import database_path

    uri = request.site.tracking.uri
    path = database_path(uri)
    if path is not None and not may_write(existing(path.parent)):
        text = f"{path} cannot be written. The run goes on without it; set tracking.uri."
        yield Finding("tracking", "note", text)
    elif not uri.startswith(("http://", "https://")):
        yield Finding("tracking", "ok", f"{redacted(uri)}, embedded.")
    elif _answers(f"{uri.rstrip('/')}/health"):
        yield Finding("tracking", "ok", f"{redacted(uri)} answers.")
    else:
        text = (
            f"{redacted(uri)} does not answer. The run goes on without it and sends its metrics "
            "later; start the server, or set tracking.uri."
        )
        yield Finding("tracking", "note", text)


def prefect_answers() -> Iterator[Finding]:
    """Whether the Prefect server of ``PREFECT_API_URL`` is there; without it, ours is started."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        text = "PREFECT_API_URL is not set: one server of ours serves all your commands."
        yield Finding("prefect", "ok", text)
    elif _answers(f"{url.rstrip('/')}/health"):
        yield Finding("prefect", "ok", f"{url} answers.")
    else:
        text = f"PREFECT_API_URL is {url}, which does not answer. Start that server, or unset it."
        yield Finding("prefect", "error", text)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):  # noqa: S310 - of the user's own settings
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # it wants a login: it is there
    except (OSError, ValueError, HTTPException):
        return False


def device(request: Request) -> Iterator[Finding]:
    # Only this can be wrong, and asking imports PyTorch. Workers elsewhere are asked by `workers`.
    if request.site.device == "cuda" and request.site.engine.address is None:
        count_gpus("cuda")
    yield from ()


def engine(request: Request) -> Iterator[Finding]:
    """What the engine needs to be installed."""
    if request.site.engine.use == "spark" and given() is None:
        need_spark(request.site.engine)
    yield from ()


def workers(request: Request) -> Iterator[Finding]:
    if request.site.engine.address is not None:
        yield from _workers_elsewhere(request)
        return
    found = resources(request.site.engine, gpus=count_gpus(request.site.device))
    free = memory().free
    text = f"{counted(found.slots, 'worker')}, {found.why}; {free / 1e9:.0f} GB memory free."
    yield Finding("workers", "ok", text)
    yield from _tight(free / found.slots)


def _workers_elsewhere(request: Request) -> Iterator[Finding]:
    from ddlflow.engines import open_engine
    from ddlflow.train.facts import facts_here, unlike

    with open_engine(request.site, slots=1, threads=1) as opened:
        found = opened.ask(facts_here)
        hosts = [facts.host for facts in found]
        share = min(facts.free_bytes / hosts.count(facts.host) for facts in found)
        gpus = gpus_of(request.site.device, found) if request.site.device != "cpu" else 0
        what = f"a GPU each ({found[0].gpus[0]})" if gpus else found[0].processor
        text = f"{opened.describe()}; {what}; {share / 1e9:.0f} GB memory free for each."
        yield Finding("workers", "ok", text)
        yield from _tight(share)
        store = store_of_site(request.site)
        with storage_errors(store.location):
            yield from seen(store, opened)
        different = unlike(dict(enumerate(found)), "cuda" if gpus else "cpu")
        if different and request.pipeline.train.determinism == "elastic":
            text = (
                f"The workers would not compute the same bits: {different}. Use some of one kind."
            )
            yield Finding("workers", "note", text)


def _tight(free_bytes: float) -> Iterator[Finding]:
    if free_bytes < 1e9:
        text = "Less than 1 GB of free memory a worker. Set engine.workers lower."
        yield Finding("workers", "note", text)
