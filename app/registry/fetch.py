"""Where a bundle comes from: a folder, an https address with a pinned hash, or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, build_opener

import app
from app.engine.bundle import FILES
from app.engine.classifier import Classifier, load_classifier
from app.errors import BundleError
from app.settings import Settings
from app.units import GIB, MIB

CONFIG = "config.json"
SHIPPED = Settings.bundle  # the default
PACKAGE = Path(app.__file__).parent
DRAFT = "fetching-"
PATIENCE_S = 60.0  # without a byte
CHUNK = MIB
DAY_S = 86_400.0
PIN = re.compile(r"sha256=([0-9a-f]{64})")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# What reading an answer of another shape raises in the Hub's library, which believes what it is sent.
UNEXPECTED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """Of what comes by https: of one file, and of a whole bundle, however slowly it drips."""

    most_bytes: int = GIB
    seconds: float = 1800.0


BOUNDS = Bounds()


def load(settings: Settings) -> Classifier:
    """Raises BundleError."""
    return load_classifier(locate(settings), settings.engine, settings.threads)


def locate(settings: Settings, bounds: Bounds = BOUNDS) -> Path:
    """The folder of `settings.bundle`, fetched into `settings.cache` where it is not on this machine.

    Raises BundleError. What the files hold is for `load_bundle` to verify.
    """
    address = settings.bundle
    if "://" not in address:
        return _find_folder(address)
    cache = _expand(settings.cache)
    if address.startswith("https://"):
        return _from_https(address, cache, bounds)
    if (match := HUB.fullmatch(address)) is not None:
        return _from_hub(match[1], match[2], cache)
    raise BundleError(f"{address} is no folder, https://…#sha256=… or hf://OWNER/NAME@REVISION")


def _find_folder(address: str) -> Path:
    """Return a local bundle's folder; the shipped one is also found in our checkout or wheel."""
    folder = Path(address)
    if address != SHIPPED or folder.exists():
        return folder
    for place in (PACKAGE.parent / SHIPPED, PACKAGE / "shipped" / folder.name):
        if (place / CONFIG).is_file():
            return place
    raise BundleError(
        f"{address} is not in this folder, and this installation has no bundle: set LEUKO_BUNDLE to the "
        "folder, https:// or hf:// address of one, or install Leuko from its repository, which has one"
    )


def _expand(cache: str) -> Path:
    try:
        return Path(cache).expanduser()
    except RuntimeError:
        raise BundleError(f"LEUKO_CACHE is {cache}, and there is no home here: name another folder") from None


def _from_https(address: str, cache: Path, bounds: Bounds) -> Path:
    try:
        url, fragment = urldefrag(address)
        pin = PIN.fullmatch(fragment)
        if pin is None or not urlsplit(url).netloc:
            raise BundleError(f"{address} must end in #sha256= and the sha256 of its config.json")
        folder = cache / pin[1]
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            _sweep(cache)
            with tempfile.TemporaryDirectory(dir=cache, prefix=DRAFT) as draft:
                _fetch_all(url.rstrip("/"), pin[1], Path(draft) / "bundle", bounds)
                _move(Path(draft) / "bundle", folder)
        kept = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: of an address that cannot be one
        raise BundleError(f"{address} cannot be fetched: {error}") from error
    if kept != pin[1]:
        raise BundleError(f"{folder / CONFIG} was changed: remove the folder, and it is fetched anew")
    return folder


def _sweep(cache: Path) -> None:
    """Removes what was left by processes that were killed; a younger one may be at work."""
    for draft in cache.glob(f"{DRAFT}*"):
        with suppress(FileNotFoundError):  # another process was first
            if time.time() - draft.stat().st_mtime > DAY_S:
                shutil.rmtree(draft)


def _move(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise


def _fetch_all(url: str, sha256: str, folder: Path, bounds: Bounds) -> None:
    """Nothing is believed that the pinned hash does not stand for."""
    folder.mkdir()
    fetch = partial(_fetch, most_bytes=bounds.most_bytes, until=time.monotonic() + bounds.seconds)
    fetch(f"{url}/{CONFIG}", sha256, folder / CONFIG)
    try:
        files = dict(json.loads((folder / CONFIG).read_bytes())["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{url}/{CONFIG} is not a bundle's configuration: {error!r}") from error
    for name, expected in files.items():
        if Path(name).name != name:
            raise BundleError(f"{url}/{CONFIG} names a file outside the bundle: {name!r}")
        fetch(f"{url}/{name}", expected, folder / name)


def _fetch(url: str, sha256: str, path: Path, *, most_bytes: int, until: float) -> None:
    """until: on the monotonic clock."""
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "leuko"})
    # From Python 3.12, `urlopen` reads the trusted certificates once in the life of a process.
    with build_opener().open(request, timeout=PATIENCE_S) as answer, path.open("wb") as file:
        while True:
            if size + (answer.length or 0) > most_bytes:  # length: what was announced and has not come yet
                raise BundleError(f"{url} is over {most_bytes} bytes")
            if time.monotonic() > until:
                raise BundleError(f"{url} comes too slowly")
            if not (chunk := answer.read1(CHUNK)):  # read would wait for all of it, at one byte a minute
                break
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if answer.length:
        raise BundleError(f"{url} ended {answer.length} bytes too early")
    if (found := digest.hexdigest()) != sha256:
        raise BundleError(f"{url} has sha256 {found}, expected {sha256}")


def _from_hub(repository: str, revision: str | None, cache: Path) -> Path:
    """https://huggingface.co/docs/huggingface_hub/guides/download; variables such as HF_TOKEN hold for it."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of httpx or its successor
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise BundleError(f"hf://{repository} needs huggingface-hub: install the extra `hub`") from None
    except ValueError as error:  # of its variables, which it reads when it is imported
        raise BundleError(f"hf://{repository} cannot be fetched: HF_ENDPOINT: {error}") from error
    # Standard error has our log, a line of JSON each: no bars, and no lines in the library's own way.
    disable_progress_bars()
    library = logging.getLogger("huggingface_hub")
    library.handlers.clear()
    library.propagate = True
    find = partial(
        snapshot_download,
        repository,
        revision=revision,
        cache_dir=cache / "hub",
        allow_patterns=[CONFIG, *FILES],
    )
    try:
        return Path(find())
    except OSError as error:  # refusals too; where there is no connection, it has looked in the cache itself
        raise BundleError(f"hf://{repository} cannot be fetched: {error}") from error
    except (HTTPError, *UNEXPECTED) as error:  # an answer that breaks off, or is none
        try:
            found = Path(find(local_files_only=True))
        except (OSError, ValueError):
            raise BundleError(f"hf://{repository} cannot be fetched: {error!r}") from error
        logger.warning("hf://%s cannot be asked, what was fetched before is used: %r", repository, error)
        return found
