"""`leuko serve`: refuse accidental exposure, bind the port, run one process or several."""

from __future__ import annotations

import logging
import os
import socket
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from app.edge.keys import Keys
from app.errors import SettingsError, StartupError
from app.inference.confinement import weaknesses
from app.inference.runtime import Load
from app.observability.logs import configure_logging
from app.private import keep_private
from app.server.run import BACKLOG, Launch, announce, run
from app.server.signals import ignore_meaningless
from app.server.supervisor import supervise
from app.settings import NONE, Settings, strangers

logger = logging.getLogger(__name__)


def serve(settings: Settings, load: Load) -> int:
    """Serve until a signal, then return 0; return 1 if the application fails. Raise StartupError."""
    keep_private()
    ignore_meaningless()
    check_exposure(settings)
    configure_logging(settings)
    with bind(settings.host, settings.port) as listener:
        launch, address = Launch(settings, load, listener), url(listener)
        for stranger in strangers(os.environ):
            logger.warning("%s", stranger)
        for weakness in weaknesses():
            logger.warning("%s", weakness)
        if settings.processes > 1:
            return supervise(launch, address)
        return run(launch, lambda service: announce(service, address))


def check_exposure(settings: Settings) -> None:
    """Raise SettingsError if other machines could use the service without a key, unless that is set."""
    if settings.keys != NONE:
        Keys(Path(settings.keys))  # report an invalid key file before any process is started
    elif settings.without_keys == "loopback" and not is_loopback(settings.host):
        raise SettingsError(
            f"LEUKO_HOST is {settings.host!r}, which other machines can reach, but there are no keys: set "
            "LEUKO_KEYS to a key file (leuko key creates one), or serve without: LEUKO_WITHOUT_KEYS=anywhere"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address, in brackets or not, or the name localhost."""
    try:
        address = ip_address(without_brackets(host))
    except ValueError:
        return host.lower().rstrip(".") == "localhost"
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


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
