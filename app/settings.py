"""All settings of the service, read once from `LEUKO_*` variables."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from app.errors import SettingsError

PREFIX = "LEUKO_"
NONE = "none"  # the value of a setting that is off
OTHERS = frozenset({"LEUKO_KEY", "LEUKO_DATA"})  # what `leuko predict --url`, and make and tests, read
# https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
LINK = re.compile(r"LEUKO_(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT_\d+_(TCP|UDP|SCTP)(_(ADDR|PORT|PROTO))?)")


def _setting(
    default: Any, help: str, unit: str = "", *, least: float = 0, most: float = math.inf, choices: str = ""
) -> Any:
    metadata = {"help": help, "unit": unit, "least": least, "most": most, "choices": tuple(choices.split())}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """One field per setting; its metadata has help, unit, least, most and choices."""

    bundle: str = _setting(
        "models/wbc-resnet18",
        "model bundle to serve: a folder, https://…#sha256=… or hf://OWNER/NAME@REVISION",
    )
    models: str = _setting(
        NONE, "TOML file that lists several bundles and replaces LEUKO_BUNDLE; reloaded when it changes"
    )
    probation_s: float = _setting(
        60.0,
        "automatic rollback window: if a new model fails within it, the previous models return",
        "seconds",
    )
    cache: str = _setting("~/.cache/leuko", "folder for downloaded bundles")
    bundle_redirects: str = _setting(
        "public",
        "where the server of an https bundle may redirect to; anywhere: also to private addresses",
        choices="public anywhere",
    )
    engine: str = _setting(
        "auto", "inference engine; auto: torch with a GPU, else OpenVINO", choices="auto openvino torch"
    )
    threads: int = _setting(0, "engine threads; 0: by the cores, or by a container's CPU limit", "threads")
    processes: int = _setting(
        1,
        "service processes that share the port; each gets a share of the cores",
        "processes",
        least=1,
        most=256,
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0: any free port", most=65535)
    keys: str = _setting(NONE, "file of API keys, as `leuko key` writes it")
    audit: str = _setting(
        NONE, "audit log file; requests append a line each, and refused ones a line per kind and minute"
    )
    reference: str = _setting(
        NONE, "drift reference, as `leuko drift --save` writes it; none: the bundle's own reference"
    )
    without_keys: str = _setting(
        "loopback",
        "where the service may listen without keys, and for which names in Host it answers; anywhere: on any "
        "address and for any name, open to everyone",
        choices="loopback anywhere",
    )
    metrics: str = _setting(
        "keyed",
        "access to /metrics; open: no key needed, keyed: a key with the scope metrics, closed: disabled",
        choices="open keyed closed",
    )
    docs: str = _setting(
        "open",
        "access to /docs; open: no key needed, keyed: any key, closed: disabled",
        choices="open keyed closed",
    )
    max_batch: int = _setting(0, "most images in a batch; 0: the engine's default", "images", most=1024)
    max_queue: int = _setting(256, "queue capacity; a full queue answers 429", "images", least=1)
    max_body_mib: int = _setting(512, "largest request body", "MiB", least=1)
    max_image_mib: int = _setting(16, "largest image file, before decoding", "MiB", least=1)
    max_pixels: int = _setting(25_000_000, "largest image, width × height", "pixels", least=1)
    max_files: int = _setting(
        256, "most images in one /predict request; at most LEUKO_MAX_QUEUE", "images", least=1
    )
    max_cells: int = _setting(
        256, "most leukocytes in one image of a request for all cells", "cells", least=1, most=10_000
    )
    max_archive_entries: int = _setting(
        200_000,
        "most images in one /evaluate request, entries in its archive, labels and groups, and rows in one "
        "/evaluate/predictions request",
        "images",
        least=1,
    )
    max_requests: int = _setting(
        1024,
        "most requests with a body in flight, of which one caller can have three quarters",
        "requests",
        least=1,
    )
    max_reserved_mib: int = _setting(
        1536,
        "most memory for all bodies in flight, of which one caller can have three quarters; raised if an "
        "archive of LEUKO_MAX_BODY_MIB takes more",
        "MiB",
        least=1,
    )
    decode_workers: int = _setting(
        0, "worker threads, each with its own decoder process; 0: the engine's default", "threads"
    )
    max_connections: int = _setting(
        0, "most open connections; 0: as many as the limit on open files allows", "connections"
    )
    head_timeout_s: float = _setting(
        10.0, "longest time for the head of a request to arrive", "seconds", least=0.001
    )
    stall_timeout_s: float = _setting(
        30.0,
        "longest time in which a client reads less than 4 KiB a second of its response",
        "seconds",
        least=0.001,
    )
    engine_timeout_s: float = _setting(
        30.0,
        "longest time for one batch in the engine, or one image in a decoder, before either counts as hung",
        "seconds",
        least=0.001,
    )
    cors_origins: str = _setting(
        NONE,
        "origins of web pages that may use the service from a browser, separated by commas",
    )
    loinc_method: str = _setting(
        NONE,
        "counting method of the LOINC codes in reports; none: codes without a method",
        choices="none manual automated",
    )
    deadline_s: float = _setting(30.0, "longest time for a /predict request", "seconds", least=0.001)
    body_timeout_s: float = _setting(
        60.0, "longest time for the body of a request to arrive", "seconds", least=0.001
    )
    evaluate_deadline_s: float = _setting(
        1800.0, "longest time for an /evaluate request", "seconds", least=0.001
    )
    drain_s: float = _setting(20.0, "longest wait for open requests at shutdown", "seconds")
    log_level: str = _setting("info", "lowest level of log lines", choices="debug info warning error")
    log_format: str = _setting(
        "auto", "log format; auto: text on a terminal, else JSON", choices="auto json text"
    )
    traces: str = _setting(
        NONE, "trace exporter; otlp: OpenTelemetry, configured by the OTEL_… variables", choices="none otlp"
    )

    @property
    def images_per_request(self) -> int:
        # The queue could never admit a larger request, however long its client waited.
        return min(self.max_files, self.max_queue)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Return the defaults, overridden by the variables that are set. Raises SettingsError."""
        present = {f.name: f for f in fields(cls) if variable(f) in environ}
        return cls(**{name: parse(f, environ[variable(f)], variable(f)) for name, f in present.items()})


def strangers(environ: Mapping[str, str]) -> list[str]:
    """Return a sentence for each variable that looks like a setting and is none; values are not repeated."""
    known = {variable(setting) for setting in fields(Settings)} | OTHERS
    return [
        f"{name} is not a setting and has no effect{_meant(name, known)}"
        for name, value in sorted(environ.items())
        if name.upper().startswith(PREFIX) and name not in known and not _is_link(name, value)
    ]


def _meant(name: str, known: Collection[str]) -> str:
    near = get_close_matches(name.upper(), sorted(known), 1, cutoff=0.75)
    return f": did you mean {near[0]}?" if near else ""


def _is_link(name: str, value: str) -> bool:
    """Return whether Kubernetes sets a variable like this in each pod, for a Service whose name is leuko…."""
    return LINK.fullmatch(name) is not None or (name.endswith("_PORT") and "://" in value)


def variable(setting: Field[Any]) -> str:
    return PREFIX + setting.name.upper()


def parse(setting: Field[Any], text: str, name: str) -> Any:
    """Convert `text` to the value of a setting. Raises SettingsError; `name` is the setting's name in it."""
    default: Any = setting.default
    try:
        value = type(default)(text.strip())
    except ValueError:
        value = None
    if value is None or not text.strip() or not _allowed(setting, value):
        raise SettingsError(f"{name} is {text!r}, expected {expectation(setting)}")
    return value


def expectation(setting: Field[Any]) -> str:
    """Describe the values that a setting accepts."""
    limits = setting.metadata
    if limits["choices"]:
        return "one of " + ", ".join(limits["choices"])
    if not isinstance(setting.default, int | float):
        return "text"
    kind = "a whole number" if isinstance(setting.default, int) else "a number"
    most = "" if limits["most"] == math.inf else f" and at most {limits['most']:g}"
    return f"{kind} of at least {limits['least']:g}{most}"


def _allowed(setting: Field[Any], value: Any) -> bool:
    limits = setting.metadata
    if limits["choices"]:
        return value in limits["choices"]
    if isinstance(value, float) and not math.isfinite(value):
        return False
    return not isinstance(value, int | float) or bool(limits["least"] <= value <= limits["most"])
