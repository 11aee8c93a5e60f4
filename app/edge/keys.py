"""API keys: a file of their hashes, reloaded when it changes."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from io import FileIO
from pathlib import Path

from app.errors import SettingsError, naming
from app.regular_file import Refused
from app.watched_file import WatchedFile

logger = logging.getLogger(__name__)

SCOPES = ("predict", "evaluate", "metrics")
# A key is invalid at most REREAD_S after its removal from the file, and at most 2 × REREAD_S + GRACE_S, which
# is less than a second, after the removal of the file or of all keys in it.
REREAD_S = 0.25  # between two checks of the file
GRACE_S = 0.4  # for editors that empty or remove a file before they write it anew
ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
# 256 random bits; a shorter secret is never valid, even if the file has its hash.
SECRET = re.compile(r"leuko_[A-Za-z0-9_-]{43}")
HASH = re.compile(r"[0-9a-f]{64}")
WEIGHT = re.compile(r"weight=([1-9][0-9]?|100)")
EXPECTED = "expected: ID SCOPE,SCOPE SHA256, and optionally weight=N with N from 1 to 100"


@dataclass(frozen=True)
class Key:
    id: str  # goes into the audit log; several keys may share it while one replaces the other
    scopes: frozenset[str]
    sha256: bytes
    weight: int = 1  # of its share of the service, beside other keys

    def __str__(self) -> str:
        scopes = ",".join(scope for scope in SCOPES if scope in self.scopes)
        weight = f" weight={self.weight}" if self.weight > 1 else ""
        return f"{self.id} {scopes} {self.sha256.hex()}{weight}"


def make_key(id: str, scopes: Collection[str]) -> tuple[str, Key]:
    """Return a new secret, which is stored nowhere, and the key with its hash. Raise SettingsError."""
    secret = f"leuko_{secrets.token_urlsafe(32)}"
    return secret, _key(id, scopes, hashlib.sha256(secret.encode()).hexdigest())


def add_key(path: Path, id: str, scopes: Collection[str]) -> str:
    """Append a new key to a file, created readable by its owner only if missing; return the secret.

    If that fails, the file is as it was, or absent. One that exists is not replaced, so that its owner, mode
    and links stay. Raise SettingsError or OSError, which names the file.
    """
    secret, key = make_key(id, scopes)
    is_new = not path.exists()
    with naming(path), open(path, "ab+", buffering=0, opener=partial(os.open, mode=0o600)) as file:
        size = file.seek(0, os.SEEK_END)
        begun = size > 0 and os.pread(file.fileno(), 1, size - 1) != b"\n"
        line = f"{chr(10) if begun else ''}{key}\n".encode()
        try:
            _append(file, line)
        except BaseException:
            with suppress(OSError):  # the first error tells more
                if os.fstat(file.fileno()).st_size <= size + len(line):  # else another process wrote too
                    file.truncate(size)
                    if is_new and size == 0:
                        path.resolve().unlink()
            raise
    return secret


def _append(file: FileIO, line: bytes) -> None:
    while line:  # a disk that is nearly full takes a part
        line = line[file.write(line) :]
    os.fsync(file.fileno())  # some disks fail only then


def parse_keys(text: str) -> tuple[Key, ...]:
    """Parse one key per line: id, comma-separated scopes, SHA-256 of the secret, and optionally weight=N.

    # starts a comment; a byte order mark at the start is skipped.
    Raise SettingsError, which names the line.
    """
    keys = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        fields = line.partition("#")[0].split()
        if not fields:
            continue
        try:
            id, scopes, sha256, *options = fields
            keys.append(replace(_key(id, scopes.split(","), sha256), weight=_weight(options)))
        except (ValueError, SettingsError) as error:
            detail = error.detail if isinstance(error, SettingsError) else EXPECTED
            raise SettingsError(f"line {number}: {detail}") from None
    if not keys:
        raise NoKeys("no keys in it")
    return tuple(keys)


class NoKeys(SettingsError):
    """There is no key file, or it has no keys."""


def _weight(options: Sequence[str]) -> int:
    """Return N of `weight=N`, 1 without it. Raise ValueError for anything else."""
    if not options:
        return 1
    match = WEIGHT.fullmatch(" ".join(options))
    if match is None:
        raise ValueError(options)
    return int(match[1])


class Keys:
    """The keys of a file, reread when it changes. `stale`: the file cannot be used.

    The keys of an invalid file stay in use, so that a typing error does not close the service. A file that is
    gone or empty for GRACE_S has no keys: nobody is let in until it has some again.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Read the file. Raise SettingsError."""
        self._file = WatchedFile(path)
        self._clock = clock
        self._keys = self._read()
        self._checked = clock()
        self._gone_since: float | None = None
        self._without_keys = ""  # why there are none since then
        self.stale = False

    def find(self, secret: str) -> Key | None:
        """Return the key with this secret, or None if it is unknown."""
        self.refresh()
        digest = hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()
        # Compare every key, each in constant time, so that the duration reveals nothing.
        matches = [key for key in self._keys if hmac.compare_digest(key.sha256, digest)]
        return matches[0] if matches and SECRET.fullmatch(secret) else None

    def refresh(self) -> None:
        """Reload the file if it has changed and was not checked within REREAD_S seconds."""
        if self._clock() - self._checked >= REREAD_S:
            self.check()

    def check(self) -> None:
        """Reload the file if it has changed."""
        now = self._checked = self._clock()
        try:
            if self._has_changed():  # else it is as it was read, without keys or invalid too
                self._keys = self._read()
                self.stale, self._gone_since = False, None
                logger.info("key file reloaded: %d keys", len(self._keys))
            elif self._gone_since is not None:
                self._close(now)
        except NoKeys as error:
            self._without_keys = error.detail
            self._close(now)
        except SettingsError as error:
            self._gone_since = None
            if not self.stale:
                logger.error("key file rejected; keeping the current keys: %s", error)
            self.stale = True

    def _has_changed(self) -> bool:
        try:
            return self._file.changed
        except OSError:  # reading it tells which
            return True

    def _close(self, now: float) -> None:
        """Make all keys invalid once the file has been gone or empty for GRACE_S."""
        if self._gone_since is None:
            self._gone_since = now
        if now - self._gone_since < GRACE_S:
            return
        if self._keys:
            logger.error("no key is valid any more: %s", self._without_keys)
        self._keys = ()
        self.stale = True

    def _read(self) -> tuple[Key, ...]:
        path = self._file.path
        try:
            return parse_keys(self._file.read())
        except UnicodeDecodeError:
            raise SettingsError(f"the key file {path} cannot be used: it is not UTF-8") from None
        except (FileNotFoundError, NotADirectoryError, Refused) as error:
            raise NoKeys(f"the key file {path} cannot be read: {error.strerror}") from None
        except OSError as error:
            raise SettingsError(f"the key file {path} cannot be read: {error.strerror}") from None
        except SettingsError as error:
            raise type(error)(f"the key file {path} cannot be used: {error.detail}") from None


def _key(id: str, scopes: Collection[str], sha256: str) -> Key:
    if not ID.fullmatch(id):
        raise SettingsError(
            f"{id!r} is not an id: expected 1 to 64 letters A-Z, digits, dots, underscores, dashes"
        )
    if not scopes or not set(scopes) <= {*SCOPES}:
        raise SettingsError(f"{','.join(scopes)!r} are not scopes: expected some of {', '.join(SCOPES)}")
    if not HASH.fullmatch(sha256):
        raise SettingsError(f"{sha256[:8]!r}… is not a SHA-256 in lower-case hexadecimal")
    return Key(id, frozenset(scopes), bytes.fromhex(sha256))
