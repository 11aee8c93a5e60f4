"""Every knob of the service, one frozen field each, read once from `LEUKO_*` variables."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any

from app.errors import SettingsError

PREFIX = "LEUKO_"
NONE = "none"  # no file


def _setting(
    default: Any, help: str, unit: str = "", *, least: float = 0, most: float = math.inf, choices: str = ""
) -> Any:
    metadata = {"help": help, "unit": unit, "least": least, "most": most, "choices": tuple(choices.split())}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Settings:
    """Metadata of each field: help, unit, least, most, choices."""

    bundle: str = _setting(
        "models/wbc-resnet18",
        "model bundle to serve: a folder, https://…#sha256=… or hf://OWNER/NAME@REVISION",
    )
    models: str = _setting(
        "none", "file that lists several bundles, in place of LEUKO_BUNDLE; read again when it changes"
    )
    probation_s: float = _setting(
        60.0, "how long new models may take to fail and be replaced by those before them", "seconds"
    )
    cache: str = _setting("~/.cache/leuko", "folder where bundles are kept that come from elsewhere")
    engine: str = _setting("auto", "what runs the network", choices="auto openvino torch")
    threads: int = _setting(0, "threads of the engine; 0 leaves it the choice", "threads")
    processes: int = _setting(
        1, "services behind the one port, each with its share of the cores", "processes", least=1, most=256
    )
    host: str = _setting("127.0.0.1", "address to listen on")
    port: int = _setting(8000, "port to listen on; 0 picks a free one", most=65535)
    keys: str = _setting(NONE, "file of the keys that callers show")
    audit: str = _setting(NONE, "file to which each request adds a line")
    reference: str = _setting(
        NONE, "file of `leuko drift --save` that answers are held against, in place of the bundle's own"
    )
    without_keys: str = _setting(
        "loopback", "where to listen without keys: anywhere lets everybody in", choices="loopback anywhere"
    )
    metrics: str = _setting(
        "keyed", "who may read /metrics, where there are keys", choices="open keyed closed"
    )
    docs: str = _setting("open", "who may read /docs, where there are keys", choices="open keyed closed")
    max_batch: int = _setting(0, "most images in one run; 0 is what suits the engine", "images", most=1024)
    max_queue: int = _setting(256, "most images waiting; more are answered 429", "images", least=1)
    max_body_mib: int = _setting(512, "largest request body", "MiB", least=1)
    max_image_mib: int = _setting(16, "largest single image, before decoding", "MiB", least=1)
    max_pixels: int = _setting(25_000_000, "largest image, width times height", "pixels", least=1)
    max_files: int = _setting(256, "most images in one /predict; never over max_queue", "images", least=1)
    max_archive_entries: int = _setting(
        200_000, "most images in one /evaluate, and entries in its archive", "images", least=1
    )
    max_requests: int = _setting(1024, "most requests with a body in flight", "requests", least=1)
    max_reserved_mib: int = _setting(
        1024,
        "most memory for all bodies in flight; one of unknown length counts as the largest",
        "MiB",
        least=1,
    )
    decode_workers: int = _setting(
        0, "threads that decode and classify; 0 is what suits the engine", "threads"
    )
    max_connections: int = _setting(
        0, "most open connections; 0 is what the limit of open files leaves", "connections"
    )
    head_timeout_s: float = _setting(
        10.0, "longest that the head of a request may take to arrive", "seconds", least=0.001
    )
    stall_timeout_s: float = _setting(
        30.0, "longest that a client may take no byte of its answer", "seconds", least=0.001
    )
    engine_timeout_s: float = _setting(
        30.0,
        "longest that one image, or the network, may take before it counts as hung",
        "seconds",
        least=0.001,
    )
    loinc_method: str = _setting(
        "none", "method that the LOINC codes of a differential name", choices="none manual automated"
    )
    deadline_s: float = _setting(30.0, "longest that /predict may take", "seconds", least=0.001)
    body_timeout_s: float = _setting(60.0, "longest that a body may take to arrive", "seconds", least=0.001)
    evaluate_deadline_s: float = _setting(1800.0, "longest that /evaluate may take", "seconds", least=0.001)
    drain_s: float = _setting(20.0, "longest wait for open requests before the end", "seconds")
    log_level: str = _setting("info", "least severe log line", choices="debug info warning error")
    log_format: str = _setting(
        "auto", "lines of the log; auto is text on a terminal and JSON elsewhere", choices="auto json text"
    )
    traces: str = _setting(
        "none", "where traces go; otlp is where the OTEL_… variables say", choices="none otlp"
    )

    @property
    def images_per_request(self) -> int:
        # More would never be admitted, however long their client waited.
        return min(self.max_files, self.max_queue)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Defaults, changed by the variables that are set; raises SettingsError naming the variable."""
        present = {f.name: f for f in fields(cls) if variable(f) in environ}
        return cls(**{name: parse(f, environ[variable(f)], variable(f)) for name, f in present.items()})


def variable(setting: Field[Any]) -> str:
    return PREFIX + setting.name.upper()


def parse(setting: Field[Any], text: str, name: str) -> Any:
    """The value that `text` stands for; `name` is what the caller calls the setting, for the complaint."""
    default: Any = setting.default
    try:
        value = type(default)(text.strip())
    except ValueError:
        value = None
    if value is None or not text.strip() or not _allowed(setting, value):
        raise SettingsError(f"{name} is {text!r}, expected {expectation(setting)}")
    return value


def expectation(setting: Field[Any]) -> str:
    """In words: what a setting accepts."""
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
