"""How files of the image formats begin."""

from __future__ import annotations

HEAD = 132  # bytes that tell what a file is: DICOM's mark follows a preamble of 128

Signature = tuple[tuple[int, bytes], ...]  # (offset, bytes), all of them

# Pillow's name of the format → alternatives
SIGNATURES: dict[str, tuple[Signature, ...]] = {
    "JPEG": (((0, b"\xff\xd8\xff"),),),
    "PNG": (((0, b"\x89PNG\r\n\x1a\n"),),),
    "WEBP": (((0, b"RIFF"), (8, b"WEBP")),),
    "TIFF": (((0, b"II*\0"),), ((0, b"MM\0*"),), ((0, b"II+\0"),), ((0, b"MM\0+"),)),
    "BMP": (((0, b"BM"),),),
    "GIF": (((0, b"GIF87a"),), ((0, b"GIF89a"),)),
}
_DICOM: tuple[Signature, ...] = (
    ((128, b"DICM"),),
    ((0, b"\x02\0\0\0UL"),),  # without a preamble, from the file's own header on
    ((0, b"\x08\0\x05\0CS"),),  # or from the character set on
    ((0, b"\x08\0\x08\0CS"),),  # or from the type of the image on
)
# Formats that Leuko does not read. Their files are images all the same, so they are refused by name.
_UNREAD: tuple[Signature, ...] = (
    ((0, b"\0\0\0\x0cjP  \r\n\x87\n"),),  # JPEG 2000
    ((0, b"\xff\x4f\xff\x51"),),  # its bare codestream
    ((0, b"\0\0\0\x0cJXL \r\n\x87\n"),),
    ((4, b"ftypheic"),),
    ((4, b"ftypheix"),),
    ((4, b"ftypmif1"),),
    ((4, b"ftypavif"),),
)
_BMP_HEADERS = (12, 40, 52, 56, 64, 108, 124)  # sizes; a text may begin with BM too


def begins_as_image(head: bytes) -> bool:
    """Return whether a file with these first `HEAD` bytes is an image, of whatever format and even if cut."""
    if head.startswith(b"BM"):
        return int.from_bytes(head[14:18], "little") in _BMP_HEADERS
    variants = [*_DICOM, *_UNREAD, *(variant for variants in SIGNATURES.values() for variant in variants)]
    return any(all(head.startswith(mark, offset) for offset, mark in variant) for variant in variants)
