"""`leuko`: the arguments of each command; `app.server.serve` and `app.cli.commands` do the work."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import Field, fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from app import __version__
from app.cli.arguments import moment, size
from app.errors import LeukoError, SettingsError, StartupError
from app.settings import PREFIX, Settings, parse, variable

if TYPE_CHECKING:
    from app.engine.classifier import Classifier

# Settings that matter without the service, too.
KEY = "LEUKO_KEY"  # never a flag: others can see those
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
KINDS = {"str": "TEXT", "int": "NUMBER", "float": "NUMBER"}  # type → what help calls it

# Each command imports what it needs when it runs, so that `leuko --help` is instant.


def load_from(settings: Settings) -> Classifier:
    from app.registry.fetch import load

    return load(settings)


def main(
    argv: Sequence[str] | None = None,
    *,
    load: Callable[[Settings], Classifier] = load_from,
    stdin: BinaryIO | None = None,
) -> int:
    """0 done; 1 an error, or an image failed; 2 wrong usage or setting; 130 interrupted."""
    arguments = build_parser().parse_args(
        argv, argparse.Namespace(load=load, stdin=stdin or sys.stdin.buffer)
    )
    try:
        code: int = arguments.run(arguments)
    except LeukoError as error:
        print(f"leuko: {error.detail}", file=sys.stderr)
        return 2 if isinstance(error, SettingsError) else 1
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        print(f"leuko: {place}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("leuko: interrupted", file=sys.stderr)
        return 130
    return code


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "leuko", description="White blood cell classification. Not for diagnosis."
    )
    parser.add_argument("--version", action="version", version=f"leuko {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for add in (_add_serve, _add_predict, _add_evaluate, _add_drift, _add_score, _add_sample, _add_key):
        add(commands)
    return parser


def read_settings(arguments: argparse.Namespace) -> Settings:
    """Flags beat the environment, which beats the defaults."""
    given = {f: text for f in fields(Settings) if (text := getattr(arguments, f.name, None)) is not None}
    beaten = {variable(f) for f in given}
    environ = {name: text for name, text in os.environ.items() if name not in beaten}
    changes = {f.name: parse(f, text, flag(f)) for f, text in given.items()}
    return replace(Settings.from_environ(environ), **changes)


def flag(setting: Field[Any]) -> str:
    return "--" + setting.name.replace("_", "-")


def _add_serve(commands: Any) -> None:
    parser = commands.add_parser(
        "serve", help="answer over HTTP", description=_environment("Answer over HTTP.")
    )
    _add_settings(parser, [f.name for f in fields(Settings)])
    parser.set_defaults(run=_serve)


def _add_predict(commands: Any) -> None:
    description = _environment("Classify images on this machine. Exit code 1 if any of them failed.")
    parser = commands.add_parser("predict", help="classify images on this machine", description=description)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="file, folder, or - for standard input")
    parser.add_argument(
        "--url", help=f"have a running service do it; its key comes from {KEY}, if it wants one"
    )
    _add_json(parser)
    _add_settings(parser, LOCAL)
    parser.set_defaults(run=_predict)


def _add_evaluate(commands: Any) -> None:
    description = _environment("Score the bundle on labelled images, as POST /evaluate does.")
    parser = commands.add_parser("evaluate", help="score labelled images", description=description)
    parser.add_argument("archive", type=Path, help="ZIP or folder that holds one folder for each class")
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument("--groups", type=Path, metavar="FILE", help="CSV or JSON: file name, source")
    groups.add_argument(
        "--group-pattern", metavar="REGEX", help="its first group in a file name is the source"
    )
    _add_json(parser)
    _add_settings(parser, LOCAL)
    parser.set_defaults(run=_evaluate)


def _add_drift(commands: Any) -> None:
    description = _environment(
        "Hold the answers that an audit log has of a while against what the bundle's were like. "
        "Exit code 3 if they have drifted."
    )
    parser = commands.add_parser("drift", help="has what comes in changed?", description=description)
    parser.add_argument("logs", nargs="+", type=Path, metavar="LOG", help="file of LEUKO_AUDIT, or its .gz")
    parser.add_argument(
        "--since", type=moment, metavar="TIME", help="as 2026-11-01 or 2026-11-01T08:00+01:00"
    )
    parser.add_argument("--until", type=moment, metavar="TIME", help="the first moment that is left out")
    parser.add_argument(
        "--save", type=Path, metavar="FILE", help="keep this while as a reference, for LEUKO_REFERENCE"
    )
    _add_json(parser)
    _add_settings(parser, ("bundle", "cache", "reference"))
    parser.set_defaults(run=_drift)


def _add_score(commands: Any) -> None:
    description = _environment(
        "Classify an archive of any size into Parquet files with one row an image; the same command again "
        "goes on where it ended. An image that fails is a row with its error; exit code 1 if a part of the "
        "archive has no rows."
    )
    parser = commands.add_parser("score", help="classify archives of millions", description=description)
    parser.add_argument(
        "source", help="folder of images or of .zip, .tar, .parquet; such a file; or s3://… of either"
    )
    parser.add_argument("destination", help="folder, or s3://…")
    parser.add_argument("--address", help="HOST:PORT of a Ray cluster's head; default: this machine")
    parser.add_argument("--workers", type=int, metavar="NUMBER", help="default: one for every four cores")
    _add_json(parser)
    _add_settings(parser, SCORING)
    parser.set_defaults(run=_score)


def _add_sample(commands: Any) -> None:
    description = "Draw a synthetic smear with one cell: something to try the service with, no data."
    parser = commands.add_parser("sample", help="draw a synthetic smear", description=description)
    parser.add_argument(
        "label", type=str.lower, help="eosinophil, lymphocyte, monocyte, neutrophil, or all of them"
    )
    parser.add_argument(
        "-o",
        "--output",
        metavar="FILE",
        help="file (.png, .jpg, .dcm) or folder, - for standard output; default LABEL.png",
    )
    parser.add_argument("--seed", type=int, default=0, help="another seed, another cell; default 0")
    parser.add_argument("--size", type=size, default=(320, 240), metavar="WxH", help="default 320x240 pixels")
    parser.set_defaults(run=_sample)


def _add_key(commands: Any) -> None:
    description = "Make a key. It is printed once and stored nowhere; its hash goes to the end of the file."
    parser = commands.add_parser("key", help="make a key for callers", description=description)
    parser.add_argument("id", help="who shall have it; the audit log names it")
    parser.add_argument("file", type=Path, help="that LEUKO_KEYS names; made where there is none")
    parser.add_argument(
        "--scopes", default="predict,evaluate", help="of predict, evaluate, metrics [%(default)s]"
    )
    parser.set_defaults(run=_key)


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="JSON also on a terminal; elsewhere it always is")


def _add_settings(parser: argparse.ArgumentParser, names: Collection[str]) -> None:
    group = parser.add_argument_group("settings")
    for setting in fields(Settings):
        if setting.name in names:
            choices, unit = setting.metadata["choices"], setting.metadata["unit"]
            metavar = "|".join(choices) or unit.upper() or KINDS[str(setting.type)]
            text = f"{setting.metadata['help']} [{setting.default}; {variable(setting)}]"
            group.add_argument(flag(setting), metavar=metavar, help=text.replace("%", "%%"))


def _environment(description: str) -> str:
    return (
        f"{description} Brackets hold a setting's default and its {PREFIX}… variable; flags beat variables."
    )


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
        as_json=arguments.json,
    )


def _evaluate(arguments: argparse.Namespace) -> int:
    from app.cli.commands import evaluate

    groups = arguments.groups or arguments.group_pattern
    settings = read_settings(arguments)
    return evaluate(arguments.archive, settings, arguments.load, groups=groups, as_json=arguments.json)


def _drift(arguments: argparse.Namespace) -> int:
    from app.cli.commands import drift
    from app.observability.drift import Window

    window = Window(arguments.since, arguments.until)
    settings = read_settings(arguments)
    return drift(arguments.logs, settings, window, save=arguments.save, as_json=arguments.json)


def _score(arguments: argparse.Namespace) -> int:
    settings = read_settings(arguments)
    if find_spec("ray") is None or find_spec("pyarrow") is None:
        raise StartupError("leuko score needs Ray and pyarrow: install the extra `score`")
    from app.bulk.command import score

    return score(
        arguments.source,
        arguments.destination,
        settings,
        address=arguments.address,
        workers=arguments.workers,
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
