"""Fuzzes the archive of `/evaluate`: its directory, and reading each entry."""

from __future__ import annotations

from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipInfo

from app.api.labelled_upload import read_labelled
from app.api.uploads import Form, Part
from app.archives.labelled_archive import ArchiveLimits
from app.errors import BadArchive, TooLarge, UndecodableImage
from tests.fuzz.campaign import Target
from tests.zips import LABELS, declare, pack, pack_one

LIMITS = ArchiveLimits(max_entries=50, max_entry_bytes=2**16, max_total_bytes=2**18)
PICTURES = {f"set/{label}/{number}.png": bytes([number]) * 90 for number, label in enumerate(LABELS)}


def seeds() -> list[bytes]:
    """Return archives that are accepted, and some that are just refused."""
    folders = {f"{label}/": b"" for label in LABELS}
    return [
        pack(PICTURES, ZIP_STORED),
        pack(PICTURES, ZIP_DEFLATED),
        pack(folders | PICTURES | {"__MACOSX/x": b"1", "readme": b"2"}),
        declare(pack(PICTURES), 80),
        pack({f"monocyte/{number}": b"" for number in range(50)}),
        _with_extras(),
        pack({"neutrophil/a.png": pack(PICTURES)}),
    ]


def run(data: bytes) -> str:
    form: Form = {name: [] for name in ("files", "labels", "groups", "group_pattern")}
    labelled = read_labelled(form | {"archive": [Part("set.zip", data)]}, LABELS, LIMITS)
    corrupt = 0
    for source in labelled.images:
        try:
            assert len(source.read()) <= LIMITS.max_entry_bytes
        except UndecodableImage:
            corrupt += 1
    return "some entries corrupt" if corrupt else "archive"


def target() -> Target:
    return Target("archive", run, (TooLarge, BadArchive), seeds())


def _with_extras() -> bytes:
    """Return an archive with unusual fields: ZIP64 sizes, a comment, a name beyond ASCII."""
    info = ZipInfo("monocyte/\N{LATIN SMALL LETTER E WITH ACUTE}.png")
    info.extra = bytes.fromhex("0100 1000 5a00000000000000 5a00000000000000".replace(" ", ""))
    info.comment = b"a comment"
    return pack_one(info, bytes(90))
