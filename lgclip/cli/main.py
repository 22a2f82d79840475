"""Implements `lgclip` with all of its subcommands, and `lgclip-evaluate`, `lgclip-generate` and `lgclip-train`."""

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lgclip.cli.classifier_parser import COMMANDS, add_classifier_commands
from lgclip.runtime.scripts import script_place

if TYPE_CHECKING:
    from rich.table import Table


def _script(name: str) -> None:
    # Run as a script and not imported: Hydra finds `conf/` by the file of the main module, and Lightning starts the
    # other devices by argv[0].
    path = script_place(f"{name}.py")
    sys.argv[0] = str(path)
    runpy.run_path(str(path), run_name="__main__")


def generate() -> None:
    """Runs the console command `lgclip-generate`."""
    _script("generate")


def train() -> None:
    """Runs the console command `lgclip-train`."""
    _script("train")


def evaluate() -> None:
    """Runs the console command `lgclip-evaluate`."""
    _script("evaluate")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lgclip", description="Compares and reports runs, checks the installation, and manages the store."
    )
    parts = parser.add_subparsers(dest="part", required=True)

    _add_compare(parts)

    captions = parts.add_parser("captions", help="export or import captions of real training images as JSON lines")
    captions.add_argument("action", choices=("export", "import"))
    captions.add_argument("file", type=Path, metavar="FILE.jsonl", help="file to write or to read")
    captions.add_argument(
        "values", nargs="+", metavar="KEY=VALUE", help="overrides as of generate.py: dataset=cub llm=blip2"
    )

    report = parts.add_parser("report", help="write an HTML report of runs, a single file that needs no network")
    report.add_argument("places", type=Path, nargs="+", metavar="RUN_OR_SWEEP", help="folders of runs, or of sweeps")
    report.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="page to write")
    report.add_argument(
        "--with", dest="reference", type=Path, metavar="RUN", help="run that the others are compared with"
    )
    report.add_argument("--title", default="", help="heading of the page")
    report.add_argument("--images", type=int, metavar="N", help="maximum number of images per class; 0: none")

    add_classifier_commands(parts)

    audit = parts.add_parser(
        "audit", help="find near-duplicates of test images, and list which data each stage has seen"
    )
    audit.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, with its result.json")
    audit.add_argument("--json", action="store_true", help="print JSON")

    dashboard = parts.add_parser("dashboard", help="create a saved view that compares runs in a tracking service")
    wandb = dashboard.add_subparsers(dest="service", required=True).add_parser("wandb", help="Weights & Biases")
    wandb.add_argument("--entity", metavar="NAME", help="user or team (default: that of the account)")
    wandb.add_argument("--project", default="lgclip", metavar="NAME")
    wandb.add_argument("--group", metavar="SWEEP", help="only the runs of one sweep")
    wandb.add_argument("--axis", action="append", metavar="KEY", help="swept key to show (default: those of the grid)")
    wandb.add_argument("--dry-run", type=Path, metavar="FILE", help="write the view to a file instead of saving it")

    store = parts.add_parser("store", help="export, verify and clean the store of prompts, images and features")
    actions = store.add_subparsers(dest="action", required=True)
    features = actions.add_parser("features", help="write the features of a run to a file")
    features.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, with its result.json")
    features.add_argument("out", type=Path, metavar="OUT.npz", help="file to write")
    _add_store_actions(actions)

    doctor = parts.add_parser("doctor", help="check the installation, and which data sets and models are ready")
    doctor.add_argument(
        "--store", metavar="DIR", help="folder of the store (default: $LGCLIP_HOME or the user's cache)"
    )

    fetch = parts.add_parser("fetch", help="download the models and data sets of a run, for nodes without a network")
    fetch.add_argument(
        "values", nargs="*", metavar="KEY=VALUE", help="overrides as of evaluate.py: dataset=cub encoder=vit_b16"
    )
    fetch.add_argument("-m", "--multirun", action="store_true", help="for every job of a sweep")
    return parser


def _add_compare(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands for tables of runs: see docs/guides/compare.md."""
    compare = parts.add_parser("compare", help="compare runs in a table, with significance tests and a plot")
    compare.add_argument("places", nargs="+", metavar="RUN_OR_SWEEP[:METHOD]", help="folders of runs, or of sweeps")
    compare.add_argument(
        "--by", type=_names, default=(), metavar="AXIS,...", help="rows (default: what the runs differ in)"
    )
    compare.add_argument("--columns", type=_names, default=(), metavar="AXIS,...", help="columns, such as dataset")
    compare.add_argument(
        "--over", type=_names, default=(), metavar="AXIS,...", help="axes to average over, in addition to seeds"
    )
    compare.add_argument(
        "--metric", type=_names, default=("top1",), metavar="NAME,...", help="metrics of the cells (default: top1)"
    )
    compare.add_argument(
        "--methods", type=_names, default=(), metavar="NAME,...", help="methods and baselines to include"
    )
    compare.add_argument("--with", dest="reference", metavar="RUN|ROW", help="reference of the significance tests")
    compare.add_argument("--sort", metavar="AXIS|METRIC", help="order of the rows (default: that of the runs)")
    compare.add_argument("--ci", action="store_true", help="95%% intervals instead of the standard deviation")
    compare.add_argument("--format", default="table", choices=("table", "markdown", "latex", "csv", "json"))
    compare.add_argument("-o", "--out", type=Path, metavar="FILE", help="file to write instead of the terminal")
    compare.add_argument("--plot", type=Path, metavar="FILE", help="plot to write: .png, .pdf or .svg")


def _names(text: str) -> tuple[str, ...]:
    """Splits names at commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _compare(args: argparse.Namespace) -> "Iterator[str | Table]":
    from lgclip.reporting.comparison.command import CompareOptions, compare

    yield from compare(
        CompareOptions(
            places=args.places,
            by=args.by,
            columns=args.columns,
            over=args.over,
            metrics=args.metric,
            methods=args.methods,
            reference=args.reference,
            order=args.sort,
            format=args.format,
            has_intervals=args.ci,
            out=args.out,
            plot=args.plot,
        )
    )


_NEEDED = "only what these runs, sweeps and classifiers need"


def _add_store_actions(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands that maintain a store: see docs/guides/store_maintenance.md."""
    verify = actions.add_parser("verify", help="check every file; exit status 1 if one is faulty")
    verify.add_argument("--repair", action="store_true", help="move faulty files to STORE/quarantine")
    verify.add_argument(
        "--manifest", action="store_true", help="write STORE/MANIFEST.sha256 with the hashes of all valid files"
    )
    gc = actions.add_parser("gc", help="list what can be deleted: leftovers, and what nothing named by --keep needs")
    gc.add_argument(
        "--keep",
        type=Path,
        nargs="+",
        default=(),
        metavar="KEPT",
        help="runs, sweeps and classifiers; what they need stays",
    )
    gc.add_argument("--older-than", type=float, metavar="DAYS", help="only what has not changed for longer (1)")
    gc.add_argument("--yes", action="store_true", help="delete what is listed")
    export = actions.add_parser("export", help="write a store, or what some runs need of it, to one file")
    export.add_argument("out", type=Path, metavar="OUT.tar", help="archive to write")
    export.add_argument("--run", type=Path, nargs="+", default=(), metavar="KEPT", help=_NEEDED)
    imported = actions.add_parser("import", help="check an archive, then add the files that the store lacks")
    imported.add_argument("archive", type=Path, metavar="IN.tar", help="archive written by lgclip store export")
    packed = actions.add_parser("pack", help="move images from files into shards of 1,000")
    unpacked = actions.add_parser("unpack", help="move images from shards into files")
    pushed = actions.add_parser("push", help="copy a store, or what some runs need of it, to an object store")
    pulled = actions.add_parser("pull", help="copy from an object store what the store lacks")
    for action in (pushed, pulled):
        action.add_argument("url", metavar="URL", help="s3://BUCKET/PREFIX, gs://..., hf://datasets/USER/NAME/PREFIX")
        action.add_argument("--run", type=Path, nargs="+", default=(), metavar="KEPT", help=_NEEDED)
        action.add_argument(
            "--only", nargs="+", default=(), metavar="PLACE", help="only places that begin so: images/KEY"
        )
    for action in (verify, gc, export, imported, packed, unpacked, pushed, pulled):
        action.add_argument(
            "--store", metavar="DIR", help="folder of the store (default: $LGCLIP_HOME or the user's cache)"
        )


def _store_output(args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of a command of `lgclip store`."""
    from lgclip.store.root import StoreError, check_writable, location_of, open_root, root_of

    place = location_of(args.store)
    if "://" in place:
        raise StoreError(
            f"lgclip store {args.action} works on a folder, not on {place}: copy it by lgclip store pull {place} "
            "--store DIR, then name that folder by --store DIR"
        )
    # Only an import makes a store and has to write to it; the others may read a read-only one.
    open_store = open_root if args.action in ("import", "pull") else root_of
    root = open_store(args.store)
    if args.action == "import":
        check_writable(root)
    match args.action:
        case "verify":
            from lgclip.cli.store.verify import verify

            yield from verify(root, repair=args.repair, manifest=args.manifest)
        case "gc":
            from lgclip.cli.store.gc import collect

            yield from collect(root, keep=args.keep, older_than=args.older_than, yes=args.yes)
        case "export":
            from lgclip.cli.store.archive import export

            yield from export(root, args.out, args.run)
        case "pack" | "unpack":
            from lgclip.cli.store.pack import pack, unpack

            yield from (pack if args.action == "pack" else unpack)(root)
        case "import":
            from lgclip.cli.store.archive import import_archive

            yield from import_archive(root, args.archive)
        case "push":
            from lgclip.cli.store.transfer import push

            yield from push(root, args.url, args.run, args.only)
        case "pull":
            from lgclip.cli.store.transfer import pull

            yield from pull(root, args.url, args.run, args.only)


def _classifier_output(args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of a command of classifiers."""
    from lgclip.cli import classifier

    match args.part:
        case "build":
            out = args.out or Path(f"{args.names.stem}.lgclip")
            yield from classifier.build_command(
                classifier.BuildOptions(args.names, out, args.values, args.with_encoder, args.negatives, args.improve)
            )
        case "save":
            yield from classifier.save_command(args.run, args.out, with_encoder=args.with_encoder)
        case "classify":
            yield from classifier.classify_command(
                classifier.ClassifyOptions(
                    args.classifier,
                    args.images,
                    args.out,
                    args.format,
                    args.top,
                    args.move_to,
                    args.shards_to,
                    args.shard_part,
                    args.labels,
                    args.names,
                    args.executor,
                )
            )
        case "add":
            yield from classifier.add_command(args.classifier, args.names, args.out, args.override)
        case "remove":
            yield from classifier.remove_command(args.classifier, args.names, args.out)
        case "rename":
            yield from classifier.rename_command(args.classifier, args.old, args.new, args.out)
        case "show":
            yield from classifier.show_command(args.classifier, args.sheet, images=args.images)
        case "edit":
            yield from classifier.edit_command(args.classifier, args.drop, args.out)
        case "add-shots":
            yield from classifier.add_shots_command(args.classifier, args.folder, args.out)
        case "worth":
            yield from classifier.worth_command(args.classifier, args.folder, args.plot, args.seeds)
        case "export":
            yield from classifier.export_command(
                args.classifier, args.out, args.format, int8=args.int8, resize=args.resize
            )
        case "push":
            yield from classifier.push_command(args.classifier, args.address, public=args.public)


def _studio_output(args: argparse.Namespace) -> Iterator[str]:
    """Yields the lines of `lgclip studio`."""
    from lgclip.cli.studio.server import StudioOptions, studio_command

    values = list(args.values)
    # A classifier comes first, and an override has an equals sign; the name of a file may have one too.
    has_place = bool(values) and ("=" not in values[0] or Path(values[0]).exists())
    place = values.pop(0) if has_place else None
    without = [value for value in values if "=" not in value]
    if without:
        raise ValueError(f"{without[0]}: one classifier, then KEY=VALUE")
    if args.space is not None:
        from lgclip.cli.studio.space import space_command

        yield from space_command(args.space, place, values)
        return
    yield from studio_command(StudioOptions(place, values, args.port, not args.no_browser, args.max_upload))


def _audit_output(args: argparse.Namespace) -> str:
    """Returns the text of `lgclip audit`."""
    from lgclip.reporting.leakage_audit import audit, audit_text
    from lgclip.reporting.run_folder import Run

    report = audit(Run.read(args.run))
    if args.json:
        return json.dumps(report, indent=2, ensure_ascii=False)
    return audit_text(report)


def _output(args: argparse.Namespace) -> "Iterator[str | Table]":
    """Yields the lines and tables of a command as they come; imports its dependencies when it is called."""
    match args.part:
        case "compare":
            yield from _compare(args)
        case "captions":
            from lgclip.cli.captions import captions_command

            yield from captions_command(args.action, args.file, args.values, script_place("conf"))
        case "fetch":
            from lgclip.cli.fetch import fetch_command

            yield from fetch_command(args.values, script_place("conf"), multirun=args.multirun)
        case "report":
            from lgclip.reporting.dashboard.page import IMAGES, write_page

            # The default is not the parser's, as that would need the import for each `--help`. 0 is a valid value.
            images = IMAGES if args.images is None else args.images
            yield write_page(args.places, args.out, reference=args.reference, title=args.title, images=images)
        case "studio":
            yield from _studio_output(args)
        case part if part in COMMANDS:
            yield from _classifier_output(args)
        case "audit":
            yield _audit_output(args)
        case "dashboard":
            from lgclip.reporting.wandb.workspace import AXES, make_dashboard

            yield make_dashboard(args.entity, args.project, args.group, args.dry_run, args.axis or AXES)
        case "store" if args.action != "features":
            yield from _store_output(args)
        case "store":
            from lgclip.reporting.export_features import export_features

            yield export_features(args.run, args.out)
        case "doctor":
            from lgclip.cli.doctor import report

            yield from report(script_place("conf"), args.store)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    """Parses the command line; overrides may stand before and after options."""
    parser = _parser()
    args, remaining = parser.parse_known_args(argv)
    if remaining and (args.part not in ("build", "studio") or any(part.startswith("-") for part in remaining)):
        parser.error(f"unrecognized arguments: {' '.join(remaining)}")
    if remaining:
        args.values += remaining
    return args


def main(argv: list[str] | None = None) -> int:
    """Runs the console command `lgclip`.

    Args:
        argv: Arguments; None uses the process's own.

    Returns:
        Exit status.
    """
    args = _parse(argv)
    from lgclip.runtime import garbage_collection
    from lgclip.runtime.terminal import sanitized

    garbage_collection.collect_less()

    # Each line is printed when it comes: a check of a large store takes minutes.
    try:
        for part in _output(args):
            if isinstance(part, str):
                # A class name or a file name may hold what steers a terminal.
                print(sanitized(part), flush=True)
            else:
                from lgclip.reporting.text_tables import print_table

                print_table(part)
    except Exception as error:
        message = _message(error)
        if message is None:
            raise
        print(f"error: {sanitized(message)}", file=sys.stderr)
        return 1
    return 0


def _message(error: Exception) -> str | None:
    """Returns the message of a user's mistake; None for an internal error."""
    # Hydra is imported by the commands that compose a config, and by those alone. Some of its errors are OSErrors too.
    if "hydra" in sys.modules:
        from hydra.errors import HydraException
        from omegaconf.errors import OmegaConfBaseException

        from lgclip.runtime.config_errors import describe_config_error

        if isinstance(error, HydraException | OmegaConfBaseException):
            return describe_config_error(error)
    return str(error) if isinstance(error, ValueError | OSError) else None
