"""Which row is train, validation or test: exact counts in every class, and no global shuffle.

The j-th row of a class (in the source's order) gets the place ``places(j)``, where ``places`` is a
seeded bijection of [0, rows of the class). The first places are the test rows, the next the
validation rows. So a worker needs to know only how many rows of each class come before its own.
"""

from collections.abc import Iterator, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from ddlflow.data.shards.manifest_parts import SplitName

SPLITS: tuple[SplitName, SplitName, SplitName] = ("train", "validation", "test")
TRAIN, VALIDATION, TEST = range(3)
# Four rounds make a Feistel network pseudorandom (Luby and Rackoff 1988); two more cost little.
ROUNDS = 6

Integers = npt.NDArray[np.uint64]


def quotas(
    counts: Sequence[int], validation: float, test: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """How many rows of each class become validation and test rows, by largest remainder.

    Each split's count of a class is its exact share rounded up or down, for train too.

    Args:
        counts: rows of each class.
        validation: fraction of the rows, as a decimal (0.1 is a tenth, not its binary neighbour).
        test: likewise.

    Returns:
        Rows of each class in validation and in test.
    """
    share_validation, share_test = Fraction(repr(validation)), Fraction(repr(test))
    total = sum(counts)
    exact_test = [share_test * n for n in counts]
    exact_validation = [share_validation * n for n in counts]
    up_test = _largest(exact_test, total * share_test, {})
    # The three shares' fractional parts add up to 0, 1 or 2: so many splits are rounded up. What
    # test took decides where validation must or must not be rounded up for train to stay in bounds.
    fixed: dict[int, int] = {}
    for index, n in enumerate(counts):
        parts = [exact_test[index], exact_validation[index]]
        parts.append(n - parts[0] - parts[1])
        left = sum(part - int(part) for part in parts) - up_test[index]
        if left != 1:
            fixed[index] = int(left) // 2
        elif parts[2] == int(parts[2]):
            fixed[index] = 1  # train takes its exact share
    up_validation = _largest(exact_validation, total * share_validation, fixed)
    return (
        np.array([int(e) + u for e, u in zip(exact_validation, up_validation, strict=True)]),
        np.array([int(e) + u for e, u in zip(exact_test, up_test, strict=True)]),
    )


def _largest(exact: list[Fraction], total: Fraction, fixed: dict[int, int]) -> list[int]:
    """1 for each share that is rounded up, so that the sum comes nearest to ``total``."""
    up = [fixed.get(index, 0) for index in range(len(exact))]
    parts = [share - int(share) for share in exact]
    free = [i for i, part in enumerate(parts) if part > 0 and i not in fixed]
    needed = round(total) - sum(int(share) for share in exact) - sum(up)
    for index in sorted(free, key=lambda i: (-parts[i], i))[: max(0, needed)]:
        up[index] = 1
    return up


def class_keys(seed: int | Sequence[int], num_classes: int) -> npt.NDArray[np.uint32]:
    """The bijections' keys [ROUNDS, classes]."""
    base = np.random.SeedSequence(seed).generate_state(ROUNDS, np.uint32)
    classes = np.arange(1, num_classes + 1, dtype=np.uint32)
    return _mixed(_mixed(classes)[None, :] ^ base[:, None])


def places(index: Integers, size: Integers, keys: npt.NDArray[np.uint32]) -> Integers:
    """A seeded bijection of [0, size), element by element.

    A Feistel network over the smallest power of two that holds ``size``; a result outside is sent
    through again until it falls inside (cycle walking), at most twice on average.
    Source: Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom
    functions"; Black and Rogaway 2002, "Ciphers with arbitrary finite domains".

    Args:
        index: [n], each below its size.
        size: [n] or [1]: the domain of each element, below 2^53.
        keys: uint32 [ROUNDS, n] or [ROUNDS, 1], as size.

    Returns:
        [n], each below its size.
    """
    bits = np.maximum(np.frexp((size - np.uint64(1)).astype(np.float64))[1], 2).astype(np.uint64)
    low = bits // np.uint64(2)
    result = _feistel(index, bits - low, low, keys)
    outside = np.flatnonzero(result >= size)
    while outside.size:
        narrow = slice(None) if size.size == 1 else outside  # its own parameters, or the one set
        again = _feistel(result[outside], (bits - low)[narrow], low[narrow], keys[:, narrow])
        result[outside] = again
        outside = outside[again >= size[narrow]]
    return result


def _feistel(
    value: Integers, high: Integers, low: Integers, keys: npt.NDArray[np.uint32]
) -> Integers:
    """One pass over values of ``high + low`` bits. Halves of 32 bits at most: uint32 is faster."""
    one = np.uint64(1)
    mask_high = ((one << high) - one).astype(np.uint32)
    mask_low = ((one << low) - one).astype(np.uint32)
    left = (value >> low).astype(np.uint32)
    right = value.astype(np.uint32) & mask_low
    for turn in range(0, ROUNDS, 2):
        left ^= _mixed(right ^ keys[turn]) & mask_high
        right ^= _mixed(left ^ keys[turn + 1]) & mask_low
    return (left.astype(np.uint64) << low) | right


def _mixed(value: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """A 32-bit integer hash: every input bit changes every output bit with near even odds.

    Source: the constants of "lowbias32", found by C. Wellons' hash prospector (public domain).
    """
    value = value ^ (value >> np.uint32(16))
    value *= np.uint32(0x7FEB352D)
    value ^= value >> np.uint32(15)
    value *= np.uint32(0x846CA68B)
    value ^= value >> np.uint32(16)
    return value


def assign(
    classes: npt.NDArray[np.int64],
    *,
    before: npt.NDArray[np.int64],
    counts: npt.NDArray[np.int64],
    validation: npt.NDArray[np.int64],
    test: npt.NDArray[np.int64],
    keys: npt.NDArray[np.uint32],
    numbers: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.uint8]:
    """The split of each row of a piece.

    Args:
        classes: [n] the rows' classes, in the source's order.
        before: [C] rows of each class before the piece.
        counts: [C] rows of each class in all.
        validation: [C] validation rows of each class.
        test: [C] test rows of each class.
        keys: from ``class_keys``.
        numbers: [n] to be filled, where folds need it: each training row's own number among the
            training rows of its class, from 0; below 0 for other rows.

    Returns:
        [n] TRAIN, VALIDATION or TEST.
    """
    splits = np.full(len(classes), TRAIN, dtype=np.uint8)
    if numbers is None and not (validation.any() or test.any()):
        return splits
    rows, bounds = by_class(classes, len(counts))
    for of, start, stop in runs(classes, rows, bounds):
        rank = np.arange(start, stop) + (before[of] - bounds[of])
        place = places(rank.astype(np.uint64), counts[of].astype(np.uint64), keys[:, of])
        held_out = (test[of] + validation[of]).astype(np.uint64)
        code = np.where(place < held_out, np.uint8(VALIDATION), np.uint8(TRAIN))
        code[place < test[of].astype(np.uint64)] = TEST
        splits[rows[start:stop]] = code
        if numbers is not None:
            numbers[rows[start:stop]] = place.astype(np.int64) - held_out.astype(np.int64)
    return splits


def by_class(
    classes: npt.NDArray[np.int64], num_classes: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """The rows of a piece class by class, and where each of C classes starts and ends [C + 1]."""
    if num_classes <= 4:  # a pass a class is faster than a sort
        each = [np.flatnonzero(classes == c) for c in range(num_classes)]
        rows, bounds = np.concatenate(each), np.cumsum([0, *map(len, each)])
    else:
        small = classes.astype(np.uint16 if num_classes <= 1 << 16 else np.int64)
        rows = np.argsort(small, kind="stable")  # a radix sort for 16 bits
        bounds = np.searchsorted(small[rows], np.arange(num_classes + 1))
    return rows, bounds


def runs(
    classes: npt.NDArray[np.int64], rows: npt.NDArray[np.intp], bounds: npt.NDArray[np.intp]
) -> Iterator[tuple[npt.NDArray[np.int64], int, int]]:
    """Cuts ``by_class``'s rows into runs [start, stop), each with its rows' class, or each's.

    Few classes: a run each, with one class for all, is fastest; many: one run of all rows.
    """
    present = np.flatnonzero(np.diff(bounds))
    groups = [present] if len(present) > 64 else [present[i : i + 1] for i in range(len(present))]
    for group in groups:
        if len(group):
            start, stop = int(bounds[group[0]]), int(bounds[group[-1] + 1])
            yield group if len(group) == 1 else classes[rows[start:stop]], start, stop
