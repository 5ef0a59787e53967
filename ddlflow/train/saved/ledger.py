"""Which rows a rank put into which global batch: the proof that each row came once an epoch.

A file a rank and attempt, mapped into memory: what a step writes there outlives a kill -9 of the
process and costs no system call. A step is counted before its gradients are sent, so no step that
a checkpoint holds is missing; one that was counted in vain is done again by a later attempt.

In an object store nothing can be mapped: a ledger is kept on its host, and `publish`ed as the
attempt ends, or as the next one begins there.

Space is taken before it is mapped: a page of a mapped file that a full disk cannot hold would kill
the process (SIGBUS). Where there is none, the training waits for it.

    bytes 0..8     int64: how many records count
    from byte 64   records of `RECORD`
"""

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ddlflow.data.shards.batches import Chunk
from ddlflow.errors import DataError
from ddlflow.store.cache import cache_here
from ddlflow.store.store import Place, Store, is_url, store_of

SUFFIX = ".ledger"
HEADER = 64
RESERVE = 1 << 16  # bytes taken at once: a disk that fills up does not stop a training for long
RECORD = np.dtype([("epoch", "<u4"), ("step", "<u4"), ("rows", "<u8"), ("mark", "<u8")])


class Ledger:
    """Writes one rank's ledger of one attempt.

    Args:
        place: of the training's ledgers.
        attempt: its name; names of later attempts sort behind those of earlier ones.
        rank: this rank.
        world: how many ranks there are.
        patiently: does what needs space on the disk, in its own time (``space.wait_for_space``).
    """

    def __init__(
        self,
        place: Place,
        attempt: str,
        rank: int,
        world: int,
        patiently: Callable[[Callable[[], None]], None] = lambda write: write(),
    ) -> None:
        self._path = _kept_in(store_of(place)) / f"{attempt}-{rank}-of-{world}{SUFFIX}"
        self._patiently = patiently
        self._records = 0
        self._size = 0
        self._map: np.memmap[tuple[int], np.dtype[np.uint8]] | None = None
        self._grow(RESERVE)

    def begin(self, chunk: Chunk, slices: int) -> None:
        """Writes down what the next steps will be; none of them counts yet.

        Args:
            chunk: whose steps come next.
            slices: of this rank in each step.
        """
        steps = len(chunk.marks)
        needed = HEADER + (self._records + steps) * RECORD.itemsize
        if needed > self._size:
            self._grow(needed + RESERVE)
        assert self._map is not None
        records = self._map[HEADER:needed].view(RECORD)[self._records :]
        records["epoch"], records["step"] = chunk.epoch, chunk.step + np.arange(steps)
        records["mark"] = chunk.marks
        of_step = chunk.slices[:slices]  # every step of a chunk has slices of the same sizes
        records["rows"] = sum(len(next(iter(one.values()))) for one in of_step)

    def count(self) -> None:
        """The next step is about to be done."""
        self._records += 1
        struct.pack_into("<q", self._map, 0, self._records)  # type: ignore[arg-type] # a buffer

    def _grow(self, size: int) -> None:
        """Makes the file so long, with blocks of the disk behind all of it, and maps it."""

        def write() -> None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("r+b" if self._size else "wb", buffering=0) as file:
                file.seek(self._size)
                missing = size - self._size
                while missing:  # a disk that is nearly full takes a part
                    missing -= file.write(bytes(missing))

        self._patiently(write)
        self._size = size
        self._map = np.memmap(self._path, mode="r+", shape=(size,), dtype=np.uint8)


@dataclass(frozen=True, slots=True)
class RankLedger:
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


def publish(place: Store) -> None:
    """Puts the ledgers of a training that are kept on this host where every worker sees them."""
    if not is_url(place.location):
        return
    for path in sorted(_kept_in(place).glob(f"*{SUFFIX}")):
        place.write(path.name, path.read_bytes())


def _kept_in(place: Store) -> Path:
    """The folder of this host that ledgers are mapped in."""
    return cache_here().kept(place.location) if is_url(place.location) else place.local_folder()


def worlds(place: Store) -> list[int]:
    """How many ranks the attempts had whose ledgers lie in a place; each number once."""
    stems = [name.removesuffix(SUFFIX) for name in place.list() if name.endswith(SUFFIX)]
    return sorted({int(stem.rsplit("-", 1)[1]) for stem in stems})


def read(folder: Path) -> Iterator[RankLedger]:
    """All ledgers of a folder, by attempt and rank.

    Raises:
        DataError: one is damaged.
    """
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        attempt, rank, _, world = path.stem.rsplit("-", 3)
        data = path.read_bytes()
        # A shorter one is of a rank that ended while it waited for space: it did no step.
        data = data.ljust(HEADER, b"\0")
        (count,) = struct.unpack_from("<q", data)
        if not 0 <= count <= (len(data) - HEADER) // RECORD.itemsize:
            raise DataError(f"The ledger {path} is damaged: its bytes do not hold {count} records.")
        yield RankLedger(attempt, int(rank), int(world), np.frombuffer(data, RECORD, count, HEADER))
