"""One large file over HTTP, which may be stopped at any byte and goes on from there."""

import hashlib
import http.client
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ddlflow.errors import DataError


@dataclass(frozen=True, slots=True)
class WorkProgressed:
    """So much of a work is done, in its unit: bytes or rows."""

    done: int
    total: int


@dataclass(frozen=True, slots=True)
class DownloadRetried:
    """A download failed and is tried again in some seconds."""

    reason: str
    wait_s: float


OnEvent = Callable[[WorkProgressed | DownloadRetried], None]

CHUNK_BYTES = 1 << 20
READ_TIMEOUT_S = 60.0
ATTEMPTS = 6  # in a row without a new byte; with 1 s doubled each time, half a minute of waiting


class _InterruptedError(Exception):
    """The connection failed in a way that another try may mend."""


class Progress:
    """Says how far a work is, at most twice a second and at the end."""

    def __init__(self, on_event: OnEvent, total: int) -> None:
        self._on_event, self._total, self._next_s, self._said = on_event, total, 0.0, -1

    def show(self, done: int) -> None:
        """Emits it when it is time."""
        now_s = time.monotonic()
        if done != self._said and (now_s >= self._next_s or done == self._total):
            self._next_s, self._said = now_s + 0.5, done
            self._on_event(WorkProgressed(done, self._total))


def download(
    url: str, target: Path, *, size: int, sha256: str, on_event: OnEvent, backoff_s: float = 1.0
) -> Path:
    """Downloads ``url`` to ``target``; a file that has its name already is left as it is.

    Bytes go to ``target.part``, where a later call goes on (from the start, if the server cannot
    send ranges). The file gets its name once size and hash are right.

    Emits progress in bytes (``Progress``), and a `DownloadRetried` before another try.

    Args:
        size: of the whole file, bytes.
        backoff_s: the wait after the first try in a row that brought nothing; then doubled.

    Raises:
        DataError: too little disk, an address that answers no, or a file of another size or hash
            (one of another hash is kept as ``target.bad``).
    """
    part, bad = (target.with_name(target.name + ending) for ending in (".part", ".bad"))
    if not url.startswith(("http://", "https://")):
        raise DataError(f"{url} is no web address; expected one that starts with https://.")
    if target.exists():
        if target.stat().st_size == size:
            return target
        raise DataError(
            f"{target} has {target.stat().st_size:,} bytes; expected {size:,}. "
            "Delete it and fetch again."
        )
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(target.parent, size - _size(part))
        _fill(part, url, size, on_event, backoff_s)
        found = _sha256(part)
        if found != sha256:
            part.replace(bad)
            raise DataError(
                f"{url} gave a file of SHA-256 {found}; expected {sha256}. It is kept as {bad}: "
                "see what it is, or fetch again."
            )
        part.replace(target)
    except OSError as error:
        raise DataError(
            f"{target} cannot be written: {error}. Free space or name another folder; "
            "the same command goes on from here."
        ) from error
    return target


def _fill(part: Path, url: str, size: int, on_event: OnEvent, backoff_s: float) -> None:
    """Asks again until ``part`` has ``size`` bytes."""
    progress = Progress(on_event, size)
    if _size(part) > size:  # of something else
        part.unlink()
    fruitless = 0
    while (before := _size(part)) < size:
        try:
            _receive(url, part, size, progress)
        except _InterruptedError as error:
            fruitless = 0 if _size(part) > before else fruitless + 1
            if fruitless == ATTEMPTS:
                raise DataError(
                    f"{url} cannot be read: {error}, {ATTEMPTS} times in a row. "
                    f"{_size(part):,} of {size:,} bytes are kept; the same command goes on there."
                ) from error
            wait_s = backoff_s * 2 ** max(fruitless - 1, 0)
            on_event(DownloadRetried(str(error), wait_s))
            time.sleep(wait_s)
    progress.show(size)


def _receive(url: str, part: Path, size: int, progress: Progress) -> None:
    """One request; appends to ``part``, or starts it anew where the server sends the whole file."""
    kept = _size(part)
    with _ask(url, kept) as response:
        start, total = _offered(response)
        if total not in {None, size} or start not in {0, kept}:
            raise DataError(
                f"{url} offers a file of {total} bytes, from byte {start}; expected {size} bytes, "
                f"from {kept}. Check the address: this is another file."
            )
        done = start
        with part.open("ab" if start else "wb") as file:
            for chunk in _chunks(response):
                done += len(chunk)
                if done > size:
                    raise DataError(
                        f"{url} sends more than the expected {size} bytes. "
                        "Check the address: this is another file."
                    )
                file.write(chunk)
                progress.show(done)
    if done < size:
        raise _InterruptedError(f"the connection ended after {done:,} of {size:,} bytes")


def _ask(url: str, start: int) -> http.client.HTTPResponse:
    request = urllib.request.Request(url)  # noqa: S310 - download() allows http and https alone
    if start:
        request.add_header("Range", f"bytes={start}-")
    try:
        response = urllib.request.urlopen(request, timeout=READ_TIMEOUT_S)  # noqa: S310 - as above
    except urllib.error.HTTPError as error:
        error.close()
        if error.code < 500 and error.code not in {408, 425, 429}:  # too slow, too early, too often
            raise DataError(
                f"{url} answers {error.code} {error.reason}. Check the address, or fetch the file "
                "with a browser."
            ) from error
        raise _InterruptedError(f"the server answers {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(str(getattr(error, "reason", error)) or repr(error)) from error
    assert isinstance(response, http.client.HTTPResponse)
    return response


def _offered(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """The first byte that will come, and the whole file's size where the server says it."""
    if response.status != http.HTTPStatus.PARTIAL_CONTENT:
        length = response.headers.get("Content-Length")
        return 0, None if length is None else int(length)
    header = response.headers.get("Content-Range", "")
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", header.strip())
    if found is None:
        raise _InterruptedError(f"the server answers with Content-Range {header!r}")
    return int(found[1]), None if found[2] == "*" else int(found[2])


def _chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """What comes, until the connection ends, rightly or not."""
    while True:
        try:
            chunk = response.read(CHUNK_BYTES)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedError(str(error) or repr(error)) from error
        if not chunk:
            return
        yield chunk


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DataError(
            f"{folder} has {free:,} bytes free; the download needs {needed:,} more. "
            "Free space or name another folder."
        )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
