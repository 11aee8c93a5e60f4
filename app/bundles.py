"""Where a bundle comes from: a folder, an https address with a pinned hash, or the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from pathlib import Path
from urllib.parse import urldefrag, urlsplit
from urllib.request import Request, urlopen

from app.errors import BundleError
from app.settings import Settings
from app.vision.bundle import FILES
from app.vision.classifier import Classifier, load_classifier

CONFIG = "config.json"
MOST_BYTES = 2**30  # of one file
PATIENCE_S = 60.0  # without a byte
PIN = re.compile(r"sha256=([0-9a-f]{64})")
HUB = re.compile(r"hf://([\w.-]+/[\w.-]+)(?:@([\w./-]+))?")


def load(settings: Settings) -> Classifier:
    """Raises BundleError."""
    return load_classifier(locate(settings), settings.engine, settings.threads)


def locate(settings: Settings) -> Path:
    """The folder of `settings.bundle`, fetched into `settings.cache` where it is not on this machine.

    Raises BundleError. What the files hold is for `load_bundle` to verify.
    """
    address = settings.bundle
    if "://" not in address:
        return Path(address)
    cache = _expand(settings.cache)
    if address.startswith("https://"):
        return _from_https(address, cache)
    if (match := HUB.fullmatch(address)) is not None:
        return _from_hub(match[1], match[2], cache)
    raise BundleError(f"{address} is no folder, https://…#sha256=… or hf://OWNER/NAME@REVISION")


def _expand(cache: str) -> Path:
    try:
        return Path(cache).expanduser()
    except RuntimeError:
        raise BundleError(f"LEUKO_CACHE is {cache}, and there is no home here: name another folder") from None


def _from_https(address: str, cache: Path) -> Path:
    url, fragment = urldefrag(address)
    pin = PIN.fullmatch(fragment)
    if pin is None or not urlsplit(url).netloc:
        raise BundleError(f"{address} must end in #sha256= and the sha256 of its config.json")
    folder = cache / pin[1]
    try:
        if not folder.is_dir():
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix="fetching-") as draft:
                _fetch_all(url.rstrip("/"), pin[1], Path(draft) / "bundle")
                _move(Path(draft) / "bundle", folder)
        kept = hashlib.sha256((folder / CONFIG).read_bytes()).hexdigest()
    except OSError as error:
        raise BundleError(f"{address} cannot be fetched: {error}") from error
    if kept != pin[1]:
        raise BundleError(f"{folder / CONFIG} was changed: remove the folder, and it is fetched anew")
    return folder


def _move(draft: Path, folder: Path) -> None:
    try:
        draft.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was first
            raise


def _fetch_all(url: str, sha256: str, folder: Path) -> None:
    """Nothing is believed that the pinned hash does not stand for."""
    folder.mkdir()
    config = _fetch(f"{url}/{CONFIG}", sha256)
    (folder / CONFIG).write_bytes(config)
    try:
        files = dict(json.loads(config)["files"])
    except (KeyError, TypeError, ValueError) as error:
        raise BundleError(f"{url}/{CONFIG} is not a bundle's configuration: {error!r}") from error
    for name, expected in files.items():
        if Path(name).name != name:
            raise BundleError(f"{url}/{CONFIG} names a file outside the bundle: {name!r}")
        (folder / name).write_bytes(_fetch(f"{url}/{name}", expected))


def _fetch(url: str, sha256: str) -> bytes:
    with urlopen(Request(url, headers={"User-Agent": "leuko"}), timeout=PATIENCE_S) as answer:
        data: bytes = answer.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise BundleError(f"{url} is over {MOST_BYTES} bytes")
    if (found := hashlib.sha256(data).hexdigest()) != sha256:
        raise BundleError(f"{url} has sha256 {found}, expected {sha256}")
    return data


def _from_hub(repository: str, revision: str | None, cache: Path) -> Path:
    """https://huggingface.co/docs/huggingface_hub/guides/download; variables such as HF_TOKEN hold for it."""
    try:
        from huggingface_hub import errors, snapshot_download
    except ImportError:
        raise BundleError(f"hf://{repository} needs huggingface-hub: install the extra `hub`") from None
    try:
        found = snapshot_download(
            repository, revision=revision, cache_dir=cache / "hub", allow_patterns=[CONFIG, *FILES]
        )
    except (OSError, ValueError, errors.RevisionResolutionError) as error:
        raise BundleError(f"hf://{repository} cannot be fetched: {error}") from error
    return Path(found)
