"""Fuzzes `app.imaging.decode.decode`."""

from __future__ import annotations

from typing import Any

from PIL import Image

from app.errors import TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging import dicom, dicom_writer
from app.imaging.decode import decode
from app.imaging.limits import DEFAULT_LIMITS
from tests.fuzz.campaign import Target
from tests.pictures import encode, picture

EXIF = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
KINDS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("JPEG", "RGB", {"exif": EXIF}),
    ("JPEG", "RGB", {"progressive": True}),
    ("JPEG", "L", {"restart_marker_rows": 1}),
    ("JPEG", "CMYK", {"subsampling": 0}),
    ("MPO", "RGB", {"save_all": True}),
    ("PNG", "RGB", {"exif": EXIF, "transparency": (0, 0, 255)}),
    ("PNG", "RGBA", {"save_all": True}),
    ("PNG", "LA", {}),
    ("PNG", "P", {"transparency": b"\0\x80"}),
    ("PNG", "1", {}),
    ("PNG", "I;16", {}),
    ("WEBP", "RGB", {"exif": EXIF}),
    ("WEBP", "RGBA", {"lossless": True, "save_all": True}),
    ("GIF", "P", {"save_all": True, "transparency": 0}),
    ("BMP", "RGB", {}),
    ("BMP", "P", {}),
    ("BMP", "1", {}),
    ("TIFF", "RGB", {"exif": EXIF}),
    ("TIFF", "F", {}),
    ("TIFF", "I;16", {"compression": "tiff_lzw"}),
    ("TIFF", "RGBA", {"compression": "tiff_deflate", "save_all": True}),
    ("TIFF", "RGB", {"compression": "jpeg"}),
    ("TIFF", "P", {"compression": "packbits"}),
    ("TIFF", "1", {"compression": "packbits"}),
    ("TIFF", "CMYK", {"big_tiff": True}),
    ("TIFF", "YCbCr", {"compression": "jpeg"}),
    ("TIFF", "I", {"compression": "zstd"}),
    ("TIFF", "LA", {"tiffinfo": {317: 2}, "compression": "tiff_lzw"}),
    ("TIFF", "L", {"tiffinfo": {270: "ImageJ=1.54f\nchannels=3\nmode=composite\n"}, "save_all": True}),
)


def seeds() -> list[bytes]:
    """Return a small image in every accepted format, mode and compression."""
    syntaxes = (*dicom.NATIVE, *dicom.ENCODED)
    return [_seed(*kind) for kind in KINDS] + [
        dicom_writer.write(picture(24, 16), syntax) for syntax in syntaxes
    ]


def run(data: bytes) -> str:
    image = decode(data)
    assert image.mode == "RGB"
    assert image.width * image.height <= DEFAULT_LIMITS.max_pixels
    return "image"


def target() -> Target:
    return Target("decode", run, (TooLarge, UndecodableImage, UnsupportedFormat), seeds())


def _seed(kind: str, mode: str, options: dict[str, Any]) -> bytes:
    small = picture(24, 16)
    first = small.convert("L").convert(mode) if mode == "I;16" else small.convert(mode)
    frames = {"append_images": [first.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
    return encode(first, kind, **options, **frames)
