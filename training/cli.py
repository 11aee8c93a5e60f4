"""`leuko-train data | fit | laboratories | export | report | adapt`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias, TypeVar

from app.archives.file_labels import read_mapping
from app.errors import LeukoError
from app.printable import complain, printable
from training.durations import duration
from training.errors import DataError, TrainingError

if TYPE_CHECKING:
    from training.adapt import OwnCells
    from training.data import Row

PROGRAM = "leuko-train"
MANIFEST = Path("data/manifest.csv")
T = TypeVar("T")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status.

    0: success; 1: an error; 2: wrong usage; 3: an adaptation that is not better; 130: interrupted.
    """
    try:
        try:
            return run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # a reader such as `head` wants no more
        for stream in (sys.stdout, sys.stderr):  # for what is flushed at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 1


def run(argv: Sequence[str] | None) -> int:
    """Run a command and say what is wrong, if it fails. Raise BrokenPipeError."""
    started = time.monotonic()
    try:
        args = build_parser().parse_args(argv)
        code: int = args.command(args) or 0
        if os.environ.get("RANK", "0") == "0":  # of torchrun's processes
            print(f"took {duration(time.monotonic() - started)}")
    except (TrainingError, LeukoError) as error:
        complain(told(error), PROGRAM)
        return 1
    except BrokenPipeError:
        raise
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        complain(f"{place}{error.strerror or error}", PROGRAM)
        return 1
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "app", "training"):
            raise
        complain(f"{package} is missing: run `make install EXTRAS=train` in Leuko's checkout", PROGRAM)
        return 1
    except KeyboardInterrupt:
        complain("interrupted; continue from the last epoch with `--resume`", PROGRAM)
        return 130
    return code


def told(error: Exception) -> str:
    """Return the message; of an error in a process of torch's that loads data, it is the traceback's end."""
    text = str(error).rstrip()
    return text.rpartition("\n")[2].partition(": ")[2] if "Original Traceback" in text else text


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def build_parser() -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = _Parser(
        prog=PROGRAM, description="Train a model and write the bundle that `leuko serve` loads."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_data, add_fit, add_laboratories, add_export, add_report, add_adapt):
        add(commands)
    return parser


Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def add_data(commands: Commands) -> None:
    parser = commands.add_parser(
        "data", help="check image archives and write a manifest, split by source photo"
    )
    parser.add_argument(
        "archives",
        nargs="*",
        metavar="[LABORATORY=]ARCHIVE",
        help="ZIP or folder; validation uses the first one. Archives are of different laboratories unless"
        " one is named, as in pbc=pbc-cells.zip pbc=pbc-others.zip",
    )
    parser.add_argument("--download", action="store_true", help="download the Kaggle archive with kagglehub")
    parser.add_argument(
        "--sources",
        type=Path,
        help="table (CSV) of path and source; archives of which it names no path have none",
    )
    parser.add_argument(
        "--leave-out", nargs="+", default=[], metavar="FOLDER", help="folders to skip: other classes"
    )
    parser.add_argument(
        "--others",
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="folders of cells of no class, which training may use as outliers; half of them are kept out",
    )
    parser.add_argument(
        "--classes",
        metavar="NAME,NAME…",
        help="the classes, 2 to 32, in the order of their indices (default: eosinophil,lymphocyte,monocyte,"
        "neutrophil)",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        help="table (CSV) of path, or pattern with * and ?, and the class that goes before the folder's name",
    )
    splits = parser.add_mutually_exclusive_group()
    splits.add_argument(
        "--split", default="folders", help="folders: Kaggle's TRAIN and TEST; or a ratio such as 80:10:10"
    )
    splits.add_argument(
        "--split-by-file-leaking", metavar="RATIO", help="split by file: copies of a photo are in both splits"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the split")
    parser.add_argument("--out", type=Path, default=MANIFEST, help=f"manifest to write (default: {MANIFEST})")
    parser.set_defaults(command=run_data)


def run_data(args: argparse.Namespace) -> None:
    from app.engine.bundle import CLASSES
    from training import data
    from training.class_names import parse_classes
    from training.split import divided_sources

    divide = divider(args)
    classes = parse_classes(args.classes) if args.classes is not None else CLASSES
    labels = read_mapping(args.labels) if args.labels else None
    sources = read_mapping(args.sources) if args.sources else None
    archives = [
        *([("", data.download(args.out.parent))] if args.download else []),
        *map(named, args.archives),
    ]
    if not archives:
        raise DataError("no archive given: name one, or use --download")
    rows, notes = data.list_files(archives, sources, args.leave_out, args.others, classes, labels)
    for note in notes:
        complain(note, PROGRAM)
    if sources is not None and not set(sources.values()) & {row.source for row in rows}:
        raise DataError(f"{args.sources} names no image of the archives")
    divide(rows)  # what is too few for the split is said before hours of decoding
    rows = divide(data.check_files(rows, progress))
    if not args.split_by_file_leaking:
        data.refuse_copies(rows, "split", lambda row: row.split)
    data.write_manifest(rows, args.out)
    ratio = args.split != "folders" and not args.split_by_file_leaking
    if ratio and (divided := divided_sources(rows)):
        complain(
            f"{', '.join(divided)}: cells of one slide or photo are in several splits, since all are of one;"
            " how well they are recognised on another cannot be known",
            PROGRAM,
        )
    width = max(11, *(len(row.label) for row in rows))
    for (name, label), count in sorted(Counter((row.split, row.label) for row in rows).items()):
        photos = len({row.source for row in rows if (row.split, row.label) == (name, label)})
        print(printable(f"{name:6} {label:{width}} {count:6} files from {photos:5} sources"))
    print(f"classes in the order of their indices: {', '.join(classes)}")
    print(printable(f"wrote {args.out}, fingerprint {data.fingerprint(rows)[:16]}"))


def divider(args: argparse.Namespace) -> Callable[[Sequence[Row]], list[Row]]:
    """Return what sets the rows' splits. Raise DataError for a ratio that is none."""
    from training.split import parse_ratio, split_by_file_leaking, split_by_source

    if args.split_by_file_leaking:
        ratio = parse_ratio(args.split_by_file_leaking)
        return lambda rows: split_by_file_leaking(rows, ratio, args.seed)
    if args.split == "folders":
        return list
    ratio = parse_ratio(args.split)
    return lambda rows: split_by_source(rows, ratio, args.seed)


def named(archive: str) -> tuple[str, Path]:
    """Return laboratory, "" if none is named, and path."""
    laboratory, equals, path = archive.partition("=")
    return (laboratory, Path(path)) if equals and not Path(archive).exists() else ("", Path(archive))


def progress(items: Iterable[T], total: int) -> Iterable[T]:
    from tqdm import tqdm

    yield from tqdm(items, total=total, unit=" files", disable=None)


def add_fit(commands: Commands) -> None:
    parser = commands.add_parser("fit", help="fine-tune ResNet18 with a recipe")
    add_training(parser)
    parser.set_defaults(command=run_fit)


def add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--recipe", default="default", help="default, paper, or the path of a TOML file")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help=f"manifest (default: {MANIFEST})")
    parser.add_argument("--run", type=Path, help="folder of the run (default: runs/RECIPE)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        help="override a field, in TOML; repeatable",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the run's last epoch")


def run_fit(args: argparse.Namespace) -> None:
    from lightning.pytorch.utilities import rank_zero_only

    best = train(args, args.set)
    rank_zero_only(print)(printable(f"best checkpoint: {best}"))


def train(args: argparse.Namespace, settings: Sequence[str]) -> Path:
    """Train as the arguments and settings say and return the best checkpoint."""
    import logging

    from training.config import load_recipe, read_config
    from training.data import read_manifest
    from training.fit import fit

    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)  # its notices advertise other products
    run = run_folder(args)
    resumed = args.resume and (run / "config.json").is_file() and not args.set
    config = read_config(run / "config.json") if resumed else load_recipe(args.recipe, settings)
    return fit(read_manifest(args.manifest), config, run, resume=args.resume)


def run_folder(args: argparse.Namespace) -> Path:
    return args.run or Path("runs") / Path(args.recipe).stem


def add_laboratories(commands: Commands) -> None:
    parser = commands.add_parser(
        "laboratories",
        help="train without each laboratory of the manifest in turn, and score it with that network",
        description="Train one network without each archive of the manifest, a laboratory each, score every"
        " archive with the network that never saw it, and print a table. Archives have equal shares in"
        " training unless `mix` is set. The run can be exported.",
    )
    add_training(parser)
    add_right_when_kept(parser)
    parser.set_defaults(command=run_laboratories)


def add_right_when_kept(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--right-when-kept",
        type=share,
        default=0.95,
        metavar="SHARE",
        help="with laboratories: least share of cells without a review mark that are right in those left"
        " out (default: 0.95)",
    )


def share(text: str) -> float:
    value = float(text)  # argparse reports a ValueError
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share from 0 to 1")
    return value


def run_laboratories(args: argparse.Namespace) -> None:
    from training.data import read_manifest
    from training.laboratories import leave_out
    from training.laboratory import lines_of
    from training.module import BEST

    rows, run = read_manifest(args.manifest), run_folder(args)
    if not (args.resume and (run / BEST).is_file()):
        mix = ", ".join(
            f"{json.dumps(name, ensure_ascii=False)} = 1"
            for name in sorted({row.laboratory for row in rows if row.known})
        )
        train(args, ['select_on="laboratories"', "shared_epochs=0", f"mix={{ {mix} }}", *args.set])
    print(lines_of(leave_out(rows, run, args.right_when_kept)))


def add_export(commands: Commands) -> None:
    parser = commands.add_parser("export", help="write a bundle from a run's best checkpoint")
    parser.add_argument("--run", type=Path, default=Path("runs/default"), help="run (default: runs/default)")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help=f"manifest (default: {MANIFEST})")
    parser.add_argument("--out", type=Path, help="bundle to write (default: the folder `bundle` in the run)")
    parser.add_argument("--name", help="name of the model (default: the bundle folder's name)")
    add_replace(parser, "the bundle, if there is one")
    parser.add_argument("--version", default="1.0.0", help="version of the model (default: 1.0.0)")
    parser.add_argument(
        "--int8-agreement",
        type=share,
        default=0.985,
        metavar="SHARE",
        help="least share of each laboratory's validation labels that int8 must not change; one changed label"
        " is never too many (default: 0.985)",
    )
    add_right_when_kept(parser)
    parser.set_defaults(command=run_export)


def run_export(args: argparse.Namespace) -> None:
    from training.data import read_manifest
    from training.export import export

    rows, out = read_manifest(args.manifest), args.out or args.run / "bundle"
    agreed = export(
        rows,
        args.run,
        out,
        name=args.name or out.name,
        version=args.version,
        int8_agreement=args.int8_agreement,
        right_when_kept=args.right_when_kept,
        replace=args.replace,
    )
    print(
        f"wrote {printable(str(out))}; validation labels equal to float32: "
        f"half precision {agreed.half.same:.2%}, int8 {agreed.int8_whole.same:.2%}, at least "
        f"{agreed.int8_worst:.2%} in each laboratory "
        f"(int8 probabilities differ by {agreed.int8_drift:.4f} on average)"
    )


def add_replace(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--replace", action="store_true", help=f"write over {what}")


def add_report(commands: Commands) -> None:
    parser = commands.add_parser(
        "report", help="score a bundle on a split; write report.json, model card and figures"
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to score and to write into")
    add_replace(parser, "the bundle's report, if it has one")
    parser.add_argument("--manifest", type=Path, default=MANIFEST, help=f"manifest (default: {MANIFEST})")
    parser.add_argument("--split", default="test", help="split of the manifest (default: test)")
    parser.add_argument("--run", type=Path, help="folder of the run, for its learning curves")
    parser.add_argument(
        "--paper", type=Path, metavar="BUNDLE", help="scored bundle of the paper's recipe, to compare with"
    )
    parser.add_argument("--engine", default="auto", help="auto, openvino or torch (default: auto)")
    parser.set_defaults(command=run_report)


def run_report(args: argparse.Namespace) -> None:
    from training.data import read_manifest
    from training.report import report

    rows = read_manifest(args.manifest)
    scores = report(
        args.bundle,
        rows,
        split=args.split,
        run=args.run,
        paper=args.paper,
        engine=args.engine,
        progress=progress,
        replace=args.replace,
    )
    card = printable(str(args.bundle / "README.md"))
    print(f"accuracy {scores.accuracy:.4f} on {scores.n} images; see {card}")


def add_adapt(commands: Commands) -> None:
    parser = commands.add_parser(
        "adapt",
        help="adapt a bundle to one laboratory's own cells",
        description="Adapt a bundle to one laboratory, from 5 or more labelled cells of each class. It is "
        "judged by cross-validation within these cells. Exit status 3 if it is not better there, or if the "
        "recall of a class falls by more than 0.05 and more than one cell: nothing is written then.",
    )
    parser.add_argument(
        "labelled",
        type=Path,
        nargs="?",
        help="ZIP or folder with one folder of images for each class; may be absent with --unlabelled",
    )
    parser.add_argument("--bundle", type=Path, required=True, help="bundle to adapt")
    parser.add_argument("--site", required=True, metavar="NAME", help="name of the laboratory")
    parser.add_argument("--out", type=Path, required=True, help="new folder for the adapted bundle")
    parser.add_argument(
        "--unlabelled", type=Path, nargs="+", metavar="FOLDER", help="further pictures of this laboratory"
    )
    parser.add_argument(
        "--replay",
        type=Path,
        nargs="+",
        metavar="ARCHIVE",
        help="labelled cells of other laboratories, against forgetting; folders of classes that the bundle"
        " does not have are left out",
    )
    parser.add_argument("--by", default="", metavar="NAME", help="who adapts; the report names them")
    groups = parser.add_mutually_exclusive_group()
    groups.add_argument("--groups", type=Path, metavar="FILE", help="table of file name and patient or slide")
    groups.add_argument(
        "--group-pattern", metavar="REGEX", help="its first group, in each file name, is the patient or slide"
    )
    add_right_when_kept(parser)
    parser.add_argument(
        "--force",
        action="store_true",
        help="write the bundle even if it is not better, as one that is not verified",
    )
    parser.set_defaults(command=run_adapt)


def run_adapt(args: argparse.Namespace) -> int:
    from app.engine.bundle import load_bundle
    from app.engine.site_bundle import check_site
    from training.class_sizes import check_folders

    if args.labelled is None and not args.unlabelled:
        raise DataError("give a folder or ZIP of labelled cells, or --unlabelled")
    site = check_site(args.site)
    if args.out.exists():
        raise DataError(f"{args.out} exists already: name another folder with --out")
    bundle = load_bundle(args.bundle)
    if args.labelled is not None:
        check_folders(args.labelled, bundle.labels)

    # These import torch, which takes longer than the checks above.
    from training.adapted import adapt_with_labels, adapt_without_labels, lines
    from training.own_cells import read_labelled, read_replay, read_unlabelled

    def noted(read: tuple[T, str], *paths: Path) -> T:
        if read[1]:
            complain(f"{', '.join(map(str, paths))}: {read[1]}", PROGRAM)
        return read[0]

    def labelled(path: Path, groups: Path | str | None) -> OwnCells:
        return noted(read_labelled(path, bundle, groups, progress), path)

    def replayed(paths: Sequence[Path]) -> OwnCells:
        cells, notes = read_replay(paths, bundle, progress)
        for note in notes:
            complain(note, PROGRAM)
        return cells

    pictures = (
        noted(read_unlabelled(args.unlabelled, bundle, progress), *args.unlabelled)
        if args.unlabelled
        else None
    )
    if args.labelled is None:
        assert pictures is not None
        adaptation = adapt_without_labels(bundle, pictures, args.out, site=site)
    else:
        cells = labelled(args.labelled, args.groups or args.group_pattern)
        adaptation = adapt_with_labels(
            bundle,
            cells,
            args.out,
            site=site,
            target=args.right_when_kept,
            unlabelled=pictures,
            replay=replayed(args.replay) if args.replay else None,
            force=args.force,
            by=args.by,
            data=args.labelled.name,
        )
    for line in lines(adaptation):
        print(printable(line))
    if adaptation.written is None:
        return 3
    print(f"wrote {printable(str(args.out))}")
    return 0
