"""A store that is a part of a bucket: S3 and what speaks like it, Google's and Azure's.

The client's conditional writes are alike in all of them: "only where there is none", and "only over
this very version".
"""

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ddlflow.errors import SpecError
from ddlflow.store.cache import Cache, cache_here
from ddlflow.store.claims import Claims
from ddlflow.store.object_claims import ObjectClaims, UserObjects, Version
from ddlflow.store.object_client import NO_BUCKET, SCHEMES, client_of, telling

if TYPE_CHECKING:
    from obstore import GetOptions

PART_BYTES = 32 << 20  # read in one request


@dataclass(frozen=True, slots=True)
class ObjectStore:
    """See `ddlflow.store.store.Store`.

    Attributes:
        bucket: its URL, as ``s3://name``.
        prefix: what all keys begin with, without a slash at its ends; "" for the whole bucket.
    """

    bucket: str
    prefix: str

    @classmethod
    def of(cls, url: str) -> "ObjectStore":
        """The store of a URL.

        Raises:
            SpecError: its kind is unknown, it names no bucket or holds a password, or the client is
                not installed.
        """
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
        if parts.scheme not in SCHEMES:
            known = ", ".join(f"{scheme}://" for scheme in SCHEMES)
            raise SpecError(
                f"storage is {shown}; expected a folder that every worker sees, or a bucket: "
                f"{known}."
            )
        if not parts.netloc:
            raise SpecError(
                f"storage is {url}, which names no bucket; expected {parts.scheme}://BUCKET/PREFIX."
            )
        if parts.query or parts.password or (parts.username and parts.scheme in ("s3", "gs")):
            raise SpecError(
                f"storage is {shown} with more than a bucket and a prefix. Give credentials by the "
                "environment (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role)."
            )
        if find_spec("obstore") is None:
            raise SpecError(
                f"{url} needs the package obstore on every worker: pip install 'ddlflow[s3]'."
            )
        return cls(f"{parts.scheme}://{parts.netloc}", parts.path.strip("/"))

    @property
    def location(self) -> str:
        return f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket

    def at(self, prefix: str) -> "ObjectStore":
        return ObjectStore(self.bucket, self._path(prefix.strip("/")))

    def read(self, key: str) -> bytes:
        return self.versioned(key)[0]

    def versioned(self, key: str) -> tuple[bytes, Version]:
        """The bytes of an object and what tells this version of it, for `swap`."""
        import obstore

        with self._telling(key):
            found = obstore.get(self._client, self._path(key))
            tag: Version = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
            return bytes(found.bytes()), tag

    def write(self, key: str, data: bytes | memoryview, *, durable: bool = False) -> None:
        import obstore

        with self._telling(key):
            obstore.put(self._client, self._path(key), data)

    def write_if_absent(self, key: str, data: bytes) -> bool:
        return self._put_if(key, data, "create") is not None

    def swap(self, key: str, data: bytes, version: Version) -> Version | None:
        """Writes an object over the very version that was read: what tells the new one, if it did.

        None: another one has written meanwhile.
        """
        return self._put_if(key, data, {name: tag for name, tag in version.items() if tag})

    def _put_if(self, key: str, data: bytes, mode: Any) -> Version | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        with self._telling(key):
            try:
                done = obstore.put(self._client, self._path(key), data, mode=mode)
            except (AlreadyExistsError, PreconditionError, FileNotFoundError) as error:
                if any(sign in str(error) for sign in NO_BUCKET):
                    raise
                return None
        return {"e_tag": done["e_tag"], "version": done["version"]}

    @contextmanager
    def writing(self, key: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ddlflow-", dir=self._cache.scratch()) as folder:
            path = Path(folder) / Path(key).name
            yield path
            self._upload(path, key)

    @contextmanager
    def writing_folder(self, prefix: str, last: str) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="ddlflow-", dir=self._cache.scratch()) as folder:
            yield Path(folder)
            made = sorted(path for path in Path(folder).rglob("*") if path.is_file())
            keys = {f"{prefix}/{path.relative_to(folder).as_posix()}": path for path in made}
            self.remove(f"{prefix}/{last}")
            for key in self.list(prefix):
                if key not in keys:
                    self.remove(key)
            for key in sorted(keys, key=lambda key: key == f"{prefix}/{last}"):
                self._upload(keys[key], key)

    def _upload(self, path: Path, key: str) -> None:
        import obstore

        with self._telling(key):
            obstore.put(self._client, self._path(key), path)

    def list(self, prefix: str = "") -> list[str]:
        return [*self.sizes(prefix)]

    def sizes(self, prefix: str = "") -> dict[str, int]:
        start = len(self.prefix) + 1 if self.prefix else 0
        return {found["path"][start:]: int(found["size"]) for found in self._listed(prefix)}

    def parts(self) -> Sequence[str]:
        import obstore

        with self._telling(""):
            inside = f"{self.prefix}/" if self.prefix else None
            found = obstore.list_with_delimiter(self._client, inside)["common_prefixes"]
        return sorted(path.rstrip("/").rpartition("/")[2] for path in found)

    def make(self) -> bool:
        import obstore

        with self._telling(""):
            pages = obstore.list(self._client, f"{self.prefix}/" if self.prefix else None)
            return next(iter(pages), None) is None

    def _listed(self, prefix: str) -> Sequence[Any]:
        """What the service says of the objects below a prefix, by path."""
        import obstore

        inside = self._path(prefix.strip("/")) if prefix else self.prefix
        with self._telling(prefix):
            pages = obstore.list(self._client, f"{inside}/" if inside else None)
            return sorted((one for page in pages for one in page), key=lambda one: one["path"])

    def exists(self, key: str) -> bool:
        try:
            self._head(key)
        except FileNotFoundError:
            return False
        return True

    def size(self, key: str) -> int:
        return int(self._head(key)["size"])

    def remove(self, key: str) -> None:
        import obstore

        with self._telling(key), suppress(FileNotFoundError):
            obstore.delete(self._client, self._path(key))

    def remove_all(self) -> None:
        import obstore

        keys = self.list()
        with self._telling(""), suppress(FileNotFoundError):
            for start in range(0, len(keys), 1000):  # in one request of S3
                obstore.delete(self._client, [*map(self._path, keys[start : start + 1000])])

    def local(self, key: str, sha256: str | None = None) -> Path:
        if sha256 is not None:
            return self._cache.file(sha256, lambda: self._parts(key), sha256=sha256, name=key)
        found = self._head(key)
        tag = f"{self.bucket}/{self._path(key)} {found['e_tag']} {found['size']}"
        return self._cache.file(tag, lambda: self._parts(key), name=key)

    def local_folder(self, prefix: str = "") -> Path:
        inside = self.at(prefix) if prefix else self
        found = inside._listed("")
        if not found:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), inside.location)
        start = len(inside.prefix) + 1 if inside.prefix else 0
        tags = {one["path"][start:]: one["e_tag"] for one in found}
        return self._cache.folder(f"{inside.location} {tags}", tags, inside._parts)

    def ahead(self, files: Sequence[tuple[str, str]]) -> None:
        for key, sha256 in files:
            self._cache.ahead(sha256, lambda key=key: self._parts(key), name=key)  # type: ignore[misc]

    def claims(self, kind: str, *, shared: bool = False) -> Claims:
        above, _, name = self.prefix.rpartition("/")
        beside = ObjectStore(self.bucket, above)
        key = f".{name}.{kind}"
        return UserObjects(beside, key) if shared else ObjectClaims(beside, key)

    def _parts(self, key: str) -> Iterator[bytes]:
        """The bytes of an object, part by part, all of one version."""
        import obstore

        found = self._head(key)
        size, tag = int(found["size"]), found["e_tag"]
        for start in range(0, size, PART_BYTES):
            end = min(size, start + PART_BYTES)
            options: GetOptions = {"range": (start, end), "if_match": tag}
            with self._telling(key):
                yield bytes(obstore.get(self._client, self._path(key), options=options).bytes())

    def _head(self, key: str) -> Any:
        import obstore

        with self._telling(key):
            return obstore.head(self._client, self._path(key))

    def _path(self, key: str) -> str:
        return f"{self.prefix}/{key}" if self.prefix else key

    @property
    def _client(self) -> Any:
        return client_of(self.bucket, os.getpid())

    @property
    def _cache(self) -> Cache:
        return cache_here()

    def _telling(self, key: str) -> AbstractContextManager[None]:
        return telling(f"{self.location}/{key}" if key else self.location, self.bucket)
