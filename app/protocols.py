"""Which of the two protocols a path belongs to: Leuko's own, or the Open Inference Protocol under /v2."""

from __future__ import annotations


def open_inference(path: str) -> bool:
    return path == "/v2" or path.startswith("/v2/")


def infers(path: str) -> bool:
    """POST to it is work for the network."""
    return path.startswith("/v2/models/") and path.endswith("/infer")
