"""Content-Disposition of a form's part: its name and file name, in each way that senders write them.

Browsers follow WHATWG HTML (section 4.10.21.8), which escapes three characters with a percent sign. .NET
sends encoded words (RFC 2047) and `filename*` (RFC 8187) together. Others send one of these, or the parts of
RFC 2231.
"""

from __future__ import annotations

import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from app.errors import MalformedRequest

MAX_OPTIONS = 2048  # bytes of a header with parameters, such as a file name

_ESCAPES = {"%22": '"', "%0D": "\r", "%0A": "\n"}  # WHATWG's; a percent sign itself is not escaped
_ESCAPED = re.compile("|".join(_ESCAPES), re.IGNORECASE)
_WORD = r"=\?([\w-]+)(?:\*[\w-]*)?\?([BbQq])\?([^?]*)\?="
_WORDS = re.compile(rf"{_WORD}(?:\s+{_WORD})*")  # blanks between two words are not part of the text
_EXTENDED = re.compile(rb"([^']*)'[^']*'((?:[^%]|%[0-9A-Fa-f]{2})*)", re.DOTALL)
_CONTINUED = re.compile(rb"(?P<name>[^*]+)\*(?P<number>0|[1-9][0-9]?)(?P<coded>\*?)")
# Others could be slow or no text at all, such as `idna` and `unicode_escape`.
_CHARSETS = re.compile(
    r"utf-?8|us-ascii|iso-8859-\d{1,2}|windows-125\d|koi8-[ru]|gb2312|gbk|gb18030|big5|euc-(jp|kr)"
    r"|iso-2022-(jp|kr)|shift_jis",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Disposition:
    """name: of the form's field; filename: None if the part is no file. Either may be absent."""

    name: str | None
    filename: str | None


def parse_disposition(header: bytes) -> Disposition:
    """Raise MalformedRequest for a header that is too long, or a name whose only form cannot be read."""
    plain = parse_options(header)
    extended = _extended(header) if b"*" in header else {}
    return Disposition(*(_parameter(name, plain, extended) for name in (b"name", b"filename")))


def parse_options(header: bytes) -> dict[bytes, bytes]:
    """Return the parameters of a header by name, without those in a `*` form. Raise MalformedRequest."""
    # The parser's time grows with the square of the length.
    if len(header) > MAX_OPTIONS:
        raise MalformedRequest(f"Content-Type and Content-Disposition may have {MAX_OPTIONS} bytes")
    return parse_options_header(header)[1]


def _parameter(name: bytes, plain: Mapping[bytes, bytes], extended: Mapping[bytes, str | None]) -> str | None:
    """Return the parameter's `*` form if it can be read (RFC 6266, section 4.3), else its plain form."""
    if (text := extended.get(name)) is not None:
        return text
    if name in plain:
        return _read_plain(decode_text(plain[name]))
    if name in extended:
        raise MalformedRequest(
            f"the parameter {name.decode('latin-1')}* of a part of the form cannot be read"
        )
    return None


def _read_plain(text: str) -> str:
    if "=?" in text and (decoded := _WORDS.sub(_decode_words, text)) != text:
        return decoded
    return _ESCAPED.sub(lambda found: _ESCAPES[found[0].upper()], text) if "%" in text else text


def _decode_words(found: re.Match[str]) -> str:
    """Decode adjacent encoded words; a character may be cut between two. As they are if that fails."""
    text, pieces, charset = "", b"", ""
    try:
        for name, coding, data in re.findall(_WORD, found[0]):
            if name.lower() != charset:
                text, pieces, charset = text + _decode(pieces, charset), b"", name.lower()
            pieces += _decode_base64(data) if coding in "Bb" else _decode_q(data)
        return text + _decode(pieces, charset)
    except ValueError:
        return found[0]


def _decode_base64(data: str) -> bytes:
    return binascii.a2b_base64(data.rstrip("=") + "=" * (-len(data.rstrip("=")) % 4), strict_mode=True)


def _decode_q(data: str) -> bytes:
    return binascii.a2b_qp(data.encode("latin-1"), header=True)


def _decode(data: bytes, charset: str) -> str:
    """Decode. Raise ValueError, also for a charset that is not read."""
    if data and not _CHARSETS.fullmatch(charset):
        raise ValueError(charset)
    try:
        return data.decode(charset or "ascii")
    except LookupError:
        raise ValueError(charset) from None


def _extended(header: bytes) -> dict[bytes, str | None]:
    """Return the parameters in RFC 8187's form (`name*`) and RFC 2231's (`name*0*`); None: unreadable."""
    found: dict[bytes, str | None] = {}
    parts: dict[bytes, list[tuple[int, bool, bytes]]] = {}
    for key, value in _split(header):
        if key.endswith(b"*") and b"*" not in key[:-1]:
            found[key[:-1]] = _decode_extended(value)
        elif (match := _CONTINUED.fullmatch(key)) is not None:
            parts.setdefault(match["name"], []).append((int(match["number"]), bool(match["coded"]), value))
    for name, some in parts.items():
        found.setdefault(name, _join(sorted(some)))
    return found


def _decode_extended(value: bytes) -> str | None:
    if (match := _EXTENDED.fullmatch(value)) is None:
        return None
    try:
        return _decode(unquote_to_bytes(match[2]), match[1].decode("latin-1") or "utf-8")
    except ValueError:
        return None


def _join(parts: list[tuple[int, bool, bytes]]) -> str | None:
    """Join the parts of a value; the first coded one begins with the charset. None if one is missing."""
    if [number for number, _, _ in parts] != list(range(len(parts))):
        return None
    if not parts[0][1]:
        return decode_text(b"".join(value for _, _, value in parts))
    # What is not coded may hold a percent sign that stands for itself.
    values = [value if coded else value.replace(b"%", b"%25") for _, coded, value in parts]
    return _decode_extended(b"".join(values))


def _split(header: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the parameters, names in lower case and values without quotes, in one pass."""
    start, quoted, escaped = 0, False, False
    ends = []
    for at, character in enumerate(header):
        if escaped:
            escaped = False
        elif character == 0x5C:  # backslash
            escaped = quoted
        elif character == 0x22:  # quote
            quoted = not quoted
        elif character == 0x3B and not quoted:  # semicolon
            ends.append(at)
    for end in [*ends, len(header)]:
        key, sign, value = header[start:end].partition(b"=")
        value = value.strip()
        if len(value) >= 2 and value[:1] == value[-1:] == b'"':
            value = re.sub(rb"\\([\\\"])", rb"\1", value[1:-1])
        if sign:
            yield key.strip().lower(), value
        start = end + 1


def decode_text(raw: bytes) -> str:
    """Return text in UTF-8, else in Latin-1."""
    # RFC 7578 lets the client choose the encoding; Latin-1 decodes any bytes.
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1")
