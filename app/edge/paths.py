"""All tables of routes: probes, pages, documents, work, and the Open Inference Protocol under /v2.

They name the templates of routes, not paths: which route a path belongs to, only the router decides.
"""

from __future__ import annotations

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
ROUTINE = (*PROBES, "/metrics")  # requested by machines every few seconds
PAGE = ("/", "/page")  # the page itself prompts its user for a key
DOCUMENTS = ("/docs", "/openapi.json", "/swagger", "/problems/{code}")
INFER = ("/v2/models/{name}/infer", "/v2/models/{name}/versions/{version}/infer")
_SCOPES = {
    "/predict": "predict",
    "/differential": "predict",
    "/evaluate": "evaluate",
    "/evaluate/predictions": "evaluate",
}
# Template → scope of the key.
WORK = {f"{version}{route}": scope for version in ("", "/v1") for route, scope in _SCOPES.items()}
WORK |= dict.fromkeys(INFER, "predict")
# Their images go into the queue.
QUEUED = frozenset(route for route, scope in WORK.items() if scope == "predict")


def is_open_inference(path: str) -> bool:
    """Return whether errors at a path have the form of the Open Inference Protocol."""
    return path == "/v2" or path.startswith("/v2/")
