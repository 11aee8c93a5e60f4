"""DICOM: files that pydicom writes and ships are decoded as pydicom decodes them, or refused by name."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.processing import apply_color_lut
from pydicom.sequence import Sequence
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

from app.errors import TooLarge, UndecodableImage, UnsupportedFormat
from app.imaging import dicom, dicom_elements, dicom_writer
from app.imaging.decode import decode
from app.imaging.dicom import ENCODED, JPEG, JPEG_2000, JPEG_2000_LOSSLESS, MICROSCOPIC, NATIVE
from app.imaging.dicom import SLIDE_COORDINATES as COORDINATES
from app.imaging.limits import ImageLimits
from tests.pictures import levels_apart, picture

SYNTAXES = (*sorted(NATIVE), *ENCODED)
MARK = "DOE^JANE"


def saved(dataset: Dataset) -> bytes:
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def parsed(image: Image.Image | None = None, syntax: str = dicom.EXPLICIT) -> Dataset:
    return dcmread(io.BytesIO(dicom_writer.write(image or picture(), syntax)))


def changed(syntax: str = dicom.EXPLICIT, **values: Any) -> bytes:
    """Return a valid file with some elements changed; None removes an element."""
    dataset = parsed(syntax=syntax)
    for name, value in values.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    return saved(dataset)


def grey(photometric: str, values: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    dataset = parsed()
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = photometric
    del dataset.PlanarConfiguration
    dataset.PixelData = values.tobytes()
    return saved(dataset)


def microscopic(name: str) -> tuple[Dataset, bytes]:
    """Return a file that pydicom ships, with the SOP class of a single cell."""
    dataset = dcmread(str(get_testdata_file(name, download=False)))
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = UID(MICROSCOPIC)
    return dataset, saved(dataset)


# --- what is accepted -------------------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_picture_comes_back_from_every_transfer_syntax(syntax: str) -> None:
    for size in ((48, 32), (47, 31)):
        image = picture(*size)
        exact = ENCODED.get(syntax) is None or syntax == JPEG_2000_LOSSLESS
        assert levels_apart(decode(dicom_writer.write(image, syntax)), image) <= (0 if exact else 40)


@pytest.mark.parametrize("kind", [MICROSCOPIC, COORDINATES])
def test_both_classes_of_single_cells_are_accepted(kind: str) -> None:
    assert levels_apart(decode(changed(SOPClassUID=UID(kind))), picture()) == 0


@pytest.mark.parametrize(
    "name",
    [
        "SC_rgb_rle.dcm",
        "SC_rgb_small_odd.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
        "SC_rgb_jpeg_dcmd.dcm",
        "SC_rgb_jpeg_dcmtk.dcm",
        "SC_rgb_jpeg_lossy_gdcm.dcm",
        "SC_rgb_jpeg_app14_dcmd.dcm",
        "SC_rgb_small_odd_jpeg.dcm",
        "SC_rgb_dcmtk_+eb+cr.dcm",
        "SC_rgb_dcmtk_+eb+cy+n1.dcm",
        "SC_rgb_dcmtk_+eb+cy+n2.dcm",
        "SC_rgb_dcmtk_+eb+cy+np.dcm",
        "SC_rgb_dcmtk_+eb+cy+s2.dcm",
        "SC_rgb_dcmtk_+eb+cy+s4.dcm",
        "SC_jpeg_no_color_transform.dcm",
        "SC_jpeg_no_color_transform_2.dcm",
        "SC_ybr_full_422_uncompressed.dcm",
        "examples_rgb_color.dcm",
        "examples_jpeg2k.dcm",
        "examples_palette.dcm",
    ],
)
def test_files_that_pydicom_ships_are_decoded_as_pydicom_decodes_them(name: str) -> None:
    dataset, data = microscopic(name)
    expected = dataset.pixel_array
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        expected = apply_color_lut(expected, dataset)
        expected = expected >> 8 if expected.dtype == np.uint16 else expected
    assert levels_apart(expected.astype(np.uint8), decode(data)) == 0


@pytest.mark.parametrize(("photometric", "white"), [("MONOCHROME2", 255), ("MONOCHROME1", 0)])
def test_the_photometric_interpretation_defines_white(photometric: str, white: int) -> None:
    values = np.full((4, 6), 255 - white, np.uint8)
    values[0, 0] = white
    image = decode(grey(photometric, values))
    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1, 0)) == (0, 0, 0)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("syntax", ENCODED)
def test_compressed_grey_is_inverted_as_plain_grey_is(photometric: str, syntax: str) -> None:
    file = io.BytesIO()
    options = {"no_jp2": True} if ENCODED[syntax] == "JPEG2000" else {}
    Image.new("L", (16, 16), 250).save(file, ENCODED[syntax], **options)
    dataset = parsed(Image.new("RGB", (16, 16)), syntax)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, photometric
    dataset.PixelData = encapsulate([file.getvalue()])
    ((_, value),) = decode(saved(dataset)).getcolors(1) or []
    assert value == ((250,) * 3 if photometric == "MONOCHROME2" else (5,) * 3)


@pytest.mark.parametrize("bits", [8, 16])
def test_palettes_are_looked_up(bits: int) -> None:
    dataset = parsed()
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 1, 2, 1
    dataset.PhotometricInterpretation = "PALETTE COLOR"
    del dataset.PlanarConfiguration
    for channel, levels in enumerate(([0, 200], [0, 100], [255, 0])):
        table = np.array(levels, np.uint8) if bits == 8 else np.array(levels, np.uint16) * 257
        dataset.add_new(0x0028_1101 + channel, "US", [2, 0, bits])
        dataset.add_new(0x0028_1201 + channel, "OW", table.tobytes())
    dataset.PixelData = b"\0\1"
    image = decode(saved(dataset))
    assert [image.getpixel((x, 0)) for x in range(2)] == [(0, 0, 255), (200, 100, 0)]


@pytest.mark.parametrize("planar", [0, 1])
def test_colours_may_lie_pixel_by_pixel_or_plane_by_plane(planar: int) -> None:
    levels = np.asarray(picture())
    stored = levels if planar == 0 else levels.transpose(2, 0, 1)
    data = changed(PlanarConfiguration=planar, PixelData=np.ascontiguousarray(stored).tobytes())
    assert levels_apart(decode(data), picture()) == 0


def test_rgb_in_a_jpeg_that_does_not_say_so_stays_rgb() -> None:
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 60)).save(file, "JPEG", keep_rgb=True, quality=95)
    frame = without_markers(file.getvalue())
    dataset = parsed(Image.new("RGB", (16, 16)), JPEG)
    dataset.PhotometricInterpretation, dataset.PixelData = "RGB", encapsulate([frame])
    assert levels_apart(decode(saved(dataset)), Image.new("RGB", (16, 16), (200, 30, 60))) <= 4


def without_markers(jpeg: bytes) -> bytes:
    """Return the JPEG without APPn segments, its components named 1, 2 and 3, as scanners write it."""
    place, pieces = 2, [jpeg[:2]]
    while jpeg[place + 1] != 0xDA:
        end = place + 2 + int.from_bytes(jpeg[place + 2 : place + 4], "big")
        segment = bytearray(jpeg[place:end])
        if segment[1] == 0xC0:
            segment[10::3] = bytes((1, 2, 3))
        if not 0xE0 <= segment[1] <= 0xEF:
            pieces.append(bytes(segment))
        place = end
    scan = bytearray(jpeg[place:])
    scan[5:11:2] = bytes((1, 2, 3))
    return b"".join([*pieces, bytes(scan)])


def test_private_and_nested_elements_are_skipped() -> None:
    inner, middle, dataset = Dataset(), Dataset(), parsed()
    inner.PatientID = inner.PatientName = MARK
    middle.ReferencedPatientSequence = Sequence([inner])
    dataset.AcquisitionContextSequence = Sequence([middle, Dataset()])
    dataset.private_block(0x0009, MARK, create=True).add_new(1, "LO", MARK)
    for undefined in (False, True):
        for syntax in (dicom_elements.IMPLICIT, dicom.EXPLICIT, dicom_elements.BIG_ENDIAN):
            dataset["AcquisitionContextSequence"].is_undefined_length = undefined
            file = io.BytesIO()
            dataset.file_meta.TransferSyntaxUID = UID(syntax)
            options = {
                "implicit_vr": syntax == dicom_elements.IMPLICIT,
                "little_endian": syntax != dicom_elements.BIG_ENDIAN,
            }
            pydicom.dcmwrite(file, dataset, enforce_file_format=True, **options)
            assert levels_apart(decode(file.getvalue()), picture()) == 0


def test_a_sequence_rewritten_with_an_unknown_vr_is_skipped() -> None:
    # PS3.5, section 6.2.2: the content of UN of undefined length is in implicit VR.
    item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + b"\x10\x00\x20\x00\x04\x00\x00\x00DOE^"
    item += b"\xfe\xff\x0d\xe0\x00\x00\x00\x00"
    unknown = b"\x40\x00\x55\x05UN\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    data = dicom_writer.write(picture())
    at = data.index(b"\xe0\x7f\x10\x00")
    assert levels_apart(decode(data[:at] + unknown + data[at:]), picture()) == 0


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("JPEGLSNearLossless_08.dcm", "JPEG-LS"),
        ("JPGExtended.dcm", "JPEG Extended"),
        ("SC_rgb_jpeg_gdcm.dcm", "JPEG Lossless"),
        ("image_dfl.dcm", "Deflated"),
        ("SC_rgb_jls_lossy_line.dcm", "JPEG-LS"),
    ],
)
def test_other_transfer_syntaxes_are_refused_by_name(name: str, reason: str) -> None:
    _, data = microscopic(name)
    with pytest.raises(UnsupportedFormat, match=reason):
        decode(data)


def test_whole_slides_and_other_objects_are_refused_by_name() -> None:
    with pytest.raises(UnsupportedFormat, match="VL Whole Slide Microscopy"):
        decode(changed(SOPClassUID=VLWholeSlideMicroscopyImageStorage))
    with pytest.raises(UnsupportedFormat, match="CT Image"):
        decode(Path(str(get_testdata_file("CT_small.dcm", download=False))).read_bytes())


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"NumberOfFrames": 2}, "several frames"),
        ({"BitsAllocated": 16}, "8-bit"),
        ({"BitsStored": 7}, "8-bit"),
        ({"PixelRepresentation": 1}, "8-bit"),
        ({"PhotometricInterpretation": "HSV"}, "photometric interpretation"),
        ({"PhotometricInterpretation": "YBR_ICT"}, "photometric interpretation"),
        ({"SamplesPerPixel": 1}, "do not match"),
        ({"PhotometricInterpretation": "MONOCHROME2"}, "do not match"),
        ({"PixelData": b"\0\0"}, "truncated, corrupt or incomplete"),
        ({"Rows": None}, "truncated, corrupt or incomplete"),
        ({"SOPClassUID": None}, "truncated, corrupt or incomplete"),
        ({"PhotometricInterpretation": None}, "truncated, corrupt or incomplete"),
        ({"PixelData": None}, "no pixel data"),
        ({"Rows": 0}, "no pixels"),
    ],
)
def test_unsupported_or_incomplete_pixel_data_is_refused_with_a_reason(
    values: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UndecodableImage, match=reason):
        decode(changed(**values))


def test_a_frame_that_does_not_match_the_header_is_refused() -> None:
    other = io.BytesIO()
    picture(64, 64).save(other, "JPEG")
    with pytest.raises(UndecodableImage, match="does not match the size or colours"):
        decode(changed(JPEG, PixelData=encapsulate([other.getvalue()])))
    four = io.BytesIO()
    picture().convert("CMYK").save(four, "JPEG")
    with pytest.raises(UndecodableImage, match="does not match the size or colours"):
        decode(changed(JPEG, PixelData=encapsulate([four.getvalue()])))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_too_large_sizes_are_refused_by_the_header(syntax: str) -> None:
    limits = ImageLimits(max_pixels=48 * 32 - 1)
    with pytest.raises(TooLarge, match="48 by 32"):
        decode(dicom_writer.write(picture(), syntax), limits)
    with pytest.raises(TooLarge, match="65535 by 65535"):
        decode(changed(syntax, Rows=65535, Columns=65535))


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_cut_anywhere_is_refused(syntax: str) -> None:
    data = dicom_writer.write(picture(24, 16), syntax)
    # The last 9 bytes can be padding of a frame of odd length and the delimiter after it, not image data.
    for end in (*range(132, len(data) - 9, 7), *range(max(132, len(data) - 64), len(data) - 9)):
        with pytest.raises((UndecodableImage, UnsupportedFormat)):
            decode(data[:end])


@pytest.mark.parametrize("syntax", [JPEG, JPEG_2000])
def test_a_truncated_frame_in_a_complete_file_is_refused(syntax: str) -> None:
    frame = get_frame(parsed(syntax=syntax).PixelData, 0, number_of_frames=1)
    for end in range(0, len(frame) - 20, 31):
        with pytest.raises(UndecodableImage):
            decode(changed(syntax, PixelData=encapsulate([frame[:end] or b"\0\0"])))


def nest(depth: int) -> bytes:
    item, sequence = b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    ends = b"\xfe\xff\x0d\xe0\x00\x00\x00\x00" + b"\xfe\xff\xdd\xe0\x00\x00\x00\x00"
    return (sequence + item) * depth + ends * depth


def beginning(inserted: bytes) -> bytes:
    """Return a valid file with bytes inserted before the patient's name."""
    data = dicom_writer.write(picture())
    at = data.index(b"\x10\x00\x10\x00PN")
    return data[:at] + inserted + data[at:]


def test_nesting_and_elements_are_bounded() -> None:
    assert decode(beginning(nest(16))).size == picture().size
    with pytest.raises(TooLarge, match="nests"):
        decode(beginning(nest(17)))
    with pytest.raises(TooLarge, match="nests"):
        decode(beginning(nest(100_000)))
    few = b"".join(b"\x09\x00" + number.to_bytes(2, "little") + b"LO\0\0" for number in range(0x1000, 0x1010))
    assert decode(beginning(few)).size == picture().size
    items = b"\xfe\xff\x00\xe0\x00\x00\x00\x00" * dicom_elements.MAX_ELEMENTS
    with pytest.raises(TooLarge, match="elements"):
        decode(beginning(b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + items + nest(0)))


@pytest.mark.parametrize(
    "inserted",
    [
        b"\xfe\xff\xdd\xe0\x00\x00\x00\x00",  # a delimiter without a sequence
        b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff",  # a sequence without end
        b"\x08\x00\x05\x00CS\x04\x00ISO ",  # (0008,0005) after (0008,0016)
        b"\x09\x00\x10\x00LO\xff\xff",  # a length beyond the file
        b"\x09\x00\x10\x00OB\0\0\xff\xff\xff\x7f",
    ],
)
def test_a_broken_data_set_is_refused(inserted: bytes) -> None:
    with pytest.raises(UndecodableImage, match="truncated or corrupt"):
        decode(beginning(inserted))


def test_hostile_text_where_numbers_belong_is_refused() -> None:
    data = dicom_writer.write(picture())
    for tag in (b"\x28\x00\x10\x00US", b"\x28\x00\x00\x01US", b"\x28\x00\x02\x00US"):
        at = data.index(tag)
        with pytest.raises(UndecodableImage):
            decode(data[:at] + tag[:4] + b"LO" + data[at + 6 :])


# --- patient data -----------------------------------------------------------------------------------


def marked(syntax: str = dicom.EXPLICIT, **values: Any) -> bytes:
    dataset = parsed(syntax=syntax)
    dataset.PatientName = dataset.PatientID = dataset.AccessionNumber = dataset.ImageComments = MARK
    for name, value in values.items():
        setattr(dataset, name, value)
    return saved(dataset)


def test_a_stripped_file_holds_no_identifier() -> None:
    for syntax in SYNTAXES:
        stripped = dicom_elements.strip(marked(syntax))
        assert MARK.encode() not in stripped
        known = {element.tag for element in dcmread(io.BytesIO(stripped))}
        assert known <= dicom_elements.KEPT


@pytest.mark.parametrize(
    "spoil",
    [
        lambda: marked(SOPClassUID=UID("1.2.3.4444")),
        lambda: marked(SOPClassUID=UID("DOE^JANE")),
        lambda: marked(PhotometricInterpretation=MARK),
        lambda: marked()[:-3000],
        lambda: marked().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.DOE^JANE.1.1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # from writing the test's file
def test_no_error_quotes_the_file(spoil: Callable[[], bytes]) -> None:
    with pytest.raises((UndecodableImage, UnsupportedFormat)) as caught:
        decode(spoil())
    assert "DOE" not in caught.value.detail
    assert "4444" not in caught.value.detail


# --- without the extra ------------------------------------------------------------------------------


def test_without_the_extra_it_is_an_unsupported_format(tmp_path: Path) -> None:
    (tmp_path / "cell.dcm").write_bytes(dicom_writer.write(picture()))
    script = """
import sys
from pathlib import Path
sys.path[:] = [place for place in sys.path if "site-packages" not in place] + [sys.argv[2]]
from app.errors import UnsupportedFormat
from app.imaging.decode import decode
try:
    decode(Path(sys.argv[1]).read_bytes())
except UnsupportedFormat as error:
    print(error.detail)
"""
    bare = tmp_path / "packages"
    bare.mkdir()
    for package in ("numpy", "PIL"):
        (bare / package).symlink_to(Path(sys.modules[package].__file__ or "").parent)
    for folder in Path(np.__file__).parents[1].glob("*.libs"):
        (bare / folder.name).symlink_to(folder)
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "cell.dcm"), str(bare)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        cwd=Path(__file__).parents[2],
    )
    assert "extra dicom" in done.stdout


# --- without the header of a file -------------------------------------------------------------------


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_a_file_without_its_preamble_is_read(syntax: str) -> None:
    data = dicom_writer.write(picture(), syntax)
    for bare in (data[128:], data[132:]):
        assert levels_apart(decode(bare), decode(data)) == 0


@pytest.mark.parametrize("syntax", [dicom.EXPLICIT, dicom_elements.IMPLICIT, dicom_elements.BIG_ENDIAN])
@pytest.mark.parametrize("first", ["SpecificCharacterSet", "ImageType", "SOPClassUID"])
def test_a_data_set_without_the_header_of_a_file_is_told_what_it_lacks(syntax: str, first: str) -> None:
    values = {"SpecificCharacterSet": "ISO_IR 100", "ImageType": ["ORIGINAL", "PRIMARY"]}
    values = {name: value for name, value in values.items() if name == first}
    dataset = changed(syntax, **values)
    _, start = dicom_elements.read_syntax(dataset)
    with pytest.raises(UnsupportedFormat, match=r"DICOM data set .* transfer syntax"):
        decode(dataset[start:])


def test_dicom_is_among_the_formats_that_are_named() -> None:
    with pytest.raises(UnsupportedFormat, match="GIF, DICOM"):
        decode(b"%PDF-1.7")
