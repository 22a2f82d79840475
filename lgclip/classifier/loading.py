"""Loads a classifier that was saved: everything in its files is checked, since they may be someone else's."""

import json
import tempfile
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import lgclip.methods.paired  # noqa: F401  # a rule is found by its name once its module is imported
from lgclip.classifier.model import ImageClassifier
from lgclip.classifier.parts import ClassInfo, Negatives
from lgclip.classifier.places import CARD, ENCODER, MODEL, PACKED, RECORD, SCHEMA, SHEET, TENSORS
from lgclip.classifier.sheet import read_strips
from lgclip.datasets.archive_members import Member, reported, zip_members
from lgclip.encoder.base import Encoder
from lgclip.encoder.packed import ABOUT, PackedEncoder
from lgclip.encoder.paired import PARTS, PairedEncoder
from lgclip.encoder.scales import Scales
from lgclip.methods.alignment import FittedAlignment
from lgclip.methods.calibration import Choice, FittedChoice, LeaveOneOut, Temperature
from lgclip.methods.left_out import References
from lgclip.methods.prototypes import SupportSet
from lgclip.methods.rejection import SCORES, FittedRejection, Rejection, ScoreQuality
from lgclip.methods.scoring import ScoringRule
from lgclip.methods.selection import Selection
from lgclip.methods.shots import Shots
from lgclip.runtime.instantiate import build
from lgclip.runtime.regular_files import read_text
from lgclip.store.checksums import CHECKSUM, checksum_of, is_intact
from lgclip.store.keys import content_key, digest_of, key_inputs

_MAX_DEPTH = 4
_FILES = (RECORD, TENSORS, SHEET, CARD)
_MAX_BYTES = 4 * 2**30  # of a file in a zip file: features of a million images
_BLOCK = 2**20


def load_classifier(path: Path) -> ImageClassifier:
    """Loads a classifier from its folder or zip file.

    Raises:
        ValueError: If there is none, it is damaged or of another version, or its encoder is another by now.
    """
    if not path.is_file():
        return _load(path, path)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lgclip-")))
        _unpack_all(path, folder)
        classifier = _load(path, folder)
        if classifier.files:
            # The model is read when it is first used, so its files stay as long as the classifier does.
            weakref.finalize(classifier, stack.pop_all().close)
    return classifier


def _load(path: Path, folder: Path) -> ImageClassifier:
    record = _read_record(path, folder)
    try:
        return _restore(path, folder, record)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: {RECORD} lacks or misstates {error}; save the classifier again by this version"
        ) from error


def _unpack_all(path: Path, folder: Path) -> None:
    """Unpacks the files of a classifier: names in an archive of someone else's are theirs to choose."""
    with reported(path):
        for member in zip_members(path):
            name = _name_in(member.parts)
            if name and member.read is not None:
                _unpack(path, member, folder / name)


def _name_in(parts: Sequence[str]) -> str:
    """Returns the path of a file in a classifier's folder, which may lie in another one; empty for other files."""
    for start in range(min(2, len(parts))):
        inner = parts[start:]
        if len(inner) == 1 and inner[0] in _FILES:
            return inner[0]
        if len(inner) > 1 and inner[0] == MODEL and len(inner) <= _MAX_DEPTH:
            return "/".join(inner)
    return ""


def _unpack(path: Path, member: Member, target: Path) -> None:
    """Writes a member of a zip file.

    Raises:
        ValueError: If it is too large, or the archive has two of them.
    """
    if member.size > _MAX_BYTES:
        raise ValueError(f"{path}: {target.name} has {member.size} bytes, at most {_MAX_BYTES} are read")
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise ValueError(f"{path}: it holds {target.name} twice; save the classifier again")
    assert member.read is not None
    opened = member.read()
    assert opened is not None
    with opened as source, target.open("wb") as file:
        remaining = member.size
        # A size that is stated too small must not unpack to more.
        while remaining > 0 and (block := source.read(min(remaining, _BLOCK))):
            remaining -= len(block)
            file.write(block)


def _read_record(path: Path, folder: Path) -> dict[str, Any]:
    if not (folder / RECORD).exists():
        raise ValueError(
            f"{path}: no classifier, it has no {RECORD}; make one by lgclip build NAMES.txt -o {path}, or by "
            f"lgclip save RUN_DIR {path}"
        )
    try:
        record = json.loads(read_text(folder / RECORD, encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {RECORD} is damaged: it is not JSON ({error})") from error
    if not isinstance(record, dict) or not is_intact(record):
        raise ValueError(f"{path}: {RECORD} is damaged: its checksum is wrong; save the classifier again")
    if record.get("schema") != SCHEMA:
        raise ValueError(
            f"{path} is of schema {record.get('schema')}, this package reads {SCHEMA}; build the classifier again"
        )
    return {name: value for name, value in record.items() if name != CHECKSUM}


def _restore(path: Path, folder: Path, record: Mapping[str, Any]) -> ImageClassifier:
    tensors = _read_tensors(path, folder, record["tensors"])
    classes = tuple(ClassInfo(**{**info, "prompts": tuple(info["prompts"])}) for info in record["classes"])
    if len(classes) < 2:
        raise ValueError(f"{path}: a classifier needs at least two classes, this one has {len(classes)}")
    if not record["gives_logits"]:
        _check_tensors(path, tensors, len(classes))
        _check_extra(path, record, tensors, len(classes))
    files = _read_files(path, folder, record["files"])
    encoder_config = _with_places(record["settings"]["encoder"], folder)
    # Further classes are built by the original, which has a text tower as well.
    encoder = _packed_encoder(folder, files, encoder_config) or _rebuilt(encoder_config, Encoder)
    scales = _rebuilt(record["settings"]["scales"], Scales)
    _check_encoder(path, encoder, record["encoder"])
    # Compared as JSON, in which a tuple is a list.
    if content_key(key_inputs(scales)) != content_key(record["scales"]):
        raise ValueError(f"{path}: its views are computed in another way by this version; build the classifier again")
    support = None
    if "features" in tensors:
        support = SupportSet(tensors["features"], tensors["labels"], len(classes), tensors.get("full_image"))
    shots = None
    if record["shots"] is not None:
        values = record["shots"]
        shots = Shots(tensors["shots"], tensors["shot_labels"], tuple(values["ids"]), int(values["repeats"]))
    alignment = None
    if record["alignment"] is not None:
        alignment = FittedAlignment(tensors["pool_mean"], tensors.get("offset"), **record["alignment"])
    rejection, negatives, rejector = _restored_rejection(record["rejection"], tensors)
    values = record["fitted"]
    calibration = record["calibration"]
    fitted = FittedChoice(_choice(values), values["leave_one_out"], Temperature(**values["temperature"]))
    return ImageClassifier(
        classes=classes,
        encoder=encoder,
        scales=scales,
        configured=_choice(record["configured"]),
        calibration=LeaveOneOut(**calibration) if calibration else None,
        support=support,
        text=tensors.get("text"),
        fitted=fitted,
        settings=record["settings"],
        origin=record["origin"],
        gives_logits=record["gives_logits"],
        files=files,
        strips=_read_sheet(path, folder, record["sheet"], len(classes)),
        image_ids=tuple(record["images"]["ids"]),
        dropped=tuple(record["images"]["dropped"]),
        shots=shots,
        rejection=rejection,
        negatives=negatives,
        rejector=rejector,
        alignment=alignment,
        edits=tuple(record["edits"]),
    )


def _packed_encoder(folder: Path, files: Mapping[str, Path], config: Mapping[str, Any]) -> Encoder | None:
    """Returns the encoder, or the pair, whose weights are among a classifier's files; None without them."""
    if f"{ENCODER}/{ABOUT}" in files:
        # A prompt has the precision of the encoder that it is for.
        precision = config.get("base", config).get("precision", "auto")
        return PackedEncoder(str(folder / ENCODER), precision)
    parts: dict[str, Encoder] = {}
    for name in PARTS:
        if f"{ENCODER}/{name}/{ABOUT}" in files:
            precision = config.get(name, {}).get("precision", "auto")
            parts[name] = PackedEncoder(str(folder / ENCODER / name), precision)
    return PairedEncoder(**parts) if len(parts) == len(PARTS) else None


def _restored_rejection(
    record: Mapping[str, Any] | None, tensors: Mapping[str, Tensor]
) -> tuple[Rejection | None, Negatives | None, FittedRejection | None]:
    """Returns the settings, the negatives and the threshold of a record."""
    if record is None:
        return None, None, None
    negatives = None
    names = tuple(record["negatives"])
    if names:
        support = SupportSet(tensors["negatives"], tensors["negative_labels"], len(names))
        negatives = Negatives(names, References(support, tensors.get("negative_text")))
    rejector = None
    if record["fitted"] is not None:
        qualities = {name: ScoreQuality(**values) for name, values in record["fitted"]["qualities"].items()}
        rejector = FittedRejection(**{**record["fitted"], "qualities": qualities})
        if rejector.score not in SCORES:
            raise KeyError(f"rejection score {rejector.score}")
    return Rejection(**record["configured"]), negatives, rejector


def _read_tensors(path: Path, folder: Path, checksum: str) -> dict[str, Tensor]:
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"{path}: {TENSORS} is missing or damaged ({error}); save the classifier again") from error
    if checksum_of(tensors) != checksum:
        raise ValueError(f"{path}: {TENSORS} is damaged: its checksum is wrong; save the classifier again")
    return tensors


def _read_files(path: Path, folder: Path, digests: Mapping[str, str]) -> dict[str, Path]:
    """Returns the files of a trained model, checked."""
    files: dict[str, Path] = {}
    for name, digest in digests.items():
        # A record of someone else's must name no file elsewhere.
        if _name_in(name.split("/")) != name or ".." in name.split("/"):
            raise ValueError(f"{path}: {name!r} is no file of a classifier")
        if not (folder / name).is_file() or digest_of(folder / name) != digest:
            raise ValueError(f"{path}: {name} is missing or damaged; save the classifier again")
        files[name] = folder / name
    return files


def _with_places(config: Any, folder: Path) -> Any:
    """Returns a config in which settings that begin with `packed:` are paths in the classifier's folder."""
    if isinstance(config, Mapping):
        return {key: _with_places(value, folder) for key, value in config.items()}
    if isinstance(config, str) and config.startswith(PACKED):
        name = config.removeprefix(PACKED)
        if ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"{config!r} is no file of a classifier")
        return str(folder / MODEL / name)
    return config


def _read_sheet(path: Path, folder: Path, record: Mapping[str, Any], classes: int) -> tuple[Any, ...]:
    """Returns the images of the classes; without them a classifier works as well, so that a lost file is no error."""
    if not (folder / SHEET).is_file():
        return (None,) * classes
    content = (folder / SHEET).read_bytes()
    if digest_of(folder / SHEET) != record["sha256"]:
        raise ValueError(f"{path}: {SHEET} is damaged: its checksum is wrong; delete it or save the classifier again")
    try:
        return read_strips(content, record["boxes"], classes)
    except ValueError as error:
        raise ValueError(f"{path}: {SHEET}: {error}") from error


def _check_tensors(path: Path, tensors: Mapping[str, Tensor], classes: int) -> None:
    """Checks shapes, types and values: not-a-number features would win every comparison without a sign."""
    if not tensors.keys() & {"features", "text"}:
        raise ValueError(f"{path}: it holds neither features nor text prototypes")
    widths: dict[str, int] = {}
    for name in tensors.keys() & {
        "features",
        "full_image",
        "text",
        "prototypes",
        "shots",
        "negatives",
        "negative_text",
    }:
        tensor = tensors[name]
        if tensor.ndim != 2 or not tensor.is_floating_point() or not torch.isfinite(tensor).all():
            raise ValueError(f"{path}: {name} are not finite vectors")
        widths[name] = tensor.shape[1]
    if len(set(widths.values())) > 1:
        raise ValueError(f"{path}: its vectors have different lengths: {widths}")
    for name in tensors.keys() & {"text", "prototypes"}:
        if len(tensors[name]) != classes:
            raise ValueError(f"{path}: {len(tensors[name])} rows of {name} for {classes} classes")
    if "features" in tensors:
        labels = tensors.get("labels")
        count = len(tensors["features"])
        if labels is None or labels.dtype != torch.int64 or labels.shape != (count,):
            raise ValueError(f"{path}: its {count} features have no label each")
        if sorted(set(labels.tolist())) != list(range(classes)):
            raise ValueError(f"{path}: its features are not of {classes} classes")
        if "full_image" in tensors and len(tensors["full_image"]) != count:
            raise ValueError(f"{path}: {len(tensors['full_image'])} full images for {count} features")


def _check_extra(path: Path, record: Mapping[str, Any], tensors: Mapping[str, Tensor], classes: int) -> None:
    """Checks the further tensors: real images, and images of objects that belong to no class."""
    if "features" in tensors and len(record["images"]["ids"]) != len(tensors["features"]):
        raise ValueError(f"{path}: {len(record['images']['ids'])} image ids for {len(tensors['features'])} features")
    _check_labels(path, tensors, "shots", "shot_labels", classes)
    if record["alignment"] is not None:
        _check_alignment(path, tensors)
    names = record["rejection"]["negatives"] if record["rejection"] else []
    _check_labels(path, tensors, "negatives", "negative_labels", len(names))


def _check_alignment(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Checks the vectors of an alignment."""
    needed = ["pool_mean", "offset"] if "features" in tensors else ["pool_mean"]
    width = (tensors["features"] if "features" in tensors else tensors["text"]).shape[1:]
    for name in needed:
        vector = tensors.get(name)
        if vector is None or vector.shape != width or not torch.isfinite(vector).all():
            raise ValueError(f"{path}: {name} of its alignment is no finite vector of length {width[0]}")


def _check_labels(path: Path, tensors: Mapping[str, Tensor], name: str, labels_name: str, classes: int) -> None:
    if name not in tensors:
        return
    labels = tensors.get(labels_name)
    count = len(tensors[name])
    if labels is None or labels.dtype != torch.int64 or labels.shape != (count,):
        raise ValueError(f"{path}: its {count} {name} have no label each")
    if count and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"{path}: its {name} are not of {classes} classes")


def _check_encoder(path: Path, encoder: Encoder, recorded: Mapping[str, Any]) -> None:
    """Checks that the encoder computes the features that the prototypes were made of."""
    current = encoder.inputs()
    # Compared as JSON, in which a tuple is a list.
    if content_key(current) != content_key(recorded):
        raise ValueError(
            f"{path}: its encoder has other weights or settings than when it was saved, so that its prototypes mean "
            "nothing; build the classifier again"
        )


def _rebuilt(config: Mapping[str, Any], kind: type) -> Any:
    part = build(OmegaConf.create(dict(config)), _convert_="all")
    if not isinstance(part, kind):
        raise ValueError(f"{type(part).__name__} is no {kind.__name__}; save the classifier again")
    return part


def _choice(values: Mapping[str, Any]) -> Choice:
    return Choice(rule_of(values["rule"]), selection_of(values["selection"]), float(values["text_weight"]))


def rule_of(described: Mapping[str, Any]) -> ScoringRule:
    """Returns the scoring rule that a result or a record describes.

    Raises:
        ValueError: If it is of a class that is not imported.
    """
    # That of two encoders holds the rule of each.
    inner = {"rule": rule_of(described["rule"])} if isinstance(described.get("rule"), Mapping) else {}
    return _part_of({**described, **inner}, ScoringRule, "scoring rule")


def selection_of(described: Mapping[str, Any]) -> Selection:
    """Returns the selection that a result or a record describes.

    Raises:
        ValueError: If it is of a class that is not imported.
    """
    return _part_of(described, Selection, "selection")


def _subclasses(base: type) -> Iterator[Any]:
    for part in base.__subclasses__():
        yield part
        yield from _subclasses(part)


def _part_of(described: Mapping[str, Any], base: type, kind: str) -> Any:
    parts = {part.key_name: part for part in _subclasses(base) if "key_name" in vars(part)}
    settings = {name: value for name, value in described.items() if name != "part"}
    if described["part"] not in parts:
        raise ValueError(f"{kind} {described['part']} is unknown; import its module first")
    return parts[described["part"]](**settings)
