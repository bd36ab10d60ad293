"""Who is at the other end of a Unix socket, as the kernel says. Standard library only."""

import os
import socket
import struct
import sys

# <sys/un.h> and <sys/ucred.h> of macOS and the BSDs; the socket module names neither.
_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE = 0, 1, 76


def peer_uid(sock: socket.socket) -> int | None:
    """The uid of the process that made the other end; None where the platform does not tell."""
    platform: str = sys.platform  # widened: a type checker must not prune the branches of the other platforms
    if platform == "linux":
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    if platform == "darwin":
        return int(struct.unpack_from("2I", sock.getsockopt(_SOL_LOCAL, _LOCAL_PEERCRED, _XUCRED_SIZE))[1])
    return None


def is_ours(uid: int | None) -> bool:
    """Ourselves or root. Where the kernel does not say who it is, the 0700 directory of the socket decides."""
    return uid is None or uid in (os.geteuid(), 0)
