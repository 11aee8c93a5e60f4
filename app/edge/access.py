"""Which key each path asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.edge.keys import Key, Keys
from app.edge.paths import DOCUMENTS, PAGE, PROBES, WORK, is_infer
from app.errors import Forbidden, Unauthenticated

ANY = "any"  # a key, whatever its scopes
OPEN = "open"  # no key


@dataclass(frozen=True)
class Access:
    """keys: None lets everybody in. needs: a path → a scope, ANY or OPEN; one that ends in / is a folder.

    What is not named needs ANY: nothing is open for having been forgotten.
    """

    keys: Keys | None
    needs: Mapping[str, str]

    def admit(self, path: str, headers: Headers) -> Key | None:
        """The key that was shown, where one is needed; raises Unauthenticated, Forbidden."""
        if self.keys is None or (need := self.need(path)) == OPEN:
            return None
        key = self.keys.find(_secret(headers))
        if key is None:
            raise Unauthenticated("Show a key that is known: Authorization: Bearer leuko_…")
        if need != ANY and need not in key.scopes:
            raise Forbidden(f"This key is not for {need}.", key.id)
        return key

    def need(self, path: str) -> str:
        """A scope, ANY or OPEN."""
        if is_infer(path):
            return WORK["/predict"]
        folder = path.rpartition("/")[0] + "/"  # /problems/too_large → /problems/
        return self.needs.get(path) or (self.needs.get(folder, ANY) if folder != "/" else ANY)


def access(keys: Keys | None, *, metrics: str, docs: str) -> Access:
    """metrics, docs: `open` or `keyed`."""
    needs = dict.fromkeys((*PROBES, *PAGE), OPEN) | {"/metrics": OPEN if metrics == OPEN else "metrics"}
    if docs == OPEN:
        needs |= dict.fromkeys(DOCUMENTS, OPEN)
    for path, scope in WORK.items():
        needs[path] = needs["/v1" + path] = scope
    return Access(keys, needs)


def _secret(headers: Headers) -> str:
    """From `Authorization: Bearer` or `X-API-Key`; of several none counts, for a proxy may pick another."""
    shown = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, secret = value.partition(" ")
        shown.append(secret.strip() if scheme.lower() == "bearer" else "")
    return shown[0] if len(shown) == 1 else ""
