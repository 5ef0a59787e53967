"""Where rows of a CSV file end: at line ends, but not at those inside quoted values.

A quote means something at the start of a value alone, and then up to the next one that is not
doubled. So in a block that begins with a row, every other quote opens a value, if each of those
follows a delimiter, a line end or a quote; where one does not (``5" pipe``) the quoted values are
looked for one by one.
"""

import re

import numpy as np

BOM = b"\xef\xbb\xbf"
_LINE_ENDS = (b"\n", b"\r")  # in turn: a file with \n has no row that ends with \r alone


class CsvRows:
    """A block of text that begins with a row."""

    def __init__(self, block: bytes, delimiter: bytes | None) -> None:
        """Finds the quotes.

        Args:
            block: the text.
            delimiter: of the values; None where quotes hide no line end (JSON lines).
        """
        self.block = block
        self._quotes = np.zeros(0, dtype=np.int64)
        if delimiter is not None and b'"' in block:
            self._find(delimiter)

    @property
    def open_at(self) -> int | None:
        """Where the quoted value begins that the block does not end; None if there is none."""
        at = len(self._quotes) - 1
        if at % 2:
            return None
        while at > 0 and self._quotes[at - 1] == self._quotes[at] - 1:  # a doubled quote in it
            at -= 2
        return int(self._quotes[at])

    def last_end(self) -> int:
        """Where the last whole row ends: the position after its line end; 0 if there is none."""
        for sign in _LINE_ENDS:
            stop = len(self.block) - (sign == b"\r")  # its \n may come with the next block
            while (found := self.block.rfind(sign, 0, stop)) >= 0:
                before = self._before(found)
                if before % 2 == 0:
                    return found + 1
                stop = int(self._quotes[before - 1])
        return 0

    def next_end(self, position: int, sign: bytes = b"\n") -> int:
        """The position after the first such line end from a position on; -1 if there is none."""
        while (found := self.block.find(sign, position)) >= 0:
            before = self._before(found)
            if before % 2 == 0:
                return found + 1
            if before == len(self._quotes):
                return -1
            position = int(self._quotes[before])
        return -1

    def first_end(self, position: int) -> int:
        """The position after the first line end of any kind; the block's end if there is none."""
        found = [end for sign in _LINE_ENDS if (end := self.next_end(position, sign)) >= 0]
        end = min(found, default=len(self.block))
        return end + (self.block[end - 1 : end + 1] == b"\r\n")

    def _before(self, position: int) -> int:
        return int(np.searchsorted(self._quotes, position))

    def _find(self, delimiter: bytes) -> None:
        if self.block.startswith(BOM):
            self.block = b"\n\n\n" + self.block[3:]  # as long, and a value may begin after it
        values = np.frombuffer(self.block, dtype=np.uint8)
        quotes = np.flatnonzero(values == ord('"'))
        opening = quotes[::2]
        before = values[opening[opening > 0] - 1]
        if np.isin(before, [*b'"\r\n', *delimiter]).all():
            self._quotes = quotes
            return
        start = b"(^|[\r\n" + re.escape(delimiter) + b"])"
        quoted = re.compile(start + rb'"[^"]*+(?:""[^"]*+)*+"')
        self.block = quoted.sub(lambda m: m[1] + b"x" * (len(m[0]) - len(m[1])), self.block)
        left = re.search(start + b'"', self.block)
        if left:
            self._quotes = np.array([left.end() - 1])
