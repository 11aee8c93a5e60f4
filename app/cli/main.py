"""`leuko`: the arguments of each command. The commands are in `commands`, `app.server` and `app.bulk`."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields, replace
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

from app import __version__
from app.errors import LeukoError, SettingsError, StartupError
from app.printable import complain, printable
from app.settings import PREFIX, Settings, parse, strangers, variable

if TYPE_CHECKING:
    from app.engine.classifier import Classifier

KEY = "LEUKO_KEY"  # not a flag: other users of the machine can read the arguments of a process
CELLS = ("one", "all")
# The settings that each command offers; `serve` has all of them.
LOCAL = (
    "bundle",
    "cache",
    "engine",
    "threads",
    "max_image_mib",
    "max_pixels",
    "max_archive_entries",
    "decode_workers",
)
SCORING = ("bundle", "cache", "engine", "threads", "max_image_mib", "max_pixels", "engine_timeout_s")
METAVARS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}  # by type

# Each command imports what it needs when it runs, so that `leuko --help` is fast.


def load_from(settings: Settings) -> Classifier:
    from app.registry.fetch import load

    return load(settings)


def main(
    argv: Sequence[str] | None = None,
    *,
    load: Callable[[Settings], Classifier] = load_from,
    stdin: BinaryIO | None = None,
) -> int:
    """Run a command and return its exit status.

    0: success; 1: an error, or an image failed; 2: wrong usage or setting; 3: drift found; 130: interrupted.
    """
    arguments = build_parser().parse_args(
        argv, argparse.Namespace(load=load, stdin=stdin or sys.stdin.buffer)
    )
    try:
        code: int = arguments.run(arguments)
    except LeukoError as error:
        complain(error.detail)
        return 2 if isinstance(error, SettingsError) else 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{error.strerror or error}")
        return 1
    except KeyboardInterrupt:
        complain("interrupted")
        return 130
    return code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        "leuko",
        description="Classify white blood cells in microscope images. Not for diagnosis.",
        epilog="`leuko COMMAND --help` describes a command and its settings.",
    )
    parser.add_argument("--version", action="version", version=f"leuko {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (
        _add_serve,
        _add_predict,
        _add_evaluate,
        _add_verify,
        _add_compare,
        _add_drift,
        _add_score,
        _add_sample,
        _add_key,
    ):
        add(commands)
    return parser


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Return the settings: from flags, else from the environment, else the defaults. Raise SettingsError.

    Warn of variables that are no settings, except for `serve`, which logs them.
    """
    if arguments.run is not _serve:
        for stranger in strangers(os.environ):
            complain(f"warning: {stranger}")
    flags = {f: text for f in fields(Settings) if (text := getattr(arguments, f.name, None)) is not None}
    overridden = {variable(f) for f in flags}
    environ = {name: text for name, text in os.environ.items() if name not in overridden}
    values = {f.name: parse(f, text, flag(f)) for f, text in flags.items()}
    return replace(Settings.from_environ(environ), **values)


def flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="run the HTTP service", description="Run the HTTP service until SIGTERM or Ctrl+C."
    )
    _add_settings(parser, [f.name for f in fields(Settings)])
    parser.set_defaults(run=_serve)


def _add_predict(commands: Any) -> None:
    description = (
        "Classify images on this machine, or with --url on a running service. Exit status 1 if any failed."
    )
    parser = commands.add_parser("predict", help="classify images", description=description)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of images, or - for standard input"
    )
    parser.add_argument(
        "--url", help=f"send the images to this service; if it requires a key, set {KEY} to the key"
    )
    _add_cells(parser)
    _add_json(parser)
    _add_settings(parser, (*LOCAL, "max_cells"))
    parser.set_defaults(run=_predict)


def _add_evaluate(commands: Any) -> None:
    description = "Score the model bundle on labelled images, as POST /evaluate does."
    parser = commands.add_parser(
        "evaluate", help="score the model on labelled images", description=description
    )
    _add_labelled(parser)
    _add_json(parser)
    _add_settings(parser, LOCAL)
    parser.set_defaults(run=_evaluate)


def _add_verify(commands: Any) -> None:
    description = (
        "Verify the model bundle on a laboratory's own labelled cells. Write a bundle with review thresholds "
        "for this laboratory, and a report to sign. Exit status 3 if no thresholds are good enough: only the "
        "report is written then."
    )
    parser = commands.add_parser(
        "verify", help="verify the model on a laboratory's own cells", description=description
    )
    parser.add_argument("--site", required=True, metavar="NAME", help="name of the laboratory")
    parser.add_argument("--by", required=True, metavar="NAME", help="who verifies; the report names them")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="new folder for the bundle; default: beside the old one, named after the laboratory",
    )
    parser.add_argument(
        "--right-when-kept",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="share of the cells kept without review that is to be right [0.95]",
    )
    parser.add_argument(
        "--confidence",
        type=confidence,
        metavar="NUMBER",
        help="review cells with a lower confidence, whatever is proposed; the report says what this costs",
    )
    parser.add_argument(
        "--ood-score",
        type=score,
        metavar="NUMBER",
        help="review cells with a higher out-of-distribution score; the report warns if it is looser",
    )
    _add_labelled(parser)
    _add_json(parser)
    _add_settings(parser, LOCAL)
    parser.set_defaults(run=_verify)


def _add_compare(commands: Any) -> None:
    description = (
        "Compare two model bundles on the same labelled images: accuracy and recalls with intervals of the "
        "differences, McNemar's test, what each keeps without review, and the images on which they differ."
    )
    parser = commands.add_parser(
        "compare", help="compare two models on the same labelled images", description=description
    )
    parser.add_argument("first", metavar="BUNDLE", help="bundle, such as the one that is served now")
    parser.add_argument("second", metavar="BUNDLE", help="bundle that may replace it")
    _add_labelled(parser)
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="new folder for the report, an HTML page with pictures of the images, and the same as JSON",
    )
    _add_json(parser)
    _add_settings(parser, [name for name in LOCAL if name != "bundle"])
    parser.set_defaults(run=_compare)


def _add_drift(commands: Any) -> None:
    description = (
        "Compare logged answers with the bundle's reference: shares of the classes, confidence, "
        "out-of-distribution score and review. Exit status 3 if they have drifted."
    )
    parser = commands.add_parser(
        "drift", help="compare logged answers with the bundle's reference", description=description
    )
    parser.add_argument(
        "logs",
        nargs="+",
        type=Path,
        metavar="LOG",
        help="audit log that the service wrote (LEUKO_AUDIT), or its .gz",
    )
    parser.add_argument(
        "--since",
        type=moment,
        metavar="TIME",
        help="first time included, such as 2026-11-01T08:00+01:00; UTC if it has no offset",
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="first time excluded")
    parser.add_argument(
        "--save",
        type=Path,
        metavar="FILE",
        help="write these answers as a new reference, for LEUKO_REFERENCE",
    )
    _add_json(parser)
    _add_settings(parser, ("bundle", "cache", "reference"))
    parser.set_defaults(run=_drift)


def _add_score(commands: Any) -> None:
    description = (
        "Classify an archive of any size into Parquet files with one row for each image, or with --cells all "
        "for each leukocyte. An interrupted run is continued by the same command. An image that fails gets a "
        "row with its error. Exit status 1 if a part of the archive could not be read."
    )
    parser = commands.add_parser(
        "score", help="classify large archives into Parquet files", description=description
    )
    parser.add_argument(
        "source",
        help="image archive: a .zip, .tar or .parquet file, or a folder of these or of images; or s3://…",
    )
    parser.add_argument("destination", help="folder for the Parquet files, or s3://…")
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster's head node; default: use this machine")
    parser.add_argument(
        "--workers", type=int, metavar="NUMBER", help="worker processes; default: one for every four cores"
    )
    _add_cells(parser)
    _add_json(parser)
    _add_settings(parser, (*SCORING, "max_cells"))
    parser.set_defaults(run=_score)


def _add_sample(commands: Any) -> None:
    description = (
        "Draw a synthetic smear with one cell, to try the service with. It contains no patient data."
    )
    parser = commands.add_parser("sample", help="draw a synthetic smear", description=description)
    parser.add_argument(
        "label", type=str.lower, help="eosinophil, lymphocyte, monocyte, neutrophil, or all (one file each)"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="file (.png, .jpg, .dcm), folder, or - for standard output; default: LABEL.png",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, help="seed of the random cell; the same seed draws the same cell [0]"
    )
    parser.add_argument(
        "--size", type=size, default=(320, 240), metavar="WxH", help="width and height in pixels [320x240]"
    )
    parser.set_defaults(run=_sample)


def _add_key(commands: Any) -> None:
    description = (
        "Create an access key: print its secret, which is not stored, and append its hash to the key file."
    )
    parser = commands.add_parser("key", help="create an access key", description=description)
    parser.add_argument("id", help="name of the caller; the audit log records it")
    parser.add_argument("file", type=Path, help="key file (LEUKO_KEYS); created if missing")
    parser.add_argument(
        "--scopes",
        default="predict,evaluate",
        help="what the key allows: predict, evaluate, metrics, separated by commas [%(default)s]",
    )
    parser.set_defaults(run=_key)


def _add_labelled(parser: argparse.ArgumentParser) -> None:
    """Add the labelled images and their sources."""
    parser.add_argument(
        "archive", type=Path, help="ZIP file or folder with one folder of images for each class"
    )
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument(
        "--groups",
        type=Path,
        metavar="FILE",
        help="CSV or JSON file that maps each file name to its source (photo, slide or patient); "
        "intervals are then over sources, not images",
    )
    groups.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="regular expression; its first group, searched in each file name, is the source",
    )


def _add_cells(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cells",
        choices=CELLS,
        default="one",
        help="all: classify every leukocyte of each image; one: an image is one cell [one]",
    )


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json",
        action="store_true",
        help="print JSON on a terminal too; into a pipe or file it is always JSON",
    )


def _add_settings(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    group = parser.add_argument_group(
        "settings",
        f"In brackets: the default, and the {PREFIX}… variable that also sets it. A flag overrides it.",
    )
    for setting in fields(Settings):
        if setting.name in names:
            choices, unit = setting.metadata["choices"], setting.metadata["unit"]
            metavar = "|".join(choices) or unit.upper() or METAVARS[str(setting.type)]
            text = f"{setting.metadata['help']} [{setting.default}; {variable(setting)}]"
            group.add_argument(flag(setting), metavar=metavar, help=text.replace("%", "%%"))


def share(text: str) -> float:
    value = float(text)  # argparse reports a ValueError
    if not 0.5 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0.5 to 1")
    return value


def confidence(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a confidence from 0 to 1")
    return value


def score(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not an out-of-distribution score: a number from 0")
    return value


def moment(text: str) -> datetime:
    """Parse ISO 8601; a time without an offset is UTC, as in the audit log."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not an ISO 8601 time such as 2026-11-01T08:00+01:00"
        ) from None
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,4})x(\d{1,4})", text)
    if match is None or min(sides := (int(match[1]), int(match[2]))) < 8:  # smear.LEAST_SIDE
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a width and height from 8 to 9999 pixels, such as 320x240"
        )
    return sides


def seed(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 0")
    return int(text)


def _serve(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    from app.server.serve import serve

    return serve(settings, arguments.load)


def _predict(arguments: argparse.Namespace) -> int:
    from app.cli.commands import predict

    settings = read_settings(arguments)
    return predict(
        arguments.images,
        settings,
        arguments.load,
        stdin=arguments.stdin,
        url=arguments.url,
        key=os.environ.get(KEY),
        all_cells=arguments.cells == "all",
        as_json=arguments.json,
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from app.cli.commands import evaluate

    groups = arguments.groups or arguments.group_pattern
    settings = read_settings(arguments)
    return evaluate(arguments.archive, settings, arguments.load, groups=groups, as_json=arguments.json)


def _verify(arguments: argparse.Namespace) -> int:
    from app.cli.verify import verify

    return verify(
        arguments.archive,
        read_settings(arguments),
        arguments.load,
        site=arguments.site,
        by=arguments.by,
        target=arguments.right_when_kept,
        confidence=arguments.confidence,
        ood_score=arguments.ood_score,
        out=arguments.out,
        groups=arguments.groups or arguments.group_pattern,
        as_json=arguments.json,
    )


def _compare(arguments: argparse.Namespace) -> int:
    from app.cli.compare import compare

    return compare(
        (arguments.first, arguments.second),
        arguments.archive,
        read_settings(arguments),
        arguments.load,
        out=arguments.out,
        groups=arguments.groups or arguments.group_pattern,
        as_json=arguments.json,
    )


def _drift(arguments: argparse.Namespace) -> int:
    from app.cli.commands import drift
    from app.observability.drift import Window

    window = Window(arguments.since, arguments.until)
    settings = read_settings(arguments)
    return drift(arguments.logs, settings, window, save=arguments.save, as_json=arguments.json)


def _score(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise StartupError(
            "leuko score needs Ray and pyarrow: run `make install EXTRAS=score` in Leuko's checkout"
        )
    from app.bulk.command import score

    return score(
        arguments.source,
        arguments.destination,
        settings,
        address=arguments.address,
        workers=arguments.workers,
        all_cells=arguments.cells == "all",
        as_json=arguments.json,
    )


def _key(arguments: argparse.Namespace) -> int:
    from app.edge.keys import add_key

    print(add_key(arguments.file, arguments.id, arguments.scopes.split(",")))
    return 0


def _sample(arguments: argparse.Namespace) -> int:
    from app.cli.commands import sample

    return sample(arguments.label, arguments.output, seed=arguments.seed, size=arguments.size)


if __name__ == "__main__":
    sys.exit(main())
