"""Write `leuko_client/client.py` from `leuko_client/aio.py`; `--check` fails if it is stale."""

from __future__ import annotations

import io
import subprocess
import sys
import sysconfig
from pathlib import Path
from tokenize import NAME, STRING, generate_tokens

PACKAGE = Path(__file__).parent / "leuko_client"
SOURCE, TARGET = PACKAGE / "aio.py", PACKAGE / "client.py"
RUFF = Path(sysconfig.get_path("scripts")) / "ruff"
DOCSTRING = '"""The client for ordinary code. Generated from `aio.py`: edit that, then `make format`."""'
NAMES = {
    "AsyncBaseTransport": "BaseTransport",
    "AsyncClient": "Client",
    "AsyncHTTPTransport": "HTTPTransport",
    "AsyncIterator": "Iterator",
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "aclose": "close",
    "aclosing": "closing",
    "aiter_bytes": "iter_bytes",
    "aread": "read",
    "async": "",
    "await": "",
    "tasks": "threads",
}


def main() -> int:
    generated = _format(_synchronous(SOURCE.read_text()))
    if sys.argv[1:] != ["--check"]:
        TARGET.write_text(generated)
    elif TARGET.read_text() != generated:
        print(f"{TARGET} is not generated from the present {SOURCE.name}: run `make format`", file=sys.stderr)
        return 1
    return 0


def _synchronous(source: str) -> str:
    lines = source.splitlines(keepends=True)
    tokens = [*generate_tokens(io.StringIO(source).readline)]
    for token in reversed(tokens):  # from the end, so that the positions before stay true
        text = DOCSTRING if token.type == STRING and token.start == (1, 0) else None
        if token.type == NAME:
            text = NAMES.get(token.string)
        if text is not None:
            row, start, end = token.start[0] - 1, token.start[1], token.end[1]
            rest = lines[row][end:]
            lines[row] = lines[row][:start] + text + (rest if text else rest.removeprefix(" "))
    return "".join(lines)


def _format(source: str) -> str:
    """Sort the imports, use `yield from` (which asynchronous generators lack), then format."""
    fix = ["check", "--select", "I,UP028", "--fix-only", "--unsafe-fixes", "--quiet"]
    for command in (fix, ["format"]):
        arguments: list[str | Path] = [RUFF, *command, "--stdin-filename", TARGET, "-"]
        source = subprocess.run(arguments, input=source, stdout=subprocess.PIPE, text=True, check=True).stdout
    return source


if __name__ == "__main__":
    raise SystemExit(main())
