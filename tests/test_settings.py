from __future__ import annotations

from dataclasses import Field, fields
from typing import Any

import pytest

from app.errors import SettingsError
from app.settings import Settings, expectation, strangers, variable


def test_an_empty_environment_gives_the_defaults() -> None:
    assert Settings.from_environ({}) == Settings()


def test_variables_that_are_not_settings_are_left_alone() -> None:
    # Kubernetes sets LEUKO_SERVICE_HOST and more for a service of that name.
    assert Settings.from_environ({"LEUKO_SERVICE_HOST": "10.0.0.1", "PORT": "9"}) == Settings()


@pytest.mark.parametrize(
    ("name", "text", "field", "value"),
    [
        ("LEUKO_BUNDLE", "models/other", "bundle", "models/other"),
        ("LEUKO_ENGINE", "torch", "engine", "torch"),
        ("LEUKO_PORT", " 80 ", "port", 80),
        ("LEUKO_MAX_PIXELS", "25_000", "max_pixels", 25_000),
        ("LEUKO_DEADLINE_S", "2.5", "deadline_s", 2.5),
        ("LEUKO_DEADLINE_S", "2", "deadline_s", 2.0),
        ("LEUKO_DRAIN_S", "0", "drain_s", 0.0),
        ("LEUKO_LOG_LEVEL", "debug", "log_level", "debug"),
    ],
)
def test_a_variable_changes_its_setting(name: str, text: str, field: str, value: object) -> None:
    setting = getattr(Settings.from_environ({name: text}), field)
    assert (setting, type(setting)) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("LEUKO_PORT", "http", "a whole number of at least 0 and at most 65535"),
        ("LEUKO_PORT", "", "a whole number"),
        ("LEUKO_PORT", "65536", "at most 65535"),
        ("LEUKO_PORT", "8000.0", "a whole number"),
        ("LEUKO_MAX_QUEUE", "0", "at least 1"),
        ("LEUKO_THREADS", "-1", "at least 0"),
        ("LEUKO_DEADLINE_S", "soon", "a number"),
        ("LEUKO_DEADLINE_S", "nan", "a number"),
        ("LEUKO_DRAIN_S", "inf", "a number"),
        ("LEUKO_ENGINE", "tpu", "one of auto, openvino, torch"),
        ("LEUKO_HOST", " ", "text"),
        ("LEUKO_BUNDLE", "", "text"),
    ],
)
def test_a_bad_value_names_the_variable_the_value_and_what_is_expected(
    name: str, text: str, expected: str
) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.from_environ({name: text})
    assert caught.value.detail.startswith(f"{name} is {text!r}, expected ")
    assert expected in caught.value.detail


def test_a_request_never_holds_more_images_than_may_wait() -> None:
    assert Settings(max_files=10, max_queue=4).images_per_request == 4
    assert Settings(max_files=3, max_queue=4).images_per_request == 3


@pytest.mark.parametrize("setting", fields(Settings), ids=lambda setting: setting.name)
def test_every_setting_explains_itself_and_accepts_its_default(setting: Field[Any]) -> None:
    assert setting.metadata["help"]
    assert expectation(setting)
    settings = Settings.from_environ({variable(setting): str(setting.default)})
    assert getattr(settings, setting.name) == setting.default


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("LEUKO_MAX_BODY", "LEUKO_MAX_BODY_MIB"),
        ("LEUKO_MAXQUEUE", "LEUKO_MAX_QUEUE"),
        ("LEUKO_API_KEYS", "LEUKO_KEYS"),
        ("LEUKO_CORS_ORIGIN", "LEUKO_CORS_ORIGINS"),
        ("leuko_port", "LEUKO_PORT"),
        ("Leuko_Keys", "LEUKO_KEYS"),
    ],
)
def test_a_variable_that_is_no_setting_is_named_with_what_was_meant(name: str, meant: str) -> None:
    assert strangers({name: "secret"}) == [
        f"{name} is not a setting and has no effect: did you mean {meant}?"
    ]


def test_a_variable_like_no_setting_is_named_alone() -> None:
    assert strangers({"LEUKO_COLOUR_OF_THE_PAGE": "1"}) == [
        "LEUKO_COLOUR_OF_THE_PAGE is not a setting and has no effect"
    ]


def test_variables_that_have_a_meaning_or_that_kubernetes_sets_are_not_named() -> None:
    links = {"SERVICE_HOST": "10.0.0.1", "SERVICE_PORT": "80", "SERVICE_PORT_HTTP": "80"}
    links |= {"PORT": "tcp://10.0.0.1:80"}
    links |= {f"PORT_80_TCP{end}": "80" for end in ("", "_ADDR", "_PORT", "_PROTO")}
    services = ("LEUKO_", "LEUKO_CANARY_")
    environ = {f"{service}{name}": value for name, value in links.items() for service in services}
    own = [variable(setting) for setting in fields(Settings)]
    others = ["LEUKO_KEY", "LEUKO_DATA", "PATH", "LEUKOCYTE"]
    assert strangers({**environ, **dict.fromkeys([*own, *others], "1")}) == []
