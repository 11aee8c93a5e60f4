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


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no [[models]]"),
        ("models = []", "no [[models]]"),
        ("models = 3", "no [[models]]"),
        ("[[models]", "no TOML"),
        ("[[models]]", "model 1 needs bundle"),
        ('[[models]]\nbundle = " "', "model 1 needs bundle"),
        ("[[models]]\nbundle = 7", "model 1 needs bundle"),
        ("models = [3]", "model 1 needs bundle"),
        ('port = 1\n[[models]]\nbundle = "a"', "'port' is not known"),
        ('[[models]]\nbundle = "a"\nshadows = true', "'shadows' is not known"),
        ('[[models]]\nbundle = "a"\nshadow = true', "model 1 is the default"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = 2', "share of images from 0 to 1"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = "yes"', "share of images"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "b"\nshadow = nan', "share of images"),
        ('[[models]]\nbundle = "a"\n[[models]]\nbundle = "a"', "named twice"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(text: str, complaint: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_models(text)
    assert complaint in caught.value.detail
