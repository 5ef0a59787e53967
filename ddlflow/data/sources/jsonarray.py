"""A JSON array of objects as JSON lines, in bounded memory."""

import codecs
import itertools
import json
import re
from collections.abc import Iterable, Iterator

from ddlflow.data.sources.encoding import no_characters
from ddlflow.errors import DataError

_BETWEEN = re.compile(r"[\s,]*")


def elements(chunks: Iterable[bytes], name: str) -> Iterator[bytes]:
    """The objects of a JSON array, a line each, as they are written.

    Args:
        chunks: the array's text in UTF-8, cut anywhere.
        name: the file's, for messages.

    Raises:
        DataError: an array that is damaged, or holds something else, with the row.
    """
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    scan = json.JSONDecoder().raw_decode
    held, at, row = "", 0, 0
    is_open = False
    for data in itertools.chain(chunks, [b""]):
        try:
            held, at = held[at:] + decoder.decode(data, final=not data), 0
        except UnicodeDecodeError as error:
            raise DataError(no_characters(f"{name}, after row {row}", error)) from None
        if not is_open:
            held = held.lstrip()
            is_open, held = held.startswith("["), held.removeprefix("[")
        found: list[str] = []
        while (at := _next(held, at)) < len(held) and held[at] != "]":
            try:
                value, end = scan(held, at)
            except json.JSONDecodeError as error:
                if not data:
                    raise DataError(_broken(name, row, error.msg)) from None
                break
            row += 1
            if not isinstance(value, dict):
                raise DataError(
                    f"{name}, row {row}: the JSON array holds {held[at:end]:.40}, where an object "
                    '{"column": value, ...} is expected. Write the rows as objects.'
                )
            found.append(held[at:end].replace("\r", " ").replace("\n", " ") + "\n")
            at = end
        if found:
            yield "".join(found).encode()
    if not held.startswith("]", at):
        raise DataError(_broken(name, row, "it does not end with ]"))


def _broken(name: str, row: int, reason: str) -> str:
    return (
        f"{name}, row {row + 1} cannot be read: {reason}. The JSON array is incomplete or "
        "damaged: write it again."
    )


def _next(held: str, at: int) -> int:
    found = _BETWEEN.match(held, at)
    return found.end() if found else at
