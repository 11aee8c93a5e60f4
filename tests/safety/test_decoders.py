"""No decoder can be started, and images that take as much memory as their formats allow."""

from __future__ import annotations

import io
import os
import resource
import signal
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from app.imaging import dicom, dicom_writer
from app.imaging.limits import DEFAULT_LIMITS
from app.settings import Settings
from app.units import MIB
from benchmarks.server import field
from tests.fake_classifier import png
from tests.pictures import encode
from tests.running import ROOT, Running, linux, running, wait_until
from tests.safety.intruder import FOLDER, INTRUDED, NOBODY, UID
from tests.safety.sending import alone
from tests.safety.unshaken import UNSHAKEN

ONE = ("--decode-workers", "1")


def allow_processes(service: Running, most: int) -> None:
    """Set how many processes the user of the service's decoders may have, when a fork server is started."""
    hard = resource.prlimit(service.process.pid, resource.RLIMIT_NPROC)[1]
    resource.prlimit(service.process.pid, resource.RLIMIT_NPROC, (most, hard))


@linux
def test_42_while_no_decoder_can_be_forked_the_service_is_not_ready_and_it_comes_back(tmp_path: Path) -> None:
    # The limit does not apply to root.
    environ = {FOLDER: str(tmp_path)} | ({UID: str(NOBODY)} if os.geteuid() == 0 else {})
    with running(INTRUDED, *ONE, environ=environ) as service, service.client() as client:
        before = resource.prlimit(service.process.pid, resource.RLIMIT_NPROC)[0]
        allow_processes(service, 0)
        for pid in service.processes[1:]:  # the fork server and its decoder
            os.kill(pid, signal.SIGKILL)
        for _ in range(3):
            refused = alone(client, png(0))
            assert (refused.status_code, refused.json()["code"]) == (503, "not_ready")
            assert int(refused.headers["Retry-After"]) >= 1
            unready = client.get("/readyz")
            assert (unready.status_code, unready.json()["detail"]) == (
                503,
                "no decoder process can be started",
            )
        assert client.get("/healthz").status_code == 200
        assert "leuko_model_ready 0.0" in client.get("/metrics").text
        allow_processes(service, before)
        wait_until(lambda: client.get("/readyz").status_code == 200)
        assert alone(client, png(0)).status_code == 200
        assert service.end() == 0
    assert any("decoder processes can be started again" in line for line in service.log)


# --- 45: the images of each format that take the most memory ------------------------------------------------

SIDE = 5000
assert DEFAULT_LIMITS.max_pixels == SIDE * SIDE
TURNED = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"


def blank(mode: str, side: int = SIDE) -> Image.Image:
    return Image.new(mode, (side, side))


def palette_dicom() -> bytes:
    """Return a DICOM file whose palette has 16 bits, run-length coded."""
    from pydicom import dcmwrite
    from pydicom.pixels.utils import compress

    dataset = dicom_writer._describe(blank("L"), dicom.RLE)
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "PALETTE COLOR", 1
    del dataset.PlanarConfiguration
    for name in ("Red", "Green", "Blue"):
        setattr(dataset, f"{name}PaletteColorLookupTableDescriptor", [256, 0, 16])
        setattr(dataset, f"{name}PaletteColorLookupTableData", np.arange(256, dtype="<u2").tobytes())
    dataset.PixelData = bytes(SIDE * SIDE)
    compress(dataset, dicom.RLE, generate_instance_uid=False)
    file = io.BytesIO()
    dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def deep_tiff() -> bytes:
    """Return a TIFF of RGBA with 16 bits, in one strip: the strip is decoded as a whole."""
    strip = zlib.compress(bytes(8 * SIDE * SIDE), 1)
    bits = 8 + len(strip) + len(strip) % 2
    body = strip + b"\0" * (len(strip) % 2) + struct.pack("<4H", 16, 16, 16, 16)
    tags = [
        (256, 4, 1, SIDE),
        (257, 4, 1, SIDE),
        (258, 3, 4, bits),
        (259, 3, 1, 8),  # deflate
        (262, 3, 1, 2),  # RGB
        (273, 4, 1, 8),
        (277, 3, 1, 4),
        (278, 4, 1, SIDE),
        (279, 4, 1, len(strip)),
        (338, 3, 1, 2),  # the fourth channel is alpha
    ]
    entries = b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return (
        b"II*\0" + struct.pack("<L", 8 + len(body)) + body + struct.pack("<H", len(tags)) + entries + bytes(4)
    )


def twelve_bit_png() -> bytes:
    """Return a PNG of RGBA whose samples have 16 bits, of which 12 are used: it is decoded twice."""
    rows = (b"\0" + b"\x0f\xff" * 4 * SIDE) * SIDE
    header = struct.pack(">LLBBBBB", SIDE, SIDE, 16, 6, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"eXIf", TURNED[6:]), (b"IDAT", zlib.compress(rows, 1)), (b"IEND", b""))
    packed = (struct.pack(">L", len(b)) + n + b + struct.pack(">L", zlib.crc32(n + b)) for n, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def worst(mode: str, kind: str, **options: Any) -> Callable[[], bytes]:
    return lambda: encode(blank(mode), kind, **options)


# Name → the MiB that docs/settings.md names, and the image.
WORST: dict[str, tuple[int, Callable[[], bytes]]] = {
    "JPEG": (225, worst("RGB", "JPEG", progressive=True, subsampling=0, exif=TURNED)),
    "JPEG CMYK": (290, worst("CMYK", "JPEG", progressive=True, subsampling=0, exif=TURNED)),
    "JPEG of a camera": (190, worst("RGB", "JPEG", exif=TURNED)),
    "PNG with alpha": (190, worst("LA", "PNG", exif=TURNED, compress_level=1)),
    "PNG of 16 bits": (190, worst("I;16", "PNG", exif=TURNED, compress_level=1)),
    "PNG of 12 bits": (330, twelve_bit_png),
    "PNG with a colour key": (190, worst("RGB", "PNG", transparency=(0, 0, 0), exif=TURNED)),
    "WebP": (366, worst("RGBA", "WEBP", lossless=True, method=0, exif=TURNED)),
    "TIFF with alpha": (290, worst("LA", "TIFF", compression="tiff_lzw", exif=TURNED)),
    "TIFF of floats": (290, worst("F", "TIFF", compression="tiff_lzw", exif=TURNED)),
    "TIFF of 16 bits": (375, deep_tiff),
    "GIF": (205, worst("P", "GIF", transparency=0)),
    "BMP": (205, worst("1", "BMP")),
    "DICOM run-length": (240, lambda: dicom_writer.write(blank("RGB"), dicom.RLE)),
    "DICOM palette": (310, palette_dicom),
    # The largest that is accepted.
    "DICOM JPEG 2000": (350, lambda: dicom_writer.write(blank("RGB", 4472), dicom.JPEG_2000_LOSSLESS)),
}
MARGIN_MIB = 16  # what a decoder keeps, or does not, of the image before


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running(UNSHAKEN, *ONE) as found:
        yield found


@linux
def test_45_the_worst_image_of_each_format_takes_no_more_memory_than_documented(service: Running) -> None:
    [decoder] = service.decoders()
    found, documented = {}, {name: mib for name, (mib, _) in WORST.items()}
    with service.client() as client:
        for name, (_, make) in WORST.items():
            data = make()
            Path(f"/proc/{decoder}/clear_refs").write_text("5")  # has the kernel forget the peak so far
            before = peak_mib(decoder)
            answer = alone(client, data)
            assert answer.status_code == 200, (name, answer.text)
            found[name] = peak_mib(decoder) - before
        assert service.decoders() == [decoder]
    assert {name: mib for name, mib in found.items() if mib > documented[name] + MARGIN_MIB} == {}
    assert max(found.values()) < DEFAULT_LIMITS.memory_bytes / MIB


@linux
def test_45_a_jpeg_2000_that_would_take_more_is_too_large(service: Running) -> None:
    [decoder] = service.decoders()
    data = dicom_writer.write(blank("RGB", 4473), dicom.JPEG_2000_LOSSLESS)
    with service.client() as client:
        alone(client, png(0))
        Path(f"/proc/{decoder}/clear_refs").write_text("5")
        before = peak_mib(decoder)
        answer = alone(client, data)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    assert "at most 20000000 pixels" in answer.json()["detail"]
    assert peak_mib(decoder) - before < 20


def test_45_a_container_has_the_memory_that_the_documentation_computes() -> None:
    service, parsers, decoders, temporary = (
        500,
        1280,
        3,
        192,
    )  # MiB; with two cores, one model has three decoders
    decoder = DEFAULT_LIMITS.memory_bytes / MIB + 20
    most = service + parsers + Settings().max_reserved_mib + decoders * decoder
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["leuko"]
    assert int(compose["environment"]["LEUKO_DECODE_WORKERS"]) == decoders
    assert most + temporary < 1024 * int(compose["mem_limit"].removesuffix("g"))
    assert compose["tmpfs"] == [f"/tmp:size={temporary}m,mode=1777"]
    assert compose["ulimits"] == {"core": 0}
    deployment = yaml.safe_load((ROOT / "ops/kubernetes/deployment.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"] == {"cpu": "2", "memory": "5Gi"}
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "192Mi"}


def peak_mib(pid: int) -> float:
    [kib] = field(pid, r"VmHWM:\s+(\d+) kB")
    return int(kib) / 1024
