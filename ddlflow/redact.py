"""What may not be shown: passwords, tokens and signatures, taken out of URLs, texts and settings.

Everything that is kept or printed goes through here: errors, logs, MLflow, Prefect, manifests,
models. What is taken out is gone: a run of a signed URL is repeated with the URL given anew.
"""

import json
import logging
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

GONE = "***"
# A key of a query or of settings whose value is a secret: api_key, X-Amz-Signature, sig, sv is not.
_SECRET_KEY = re.compile(
    r"pass|pwd|token|secret|credential|signature|jaas|(?:account|access|api|private)_?key"
    r"|(^|[-_.])(sig|key|auth)$",
    re.IGNORECASE,
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>|`]+")
# What Java's database drivers are told: ;password=..., and Oracle's user/password@.
_JDBC = re.compile(r"jdbc:[^\s'\"<>|`]+")
_JDBC_VALUE = re.compile(r"([;,?&(])([^;,?&=()]+)=([^;,?&)]*)")
_ORACLE = re.compile(r"^(jdbc:oracle:\w+:[^/@]+)/[^@]*@")
_CLOSING = ".,;:)]}"  # ends a sentence or a bracket around a URL, not the URL


def redacted(url: str) -> str:
    """A URL without its secrets: passwords, tokens, and query values that look like them."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return GONE
    host = parts.netloc
    if "@" in host:
        user, _, host = host.rpartition("@")
        name, separator, _ = user.partition(":")
        # An HTTP user without a password is usually a token.
        known = name if separator or not parts.scheme.startswith("http") else GONE
        host = f"{known}{f':{GONE}' if separator else ''}@{host}"
    query = _without_values(parts.query)
    if not parts.netloc:  # urlunsplit drops the empty authority of sqlite:///
        return url if query == parts.query else f"{url.partition('?')[0]}?{query}"
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def _without_values(query: str) -> str:
    """A query with its secret values taken out; as it is where it has none."""
    pairs = parse_qsl(query, keep_blank_values=True)
    if not any(_SECRET_KEY.search(key) for key, _ in pairs):
        return query
    return urlencode([(k, GONE if _SECRET_KEY.search(k) else v) for k, v in pairs], safe="*/")


def redacted_text(text: str) -> str:
    """A text whose URLs, wherever they stand in it, are without secrets."""
    if "jdbc:" in text:
        text = _JDBC.sub(lambda found: _redacted_jdbc(found[0]), text)
    return _URL.sub(_redacted_match, text) if "://" in text else text


def _redacted_jdbc(url: str) -> str:
    def without_secret(found: re.Match[str]) -> str:
        sign, name, value = found.groups()
        return f"{sign}{name}={GONE if _SECRET_KEY.search(name) else value}"

    return _JDBC_VALUE.sub(without_secret, _ORACLE.sub(rf"\1/{GONE}@", url))


def _redacted_match(match: re.Match[str]) -> str:
    url = match[0].rstrip(_CLOSING)
    return redacted(url) + match[0][len(url) :]


def redacted_values(value: Any) -> Any:
    """Settings without secrets: texts as `redacted_text`, and values of keys that name a secret."""
    if isinstance(value, str):
        return redacted_text(value)
    if isinstance(value, Mapping):
        return {
            key: GONE
            if isinstance(inner, str) and _SECRET_KEY.search(str(key))
            else redacted_values(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redacted_values(inner) for inner in value]
    return value


def is_secret_key(name: str) -> bool:
    """Whether a key of settings is called as secrets are."""
    return _SECRET_KEY.search(name) is not None


def redacted_change(change: str) -> str:
    """``KEY=VALUE`` as given with --set, without secrets."""
    key, equals, _ = change.partition("=")
    if equals and _SECRET_KEY.search(key.rpartition(".")[2]):
        return f"{key}={GONE}"
    return redacted_text(change)


_hidden: dict[str, str] = {}  # changes as they are shown -> as they were given, in this process
_hidden_values: dict[str, dict[str, Any]] = {}  # the same of nested settings, by their JSON


def hidden(change: str) -> str:
    """``KEY=VALUE`` without secrets, to pass through what is recorded: `revealed` undoes it."""
    shown = redacted_change(change)
    if shown != change:
        _hidden[shown] = change
    return shown


def revealed(change: str) -> str:
    """What `hidden` was given, in the same process; any other text as it is."""
    return _hidden.get(change, change)


def hidden_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings without secrets, to pass through what is recorded."""
    shown: dict[str, Any] = redacted_values(values)
    if shown != values:
        _hidden_values[json.dumps(shown, sort_keys=True)] = dict(values)
    return shown


def revealed_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """What `hidden_values` was given, in the same process; any other settings as they are."""
    if not _hidden_values:
        return dict(values)
    return _hidden_values.get(json.dumps(values, sort_keys=True, default=str), dict(values))


def keep_out_of_logs() -> None:
    """From now on no log record of this process, of whatever package, holds a URL's secrets."""
    make = logging.getLogRecordFactory()
    if getattr(make, "redacts", False):
        return

    def without_secrets(*args: Any, **more: Any) -> logging.LogRecord:
        record = make(*args, **more)
        if record.exc_info and not record.exc_text:  # a handler takes this for the traceback
            record.exc_text = redacted_text(logging.Formatter().formatException(record.exc_info))
        said = record.getMessage() if "://" in f"{record.msg}{record.args}" else ""
        if said:
            record.msg, record.args = redacted_text(said), ()
        return record

    without_secrets.redacts = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(without_secrets)
