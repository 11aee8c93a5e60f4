"""Durations as people say them."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """Return a duration such as `41 s`, `8 min 5 s` or `3 h 2 min`."""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {whole % 60} s" if minutes else f"{whole} s"
