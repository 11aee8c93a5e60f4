"""All tables of paths: probes, pages, documents, work, and the Open Inference Protocol under /v2."""

from __future__ import annotations

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
ROUTINE = (*PROBES, "/metrics")  # requested by machines every few seconds
PAGE = ("/", "/page/")  # the page itself prompts its user for a key
DOCUMENTS = ("/docs", "/openapi.json", "/swagger/", "/problems/")
WORK = {"/predict": "predict", "/differential": "predict", "/evaluate": "evaluate", "/evaluate/": "evaluate"}
QUEUED = {f"{version}/{route}" for version in ("", "/v1") for route in ("predict", "differential")}


def is_open_inference(path: str) -> bool:
    """Return whether the path belongs to the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")


def is_infer(path: str) -> bool:
    """Return whether a POST to the path is an `infer` request of the Open Inference Protocol."""
    return path.startswith("/v2/models/") and path.endswith("/infer")


def is_queued(path: str) -> bool:
    """Return whether a POST to the path puts images into the queue."""
    return path in QUEUED or is_infer(path)
