"""Find out whether a TIFF's pages are the channels of one image, as ImageJ and OME write them.

Red, green and blue become one RGB image if the file says that its channels have these colours. Other channels
are refused, since one of them alone looks like a grey image. Pages that are no channels are a sequence or a
document, of which the first page is read.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

from app.errors import UndecodableImage
from app.imaging import tiff_tags as tags
from app.imaging.limits import ImageLimits
from app.imaging.tiff_layout import BLACK_IS_ZERO, GREY, RGB, Layout, read_layout
from app.imaging.tiff_tags import Page

MAX_DESCRIPTION = 1 << 20  # bytes

_RAMP = bytes(range(256))
# What a colour table of 256 reds, greens and blues is for a channel that is red, green or blue.
_RAMPS = [_RAMP + bytes(512), bytes(256) + _RAMP + bytes(256), bytes(512) + _RAMP]
_NAMES = ({"r", "red"}, {"g", "green"}, {"b", "blue"})
_COLOURS = (0xFF0000, 0x00FF00, 0x0000FF)
_PAGE_OR_COPY = 0b11  # NewSubfileType: a smaller copy of another image; a page of a document


def join(first: Page, others: Iterator[Page], limits: ImageLimits) -> Layout:
    """Return the layout of the first page, or of the RGB image whose channels are the first three pages.

    Raises UndecodableImage, TooLarge, struct.error.
    """
    layout = read_layout(first, limits)
    description = first.octets(tags.DESCRIPTION)[:MAX_DESCRIPTION]
    if layout.samples != 1:
        return layout
    if description.startswith(b"ImageJ="):
        colours = _imagej_colours(first, description)
    elif b"<OME" in description:
        colours = _ome_colours(description)
    else:
        _check_silent(first, layout, others)
        return layout
    if not colours:
        return layout
    pages = [layout, *(read_layout(page, limits) for page in islice(others, 2))]
    return _merge([pages[colours.index(colour)] for colour in range(3)] if len(pages) == 3 else pages)


def _merge(pages: list[Layout]) -> Layout:
    first = pages[0]
    if len(pages) < 3 or _form(first) is None or any(_form(page) != _form(first) for page in pages):
        raise UndecodableImage("the TIFF's channels are not pages of one size and kind in this file")
    offsets = tuple(offset for page in pages for offset in page.offsets)
    sizes = tuple(size for page in pages for size in page.sizes)
    return replace(first, photometric=RGB, samples=3, planar=True, offsets=offsets, sizes=sizes)


def _form(page: Layout) -> Layout | None:
    return replace(page, offsets=(), sizes=()) if page.photometric == BLACK_IS_ZERO else None


def _check_silent(first: Page, layout: Layout, others: Iterator[Page]) -> None:
    """Refuse grey pages of one size if the file does not say what they are."""
    second = next(others, None) if layout.photometric in GREY else None
    if second is None or (first.integer(tags.SUBFILE, 0) | second.integer(tags.SUBFILE, 0)) & _PAGE_OR_COPY:
        return
    if [second.integer(tag, 0) for tag in (tags.WIDTH, tags.HEIGHT)] == [layout.width, layout.height] and (
        second.integer(tags.SAMPLES, 1) == 1 and second.integer(tags.PHOTOMETRIC, 1) in GREY
    ):
        raise UndecodableImage(
            "the TIFF has several grey pages and does not say whether they are the channels of one image;"
            " send it as RGB, or each page as a separate image"
        )


def _refuse(count: int, writer: str) -> UndecodableImage:
    return UndecodableImage(
        f"the TIFF's pages are {count} channels ({writer}) that are not red, green and blue; send it as RGB"
    )


def _imagej_colours(page: Page, description: bytes) -> list[int]:
    """Return 0, 1 and 2 for red, green and blue in the order of the channels; empty for a single channel."""
    words = dict(re.findall(rb"^(\w+)=(\w*)", description, re.MULTILINE))
    count = int(words.get(b"channels", b"1"))
    if count == 1:
        return []
    tables = _imagej_tables(page) or _RAMPS
    colours = [_RAMPS.index(table) for table in tables if table in _RAMPS]
    if count != 3 or words.get(b"mode") not in (b"composite", b"color") or sorted(colours) != [0, 1, 2]:
        raise _refuse(count, "ImageJ")
    return colours


def _imagej_tables(page: Page) -> list[bytes]:
    """Return the channels' colour tables in ImageJ's own tag; empty without them.

    The tag starts with a head: IJIJ, then a type and a number for each kind of entry. The sizes of the head
    and of each entry are in a second tag.
    """
    content, sizes = page.octets(tags.IMAGEJ_METADATA), page.integers(tags.IMAGEJ_COUNTS)
    if not content or not sizes:
        return []
    remaining, place = list(sizes[1:]), sizes[0]
    for kind, number in struct.iter_unpack(f"{page.order}LL", content[4 : sizes[0]]):
        entries = []
        for size in remaining[:number]:
            entries.append(content[place : place + size])
            place += size
        if kind == int.from_bytes(b"luts"):
            return entries
        remaining = remaining[number:]
    return []


def _ome_colours(description: bytes) -> list[int]:
    """Return 0, 1 and 2 for red, green and blue in the order of the channels; empty for a single channel."""
    text = description.decode("utf-8", "replace")
    pixels = re.search(r"<(?:\w+:)?Pixels\b([^>]*)>", text)
    sizes = _attributes(pixels[1]) if pixels else {}
    count = int(sizes.get("SizeC", "1"))
    if count == 1:
        return []
    body = text[pixels.end() :].split("Pixels>")[0] if pixels else ""
    channels = [_attributes(found) for found in re.findall(r"<(?:\w+:)?Channel\b([^>]*)>", body)]
    colours = [_ome_colour(channel) for channel in channels]
    first_c = (
        sizes.get("DimensionOrder", "").startswith("XYC") or sizes.get("SizeZ") == sizes.get("SizeT") == "1"
    )
    where = [_attributes(found) for found in re.findall(r"<(?:\w+:)?TiffData\b([^>]*)>", body)]
    in_order = all(entry.get("IFD", "0") == entry.get("FirstC", "0") for entry in where[:3])
    if count != 3 or sorted(colours) != [0, 1, 2] or not first_c or not in_order:
        raise _refuse(count, "OME")
    return colours


def _attributes(text: str) -> dict[str, str]:
    return dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)[\"']", text))


def _ome_colour(channel: dict[str, str]) -> int:
    """Return 0, 1 or 2 for red, green or blue; 3 for any other. A colour is a signed integer, RGBA."""
    if "Color" in channel:
        colour = int(channel["Color"]) >> 8 & 0xFFFFFF
        return _COLOURS.index(colour) if colour in _COLOURS else 3
    name = channel.get("Name", "").lower()
    return next((place for place, names in enumerate(_NAMES) if name in names), 3)
