"""Which failure of a gang is the cause of the others, as far as its words tell."""

import re
import signal

# Severities of a cause: the lowest wins, then the earliest.
OWN, BARE_EXIT, PEER = range(3)

# What torch.distributed, gloo, NCCL and sockets say when a peer is gone.
_PEER_KIND = re.compile(
    r"torch\.distributed|(^|\.)Dist\w*Error$|Connection\w*Error$|BrokenPipe|EOFError"
)
_PEER_MESSAGE = re.compile(
    r"gloo|nccl|connection (closed|reset|refused|was)|broken pipe|remote peer|by peer"
    r"|socket timeout|wait timeout after",
    re.IGNORECASE,
)


def severity_of(kind: str, message: str) -> int:
    """Of an exception by its class and message."""
    peer = _PEER_KIND.search(kind) or _PEER_MESSAGE.search(message)
    return PEER if peer else OWN


def signal_text(number: int) -> str:
    """How a process that a signal ended has ended, in words."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = "unnamed"
    hint = "; out of memory?" if number == signal.SIGKILL else ""
    return f"killed by signal {number} ({name}){hint}"
