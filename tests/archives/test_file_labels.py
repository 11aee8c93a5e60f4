from __future__ import annotations

import tracemalloc
import unicodedata

import pytest

from app.archives.file_labels import Texts, assign_groups, class_indices, parse_mapping
from app.archives.pattern_search import MAX_PATTERN, pattern_child
from app.errors import BadLabels
from tests.pictures import case

EXPECTED = {"a.png": "neutrophil", "b.png": "monocyte"}


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
    assert parse_mapping(data) == EXPECTED


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_table_is_read_as_people_save_it(delimiter: str, encoding: str) -> None:
    rows: list[tuple[str, ...]] = [*EXPECTED.items()]
    quoted: list[tuple[str, ...]] = [tuple(f'"{cell}"' for cell in row) for row in rows]
    blank: list[tuple[str, ...]] = [(), ("", "", ""), ("  ",), ()]
    tables = [
        rows,
        quoted,
        [*rows, *blank],
        [("File Name", "Label"), *rows],
        [(), ("image_path", "class"), *rows],
    ]
    for table in tables:
        for between in (delimiter, f"{delimiter} ", f" {delimiter}"):
            for end in ("\n", "\r\n", "\r"):
                text = end.join(between.join(row) for row in table)
                if between[0] == " " and table is quoted:
                    continue  # `"a" ,` is not CSV
                assert parse_mapping(text.encode(encoding)) == EXPECTED


def test_a_byte_order_mark_of_the_other_end_is_read() -> None:
    assert parse_mapping("\ufeffa.png;s1\n".encode("utf-16-be")) == {"a.png": "s1"}
    assert parse_mapping('{"a.png": "s1"}'.encode("utf-16")) == {"a.png": "s1"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"Doe, J 1.png;s1\nDoe, J 2.png;s2\n", {"Doe, J 1.png": "s1", "Doe, J 2.png": "s2"}),
        (b"Doe, J 1;s1\nRoe;s2\n", {"Doe, J 1": "s1", "Roe": "s2"}),
        (b"a;1.png,s1\nb;2.png,s2\n", {"a;1.png": "s1", "b;2.png": "s2"}),
        (b"a;1.png\ts1, left\nb;2.png\ts2, right\n", {"a;1.png": "s1, left", "b;2.png": "s2, right"}),
        (b"a.png;s1, s2\n", {"a.png": "s1, s2"}),
        (b"sep=;\r\nfile;label\r\na.png;s1,5\r\n", {"a.png": "s1,5"}),
        (b'"sep=,"\na.png,s1;5\n', {"a.png": "s1;5"}),
        (b"file;label;;\na.png;s1;;\n;;;\n", {"a.png": "s1"}),
        (b'"a ""left"".png";"s;1"\n', {'a "left".png': "s;1"}),
    ],
)
def test_the_delimiter_is_the_one_that_makes_two_columns(data: bytes, expected: dict[str, str]) -> None:
    assert parse_mapping(data) == expected


def test_a_large_table_is_told_by_its_start() -> None:
    rows = "".join(f"cells, {number}.png;slide {number // 10}\n" for number in range(20_000))
    mapping = parse_mapping(rows.encode("utf-16"))
    assert len(mapping) == 20_000
    assert mapping["cells, 19999.png"] == "slide 1999"


@pytest.mark.parametrize("name", ["semicolon.csv", "src-bom.csv", "groups-nfc.csv"])
def test_the_tables_that_users_sent_are_read(name: str) -> None:
    assert len(parse_mapping(case(name).read_bytes())) == 8


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
        (b"\xef\xbb\xbffile;source\r\na.png;s1\r\n\r\na.png;s2\r\n", "line 4"),
        ("a.png\ts1\na.png\ts2\n".encode("utf-16"), "line 2"),
        ("ü.png,s1\nu\u0308.png,s2\n".encode(), "line 2"),
        (b"a/b.png,s1\na\\b.png,s2\n", "line 2"),
        (b'{"a.png": "s1", "a.png": "s2"}', "entry 2"),
        (b"a.png,s1,extra\n", "3 columns"),
        (b"a.png\n", "1 columns"),
        (b"a.png,\n", "empty"),
        (b" ,s1\n", "empty"),
        (b"a.png,\xff\n", "UTF-8"),
        ("ü.png;s1\n".encode("cp1252"), "CSV UTF-8"),
        ("a.png;s1\n".encode("utf-16")[:-1], "UTF-16"),
        (b"a.png s1\n", "comma, semicolon or tab"),
        (b"a.png;s1\nb.png;s1\nc.png,s1\n", "line 3 has 1 columns"),
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


def test_names_are_found_however_they_are_spelled() -> None:
    composed, decomposed = "Müller/ü 1.png", unicodedata.normalize("NFD", "Müller/ü 1.png")
    for written, asked in ((composed, decomposed), (decomposed, composed)):
        mapping = parse_mapping(f"{written};Frau Möller\n".encode())
        assert mapping[asked] == "Frau Möller"
        assert assign_groups([asked], mapping) == ["Frau Möller".encode()]
        assert assign_groups([asked], "^(M.)ller") == ["Mü".encode()]
        assert assign_groups([asked], f"({written.partition('ller')[0]})") == ["Mü".encode()]
    assert assign_groups(["a/b.png"], parse_mapping(b".\\a\\b.png,s1\n")) == [b"s1"]


def test_a_source_is_one_however_it_is_spelled() -> None:
    mapping = parse_mapping("a.png,Mu\u0308ller\nb.png,Müller\n".encode())
    assert len({*assign_groups(["a.png", "b.png"], mapping)}) == 1


def test_labels_are_classes_in_any_case_with_blanks_and_in_the_plural() -> None:
    labels = ("eosinophil", "monocyte")
    assert class_indices("labels", ["MONOCYTES", " Eosinophil ", "monocyte", 1], labels) == [1, 0, 1, 1]
    with pytest.raises(
        BadLabels, match=r"labels\[1\] is none of eosinophil, monocyte; did you mean monocyte\?"
    ):
        class_indices("labels", ["monocyte", "Monozyte"], labels)
    with pytest.raises(BadLabels, match=r"none of eosinophil, monocyte$"):
        class_indices("labels", ["basophil"], labels)
