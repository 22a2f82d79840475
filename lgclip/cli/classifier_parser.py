"""Defines the commands for classifiers: see docs/guides/classifier.md."""

import argparse
from pathlib import Path

COMMANDS = (
    "build", "save", "classify", "add", "remove", "rename", "edit", "add-shots", "worth", "show", "export", "push"
)  # fmt: skip
"""Commands that build, use and change a classifier."""


def add_classifier_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands to a parser."""
    _add_build_commands(parts)
    _add_use_commands(parts)
    _add_edit_commands(parts)
    _add_limit_commands(parts)
    _add_studio_command(parts)


def _add_build_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    build = parts.add_parser("build", help="build a classifier from class names, without any image")
    build.add_argument(
        "names", type=Path, metavar="NAMES.txt", help="one name per line, or NAME<TAB>DESCRIPTION; or a JSON file"
    )
    build.add_argument(
        "-o", "--out", type=Path, metavar="CLASSIFIER", help="folder or .zip to write (default: NAMES.lgclip)"
    )
    _add_with_encoder(build)
    build.add_argument(
        "--negatives", type=Path, metavar="FILE", help="names of things to reject (default: the language model's)"
    )
    build.add_argument(
        "--improve", type=int, default=0, metavar="N", help="rounds of new prompts and images for confusable classes"
    )
    build.add_argument("values", nargs="*", metavar="KEY=VALUE", help="overrides as of evaluate.py: encoder=vit_b16")

    save = parts.add_parser("save", help="save the classifier of a run: prototypes, rule and class names")
    save.add_argument("run", type=Path, metavar="RUN_DIR", help="folder of a run, with its result.json")
    save.add_argument("out", type=Path, metavar="CLASSIFIER", help="folder or .zip to write")
    _add_with_encoder(save)


def _add_with_encoder(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--with-encoder", action="store_true", help="save the weights of the vision tower too, for use without network"
    )


def _add_use_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    classify = parts.add_parser("classify", help="classify images with a classifier, or with that of a run")
    classify.add_argument("classifier", metavar="CLASSIFIER", help="folder, .zip or hf://USER/NAME, or folder of a run")
    classify.add_argument("images", nargs="+", metavar="IMAGES", help="files, shards, folders, patterns, URLs")
    classify.add_argument("-o", "--out", type=Path, metavar="FILE", help="table to write (default: the terminal)")
    classify.add_argument("--top", type=int, default=1, metavar="N", help="columns with the N most probable classes")
    classify.add_argument("--format", choices=("csv", "jsonl", "parquet"), help="of the table (default: by its name)")
    classify.add_argument("--move-to", type=Path, metavar="DIR", help="move the images into a folder per class")
    classify.add_argument(
        "--shards-to",
        type=Path,
        metavar="DIR",
        help="write a table per tar or parquet shard, unless it is there",
    )
    classify.add_argument(
        "--part", dest="shard_part", metavar="I/N", help="with --shards-to: classify the I-th of N parts of the shards"
    )
    classify.add_argument(
        "--labels",
        metavar="FIELD",
        help="with --shards-to: what holds the true class: an extension such as cls, json.KEY, folder, or a column",
    )
    classify.add_argument("--names", type=Path, metavar="FILE", help="with --labels: class names by index")
    classify.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="with --shards-to: who classifies the shards"
    )

    export = parts.add_parser("export", help="export a classifier to one file for other runtimes")
    export.add_argument("classifier", metavar="CLASSIFIER", help="folder, .zip or hf://USER/NAME, or folder of a run")
    export.add_argument("-o", "--out", type=Path, metavar="FILE", help="file to write (default: CLASSIFIER.onnx, ...)")
    export.add_argument(
        "--format", choices=("onnx", "pt2", "openvino", "safetensors"), help="format (default: by the file's name)"
    )
    export.add_argument("--int8", action="store_true", help="quantize the weights to 8 bits, for onnx")
    export.add_argument("--resize", action="store_true", help="put resize and crop into the graph")

    push = parts.add_parser("push", help="upload a classifier to the model hub")
    push.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    push.add_argument("address", metavar="hf://USER/NAME")
    push.add_argument("--public", action="store_true", help="a new repository can be seen by everyone")


def _add_edit_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    add = parts.add_parser("add", help="add classes to a classifier; generates nothing of the others")
    add.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    add.add_argument("names", nargs="+", metavar="NAME", help="names, or a file of names")
    add.add_argument("--override", action="append", default=[], metavar="KEY=VALUE", help="such as paths.store=DIR")
    remove = parts.add_parser("remove", help="remove classes from a classifier")
    remove.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    remove.add_argument("names", nargs="+", metavar="NAME")
    rename = parts.add_parser("rename", help="give a class another name in predictions")
    rename.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    rename.add_argument("old", metavar="OLD")
    rename.add_argument("new", metavar="NEW")
    edit = parts.add_parser("edit", help="take synthetic images out of a classifier")
    edit.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    edit.add_argument(
        "--drop", nargs="+", required=True, metavar="IMAGE_ID", help="ids, or their first letters: lgclip show --images"
    )
    shots = parts.add_parser("add-shots", help="mix a few real images of some classes into their prototypes")
    shots.add_argument("classifier", type=Path, metavar="CLASSIFIER")
    shots.add_argument("folder", type=Path, metavar="DIR", help="folder with a folder of images per class")
    for command in (add, remove, rename, edit, shots):
        command.add_argument(
            "-o", "--out", type=Path, metavar="CLASSIFIER", help="where to save it (default: in its place)"
        )


def _add_limit_commands(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    worth = parts.add_parser("worth", help="measure how many real images per class the synthetic ones are worth")
    worth.add_argument("classifier", metavar="CLASSIFIER")
    worth.add_argument("folder", type=Path, metavar="DIR", help="folder with a folder of labelled images per class")
    worth.add_argument("--plot", type=Path, metavar="FILE", help="plot to write: .png, .pdf or .svg")
    worth.add_argument("--seeds", type=int, default=5, metavar="N", help="random choices of the real images (5)")

    show = parts.add_parser("show", help="list the classes of a classifier, its limits, and its prompts")
    show.add_argument("classifier", metavar="CLASSIFIER")
    show.add_argument("--images", action="store_true", help="list the ids of the synthetic images")
    show.add_argument("--sheet", type=Path, metavar="FILE.png", help="write the synthetic images of its classes")


def _add_studio_command(parts: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    studio = parts.add_parser("studio", help="build and use a classifier in a page of the browser, on this machine")
    studio.add_argument(
        "values", nargs="*", metavar="CLASSIFIER KEY=VALUE",
        help="a classifier to start with, if any; then overrides as of lgclip build: encoder=vit_b16",
    )  # fmt: skip
    studio.add_argument("--port", type=int, metavar="N", help="port (default: the first free one from 7860)")
    studio.add_argument("--no-browser", action="store_true", help="do not open the page in a browser")
    studio.add_argument(
        "--max-upload", type=float, default=20, metavar="MB", help="maximum size of a photograph (default: 20)"
    )
    studio.add_argument(
        "--space", type=Path, metavar="DIR", help="write a folder that is a Hugging Face Space, and start nothing"
    )
