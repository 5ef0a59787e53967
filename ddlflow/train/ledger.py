"""Which rows a rank put into which global batch: the proof that each row came once an epoch.

A file a rank and attempt, mapped into memory: what a step writes there outlives a kill -9 of the
process and costs no system call. A step is counted before its gradients are sent, so no step that
a checkpoint holds is missing; one that was counted in vain is done again by a later attempt.

    bytes 0..8     int64: how many records count
    from byte 64   records of `RECORD`
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddlflow.data.batches import Chunk
from ddlflow.errors import DataError

HEADER = 64
RECORD = np.dtype([("epoch", "<u4"), ("step", "<u4"), ("rows", "<u8"), ("mark", "<u8")])


class Ledger:
    """Writes one rank's ledger of one attempt.

    Args:
        folder: of the training's ledgers.
        attempt: its name; names of later attempts sort behind those of earlier ones.
        rank: this rank.
        world: how many ranks there are.
    """

    def __init__(self, folder: Path, attempt: str, rank: int, world: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / f"{attempt}-{rank}-of-{world}.ledger"
        self._path.write_bytes(bytes(HEADER))
        self._records = 0
        self._map: np.memmap[tuple[int], np.dtype[np.uint8]] | None = None

    def begin(self, chunk: Chunk, slices: int) -> None:
        """Writes down what the next steps will be; none of them counts yet.

        Args:
            chunk: whose steps come next.
            slices: of this rank in each step.
        """
        steps = len(chunk.marks)
        size = HEADER + (self._records + steps) * RECORD.itemsize
        with self._path.open("r+b") as file:
            file.truncate(size)
        self._map = np.memmap(self._path, mode="r+", shape=(size,), dtype=np.uint8)
        records = self._map[HEADER:].view(RECORD)[self._records :]
        records["epoch"], records["step"] = chunk.epoch, chunk.step + np.arange(steps)
        records["mark"] = chunk.marks
        of_step = chunk.slices[:slices]  # every step of a chunk has slices of the same sizes
        records["rows"] = sum(len(inputs[-1]) for inputs in of_step)

    def count(self) -> None:
        """The next step is about to be done."""
        self._records += 1
        struct.pack_into("<q", self._map, 0, self._records)  # type: ignore[arg-type] # a buffer


@dataclass(frozen=True, slots=True)
class Entry:
    """One rank's ledger of one attempt, read back.

    Attributes:
        attempt: its name.
        rank: whose it is.
        world: of that attempt.
        records: what counts, of `RECORD`.
    """

    attempt: str
    rank: int
    world: int
    records: npt.NDArray[np.void]


def worlds(folder: Path) -> list[int]:
    """How many ranks the attempts had whose ledgers lie in a folder; each number once."""
    return sorted({int(path.stem.rsplit("-", 1)[1]) for path in folder.glob("*.ledger")})


def read(folder: Path) -> Iterator[Entry]:
    """All ledgers of a folder, by attempt and rank.

    Raises:
        DataError: one is damaged.
    """
    for path in sorted(folder.glob("*.ledger")):
        attempt, rank, _, world = path.stem.rsplit("-", 3)
        data = path.read_bytes()
        (count,) = struct.unpack_from("<q", data) if len(data) >= HEADER else (-1,)
        if not 0 <= count <= (len(data) - HEADER) // RECORD.itemsize:
            raise DataError(f"The ledger {path} is damaged: its bytes do not hold {count} records.")
        yield Entry(attempt, int(rank), int(world), np.frombuffer(data, RECORD, count, HEADER))
