from __future__ import annotations

import pytest

from app.errors import SettingsError
from app.registry.models_file import ModelEntry, parse_models


def test_the_file_lists_bundles_and_what_each_is_for() -> None:
    text = """
    [[models]]
    bundle = "models/wbc-resnet18"  # the default

    [[models]]
    bundle = "hf://lab/wbc@v2"

    [[models]]
    bundle = "/srv/candidate"
    shadow = true

    [[models]]
    bundle = "/srv/other"
    shadow = 0.25
    """
    assert parse_models(text) == (
        ModelEntry("models/wbc-resnet18"),
        ModelEntry("hf://lab/wbc@v2"),
        ModelEntry("/srv/candidate", 1),
        ModelEntry("/srv/other", 0.25),
    )


def test_a_byte_order_mark_is_no_part_of_the_file() -> None:
    assert parse_models('\ufeff[[models]]\nbundle = "a"') == (ModelEntry("a"),)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "models is missing"),
        ("models = []", "models must not be empty"),
        ("models = 3", "models must be a valid list"),
        ("[[models]", "not valid TOML"),
        ("[[models]]", "model 1 bundle is missing"),
        ('[[models]]\nbundle = " "', "model 1 bundle must not be empty"),
        ("[[models]]\nbundle = 7", "model 1 bundle must be a valid string, not 7"),
        ("models = [3]", "model 1 must be an object, not 3"),
        ('port = 1\n[[models]]\nbundle = "a"', "port is unknown"),
        ('[[models]]\nbundle = "a"\nshadows = true', "model 1 shadows is unknown"),
        ('[[models]]\nbundle = "a"\nshadow = true', "model 1 is the default"),
        (
            '[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = 2',
            "model 2 shadow must be true, or a share",
        ),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = "yes"', "share of images from 0 to 1"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = nan', "share of images from 0 to 1"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "a"', "listed twice"),
        ('[[models]]\nbundle = "a\\u0000b"', "model 1 bundle must not contain a null character"),
        ("x = " + "[" * 2000, "not valid TOML: nested too deeply"),
        ("x = " + "{a=" * 2000, "not valid TOML: nested too deeply"),
        ("# " + "." * 200 + '\n"\u2028".' + "a." * 100 + "a = 1", "more than 100 dots in a line"),
        ("# " + "." * 200, "models is missing"),
        ("x = " + "1" * 5000, "not valid TOML: Exceeds the limit"),
        ("[[models]]\nbundle = 0x" + "f" * 9000, "not valid TOML: Exceeds the limit"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_models(text)
    assert complaint in caught.value.detail


def test_every_error_of_the_file_is_named_at_once() -> None:
    text = "port = 1\n[[models]]\nbundle = 7\n[[models]]\nshadow = -1\n"
    with pytest.raises(SettingsError) as caught:
        parse_models(text)
    assert caught.value.detail.split("; ") == [
        "model 1 bundle must be a valid string, not 7",
        "model 2 bundle is missing",
        "model 2 shadow must be true, or a share of images from 0 to 1",
        "port is unknown",
    ]
