"""The way into a gang's store: only for those who show the gang's secret.

torch's TCPStore takes whoever connects, lists its keys and lets them be changed: a stranger on the
network could join a gang, or send its ranks elsewhere. So rank 0's store listens on the loopback
address alone. In front of it stands a door on the worker's own address, and beside each other rank
a way to it. Both ends prove that they know the secret, by answers to each other's random numbers,
before a byte is passed on; the secret itself is never sent.

What this does not do: nothing is encrypted, so who can change packets between the hosts is not
kept out, nor are other users of the same host, who can reach its loopback address. What ranks send
each other afterwards (gloo, NCCL) is guarded by nothing but the network.

A process of its own (``python -m ddlflow.train.parallel.gate``), as torch may hold Python's lock
while it waits for its store. It is told what to do by standard input, and ends when that does.
"""

import asyncio
import contextlib
import hmac
import json
import secrets
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass, field

LOOPBACK = "127.0.0.1"
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_PROVE_S = 20.0  # a stranger who says nothing is not waited for
_CHUNK_BYTES = 1 << 16
Reader = asyncio.StreamReader
Writer = asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Gate:
    """A door or a way that is open.

    Attributes:
        port: that it listens on.
        everywhere: it is a door, and its host was no address of this machine: it listens on all.
    """

    port: int
    everywhere: bool
    _process: "subprocess.Popen[str]"  # its standard input is open for as long as it is wanted


@dataclass(frozen=True, slots=True)
class GateOrder:
    """What a gate's process is told.

    Attributes:
        host: the address that it listens on.
        to_host: where it leads.
        to_port: where it leads.
        proves: it is a way: it proves that it knows the secret; a door asks for that.
        secret: of the gang, in hexadecimal digits.
    """

    host: str
    to_host: str
    to_port: int
    proves: bool
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class GateOpened:
    """What it says once it listens; see `Gate`."""

    port: int
    everywhere: bool


def open_door(host: str, store_port: int, secret: str) -> Gate:
    """Lets those who know the secret from an address of this machine into a store on loopback."""
    return _opened(GateOrder(host, LOOPBACK, store_port, proves=False, secret=secret))


def open_way(door_host: str, door_port: int, secret: str) -> Gate:
    """Leads from a port on loopback through a door elsewhere."""
    return _opened(GateOrder(LOOPBACK, door_host, door_port, proves=True, secret=secret))


def listening(host: str, port: int = 0) -> socket.socket:
    """A socket that listens on one address alone.

    Raises:
        OSError: it is no address of this machine.
    """
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    opened = socket.socket(family, kind, protocol)
    try:
        opened.bind(address)
        opened.listen(socket.SOMAXCONN)
    except OSError:
        opened.close()
        raise
    return opened


def _opened(order: GateOrder) -> Gate:
    process = subprocess.Popen(
        [sys.executable, "-m", "ddlflow.train.parallel.gate"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asdict(order)) + "\n")
    process.stdin.flush()
    answer = GateOpened(**json.loads(process.stdout.readline()))
    return Gate(answer.port, answer.everywhere, process)


def main() -> None:
    """Serves until standard input ends."""
    order = GateOrder(**json.loads(sys.stdin.readline()))
    everywhere = False
    try:
        opened = listening(order.host)
    except OSError:  # the cluster's name for this worker is one of a router, say
        everywhere, opened = True, socket.create_server(("", 0))
    answer = GateOpened(opened.getsockname()[1], everywhere)
    sys.stdout.write(json.dumps(asdict(answer)) + "\n")
    sys.stdout.flush()
    secret = bytes.fromhex(order.secret)

    async def lead(reader: Reader, writer: Writer) -> None:
        with contextlib.suppress(OSError, EOFError, TimeoutError, PermissionError):
            async with asyncio.timeout(_PROVE_S):
                if not order.proves:
                    await ask(reader, writer, secret)
                inner_reader, inner_writer = await asyncio.open_connection(
                    order.to_host, order.to_port
                )
                if order.proves:
                    await prove(inner_reader, inner_writer, secret)
            await asyncio.gather(_pass(reader, inner_writer), _pass(inner_reader, writer))
        writer.close()

    async def serve() -> None:
        await asyncio.start_server(lead, sock=opened)
        await asyncio.to_thread(sys.stdin.read)

    asyncio.run(serve())


async def ask(reader: Reader, writer: Writer, secret: bytes) -> None:
    """The door's side: returns once the other has proved that it knows the secret.

    Raises:
        PermissionError: it does not.
    """
    own = secrets.token_bytes(_NONCE_BYTES)
    writer.write(own)
    peer = await reader.readexactly(_NONCE_BYTES)
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, b"rank", own, peer)):
        raise PermissionError
    writer.write(_proof(secret, b"store", peer, own))
    await writer.drain()


async def prove(reader: Reader, writer: Writer, secret: bytes) -> None:
    """The other side: it too wants to know that this is the gang's own store.

    Raises:
        PermissionError: it is not.
    """
    own = secrets.token_bytes(_NONCE_BYTES)
    peer = await reader.readexactly(_NONCE_BYTES)
    writer.write(own + _proof(secret, b"rank", peer, own))
    proof = await reader.readexactly(_PROOF_BYTES)
    if not hmac.compare_digest(proof, _proof(secret, b"store", own, peer)):
        raise PermissionError


def _proof(secret: bytes, side: bytes, asked: bytes, own: bytes) -> bytes:
    return hmac.digest(secret, side + asked + own, "sha256")


async def _pass(reader: Reader, writer: Writer) -> None:
    """Passes bytes on until one end closes, and closes the other."""
    try:
        while chunk := await reader.read(_CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
    finally:
        writer.close()


if __name__ == "__main__":
    main()
