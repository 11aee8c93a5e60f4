"""The entry point of `leuko`, and of `python -m app`."""

from __future__ import annotations

import sys


def leuko() -> int:
    """Run a command and return its exit status."""
    if sys.argv[1:2] == ["serve"]:
        from app.private import keep_private

        keep_private()  # before anything else is imported: a service that starts may be ended by SIGQUIT
    from app.cli.main import main

    return main()


if __name__ == "__main__":
    sys.exit(leuko())
