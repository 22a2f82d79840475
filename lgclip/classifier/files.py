"""Saves a classifier as a folder, or a zip file, of JSON and safetensors; no pickle, no code.

classifier.json         classes, encoder, views, rule, temperature, settings, versions; written last
classifier.safetensors  features of the synthetic images, of real ones and of things to reject, text prototypes, and
                        for a linear rule the prototypes
prototypes.png          the first synthetic images of the first classes
model/                  files of a model: a student, visual prompts, or the encoder if it was packed
README.md               what it was built from
"""

import shutil
import stat
import tempfile
import zipfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from lgclip.classifier.card import card_text
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.places import CARD, ENCODER, RECORD, SCHEMA, SHEET, TENSORS, ZIP, check_place
from lgclip.classifier.sheet import write_sheet
from lgclip.encoder.base import Encoder
from lgclip.encoder.packed import ABOUT, WEIGHTS, is_packed, pack_encoder
from lgclip.methods.alignment import alignment_tensors
from lgclip.methods.calibration import Choice
from lgclip.methods.scoring import Mean
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.checksums import checksum_of, with_checksum
from lgclip.store.keys import digest_of, key_inputs, key_name_of

_PACKAGES = ("lgclip", "torch", "open_clip_torch", "timm")


def save_classifier(classifier: ImageClassifier, path: Path, *, with_encoder: bool = False) -> Path:
    """Saves a classifier.

    Args:
        classifier: The classifier.
        path: New or existing folder of a classifier, or a file that ends with `.zip`.
        with_encoder: Whether to save the weights of the vision tower too, for machines without network. A classifier
            that was loaded with its weights keeps them.

    Returns:
        The path.

    Raises:
        ValueError: If something else than a classifier is there, or the encoder cannot be saved.
        WriteError: If the system refuses it.
    """
    if path.suffix.lower() != ZIP:
        check_place(path)
        path.mkdir(parents=True, exist_ok=True)
        # First all of it, then into place, the record last: a full disk leaves the old classifier as it was.
        with tempfile.TemporaryDirectory(dir=path, prefix=".saving-") as folder:
            files = _write(classifier, Path(folder), with_encoder)
            for name in (*files, TENSORS, SHEET, CARD, RECORD):
                (path / name).parent.mkdir(parents=True, exist_ok=True)
                (Path(folder) / name).replace(path / name)
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, atomic_write(path) as temporary:
        _write(classifier, Path(folder), with_encoder)
        # Stored and not compressed: features are random bits to a compressor. Fixed times make equal files equal.
        with zipfile.ZipFile(temporary, "w") as archive:
            for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
                entry = zipfile.ZipInfo(file.relative_to(folder).as_posix())
                entry.external_attr = (stat.S_IFREG | 0o644) << 16  # without it, unzip makes files that no one may read
                archive.writestr(entry, file.read_bytes())
    return path


def _write(classifier: ImageClassifier, folder: Path, with_encoder: bool) -> list[str]:
    """Writes the files of a classifier, and returns the names of its model's."""
    tensors = _tensors(classifier)
    with atomic_write(folder / TENSORS) as temporary:
        save_file(tensors, temporary)
    for name, source in classifier.files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, folder / name)
    files = list(classifier.files)
    # The model of a trained classifier is in its files already, and so are the weights that it was loaded with.
    if with_encoder and not classifier.gives_logits and not is_packed(classifier.encoder):
        files += _pack(classifier.encoder, folder)
    boxes = write_sheet(folder / SHEET, classifier.class_names, classifier.strips)
    with atomic_write(folder / CARD) as temporary:
        temporary.write_text(
            card_text(classifier, packed=any(name.startswith(ENCODER) for name in files)), encoding="utf-8"
        )
    fitted = classifier.fitted
    shots = classifier.shots
    record = {
        "schema": SCHEMA,
        "classes": [info._asdict() for info in classifier.classes],
        "encoder": classifier.encoder.inputs(),
        "scales": key_inputs(classifier.scales),
        "configured": _choice_values(classifier.configured),
        "calibration": asdict(classifier.calibration) if classifier.calibration else None,
        "fitted": {
            **_choice_values(fitted.choice),
            "leave_one_out": fitted.leave_one_out,
            "temperature": fitted.temperature._asdict(),
        },
        "gives_logits": classifier.gives_logits,
        "files": {name: digest_of(folder / name) for name in files},
        "images": {"ids": list(classifier.image_ids), "dropped": list(classifier.dropped)},
        "shots": {"ids": list(shots.ids), "repeats": shots.repeats} if shots else None,
        "alignment": _alignment_values(classifier),
        "rejection": _rejection_values(classifier),
        "edits": list(classifier.edits),
        "settings": dict(classifier.settings),
        "origin": dict(classifier.origin),
        "tensors": checksum_of(tensors),
        "sheet": {"boxes": boxes, "sha256": digest_of(folder / SHEET)},
        "versions": {name: version(name) for name in _PACKAGES},
    }
    write_json(folder / RECORD, with_checksum(record))
    return files


def _pack(encoder: Encoder, folder: Path) -> list[str]:
    """Writes the weights of the vision tower, of a pair those of both, and returns the names of the files."""
    places = {f"{ENCODER}/{name}": part for name, part in encoder.parts().items()} or {ENCODER: encoder}
    for place, part in places.items():
        pack_encoder(part, folder / place)
    return [f"{place}/{name}" for place in places for name in (ABOUT, WEIGHTS)]


def _tensors(classifier: ImageClassifier) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    support = classifier.support
    if support is not None:
        tensors["features"] = support.features.float().contiguous()
        tensors["labels"] = support.labels.contiguous()
        if support.full_image is not None:
            tensors["full_image"] = support.full_image.float().contiguous()
    if classifier.text is not None:
        tensors["text"] = classifier.text.float().contiguous()
    if classifier.shots is not None:
        tensors["shots"] = classifier.shots.features.float().contiguous()
        tensors["shot_labels"] = classifier.shots.labels.contiguous()
    if classifier.negatives is not None:
        negatives = classifier.negatives.references
        if negatives.support is not None:
            tensors["negatives"] = negatives.support.features.float().contiguous()
            tensors["negative_labels"] = negatives.support.labels.contiguous()
        if negatives.text is not None:
            tensors["negative_text"] = negatives.text.float().contiguous()
    if classifier.alignment is not None:
        # Not linear in the feature of an image, so that there is no prototype of a linear head.
        return {**tensors, **alignment_tensors(classifier.alignment)}
    # Of a pair each half of a feature is normalized first.
    if classifier.gives_logits or classifier.encoder.parts():
        return tensors
    if isinstance(classifier.choice.rule, Mean) or classifier.choice.text_weight == 1:
        # The scores of unit vectors are the columns: a linear head for whoever has the encoder alone.
        width = (classifier.text if support is None else support.features).shape[1]  # pyright: ignore[reportOptionalMemberAccess]
        scorer = classifier.scorer()
        tensors["prototypes"] = scorer(torch.eye(width)).T.float().contiguous()
    return tensors


def _alignment_values(classifier: ImageClassifier) -> dict[str, object] | None:
    """Returns the data that an alignment was estimated from; null without one."""
    alignment = classifier.alignment
    return None if alignment is None else {"images": alignment.images, "source": alignment.source}


def _rejection_values(classifier: ImageClassifier) -> dict[str, Any] | None:
    """Returns the settings and the threshold; null where nothing is rejected."""
    if classifier.rejection is None:
        return None
    rejector = classifier.rejector
    return {
        "configured": asdict(classifier.rejection),
        "negatives": list(classifier.negatives.names) if classifier.negatives else [],
        "fitted": None
        if rejector is None
        else {
            **rejector._asdict(),
            "qualities": {name: quality._asdict() for name, quality in rejector.qualities.items()},
        },
    }


def _choice_values(choice: Choice) -> dict[str, Any]:
    return {
        "rule": choice.rule.described(),
        "selection": {"part": key_name_of(choice.selection), **asdict(choice.selection)},
        "text_weight": choice.text_weight,
    }
