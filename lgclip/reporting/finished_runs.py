"""Finds the finished run that a config describes, so that the same command computes nothing a second time.

    ~/.cache/lgclip-runs/KEY.json    folder of the last run of a config, and what its result depends on

A run is repeated by copying its files, where its whole config, the program, the packages, the images' contents, the
files that the config names, the commits of the hub's branches and the entries of the store are those of before. None of
this needs torch. `rerun=true` computes.
"""

import hashlib
import json
import logging
import os
import platform
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import DictConfig, OmegaConf

import lgclip
from lgclip.datasets.base import Dataset
from lgclip.datasets.splits import DatasetSplits
from lgclip.reporting.console_table import next_steps, table
from lgclip.reporting.result_schema import RunResult, json_text, to_json
from lgclip.reporting.run_folder import RESULT, Run
from lgclip.runtime import hub
from lgclip.runtime.run_key import run_key
from lgclip.store.atomic import atomic_write, write_json
from lgclip.store.cost_log import COST_LOG
from lgclip.store.keys import content_key
from lgclip.store.root import cache_folder

log = logging.getLogger(__name__)

_RUNS = "lgclip-runs"
"""Folder of the records. They name places of this machine, so they are no part of a store, which may be shared."""

_MAX_FILES = 200_000
"""Files that are looked at; a run that depends on more is not repeated, since looking would take long."""
_SPLITS = ("evaluated", "training", "unlabeled_pool")
_OURS = ("lgclip.", "lightning.", "torch.", "hydra.")
"""Packages whose classes a config may name: the source of others is not looked at."""
_NOT_FILES = {"_target_", "name", "kind", "split"}
"""Config values that may be the name of a file by chance."""
_ELSEWHERE = ("paths", "logger", "trainer", "dataset", "ood")
"""Config groups whose files are not inputs, or are looked at by the contents of their images."""
_VARIABLES = ("LGCLIP_DATA", "LGCLIP_MAX_IMAGE_PIXELS", "LGCLIP_MAX_ASPECT_RATIO", "CUDA_VISIBLE_DEVICES")
"""Environment variables that can change a result."""
_LOCAL = {".hydra", "wandb", "mlruns"}
"""Parts of a run's folder that are not copied: Hydra writes its own, and a service has the others."""


class FinishedRun(NamedTuple):
    """Describes a finished run that can be copied.

    Attributes:
        folder: Its folder.
        files: The files that it has written there, relative to the folder.
        warnings: Its logged warnings.
    """

    folder: Path
    files: Sequence[str]
    warnings: str


class FinishedRuns:
    """Remembers the finished run of a config, and finds it again.

    Args:
        cfg: The run's config.
        data: Its data set.
        store: The store's folder.
        folder: Folder of this run.
    """

    def __init__(self, cfg: DictConfig, data: DatasetSplits, store: Path, folder: Path) -> None:
        self._folder = folder
        # What is in the folder already is not of this run.
        self._before = {path: stamp for path, *stamp in _stamps(_files_of_run(folder))}
        self._logged = {path: path.stat().st_size for path in folder.glob("*.log")}
        self._data = data
        self._store = store
        key = content_key({"run": run_key(cfg), "store": os.fsencode(store.resolve()).hex()})
        self._path = cache_folder() / _RUNS / f"{key}.json"
        self._plain: Any = OmegaConf.to_container(cfg, resolve=True)
        self._again = not cfg.rerun
        # Before anything is computed: a file that changes in the meantime is then another one the next time.
        self._files = _Named(self._plain).digest()
        self._program = _program()

    def earlier(self) -> FinishedRun | None:
        """Returns the finished run; None if there is none, or anything has changed since."""
        if not self._again or not self._can_be_repeated:
            return None
        try:
            record = json.loads(self._path.read_text(encoding="utf-8"))
            folder = Path(record["folder"])
            is_unchanged = (
                record["program"] == self._program
                and record["files"] == self._files
                and all(_are_unchanged(files, self._store / entry) for entry, files in record["entries"].items())
                and record["written"] == _contents(folder, record["written"])
                and record["images"] == self._images(record["images"])
                and all(hub.commit_of(*where) == commit for *where, commit in record["commits"])
            )
        # Whatever is wrong with a record or an input, the run itself reports it better.
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.debug("no earlier run: %s", error)
            return None
        return FinishedRun(folder, list(record["written"]), record["warnings"]) if is_unchanged else None

    def remember(self, result: RunResult) -> None:
        """Records this run when it has written all of its files; only its first process calls it.

        Args:
            result: Content of its result.json.
        """
        if not self._can_be_repeated or self._files != _Named(self._plain).digest():
            return
        folder = self._folder
        try:
            now = _stamps(_files_of_run(folder))
            written = [path for path, *stamp in now if self._before.get(path) != stamp]
            names = [Path(str(path)).relative_to(folder).as_posix() for path in written]
            record = {
                "folder": str(folder.absolute()),
                "program": self._program,
                "files": self._files,
                "entries": {entry: _files_of_entry(self._store / entry) for entry in _entries_of(to_json(result))},
                "written": _contents(folder, names),
                "warnings": self._warnings(),
                "images": self._images(name for name in _SPLITS if name in vars(self._data)),
                "commits": [[*where, commit] for where, commit in sorted(hub.resolved_commits().items(), key=str)],
            }
            write_json(self._path, record)
        # A cache that cannot be written to is no reason for a finished run to fail.
        except (OSError, ValueError) as error:
            log.debug("the run is not remembered: %s", error)

    @cached_property
    def _can_be_repeated(self) -> bool:
        """Returns whether all that a result depends on can be looked at by one process."""
        environment = os.environ
        if "LOCAL_RANK" in environment or any(int(environment.get(n) or 1) > 1 for n in ("WORLD_SIZE", "SLURM_NTASKS")):
            return False
        if self._plain.get("ood"):
            return False
        targets = (value for name, value in _values(self._plain) if name == "_target_")
        return self._files is not None and all(str(target).startswith(_OURS) for target in targets)

    def _warnings(self) -> str:
        """Returns the warnings that this run has logged, which hold for the same run again."""
        texts: list[str] = []
        for path in sorted(self._folder.glob("*.log")):
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(self._logged.get(path, 0))
                texts.append(file.read())
        return "".join(texts)

    def _images(self, splits: Iterable[str]) -> dict[str, str]:
        """Returns a digest of each split that a run has opened: classes, images by content, labels, templates."""
        return {name: _digest_of_split(getattr(self._data, name)) for name in splits}


def lapsed_records() -> dict[Path, int]:
    """Returns the records of runs whose folder has no result any more, with their bytes: they can repeat nothing."""
    lapsed: dict[Path, int] = {}
    for path in sorted((cache_folder() / _RUNS).glob("*.json")):
        try:
            folder = json.loads(path.read_text(encoding="utf-8"))["folder"]
            if not (Path(folder) / RESULT).is_file():
                lapsed[path] = path.stat().st_size
        # Gone in the meantime, or no record of this version: nothing is known of its run.
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.debug("%s: %s", path, error)
    return lapsed


def repeat_run(earlier: FinishedRun, folder: Path, sweep: object) -> RunResult:
    """Copies the files of a finished run to the folder of the same run again, and prints its warnings and its table.

    Args:
        earlier: The finished run.
        folder: Folder of this one.
        sweep: The sweep job that this run is, as result.json has it; the only value that may differ.

    Returns:
        Content of result.json.
    """
    if earlier.folder.resolve() != folder.resolve():
        _copy(earlier, folder, sweep)
    result = Run.read(folder).result
    sys.stderr.write(earlier.warnings)
    print(f"{table(result)}\n{folder}")
    print(f"nothing has changed since {earlier.folder}: its result; rerun=true computes it again")
    if sweep is None:
        print(next_steps(folder))
    return result


def _copy(earlier: FinishedRun, folder: Path, sweep: object) -> None:
    for name in earlier.files:
        if name != RESULT:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(earlier.folder / name, folder / name)
    result = json.loads((earlier.folder / RESULT).read_text(encoding="utf-8"))
    # Last: a folder with a result is a finished run.
    with atomic_write(folder / RESULT) as temporary:
        temporary.write_text(json_text({**result, "sweep": sweep}), encoding="utf-8")


def _files_of_run(folder: Path) -> Iterator[Path]:
    """Yields the files in a run's folder, without logs and without those of other runs in subfolders."""
    for place, subfolders, names in os.walk(folder):
        path = Path(place)
        if path != folder and (".hydra" in subfolders or RESULT in names):
            subfolders.clear()
            continue
        subfolders[:] = [name for name in subfolders if name not in _LOCAL]
        for name in names:
            if not name.endswith(".log"):
                yield path / name


def _program() -> str:
    """Returns a digest of what computes: interpreter, machine, packages, this package's files, GPUs, variables."""
    packages: set[str] = set()
    for place in sys.path:
        with suppress(OSError), os.scandir(place or ".") as entries:
            packages.update(entry.name for entry in entries if entry.name.endswith((".dist-info", ".egg-info")))
    variables = [os.environ.get(name) for name in _VARIABLES]
    source = Path(lgclip.__file__).parent
    files = (path for path in _files_below(source) if "__pycache__" not in path.parts)
    gpus: list[str] = []
    with suppress(OSError):
        gpus = sorted(os.listdir("/proc/driver/nvidia/gpus"))  # noqa: PTH208
    return _digest(
        sys.version, platform.machine(), platform.node(), sorted(packages), variables, gpus,
        _stamps(files),
    )  # fmt: skip


class _Named:
    """Finds the files and folders that config values name, other than the data set's, whose images have contents."""

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._values = [
            value
            for group, node in plain.items()
            if group not in _ELSEWHERE
            for name, value in _values({group: node})
            if name not in _NOT_FILES and isinstance(value, str) and value.strip(" .")
        ]

    def digest(self) -> str | None:
        """Returns a digest of their names, sizes and times; None if there are too many files to look at."""
        files: list[Path] = []
        for value in sorted(set(self._values)):
            try:
                path = Path(value).expanduser()
                exists = path.exists()
            except (OSError, ValueError, RuntimeError):  # too long for a name, a zero byte, an unknown user
                continue
            if not exists:
                continue
            for file in _files_below(path):
                files.append(file.absolute())
                if len(files) > _MAX_FILES:
                    return None
        return _digest(_stamps(files))


def _values(node: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the plain values of a config, each with its name; those of a list have the list's."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _values(value, str(key))
    elif isinstance(node, list):
        for value in node:
            yield from _values(value, name)
    else:
        yield name, node


def _entries_of(result: Mapping[str, Any]) -> list[str]:
    """Returns the folders of the store that a run has read: captions, images, features, a student, tuned prompts.

    Not the prompts of a language model, which are part of the keys of images and sentences.
    """
    used = {f"features/{key}" for key in result["store"].values()}
    for stage in result["cost"]["computed_before"].values():
        used.update(part["key"] for part in stage["parts"].values() if part.get("key"))
    for name, folder in (("student", "students"), ("prompt_tuning", "prompts_learned")):
        if result.get(name):
            used.add(f"{folder}/{result[name]['key']}")
    return sorted(used)


def _files_of_entry(folder: Path) -> list[str]:
    """Returns a short digest of each file in a folder of the store; costs of later runs are no part of it.

    Raises:
        ValueError: If there are too many files to look at.
    """
    files = list(islice((path for path in _files_below(folder) if path.name != COST_LOG), _MAX_FILES + 1))
    if len(files) > _MAX_FILES:
        raise ValueError(f"{folder} has more than {_MAX_FILES:,} files")
    return [_digest(stamp)[:16] for stamp in _stamps(files)]


def _are_unchanged(files: Sequence[str], folder: Path) -> bool:
    """Returns whether the files are unchanged; another run may have added some."""
    return set(files) <= set(_files_of_entry(folder))


def _contents(folder: Path, names: Iterable[str]) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def _digest_of_split(data: Dataset) -> str:
    return _digest(data.name, data.split, data.class_names, data.templates, data.labels, list(data.ids))


def _files_below(path: Path) -> Iterator[Path]:
    """Yields a file, or those in a folder and its subfolders, also of linked ones."""
    if path.is_file():
        yield path
        return
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            yield Path(folder) / name


def _stamps(files: Iterable[Path]) -> list[tuple[object, ...]]:
    """Returns the stamps of files: size, times and inode. No program can set the time of a change of the inode."""
    stamps: list[tuple[object, ...]] = []
    for path in files:
        try:
            stat = path.stat()
        except OSError:
            stamps.append((str(path), None))  # a link to nothing
        else:
            stamps.append((str(path), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
    return sorted(stamps, key=str)


def _digest(*values: object) -> str:
    text = json.dumps(values, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]
