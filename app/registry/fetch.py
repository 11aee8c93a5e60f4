"""Find a bundle: in a folder, at an https address with a pinned hash, or on the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urldefrag, urlsplit

import app
from app.cores import threads_within_limit
from app.engine.bundle import CONFIG, FILES, parse_files
from app.engine.classifier import Classifier, load_classifier
from app.errors import BundleError
from app.registry.https import Bounds, download, proxy_of, without_secrets, without_values
from app.regular_file import open_trusted
from app.settings import Settings

SHIPPED = Settings.bundle  # the default
PACKAGE = Path(app.__file__).parent
DRAFT = "fetching-"  # prefix of temporary folders in the cache
DAY_S = 86_400.0
PORT = re.compile(r"(\[[^]]*\]|[^:]*)(:\d{1,5})?")  # after the name or address of a machine
PIN = re.compile(r"sha256=([0-9a-f]{64})")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")
# What the Hub's library raises on a malformed response, which it does not validate.
UNEXPECTED = (ValueError, LookupError, TypeError, AttributeError, AssertionError, RecursionError)

logger = logging.getLogger(__name__)


BOUNDS = Bounds()


def load(settings: Settings) -> Classifier:
    """Find the bundle of `settings.bundle` and load it; raise BundleError."""
    threads = settings.threads or threads_within_limit(settings.processes)
    return load_classifier(locate(settings), settings.engine, threads)


def locate(settings: Settings, bounds: Bounds = BOUNDS) -> Path:
    """Return the folder of `settings.bundle`; fetch a remote bundle into `settings.cache` first.

    Raise BundleError. The content of the files is verified later, by `load_bundle`.
    """
    address = settings.bundle
    if "://" not in address:
        return _find_folder(address)
    cache = _expand(settings.cache)
    if address.startswith("https://"):
        return _from_https(address, cache, replace(bounds, anywhere=settings.bundle_redirects == "anywhere"))
    if (match := HUB.fullmatch(address)) is not None:
        return _from_hub(match[1], match[2], cache)
    raise BundleError(
        f"{without_secrets(address)} is not a bundle: expected a folder, https://…#sha256=… or hf://OWNER/NAME@REVISION"
    )


def hash_file(path: Path) -> str:
    """Return the sha256 of a regular file. Raise Refused or another OSError."""
    with os.fdopen(open_trusted(path), "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    shown, through = without_secrets(address), ""
    try:
        url, fragment = urldefrag(address)
        pin = PIN.fullmatch(fragment)
        if pin is None or not urlsplit(url).netloc:
            raise BundleError(f"{shown} must end in #sha256= and the sha256 of its config.json")
        if "@" in urlsplit(url).netloc:
            raise BundleError(f"{shown} cannot be fetched: user names and passwords in it are not supported")
        if not PORT.fullmatch(urlsplit(url).netloc):
            raise BundleError(f"{shown} cannot be fetched: its port is not a number")
        folder = cache / pin[1]
        if not folder.is_dir():
            if (proxy := proxy_of(url)) is not None:
                through = f" through the proxy {proxy}"
            cache.mkdir(parents=True, exist_ok=True)
            _sweep(cache)
            with tempfile.TemporaryDirectory(dir=cache, prefix=DRAFT) as draft:
                _fetch_all(url.rstrip("/"), pin[1], Path(draft) / "bundle", bounds)
                _move(Path(draft) / "bundle", folder)
        cached = hash_file(folder / CONFIG)
    except (OSError, HTTPException, ValueError) as error:  # ValueError: an invalid address
        # Without the cause: a traceback would have its text.
        said = without_values(without_secrets(str(error)), address)
        raise BundleError(f"{shown} cannot be fetched{through}: {said}") from None
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
    fetch = partial(download, bounds=bounds, until=time.monotonic() + bounds.seconds)
    fetch(f"{url}/{CONFIG}", sha256, folder / CONFIG)
    config = (folder / CONFIG).read_bytes()
    for name, expected in parse_files(config, f"{without_secrets(url)}/{CONFIG}").items():
        fetch(f"{url}/{name}", expected, folder / name)


def _from_hub(repository: str, revision: str | None, cache: Path) -> Path:
    """Fetch with the Hub's library, which reads variables such as HF_TOKEN.

    Source: https://huggingface.co/docs/huggingface_hub/guides/download
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # httpx or its successor
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise BundleError(
            f"hf://{repository} needs huggingface-hub: run `make install EXTRAS=hub` in Leuko's checkout"
        ) from None
    except ValueError as error:  # an invalid HF_ENDPOINT, which the library reads on import
        raise BundleError(
            f"hf://{repository} cannot be fetched: HF_ENDPOINT: {without_secrets(str(error))}"
        ) from None
    # Standard error holds our log of JSON lines: no progress bars there, and no lines in another format.
    disable_progress_bars()
    library = logging.getLogger("huggingface_hub")
    library.handlers.clear()
    library.propagate = True
    # What it and its HTTP library log at lower levels has whole addresses, of which some are secret.
    for name in (library.name, "httpx", "httpcore", "urllib3"):
        logging.getLogger(name).setLevel(logging.ERROR)
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
        raise BundleError(f"hf://{repository} cannot be fetched: {without_secrets(str(error))}") from None
    except (HTTPError, *UNEXPECTED) as error:  # a response that is cut short or malformed
        try:
            cached = Path(download(local_files_only=True))
        except (OSError, ValueError):
            raise BundleError(
                f"hf://{repository} cannot be fetched: {without_secrets(repr(error))}"
            ) from None
        said = without_secrets(repr(error))
        logger.warning(
            "hf://%s: no usable response from the Hub, using the cached copy: %s", repository, said
        )
        return cached
