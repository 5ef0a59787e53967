"""What the ranks of one host give each other at every step, through Unix sockets.

gloo passes each message to threads of its own and on to TCP, which takes 0.3 to 0.5 ms for the
gradient of a small net where two sockets take 0.03 (two cores, 12 kB; benchmarks/ranks.py): as long
as a small batch is computed. The bytes are the same, so the bits are. gloo stays for ranks of
several hosts, for large vectors, and wherever the sockets cannot be had.

The sockets stand in a folder that this user alone may enter, for as long as it takes to meet.
"""

import json
import os
import socket
import struct
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from ddlflow.train.parallel.tree import all_gather

# At once to each rank: two such messages fit a socket's buffer, so that no rank waits to send while
# the other waits to send too.
CHUNK_BYTES = 1 << 16
_MEET_S = 20.0
_WAIT_S = 600  # as long as the process group's own collectives wait
_CARD_BYTES = 1024
_RANK = struct.Struct("!I")
_TIMEVAL = struct.Struct("@ll")


class SameHost:
    """The other ranks, all of this host.

    Args:
        rank: this one.
        peers: a connected socket a rank.
    """

    def __init__(self, rank: int, peers: Mapping[int, socket.socket]) -> None:
        self._rank, self._peers = rank, dict(peers)
        limit = _TIMEVAL.pack(_WAIT_S, 0)
        for peer in self._peers.values():
            peer.setblocking(True)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                peer.setsockopt(socket.SOL_SOCKET, option, limit)

    def all_gather(self, everyone: Tensor, mine: Tensor) -> None:
        """Puts the flat tensors of all ranks into one, by rank. Both are contiguous, on the CPU.

        Raises:
            ConnectionError: a rank is gone, or silent for too long.
        """
        size = mine.numel() * mine.element_size()
        to, own = _bytes(everyone), _bytes(mine)
        at = self._rank * size
        to[at : at + size] = own
        for begin in range(0, size, CHUNK_BYTES):
            end = min(size, begin + CHUNK_BYTES)
            for rank, peer in self._peers.items():
                try:
                    peer.sendall(own[begin:end])
                except OSError as error:
                    raise _gone(rank) from error
            for rank, peer in self._peers.items():
                _receive(rank, peer, to[rank * size + begin : rank * size + end])

    def close(self) -> None:
        """End the connections."""
        while self._peers:
            self._peers.popitem()[1].close()


def meet(rank: int, world: int, group: dist.ProcessGroup | None) -> SameHost | None:
    """Connects the ranks of a gang where all are on one host. All ranks call it.

    Args:
        rank: this one.
        world: how many there are.
        group: of all of them, on CPUs.

    Returns:
        None on every rank where they are on several hosts, in several containers or of several
        users, or one of them could not be reached.
    """
    peers: dict[int, socket.socket] = {}
    with ExitStack() as undo:
        listener, path = None, ""
        with suppress(OSError):  # no room, or too long a path
            folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="ddlflow-ranks-"))
            opened = undo.enter_context(socket.socket(socket.AF_UNIX))
            opened.bind(address := str(Path(folder, "socket")))
            opened.listen(world)
            listener, path = opened, address
        cards = _shown(json.dumps([_here(), path]), world, group)
        hosts, paths = zip(*map(json.loads, cards), strict=True)
        if len({*hosts}) > 1 or not hosts[0] or not all(paths):
            return None
        assert listener is not None
        try:
            peers = _connected(rank, paths, listener)
            is_met = True
        except (OSError, EOFError):
            is_met = False
        if set(_shown(json.dumps(is_met), world, group)) == {"true"}:
            return SameHost(rank, peers)
    for peer in peers.values():
        peer.close()
    return None


def _connected(
    rank: int, paths: tuple[str, ...], listener: socket.socket
) -> dict[int, socket.socket]:
    """A socket a rank: lower ones are called, higher ones call.

    Raises:
        OSError: one cannot be reached, or does not come.
        EOFError: one has gone again.
    """
    found: dict[int, socket.socket] = {}
    try:
        for other in range(rank):
            found[other] = socket.socket(socket.AF_UNIX)
            found[other].settimeout(_MEET_S)
            found[other].connect(paths[other])
            found[other].sendall(_RANK.pack(rank))
        listener.settimeout(_MEET_S)
        while len(found) < len(paths) - 1:
            caller, _ = listener.accept()
            with ExitStack() as undo:
                undo.callback(caller.close)
                caller.settimeout(_MEET_S)
                said = caller.recv(_RANK.size, socket.MSG_WAITALL)
                if len(said) < _RANK.size:
                    raise EOFError
                undo.pop_all()
            found[_RANK.unpack(said)[0]] = caller
    except BaseException:
        for peer in found.values():
            peer.close()
        raise
    return dict(sorted(found.items()))


def _here() -> str:
    """What ranks have in common that can reach each other's files and sockets; empty: unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        spaces = [str(Path(f"/proc/self/ns/{kind}").readlink()) for kind in ("mnt", "net", "pid")]
    except OSError:
        return ""
    return " ".join([boot, *spaces, str(os.getuid())])


def _shown(text: str, world: int, group: dist.ProcessGroup | None) -> list[str]:
    """Each rank's text, by rank."""
    content = text.encode()
    assert len(content) <= _CARD_BYTES
    mine = torch.tensor(list(content.ljust(_CARD_BYTES)), dtype=torch.uint8)
    everyone = mine.new_empty(world * _CARD_BYTES)
    all_gather(everyone, mine, group)
    return [bytes(row.tolist()).decode().rstrip() for row in everyone.view(world, -1)]


def _receive(rank: int, peer: socket.socket, to: memoryview) -> None:
    while to:
        try:
            received = peer.recv_into(to)
        except OSError as error:
            raise _gone(rank) from error
        if not received:
            raise _gone(rank)
        to = to[received:]


def _bytes(flat: Tensor) -> memoryview:
    """The memory of a tensor."""
    return flat.view(torch.uint8).numpy().data


def _gone(rank: int) -> ConnectionError:
    return ConnectionResetError(f"The connection to rank {rank} was closed by peer, or is silent.")
