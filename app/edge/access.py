"""Authorization: which scope each route needs, and whether a request's key has it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from starlette.datastructures import Headers

from app.edge.keys import Key, Keys
from app.edge.origin import check_loopback, check_site
from app.edge.paths import DOCUMENTS, PAGE, PROBES, WORK
from app.errors import Forbidden, Unauthenticated

ANY = "any"  # a key, whatever its scopes
OPEN = "open"  # no key


@dataclass(frozen=True)
class Access:
    """Authorize requests by the template of their route.

    keys: None if the service has no keys; then every request is authorized, except those of other sites' web
    pages.
    needs: template → scope, ANY or OPEN. A route that is not listed needs ANY, so that none is open by
    omission; so does a path without a route.
    any_host: whether a service without keys serves under any name, not only on loopback.
    origins: other sites whose pages may use a service without keys.
    """

    keys: Keys | None
    needs: Mapping[str, str]
    any_host: bool = False
    origins: frozenset[str] = frozenset()

    def authorize(self, template: str | None, headers: Headers) -> Key | None:
        """Return the request's key, or None where no key is needed.

        Raise Unauthenticated or Forbidden; without keys CrossSite.
        """
        need = self.need(template)
        if self.keys is None:
            if not self.any_host and template not in PROBES:
                check_loopback(headers)
            if need != OPEN:
                check_site(headers, self.origins)
            return None
        if need == OPEN:
            return None
        key = self.keys.find(_find_secret(headers))
        if key is None:
            raise Unauthenticated("A valid key is needed: Authorization: Bearer leuko_…")
        if need != ANY and need not in key.scopes:
            raise Forbidden(f"The key lacks the scope {need}.", key.id)
        return key

    def need(self, template: str | None) -> str:
        """Return the scope that a route needs, or ANY or OPEN. template: None if no route has the path."""
        return ANY if template is None else self.needs.get(template, ANY)


def access_rules(
    keys: Keys | None,
    *,
    metrics: str,
    docs: str,
    any_host: bool = False,
    origins: frozenset[str] = frozenset(),
) -> Access:
    """Return the rules for all routes. metrics, docs: `open`, `keyed` or `closed`."""
    needs = dict.fromkeys((*PROBES, *PAGE), OPEN) | {"/metrics": OPEN if metrics == OPEN else "metrics"}
    if docs == OPEN:
        needs |= dict.fromkeys(DOCUMENTS, OPEN)
    return Access(keys, needs | WORK, any_host, origins)


def _find_secret(headers: Headers) -> str:
    """Return the key in `Authorization: Bearer` or `X-API-Key`, or "" if there is none or more than one.

    Several keys are treated as none: a proxy in front might check a different one.
    """
    secrets = headers.getlist("x-api-key")
    for value in headers.getlist("authorization"):
        scheme, _, secret = value.partition(" ")
        secrets.append(secret.strip() if scheme.lower() == "bearer" else "")
    return secrets[0] if len(secrets) == 1 else ""
