"""Text in any encoding as UTF-8; bytes that are no characters are told with their line."""

import codecs
import itertools
import re
from collections.abc import Callable, Iterable, Iterator

from ddlflow.data.sources.dialect import Dialect
from ddlflow.errors import DataError

_LOOKED_AT = 4096  # bytes
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def recoded(
    chunks: Iterable[bytes], name: str, encoding: str, lines_before: Callable[[], int]
) -> Iterator[bytes]:
    """The text of a file's range in UTF-8, cut anywhere.

    Args:
        chunks: the bytes.
        name: the file's, for messages.
        encoding: as Python calls it.
        lines_before: tells how many lines come before the range, if that is asked.

    Raises:
        DataError: bytes that are no characters, with the line.
    """
    decoder = codecs.getincrementaldecoder(encoding)()
    lines = 0
    for data in itertools.chain(chunks, [b""]):
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            good = error.object[: error.start].decode(encoding, errors="ignore")
            line = lines_before() + lines + good.count("\n") + 1
            raise DataError(no_characters(f"{name}, line {line}", error)) from None
        lines += text.count("\n")
        if text:
            yield text.encode()


def refuse_other_encodings(block: bytes, where: str, before: int, dialect: Dialect) -> None:
    """Checks that rows are UTF-8, where that is what is read.

    Args:
        block: whole rows.
        where: the file and what is counted in it: ``t.csv, line``.
        before: lines before the block.
        dialect: how it is read.

    Raises:
        DataError: names the line, and the key that tells another encoding.
    """
    if not dialect.is_utf8:
        return
    name = where.rpartition(",")[0]
    if before == 0 and block.startswith(_UTF16):
        raise DataError(f"{name} is in UTF-16, by its first bytes. Set data.encoding: utf-16.")
    if b"\0" in block[:_LOOKED_AT]:
        raise DataError(
            f"{name} holds zero bytes, as UTF-16 does. Set data.encoding: utf-16-le or utf-16-be."
        )
    try:
        block.decode()
    except UnicodeDecodeError as error:
        line = before + block.count(b"\n", 0, error.start) + 1
        raise DataError(no_characters(f"{where} {line}", error)) from None


def no_characters(place: str, error: UnicodeDecodeError) -> str:
    """One sentence for bytes that are none: ``place`` is the file and the line."""
    byte = error.object[error.start]
    near = bytes(error.object[max(0, error.start - 12) : error.start + 12])
    shown = re.split(r"[\r\n\t,;|\"]", near.decode("latin-1"))
    word = next((part for part in shown if chr(byte) in part), "")
    return (
        f"{place}: byte 0x{byte:02x} is not {error.encoding} (in latin-1 it reads {word!r}). "
        "Set data.encoding to the file's own, such as cp1252, latin-1 or utf-16."
    )
