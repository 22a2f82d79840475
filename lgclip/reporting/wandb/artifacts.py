"""Logs the inputs and outputs of a run as W&B artifacts: prompts -> images -> features -> result."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lgclip.diffuser.base import SyntheticImages
from lgclip.reporting.run_folder import DIAGNOSTICS, PER_CLASS, PREDICTIONS, RESULT, Run
from lgclip.store.remote import fetch_file
from lgclip.store.root import open_root
from lgclip.store.shard_index import Member

if TYPE_CHECKING:
    import wandb

KEEP = ("manifest", "files", "none")
"""What goes into artifacts: lists of content keys; the images and features as well; nothing."""

_RESULT_FILES = (RESULT, PREDICTIONS, PER_CLASS, DIAGNOSTICS, "prototypes.png")


class Experiment(Protocol):
    """Declares the parts of a W&B run that are needed here."""

    @property
    def dir(self) -> str:
        """Returns the folder of the run's files."""
        ...

    @property
    def offline(self) -> bool:
        """Returns whether nothing is sent."""
        ...

    def log_artifact(self, artifact: Any, /) -> Any:
        """Records an artifact as an output."""
        ...

    def use_artifact(self, artifact: Any, /) -> Any:
        """Records an artifact as an input; uploads it if it does not exist yet."""
        ...


def log_artifacts(experiment: Experiment, run: Run, synthetic_images: SyntheticImages | None, keep: str) -> None:
    """Logs the four artifacts of a finished run.

    What a stage of this run computed is its output, and what it reused from the store its input. W&B records inputs
    only when it is online; offline all four are outputs, and equal ones become one version when the runs are synced.

    Args:
        experiment: The W&B run.
        run: The finished run.
        synthetic_images: The synthetic images; None if the method used none.
        keep: One of `KEEP`.
    """
    if keep == "none":
        return
    # Within the folder of the W&B run, so that `wandb sync` on another day finds the files unchanged.
    folder = Path(experiment.dir).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    computed = {stage.stage: stage.computed for stage in run.result.stages}
    for kind, (files, metadata) in _contents(run, synthetic_images, folder, keep).items():
        artifact = _artifact(run, kind, files, metadata)
        # `result` is no stage: each run makes its own.
        if experiment.offline or computed.get(kind, 1):
            experiment.log_artifact(artifact)
        else:
            experiment.use_artifact(artifact)


Content = tuple[dict[str, Path], dict[str, Any]]
"""The files of an artifact, by their path in it, and its metadata."""


def _contents(run: Run, synthetic_images: SyntheticImages | None, folder: Path, keep: str) -> dict[str, Content]:
    result = run.result
    contents: dict[str, Content] = {}
    if synthetic_images is not None:
        names = run.class_names
        # Several images are generated from one prompt. Images from a folder have no prompt: their texts are empty.
        prompts = dict.fromkeys((prompt.class_index, prompt.text) for prompt in synthetic_images.prompts if prompt.text)
        if prompts:
            lines = [{"class": c, "name": names[c], "prompt": text} for c, text in prompts]
            contents["prompts"] = {"prompts.jsonl": _json_lines(folder, "prompts", lines)}, {"llm": result.llm}
        lines = [
            {"id": key, "class": p.class_index, "name": names[p.class_index], "prompt": p.text, "repeat": p.repeat}
            for key, p in zip(synthetic_images.ids, synthetic_images.prompts, strict=True)
        ]
        inside: dict[str, Path] = {}
        if keep == "files" and synthetic_images.are_stored:
            stored = [
                _reference(key, place)
                for key, place in zip(synthetic_images.ids, synthetic_images.paths, strict=True)
                if place is not None
            ]
            # A mapping, because many images lie in one shard, which is added once.
            inside = {place: file for place, file, _ in stored}
            for line, (_, _, location) in zip(lines, stored, strict=True):
                line["file"] = location
        images = {"images.jsonl": _json_lines(folder, "images", lines), **inside}
        contents["images"] = images, {"diffuser": result.diffuser}
    streams = [{"stream": stream, "key": key} for stream, key in result.store.items()]
    features = {"features.jsonl": _json_lines(folder, "features", streams)}
    if keep == "files":
        features |= _stored(open_root(result.config["paths"]["store"]) / "features", result.store)
    contents["features"] = features, {"encoder": result.encoder, "scales": result.scales}
    # Copies, because a later run in the same folder would change what is still to be synced.
    files = [run.folder / name for name in _RESULT_FILES if (run.folder / name).is_file()]
    contents["result"] = (
        {path.name: Path(shutil.copy(path, folder)) for path in files},
        {
            "method": result.method,
            "metrics": asdict(result.metrics),
            "choices": result.choices,
            "run_key": result.run_key,
        },
    )
    return contents


def _reference(key: str, place: Path | Member) -> tuple[str, Path, str]:
    """Returns an image's path in the artifact, its file, and where to find it there; shards are added complete."""
    if isinstance(place, Member):
        if not place.shard.exists():
            fetch_file(place.shard)
        inside = f"shards/{place.shard.name}"
        return inside, place.shard, f"{inside}!{place.name}"
    # As in the store: 256 folders, because some file systems are slow with all images in one.
    inside = f"{key[:2]}/{key}{place.suffix}"
    return inside, place, inside


def _json_lines(folder: Path, name: str, lines: Iterable[Mapping[str, object]]) -> Path:
    # One object per line, so that a long list can be read in parts and two versions compared by lines.
    path = folder / f"{name}.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def _stored(root: Path, keys: Mapping[str, str]) -> dict[str, Path]:
    """Returns the feature files of each stream in the store."""
    files = {}
    for stream, key in keys.items():
        # The tensors alone; the store has logs and locks next to them. Sorted, so that equal features make equal
        # artifacts.
        for path in sorted((root / key).glob("*.safetensors")):
            files[f"{stream}/{path.name}"] = path
    return files


def _artifact(run: Run, kind: str, files: Mapping[str, Path], metadata: Mapping[str, Any]) -> "wandb.Artifact":
    import wandb

    dataset = run.result.dataset
    # W&B takes letters, digits, `_`, `-` and `.` in a name, 128 characters at most.
    name = re.sub(r"[^\w.-]+", "-", f"{kind}-{dataset.name}", flags=re.ASCII)[:128]
    artifact = wandb.Artifact(name, kind, metadata={"dataset": asdict(dataset), **metadata})
    for place, path in files.items():
        # Immutable: W&B reads the files where they are and puts no copies into the user's home.
        artifact.add_file(str(path), name=place, policy="immutable", skip_cache=True)
    return artifact
