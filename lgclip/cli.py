"""`lgclip`: what is not a run. The runs' own commands, `lgclip-evaluate` and its kin, start here too."""

import argparse
import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path


def _place(name: str) -> Path:
    """An entry script or the configs: the checkout's own, or the copy that a wheel carries."""
    here = Path(__file__).resolve().parent
    return next(place for place in (here / "scripts" / name, here.parent / name) if place.exists())


def _script(name: str) -> None:
    path = _place(f"{name}.py")
    sys.argv[0] = str(path)
    runpy.run_path(str(path), run_name="__main__")


def generate() -> None:
    """Console command `lgclip-generate`."""
    _script("generate")


def train() -> None:
    """Console command `lgclip-train`."""
    _script("train")


def evaluate() -> None:
    """Console command `lgclip-evaluate`."""
    _script("evaluate")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lgclip", description="What is not a run.")
    parts = parser.add_subparsers(dest="part", required=True)

    summary = parts.add_parser("summary", help="a sweep in one table, rebuilt from its folders")
    summary.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="the folder of the jobs' folders 0, 1, 2, ...")

    compare = parts.add_parser("compare", help="runs against each other: paired tests, means over seeds")
    compare.add_argument("places", nargs="+", metavar="RUN_OR_SWEEP[:METHOD]", help="folders of runs, or of sweeps")
    compare.add_argument("--with", dest="reference", metavar="RUN[:METHOD]", help="the others are compared with it")
    compare.add_argument("--json", action="store_true", help="figures instead of a table")

    students = parts.add_parser("students", help="students by what they were trained on: in and out of distribution")
    students.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="a folder of runs of method=student")
    students.add_argument("-o", "--out", type=Path, metavar="FIGURE.png", help="figure to write")
    students.add_argument("--csv", type=Path, metavar="FILE", help="every figure, unrounded")
    students.add_argument("--markdown", action="store_true", help="tables for a page")

    learners = parts.add_parser("learners", help="learnt prompts by learner and paradigm, as Markdown")
    learners.add_argument("sweeps", type=Path, nargs="+", metavar="SWEEP_DIR", help="folders of runs of method=air")
    learners.add_argument("--with", dest="reference", metavar="ROW", help="the others are compared with it (grip)")
    learners.add_argument("-o", "--figure", type=Path, metavar="FIGURE.png", help="figure to write")

    captions = parts.add_parser("captions", help="captions of real training images, as JSON lines")
    captions.add_argument("action", choices=("export", "import"))
    captions.add_argument("file", type=Path, metavar="FILE.jsonl", help="written, or read")
    captions.add_argument("values", nargs="+", metavar="KEY=VALUE", help="as of generate.py: dataset=cub llm=blip2")

    report = parts.add_parser("report", help="runs on one page: a file that needs no network")
    report.add_argument("places", type=Path, nargs="+", metavar="RUN_OR_SWEEP", help="folders of runs, or of sweeps")
    report.add_argument("-o", "--out", type=Path, default=Path("report.html"), metavar="FILE", help="page to write")
    report.add_argument("--with", dest="reference", type=Path, metavar="RUN", help="the others are compared with it")
    report.add_argument("--title", default="", help="heading of the page")
    report.add_argument("--images", type=int, metavar="N", help="most images of a class; 0 for none")

    audit = parts.add_parser("audit", help="near-duplicates of test images, and which stage saw what")
    audit.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, with its result.json")
    audit.add_argument("--json", action="store_true", help="figures instead of a text")

    dashboard = parts.add_parser("dashboard", help="a saved view that compares runs elsewhere")
    wandb = dashboard.add_subparsers(dest="service", required=True).add_parser("wandb", help="Weights & Biases")
    wandb.add_argument("--entity", metavar="NAME", help="user or team; by default the account's own")
    wandb.add_argument("--project", default="lgclip", metavar="NAME")
    wandb.add_argument("--group", metavar="SWEEP", help="runs of one sweep alone")
    wandb.add_argument(
        "--axis", action="append", metavar="KEY", help="a swept value to show; by default those of the grid"
    )
    wandb.add_argument("--dry-run", type=Path, metavar="FILE", help="write the view here instead of saving it")

    store = parts.add_parser("store", help="the stores of prompts, images and features")
    actions = store.add_subparsers(dest="action", required=True)
    features = actions.add_parser("features", help="write the features that a run's number came from")
    features.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, with its result.json")
    features.add_argument("out", type=Path, metavar="OUT.npz", help="file to write")
    _custody(actions)

    doctor = parts.add_parser("doctor", help="what is installed, what is missing, what is ready")
    doctor.add_argument("--store", metavar="DIR", help="the store; by default the usual one")
    return parser


def _custody(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Looking after a store: see docs/store.md."""
    verify = actions.add_parser("verify", help="look at every file; exit status 1 if one is faulty")
    verify.add_argument("--repair", action="store_true", help="move faulty files to STORE/quarantine")
    verify.add_argument("--manifest", action="store_true", help="write STORE/MANIFEST.sha256 of what is in order")
    gc = actions.add_parser("gc", help="list what may go: left over, or needed by no named run")
    gc.add_argument("--keep", type=Path, nargs="+", default=(), metavar="RUN_OR_SWEEP", help="what they need stays")
    gc.add_argument("--older-than", type=float, metavar="DAYS", help="only what has not changed for longer (1)")
    gc.add_argument("--yes", action="store_true", help="delete it")
    export = actions.add_parser("export", help="a store, or what some runs need of it, in one file")
    export.add_argument("out", type=Path, metavar="OUT.tar", help="archive to write")
    export.add_argument("--run", type=Path, nargs="+", default=(), metavar="RUN_OR_SWEEP", help="only what they need")
    imported = actions.add_parser("import", help="check an archive, then place what is not there")
    imported.add_argument("archive", type=Path, metavar="IN.tar", help="archive by lgclip store export")
    packed = actions.add_parser("pack", help="images from files into shards of 1,000")
    unpacked = actions.add_parser("unpack", help="images from shards into files")
    for action in (verify, gc, export, imported, packed, unpacked):
        action.add_argument("--store", metavar="DIR", help="the store; by default the usual one")


def _kept(args: argparse.Namespace) -> Iterator[str]:
    """What a command of `_custody` has to say."""
    from lgclip.store import open_root, root_of

    root = open_root(args.store) if args.action == "import" else root_of(args.store)  # a store may be read-only
    match args.action:
        case "verify":
            from lgclip.verification import verify

            yield from verify(root, repair=args.repair, manifest=args.manifest)
        case "gc":
            from lgclip.retention import collect

            yield from collect(root, keep=args.keep, older_than=args.older_than, yes=args.yes)
        case "export":
            from lgclip.transport import export

            yield from export(root, args.out, args.run)
        case "pack" | "unpack":
            from lgclip.packing import pack, unpack

            yield from (pack if args.action == "pack" else unpack)(root)
        case "import":
            from lgclip.transport import import_archive

            yield from import_archive(root, args.archive)


def _said(args: argparse.Namespace) -> Iterator[str]:
    """What a command has to say, line by line as it comes; what it needs is imported when it is asked for."""
    match args.part:
        case "summary":
            from lgclip.summary import summarise

            yield summarise(args.sweep)[0]
        case "compare":
            from lgclip.comparison_table import compare_command

            yield compare_command(args.places, args.reference, args.json)
        case "captions":
            from lgclip.caption_exchange import captions_command

            yield from captions_command(args.action, args.file, args.values, _place("conf"))
        case "students":
            from lgclip.students_table import students

            yield students(args.sweep, args.out, args.csv, args.markdown)
        case "learners":
            from lgclip.learners_table import learners

            yield learners(args.sweeps, args.reference, args.figure)
        case "report":
            from lgclip.dashboard.page import IMAGES, write_page

            images = IMAGES if args.images is None else args.images
            yield write_page(args.places, args.out, reference=args.reference, title=args.title, images=images)
        case "audit":
            from lgclip.audit import audit, audit_text
            from lgclip.runs import Run

            found = audit(Run.read(args.run))
            yield json.dumps(found, indent=2, ensure_ascii=False) if args.json else audit_text(found)
        case "dashboard":
            from lgclip.workspace import AXES, make_dashboard

            yield make_dashboard(args.entity, args.project, args.group, args.dry_run, args.axis or AXES)
        case "store" if args.action != "features":
            yield from _kept(args)
        case "store":
            from lgclip.export import export_features

            yield export_features(args.run, args.out)
        case "doctor":
            from lgclip.doctor import report

            yield from report(_place("conf"), args.store)


def main(argv: list[str] | None = None) -> int:
    """Console command `lgclip`.

    Args:
        argv: Arguments; None takes the process's own.

    Returns:
        Exit status.
    """
    args = _parser().parse_args(argv)
    from lgclip.shown import shown

    try:
        for line in _said(args):
            print(shown(line), flush=True)
    except (ValueError, OSError) as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 1
    return 0
