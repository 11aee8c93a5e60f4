"""Record what Python code does beyond its process: addresses it asks for or connects to, files it changes.

Python imports this at its start if its folder is on PYTHONPATH, in every process that has the environment.
Each event is one line of the file that lies beside the home folder: its name, then what it is about.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Any

CHANGES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
PATHS = {"os.mkdir": 0, "os.rename": 1, "os.link": 1, "os.symlink": 1, "os.truncate": 0, "os.chmod": 0}
ASKED = {"socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"}
ADDRESSED = {"socket.connect", "socket.sendto", "socket.sendmsg"}
_log = os.open(f"{os.environ['HOME']}.record", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def _record(event: str, what: object) -> None:
    if isinstance(what, bytes):
        what = os.fsdecode(what)
    os.write(_log, f"{event} {what}\n".encode("utf-8", "backslashreplace"))


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    try:
        if event == "open":
            path, mode, flags = arguments
            if not isinstance(path, int) and (flags & CHANGES or {*(mode or "")} & {*"wax+"}):
                _record(event, path)
        elif event in PATHS:
            _record(event, arguments[PATHS[event]])
        elif event in ASKED:
            _record(event, arguments[0])
        elif event in ADDRESSED and arguments[0].family != socket.AF_UNIX and arguments[1] is not None:
            _record(event, arguments[1][0])
    except OSError:  # a decoder may write nothing; it has no files and sockets to open either
        pass


sys.addaudithook(_watch)
