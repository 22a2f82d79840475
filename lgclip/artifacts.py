"""What a run made and used, as W&B artifacts: prompts -> images -> features -> result."""

import json
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from lgclip.diffuser.base import Pictures
from lgclip.runs import DIAGNOSTICS, PER_CLASS, PREDICTIONS, RESULT, Run
from lgclip.shard_index import Member
from lgclip.store import open_root

if TYPE_CHECKING:
    import wandb

KEEP = ("manifest", "files", "none")
"""What goes into artifacts: lists of content keys; the images and features as well; nothing."""

_RESULT_FILES = (RESULT, PREDICTIONS, PER_CLASS, DIAGNOSTICS, "prototypes.png")


class Experiment(Protocol):
    """What a W&B run has that is needed here."""

    @property
    def dir(self) -> str:
        """Folder of the run's files."""
        ...

    @property
    def offline(self) -> bool:
        """Whether nothing is sent."""
        ...

    def log_artifact(self, artifact: Any, /) -> Any:
        """Takes an artifact as an output."""
        ...

    def use_artifact(self, artifact: Any, /) -> Any:
        """Takes an artifact as an input; one that is not there yet is sent."""
        ...


def log_artifacts(experiment: Experiment, run: Run, drawing: Pictures | None, keep: str) -> None:
    """Logs the four artifacts of a finished run.

    What a stage of this run made is its output, and what it found in the store its input. W&B records inputs only
    when it is online; offline all four are outputs, and equal ones become one version when the runs are synced.

    Args:
        experiment: The W&B run.
        run: The finished run.
        drawing: The synthetic images; None if the method used none.
        keep: One of `KEEP`.
    """
    if keep == "none":
        return
    folder = Path(experiment.dir).parent / "artifacts"
    folder.mkdir(exist_ok=True)
    made = {stage["stage"]: stage["made"] for stage in run.result["stages"]}
    for kind, (files, told) in _contents(run, drawing, folder, keep).items():
        artifact = _artifact(run, kind, files, told)
        if experiment.offline or made.get(kind, 1):
            experiment.log_artifact(artifact)
        else:
            experiment.use_artifact(artifact)


Content = tuple[dict[str, Path], dict[str, Any]]
"""The files of an artifact, by their place in it, and what is said of it."""


def _contents(run: Run, drawing: Pictures | None, folder: Path, keep: str) -> dict[str, Content]:
    result, contents = run.result, {}
    if drawing is not None:
        names = run.class_names
        prompts = dict.fromkeys((prompt.class_index, prompt.text) for prompt in drawing.prompts if prompt.text)
        if prompts:
            lines = [{"class": c, "name": names[c], "prompt": text} for c, text in prompts]
            contents["prompts"] = {"prompts.jsonl": _json_lines(folder, "prompts", lines)}, {"llm": result["llm"]}
        lines = [
            {"id": key, "class": p.class_index, "name": names[p.class_index], "prompt": p.text, "repeat": p.repeat}
            for key, p in zip(drawing.ids, drawing.prompts, strict=True)
        ]
        inside: dict[str, Path] = {}
        if keep == "files":
            kept = [_kept(key, place) for key, place in zip(drawing.ids, drawing.paths, strict=True)]
            inside = {place: file for place, file, _ in kept}
            lines = [{**line, "file": told} for line, (*_, told) in zip(lines, kept, strict=True)]
        images = {"images.jsonl": _json_lines(folder, "images", lines), **inside}
        contents["images"] = images, {"diffuser": result["diffuser"]}
    streams = [{"stream": stream, "key": key} for stream, key in result["store"].items()]
    features = {"features.jsonl": _json_lines(folder, "features", streams)}
    if keep == "files":
        features |= _stored(open_root(result["config"]["paths"]["store"]) / "features", result["store"])
    contents["features"] = features, {"encoder": result["encoder"], "scales": result["scales"]}
    # Copies, because a later run in the same folder would change what is still to be synced.
    files = [run.folder / name for name in _RESULT_FILES if (run.folder / name).is_file()]
    contents["result"] = (
        {path.name: Path(shutil.copy(path, folder)) for path in files},
        {name: result[name] for name in ("method", "metrics", "choices", "run_key")},
    )
    return contents


def _kept(key: str, place: Path | Member) -> tuple[str, Path, str]:
    """Of an image its file's place in the artifact, the file, and where to look; a shard goes whole."""
    if isinstance(place, Member):
        inside = f"shards/{place.shard.name}"
        return inside, place.shard, f"{inside}!{place.name}"
    inside = f"{key[:2]}/{key}{place.suffix}"
    return inside, place, inside


def _json_lines(folder: Path, name: str, lines: Iterable[Mapping[str, object]]) -> Path:
    path = folder / f"{name}.jsonl"
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    path.write_text(text, encoding="utf-8")
    return path


def _stored(root: Path, keys: Mapping[str, str]) -> dict[str, Path]:
    """The features of each stream, as they lie in the store."""
    found = {}
    for stream, key in keys.items():
        found |= {f"{stream}/{path.name}": path for path in sorted((root / key).glob("*.safetensors"))}
    return found


def _artifact(run: Run, kind: str, files: Mapping[str, Path], told: Mapping[str, Any]) -> "wandb.Artifact":
    import wandb

    dataset = run.result["dataset"]
    name = re.sub(r"[^\w.-]+", "-", f"{kind}-{dataset['name']}", flags=re.ASCII)[:128]
    artifact = wandb.Artifact(name, kind, metadata={"dataset": dict(dataset), **told})
    for place, path in files.items():
        # Immutable: W&B reads the files where they are and puts no copies into the user's home.
        artifact.add_file(str(path), name=place, policy="immutable", skip_cache=True)
    return artifact
