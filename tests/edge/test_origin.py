from __future__ import annotations

import pytest
from starlette.datastructures import Headers

from app.edge.origin import check_loopback, check_site
from app.errors import CrossSite


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.encode(), value.encode()) for name, value in pairs])


@pytest.mark.parametrize(
    "host", ["localhost", "LocalHost:80", "127.0.0.1:8000", "127.255.255.255", "[::1]:1"]
)
def test_loopback_names_are_the_machine_s_own(host: str) -> None:
    check_loopback(headers(("host", host)))


OTHERS = (
    "a localhost.a a.localhost localhost. 127.0.0.1.a 127.0.0.256 127.1 2130706433 0.0.0.0 128.0.0.1 [::]"
)


@pytest.mark.parametrize(
    "host", [*OTHERS.split(), "[::ffff:127.0.0.1]", "localhost:", "localhost:x", "", "::1"]
)
def test_all_other_names_may_be_another_machine_s(host: str) -> None:
    with pytest.raises(CrossSite, match="Host must be"):
        check_loopback(headers(("host", host)))


def test_a_request_of_no_browser_has_neither_origin_nor_site() -> None:
    check_loopback(headers())
    check_site(headers(("host", "a:1")))


@pytest.mark.parametrize(
    ("origin", "site"),
    [
        (None, "none"),
        (None, "same-origin"),
        ("http://a:1", None),
        ("http://A:1", "same-origin"),
        ("https://a:1", "same-site"),
    ],
)
def test_the_service_s_own_pages_may_use_it(origin: str | None, site: str | None) -> None:
    pairs = [("origin", origin), ("sec-fetch-site", site)]
    check_site(headers(("host", "a:1"), *((name, value) for name, value in pairs if value is not None)))


@pytest.mark.parametrize(
    "pairs",
    [
        [("origin", "http://b:1")],
        [("origin", "http://a")],
        [("origin", "http://a:2"), ("sec-fetch-site", "same-site")],
        [("origin", "http://a:2"), ("sec-fetch-site", "same-origin")],
        [("origin", "http://a:1"), ("sec-fetch-site", "cross-site")],
        [("origin", "http://a:1"), ("origin", "http://b:1")],
        [("origin", "http://a:1@b")],
        [("origin", "a:1")],
        [("origin", "x://a:1")],
        [("origin", "null")],
        [("origin", "")],
        [("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "same-site")],
        [("sec-fetch-site", "none"), ("sec-fetch-site", "cross-site")],
        [("sec-fetch-site", "")],
    ],
)
def test_other_pages_may_not(pairs: list[tuple[str, str]]) -> None:
    with pytest.raises(CrossSite, match="web pages of other origins"):
        check_site(headers(("host", "a:1"), *pairs))
