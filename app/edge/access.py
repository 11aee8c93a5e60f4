"""Authorization: which scope each path needs, and whether a request's key has it."""

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
    """Authorize requests by path.

    keys: None if the service has no keys; then every request is authorized.
    needs: path → scope, ANY or OPEN; a path that ends in / stands for all paths below it. A path that is not
    listed needs ANY, so that no path is open by omission.
    """

    keys: Keys | None
    needs: Mapping[str, str]

    def authorize(self, path: str, headers: Headers) -> Key | None:
        """Return the request's key, or None where no key is needed. Raise Unauthenticated or Forbidden."""
        if self.keys is None or (need := self.need(path)) == OPEN:
            return None
        key = self.keys.find(_find_secret(headers))
        if key is None:
            raise Unauthenticated("A valid key is needed: Authorization: Bearer leuko_…")
        if need != ANY and need not in key.scopes:
            raise Forbidden(f"The key lacks the scope {need}.", key.id)
        return key

    def need(self, path: str) -> str:
        """Return the scope that a path needs, or ANY or OPEN."""
        if is_infer(path):
            return WORK["/predict"]
        folder = path.rpartition("/")[0] + "/"  # /problems/too_large → /problems/
        return self.needs.get(path) or (self.needs.get(folder, ANY) if folder != "/" else ANY)


def access_rules(keys: Keys | None, *, metrics: str, docs: str) -> Access:
    """Return the rules for all paths. metrics, docs: `open`, `keyed` or `closed`."""
    needs = dict.fromkeys((*PROBES, *PAGE), OPEN) | {"/metrics": OPEN if metrics == OPEN else "metrics"}
    if docs == OPEN:
        needs |= dict.fromkeys(DOCUMENTS, OPEN)
    for path, scope in WORK.items():
        needs[path] = needs["/v1" + path] = scope
    return Access(keys, needs)


def _find_secret(headers: Headers) -> str:
    """Return the key in `Authorization: Bearer` or `X-API-Key`, or "" if there is none or more than one.

    Several keys are treated as none: a proxy in front might check a different one.
    """
    secrets = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, secret = value.partition(" ")
        secrets.append(secret.strip() if scheme.lower() == "bearer" else "")
    return secrets[0] if len(secrets) == 1 else ""
