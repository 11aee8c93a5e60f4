"""What is known of a request while it is answered: one object that travels with it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from app.observability.stages import Stages


class Holding(Protocol):
    """The place and the memory that a request has of the service. For the event loop's thread."""

    def hold(self) -> None:
        """Keep it until `close` is called once more."""

    def close(self) -> None:
        """Give it back, unless somebody else still holds it."""


@dataclass
class RequestContext:
    """Lives in the ASGI scope's `state["context"]`: made by the edge, read and filled by the routes."""

    request_id: str
    arrived: float  # when the request began, on the event loop's clock
    caller: str = "address:unknown"  # key:ID, or address:… without keys: whose share of the service it uses
    weight: int = 1  # of the caller's share
    traceparent: str | None = None
    prefix: str = ""  # of the paths that the client sees, such as /leuko
    holding: Holding | None = None  # of a request with a body
    findings: dict[str, Any] = field(default_factory=dict)  # the application's part of the audit log's line
    stages: Stages = field(default_factory=Stages)
