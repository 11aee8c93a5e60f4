"""The listening socket: bound early, to report a taken port before anything is loaded."""

from __future__ import annotations

import socket

from app.errors import StartupError

BACKLOG = 2048  # connections that may wait to be accepted


def without_brackets(host: str) -> str:
    """Return an IPv6 address as a socket takes it; in URLs it has brackets."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket, bound early to report a taken port before the weights are loaded.

    port: 0 for a free one. Raise StartupError.
    """
    host = without_brackets(host)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except (OSError, TypeError) as error:  # TypeError: a name that cannot be encoded
        listener.close()
        reason = error.strerror if isinstance(error, OSError) else "it is not the name of a machine"
        raise StartupError(f"cannot listen on {host} port {port}: {reason}") from None
    return listener


def url(listener: socket.socket) -> str:
    """Return the URL of the service for a browser on this machine."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
