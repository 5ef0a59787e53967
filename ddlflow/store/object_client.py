"""The client of object stores: obstore, its credentials, its patience and what it says in errors.

obstore is the object_store of Apache Arrow. It takes credentials from the environment or from the
machine's role; no URL holds any.
"""

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig

SCHEMES = ("s3", "gs", "az", "abfs", "abfss")
RETRY_S = 60.0  # how long a request is tried anew while the service is away or busy
TRIES = 8
REQUEST_S = 60  # of one try; no request is for more than a part of a file
_CODE = re.compile(r"<Code>(\w+)</Code>|\"error\"\s*:\s*\"(\w+)\"")
NO_BUCKET = ("NoSuchBucket", "ContainerNotFound", "The specified bucket does not exist")


@contextmanager
def telling(where: str, bucket: str = "", *, client_alone: bool = False) -> Iterator[None]:
    """Turns what the client raises into an OSError that says where and why, and no more.

    Its own text may hold a request's signature or the key's id.

    Args:
        where: the URL of what is asked for.
        bucket: the URL that is named where there is no such bucket.
        client_alone: what is asked may be no object store: its errors stay as they are.
    """
    if find_spec("obstore") is None:
        yield
        return
    from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError

    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        if client_alone and not isinstance(error, BaseError):
            raise
        text = str(error)
        if any(sign in text for sign in NO_BUCKET):
            raise OSError(errno.ENODEV, "there is no such bucket", bucket or where) from None
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), where) from None
        code = next((a or b for a, b in _CODE.findall(text)), "")
        if isinstance(error, (PermissionDeniedError, UnauthenticatedError)):
            why = f"access is denied ({code})" if code else "access is denied"
            raise PermissionError(errno.EACCES, why, where) from None
        raise OSError(errno.EIO, _reason(text, code), where) from None


def _reason(text: str, code: str) -> str:
    """Why a request failed, in a few words of this project's own."""
    if code:
        return f"the service refused it ({code})"
    if "credential" in text.lower():
        return "no credentials were found"
    status = re.search(r"status code: (\d+)", text)
    return f"the service answered {status[1]}" if status else "the service does not answer"


@lru_cache(maxsize=8)
def client_of(bucket: str, pid: int) -> Any:
    """The client of a bucket; a process that was forked has its own."""
    from obstore.store import from_url

    options: ClientConfig = {
        "timeout": timedelta(seconds=REQUEST_S),
        "connect_timeout": timedelta(seconds=5),
    }
    retry: RetryConfig = {
        "max_retries": TRIES,
        "retry_timeout": timedelta(seconds=RETRY_S),
        "backoff": {
            "init_backoff": timedelta(seconds=0.1),
            "max_backoff": timedelta(seconds=10),
            "base": 2,
        },
    }
    own: dict[str, Any] = {}
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if bucket.startswith("s3://") and endpoint:
        own["endpoint"] = endpoint
        options["allow_http"] = endpoint.startswith("http://")
    if bucket.startswith("s3://") and "AWS_ACCESS_KEY_ID" not in os.environ and find_spec("boto3"):
        from obstore.auth.boto3 import Boto3CredentialProvider  # profiles and single sign-on

        own["credential_provider"] = Boto3CredentialProvider()
    return from_url(bucket, client_options=options, retry_config=retry, **own)


@lru_cache(maxsize=1)
def register_filesystems() -> None:
    """Lets fsspec read these URLs by the same client where it has no package of its own."""
    packages = {"s3": "s3fs", "gs": "gcsfs", "abfs": "adlfs", "abfss": "adlfs", "az": "adlfs"}
    missing = [scheme for scheme, package in packages.items() if find_spec(package) is None]
    if missing and find_spec("obstore") is not None:
        from obstore.fsspec import register

        if os.environ.get("AWS_ENDPOINT_URL", "").startswith("http://"):
            os.environ.setdefault("AWS_ALLOW_HTTP", "true")
        register(missing)


def forget_clients() -> None:
    """The next request is made with the credentials of now."""
    client_of.cache_clear()
