"""How much memory a body takes: bytes used while a request is answered for each byte of its body."""

from __future__ import annotations


def factor(route_template: str, media_type: str) -> float:  # noqa: ARG001 (every body counts alike so far)
    """Return the bytes of memory that a route uses for each byte of a body.

    route_template: such as /predict or /v2/models/{name}/infer. media_type: of the body, in lower case and
    without parameters; "" if it has none. What a compressed body may expand to is counted by admission.
    """
    return 1.0
