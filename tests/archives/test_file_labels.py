from __future__ import annotations

import tracemalloc

import pytest

from app.archives.file_labels import Texts, assign_groups, parse_mapping
from app.archives.pattern_search import MAX_PATTERN, pattern_child
from app.errors import BadLabels


@pytest.mark.parametrize(
    "data",
    [
        b"a.png,neutrophil\nb.png,monocyte\n",
        b"filename,label\na.png,neutrophil\nb.png,monocyte",
        b"\xef\xbb\xbfFileName,Source\r\na.png, neutrophil\r\n\r\nb.png,monocyte\r\n",
        b'"a.png","neutrophil"\n"b.png","monocyte"\n',
        b'{"a.png": "neutrophil", "b.png": "monocyte"}',
        b'\xef\xbb\xbf\r\n {"a.png": "neutrophil", "b.png": "monocyte"}\r\n',
    ],
)
def test_a_mapping_is_read_from_csv_or_json(data: bytes) -> None:
    assert parse_mapping(data) == {"a.png": "neutrophil", "b.png": "monocyte"}


def test_a_repeated_row_that_agrees_is_accepted() -> None:
    assert parse_mapping(b"a.png,s1\na.png,s1\n") == {"a.png": "s1"}


def test_whole_numbers_in_json_are_sources_too() -> None:
    assert parse_mapping(b'{"a.png": 17}') == {"a.png": "17"}


def test_a_quoted_comma_belongs_to_the_name() -> None:
    assert parse_mapping(b'"a, b.png",s1\n') == {"a, b.png": "s1"}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"a.png,s1\na.png,s2\n", "line 2"),
        (b'{"a.png": "s1", "a.png": "s2"}', "entry 2"),
        (b"a.png,s1,extra\n", "3 columns"),
        (b"a.png\n", "1 columns"),
        (b"a.png,\n", "empty"),
        (b" ,s1\n", "empty"),
        (b"a.png,\xff\n", "UTF-8"),
        ("a.png,s1\n".encode("utf-16"), "UTF-8"),
        (b'"a.png,s1\n', "not CSV"),
        (b'a.png,"' + b"x" * 200_000 + b'"\n', "not CSV"),
        (b"", "no file"),
        (b"{}", "no file"),
        (b"filename,source\n", "no file"),
        (b'{"a.png": ', "JSON"),
        (b'{"a":' * 100_000, "JSON"),
        (b'{"a.png": {"b": "c"}}', "entry 1"),
        (b'{"a.png": true}', "entry 1"),
        (b'{"a.png": null}', "entry 1"),
        (b'{"a.png": ' + b"9" * 5000 + b"}", "JSON"),
    ],
)
def test_a_wrong_mapping_says_what_is_wrong(data: bytes, complaint: str) -> None:
    with pytest.raises(BadLabels, match=complaint):
        parse_mapping(data)


def test_a_complaint_does_not_repeat_file_names() -> None:
    with pytest.raises(BadLabels) as caught:
        parse_mapping(b"DOE_JANE.png,s1\nDOE_JANE.png,s2\n")
    assert "DOE" not in caught.value.detail


def test_groups_follow_the_names_through_a_mapping() -> None:
    assert assign_groups(["b", "a", "b"], parse_mapping(b"a,1\nb,2\nc,3")) == [b"2", b"1", b"2"]


def test_groups_are_the_first_group_of_a_pattern_found_anywhere_in_the_name() -> None:
    names = ["TEST/NEUTROPHIL/_40_9127.jpeg", "TEST/MONOCYTE/_7_11.jpeg"]
    assert assign_groups(names, r"_(\d+)_(\d+)\.jpe?g$") == [b"40", b"7"]


@pytest.mark.parametrize("grouping", [parse_mapping(b"a-1,s"), r"-(\d)", r"^\w+(?:-(\d))?", r"^\w+-?(\d*)$"])
def test_names_without_a_source_are_counted_and_not_repeated(grouping: Texts | str) -> None:
    with pytest.raises(BadLabels, match=r"^2 of 3 file names") as caught:
        assign_groups(["a-1", "secret", "other"], grouping)
    assert "secret" not in caught.value.detail


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        (r"_\d+_", "no group"),
        (r"(?:\d+)", "no group"),
        (r"(", "not a regular expression"),
        (r"(a{99999999999999999999})", "not a regular expression"),
        ("(" * 90 + ")" * 89, "not a regular expression"),
        ("(a)" + "b" * MAX_PATTERN, "over 256"),
    ],
)
def test_an_unusable_pattern_says_what_is_wrong(pattern: str, complaint: str) -> None:
    with pytest.raises(BadLabels, match=complaint):
        assign_groups(["a"], pattern)


def test_a_pattern_that_backtracks_for_ever_is_stopped() -> None:
    with pytest.raises(BadLabels, match="make it simpler"):
        assign_groups(["a" * 60 + "b"], "(a+)+$", pattern_child(limit_s=1))


def test_no_names_give_no_groups() -> None:
    assert assign_groups([], r"(\d)") == []


def test_names_and_sources_are_any_text() -> None:
    names = ["😀", "\ud83d"]  # the latter is half a pair, which JSON can escape
    mapping = parse_mapping(b'{"\xf0\x9f\x98\x80": "\xc3\xa9", "\\ud83d": "\\ude00"}')
    assert [mapping[name] for name in names] == ["é", "\ude00"]
    assert assign_groups(names, mapping) == ["é".encode(), b"\xed\xb8\x80"]
    assert assign_groups(names, "(.)") == ["😀".encode(), b"\xed\xa0\xbd"]


def test_a_wide_character_does_not_make_a_mapping_take_four_times_its_bytes() -> None:
    data = "".join(f"{number}{'a' * 200}😀,{'b' * 200}😀\n" for number in range(5000)).encode()
    tracemalloc.start()
    try:
        mapping = parse_mapping(data)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(mapping) == 5000
    assert peak < 2.5 * len(data)
