"""Find a bundle: in a folder, at an https address with a pinned hash, or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
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
from app.engine.bundle import CONFIG, FILES, parse_files
from app.engine.classifier import Classifier, load_classifier
from app.errors import BundleError
from app.settings import Settings
from app.units import GIB, MIB

SHIPPED = Settings.bundle  # the default
PACKAGE = Path(app.__file__).parent
DRAFT = "fetching-"  # prefix of temporary folders in the cache
PATIENCE_S = 60.0  # socket timeout: longest wait for the next bytes
CHUNK = MIB
DAY_S = 86_400.0
PIN = re.compile(r"sha256=([0-9a-f]{64})")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# What the Hub's library raises on a malformed response, which it does not validate.
UNEXPECTED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Bounds:
    """Limits on a download by https. most_bytes: of one file; seconds: for the whole bundle."""

    most_bytes: int = GIB
    seconds: float = 1800.0


BOUNDS = Bounds()


def load(settings: Settings) -> Classifier:
    """Find the bundle of `settings.bundle` and load it; raise BundleError."""
    return load_classifier(locate(settings), settings.engine, settings.threads)


def locate(settings: Settings, bounds: Bounds = BOUNDS) -> Path:
    """Return the folder of `settings.bundle`; fetch a remote bundle into `settings.cache` first.

    Raise BundleError. The content of the files is verified later, by `load_bundle`.
    """
    address = settings.bundle
    if "://" not in address:
        return _find_folder(address)
    cache = _expand(settings.cache)
    if address.startswith("https://"):
        return _from_https(address, cache, bounds)
    if (match := HUB.fullmatch(address)) is not None:
        return _from_hub(match[1], match[2], cache)
    raise BundleError(
        f"{address} is not a bundle: expected a folder, https://…#sha256=… or hf://OWNER/NAME@REVISION"
    )


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
        raise BundleError(
            f"LEUKO_CACHE is {cache}, but there is no home folder: set it to another folder"
        ) from None


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
        cached = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid address
        raise BundleError(f"{address} cannot be fetched: {error}") from error
    if cached != pin[1]:
        raise BundleError(f"{folder / CONFIG} was changed: delete the folder to fetch the bundle again")
    return folder


def _sweep(cache: Path) -> None:
    """Delete temporary folders that killed processes left behind; younger ones may be in use."""
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
    """Fetch the config, verify it against the pinned hash, then fetch and verify each file that it lists."""
    folder.mkdir()
    fetch = partial(_fetch, most_bytes=bounds.most_bytes, until=time.monotonic() + bounds.seconds)
    fetch(f"{url}/{CONFIG}", sha256, folder / CONFIG)
    for name, expected in parse_files((folder / CONFIG).read_bytes(), f"{url}/{CONFIG}").items():
        fetch(f"{url}/{name}", expected, folder / name)


def _fetch(url: str, sha256: str, path: Path, *, most_bytes: int, until: float) -> None:
    """Fetch one file and verify its hash. until: deadline on the monotonic clock."""
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "leuko"})
    # From Python 3.12, `urlopen` reads the trusted certificates once in the life of a process.
    with build_opener().open(request, timeout=PATIENCE_S) as response, path.open("wb") as file:
        while True:
            # length: the announced bytes that have not arrived yet
            if size + (response.length or 0) > most_bytes:
                raise BundleError(f"{url} is over {most_bytes} bytes")
            if time.monotonic() > until:
                raise BundleError(f"{url} takes too long to download")
            # read() would wait for the whole chunk, past the deadline.
            if not (chunk := response.read1(CHUNK)):
                break
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
    if response.length:
        raise BundleError(f"{url} ended {response.length} bytes too early")
    if (actual := digest.hexdigest()) != sha256:
        raise BundleError(f"{url} has sha256 {actual}, expected {sha256}")


def _from_hub(repository: str, revision: str | None, cache: Path) -> Path:
    """Fetch with the Hub's library, which reads variables such as HF_TOKEN.

    Source: https://huggingface.co/docs/huggingface_hub/guides/download
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or its successor
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise BundleError(f"hf://{repository} needs huggingface-hub: install the extra `hub`") from None
    except ValueError as error:  # an invalid HF_ENDPOINT, which the library reads on import
        raise BundleError(f"hf://{repository} cannot be fetched: HF_ENDPOINT: {error}") from error
    # Standard error holds our log of JSON lines: no progress bars there, and no lines in another format.
    disable_progress_bars()
    library = logging.getLogger("huggingface_hub")
    library.handlers.clear()
    library.propagate = True
    download = partial(
        snapshot_download,
        repository,
        revision=revision,
        cache_dir=cache / "hub",
        allow_patterns=[CONFIG, *FILES],
    )
    try:
        return Path(download())
    except OSError as error:  # refusals too; without a connection the library has already tried the cache
        raise BundleError(f"hf://{repository} cannot be fetched: {error}") from error
    except (HTTPError, *UNEXPECTED) as error:  # a response that is cut short or malformed
        try:
            cached = Path(download(local_files_only=True))
        except (OSError, ValueError):
            raise BundleError(f"hf://{repository} cannot be fetched: {error!r}") from error
        logger.warning(
            "hf://%s: no usable response from the Hub, using the cached copy: %r", repository, error
        )
        return cached
