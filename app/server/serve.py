"""`leuko serve`: refuse accidental exposure, bind the port, run one process or several.

What takes time is imported last: meanwhile the process that forks decoders starts, and the model is loaded.
"""

from __future__ import annotations

import gc
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from app.edge.keys import Keys
from app.errors import SettingsError, StartupError
from app.inference.confinement import weaknesses
from app.inference.fork_server import shared
from app.observability.logs import configure_logging
from app.private import keep_private, share_arena
from app.server.listener import bind, url, without_brackets
from app.server.signals import ignore_meaningless
from app.settings import NONE, Settings, strangers

if TYPE_CHECKING:
    from app.inference.runtime import Load

logger = logging.getLogger(__name__)


def serve(settings: Settings, load: Load) -> int:
    """Serve until a signal, then return 0; return 1 if the application fails. Raise StartupError."""
    keep_private()
    share_arena()
    ignore_meaningless()
    check_exposure(settings)
    configure_logging(settings)
    with bind(settings.host, settings.port) as listener:
        with suppress(StartupError):  # the model's runner tries again and reports it
            shared.launch()
        for stranger in strangers(os.environ):
            logger.warning("%s", stranger)
        for weakness in weaknesses():
            logger.warning("%s", weakness)
        spare_imports()
        run = run_several if settings.processes > 1 else run_one
        return run(settings, load, listener)


def run_one(settings: Settings, load: Load, listener: socket.socket) -> int:
    with quick_imports():
        from app.server.ahead import LoadAhead

        ahead = LoadAhead(load, settings)
        from app.server.run import Launch, announce, run

    return run(Launch(settings, ahead, listener), lambda service: announce(service, url(listener)))


def run_several(settings: Settings, load: Load, listener: socket.socket) -> int:
    from app.observability.shared_folder import SHARED, shared_folder

    with shared_folder() as folder:
        os.environ[SHARED] = folder
        with quick_imports():
            from app.server.run import Launch
            from app.server.supervisor import Supervisor

        return Supervisor(Launch(settings, load, listener), url(listener), folder).run()


def spare_imports() -> None:
    """Leave out what libraries would import for nothing; only in a process that serves."""
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")  # it reads the metadata of every package
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # NumPy's threads would compete with the engine's
    unused = (
        "pydantic.v1",  # FastAPI imports it to refuse it
        "openvino.tools",  # converters of models, 0.15 s
    )
    for name in unused:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Leave garbage alone meanwhile: there is hardly any, and looking for it takes a tenth of the time."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


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
