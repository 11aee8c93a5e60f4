"""`leuko serve`: refuse to start exposed by accident, bind the port, then run one process or several."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from pathlib import Path

from app.edge.keys import Keys
from app.errors import SettingsError, StartupError
from app.inference.runtime import Load
from app.observability.logs import configure_logging
from app.server.run import BACKLOG, Launch, announce, run
from app.server.supervisor import supervise
from app.settings import NONE, Settings


def serve(settings: Settings, load: Load) -> int:
    """Until a signal: 0. Until the application fails: 1. Raises StartupError."""
    check_exposure(settings)
    configure_logging(settings)
    launch = Launch(settings, load, bind(settings.host, settings.port))
    address = url(launch.listener)
    if settings.processes > 1:
        return supervise(launch, address)
    return run(launch, lambda service: announce(service, address))


def check_exposure(settings: Settings) -> None:
    """Raises SettingsError where anybody on a network could ask, unless that is wanted."""
    if settings.keys != NONE:
        Keys(Path(settings.keys))  # what is wrong with them is known before any process is started
    elif settings.without_keys == "loopback" and not is_loopback(settings.host):
        raise SettingsError(
            f"LEUKO_HOST is {settings.host!r}, which others can reach, and there are no keys: name a file of "
            "keys with LEUKO_KEYS (leuko key makes one), or let anybody in with LEUKO_WITHOUT_KEYS=anywhere"
        )


def is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bind(host: str, port: int) -> socket.socket:
    """A bound socket, so that a taken port is known before the weights are loaded; 0 picks a free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(f"cannot listen on {host} port {port}: {error.strerror}") from None
    return listener


def url(listener: socket.socket) -> str:
    """Where a person on this machine finds the service."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
