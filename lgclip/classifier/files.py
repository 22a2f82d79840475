"""Saves a classifier as a folder of JSON and safetensors, and loads it again; no pickle, no code.

FOLDER/classifier.json         classes, encoder, rule, temperature, versions; written last
FOLDER/classifier.safetensors  features of the synthetic images, text prototypes
FOLDER/README.md               what it was built from
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from lgclip.classifier.model import ImageClassifier
from lgclip.encoder.base import Encoder
from lgclip.encoder.scales import Scales
from lgclip.methods.calibration import Choice, Temperature
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.scoring import ScoringRule
from lgclip.methods.selection import First, Selection
from lgclip.runtime.instantiate import build
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.checksums import CHECKSUM, checksum_of, is_intact, with_checksum
from lgclip.store.keys import key_inputs

RECORD = "classifier.json"
TENSORS = "classifier.safetensors"
SCHEMA = 1
_PACKAGES = ("lgclip", "torch", "open_clip_torch", "timm")


def save_classifier(
    classifier: ImageClassifier, folder: Path, configs: Mapping[str, Any], origin: Mapping[str, Any]
) -> None:
    """Writes a classifier.

    Args:
        classifier: The classifier.
        folder: New or existing folder; a classifier in it is replaced.
        configs: Resolved configs of the encoder (`encoder`) and of its views (`scales`), from which they are rebuilt.
        origin: What it was built from, as plain values, for the record and the card.

    Raises:
        WriteError: If the system refuses it.
    """
    tensors: dict[str, Tensor] = {}
    if classifier.support is not None:
        kept = classifier.choice.selection.select(classifier.support, classifier.text)
        tensors["features"] = kept.features.float().contiguous()
        tensors["labels"] = kept.labels.contiguous()
    if classifier.text is not None and classifier.choice.text_weight > 0:
        tensors["text"] = classifier.text.float().contiguous()
    record = {
        "schema": SCHEMA,
        "classes": list(classifier.class_names),
        "encoder": {"config": dict(configs["encoder"]), "inputs": classifier.encoder.inputs()},
        "scales": {"config": dict(configs["scales"]), "inputs": key_inputs(classifier.scales)},
        "rule": {"part": classifier.choice.rule.key_name, **asdict(classifier.choice.rule)},  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
        "text_weight": classifier.choice.text_weight,
        "temperature": classifier.temperature._asdict(),
        "tensors": checksum_of(tensors),
        "origin": dict(origin),
        "versions": {name: version(name) for name in _PACKAGES},
    }
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / TENSORS) as temporary:
        save_file(tensors, temporary)
    with atomic_write(folder / "README.md") as temporary:
        temporary.write_text(_card(classifier, record), encoding="utf-8")
    write_json(folder / RECORD, with_checksum(record))


def load_classifier(folder: Path) -> ImageClassifier:
    """Loads a classifier.

    Raises:
        ValueError: If there is none, it is damaged or of another version, or its encoder is another by now.
    """
    record = _read_record(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{folder / TENSORS} is missing or damaged ({error}); save the classifier again") from error
    if checksum_of(tensors) != record["tensors"]:
        raise ValueError(f"{folder / TENSORS} is damaged: its checksum is wrong; save the classifier again")
    class_names = tuple(record["classes"])
    encoder = _rebuilt(record["encoder"]["config"], Encoder)
    scales = _rebuilt(record["scales"]["config"], Scales)
    if encoder.inputs() != record["encoder"]["inputs"]:
        raise ValueError(
            f"{folder}: its encoder has other weights or settings than when it was saved, so that its prototypes mean "
            "nothing; build the classifier again"
        )
    support = None
    if "features" in tensors:
        support = SupportSet(tensors["features"], tensors["labels"], len(class_names))
    _check_tensors(folder, tensors, len(class_names))
    choice = Choice(_rule(record["rule"]), First(), float(record["text_weight"]))
    temperature = Temperature(**record["temperature"])
    return ImageClassifier(class_names, encoder, scales, choice, support, tensors.get("text"), temperature)


def _read_record(folder: Path) -> dict[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        raise ValueError(f"{folder}: no classifier, it has no {RECORD}; write one by lgclip save RUN_DIR {folder}")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(record, dict) or not is_intact(record):
        raise ValueError(f"{path} is damaged: its checksum is wrong; save the classifier again")
    if record.get("schema") != SCHEMA:
        raise ValueError(f"{path} is of version {record.get('schema')}, this package reads {SCHEMA}")
    return {name: value for name, value in record.items() if name != CHECKSUM}


def _check_tensors(folder: Path, tensors: Mapping[str, Tensor], classes: int) -> None:
    """Checks shapes and values: not-a-number features would win every comparison without a sign."""
    if not tensors.keys() & {"features", "text"}:
        raise ValueError(f"{folder}: it holds neither features nor text prototypes")
    for name in tensors.keys() & {"features", "text"}:
        if tensors[name].ndim != 2 or not torch.isfinite(tensors[name]).all():
            raise ValueError(f"{folder}: {name} are not finite vectors")
    if "text" in tensors and len(tensors["text"]) != classes:
        raise ValueError(f"{folder}: {len(tensors['text'])} text prototypes for {classes} classes")
    if "features" in tensors:
        labels = tensors["labels"]
        if len(labels) != len(tensors["features"]) or sorted(set(labels.tolist())) != list(range(classes)):
            raise ValueError(f"{folder}: its features are not of {classes} classes")


def _rebuilt(config: Mapping[str, Any], kind: type) -> Any:
    part = build(OmegaConf.create(dict(config)), _convert_="all")
    if not isinstance(part, kind):
        raise ValueError(f"{type(part).__name__} is no {kind.__name__}; save the classifier again")
    return part


def _rule(described: Mapping[str, Any]) -> ScoringRule:
    rules = {rule.key_name: rule for rule in ScoringRule.__subclasses__() if "key_name" in vars(rule)}  # pyright: ignore[reportAttributeAccessIssue]
    settings = {name: value for name, value in described.items() if name != "part"}
    if described["part"] not in rules:
        raise ValueError(f"scoring rule {described['part']} is unknown; import its module first")
    return rules[described["part"]](**settings)


def selection_of(described: Mapping[str, Any]) -> Selection:
    """Returns the selection that a result describes."""
    kinds = {kind.key_name: kind for kind in Selection.__subclasses__()}  # pyright: ignore[reportAttributeAccessIssue]
    return kinds[described["part"]](**{name: value for name, value in described.items() if name != "part"})


def rule_of(described: Mapping[str, Any]) -> ScoringRule:
    """Returns the scoring rule that a result describes."""
    return _rule(described)


def _card(classifier: ImageClassifier, record: Mapping[str, Any]) -> str:
    origin = "\n".join(f"- {name}: {value}" for name, value in record["origin"].items())
    names = "\n".join(f"- {name}" for name in classifier.class_names)
    uses = "images" if classifier.choice.text_weight == 0 else "text and images"
    if classifier.choice.text_weight == 1:
        uses = "text"
    return (
        f"# Image classifier of {len(classifier.class_names)} classes\n\n"
        f"Prototypes from {uses}, made from class names by lgclip. No labelled image was used.\n\n"
        f"```bash\nlgclip classify THIS_FOLDER PHOTOS -o labels.csv\n```\n\n## Built from\n\n{origin}\n\n"
        f"Encoder and generators have licenses of their own.\n\n## Classes\n\n{names}\n"
    )
