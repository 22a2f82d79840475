"""`lgclip`: what is not a run. The runs' own commands, `lgclip-evaluate` and its kin, start here too."""

import argparse
import runpy
import sys
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
    store = parts.add_parser("store", help="the stores of prompts, images and features")
    actions = store.add_subparsers(dest="action", required=True)
    features = actions.add_parser("features", help="write the features that a run's number came from")
    features.add_argument("run", type=Path, metavar="RUN_DIR", help="a run's folder, with its result.json")
    features.add_argument("out", type=Path, metavar="OUT.npz", help="file to write")
    summary = parts.add_parser("summary", help="a sweep in one table, rebuilt from its folders")
    summary.add_argument("sweep", type=Path, metavar="SWEEP_DIR", help="the folder of the jobs' folders 0, 1, 2, ...")
    doctor = parts.add_parser("doctor", help="what is installed, what is missing, what is ready")
    doctor.add_argument("--store", metavar="DIR", help="the store; by default the usual one")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Console command `lgclip`.

    Args:
        argv: Arguments; None takes the process's own.

    Returns:
        Exit status.
    """
    args = _parser().parse_args(argv)
    try:
        if args.part == "doctor":
            from lgclip.doctor import report

            for line in report(_place("conf"), args.store):
                print(line, flush=True)
        elif args.part == "summary":
            from lgclip.summary import summarise

            print(summarise(args.sweep)[0])
        else:
            from lgclip.export import export_features

            print(export_features(args.run, args.out))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0
