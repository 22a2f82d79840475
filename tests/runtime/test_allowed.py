"""Tests targets of a config: malicious ones are rejected before they run, and all of conf/ is built."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from factories import FirstRun, Sandbox, run_command
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.profilers import SimpleProfiler
from malicious_inputs import LOOKALIKES, MALICIOUS_TARGETS, TARGET_ALIASES, TARGET_PLACES, malicious_override
from omegaconf import OmegaConf

from lgclip.cli.doctor import COPY, parts
from lgclip.datasets.folder import Folder
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run, RunError
from lgclip.reporting.wandb.tracking import track
from lgclip.runtime import instantiate as allowed
from lgclip.runtime.instantiate import ENVIRONMENT, TargetError, build, target_of

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[2]
NAMED = sorted(
    {
        name
        for path in (ROOT / "conf").rglob("*.yaml")
        if path.relative_to(ROOT / "conf").parts[0] != "hydra"
        for name in re.findall(r"^ *_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
)
OWN = """import os
class Thing:
    def __init__(self, path): self.path = path
def make(path): return Thing(path)
"""


@pytest.fixture
def marker_file(tmp_path: Path) -> Path:
    """Returns the file that malicious targets write; next to it is a file that they would copy."""
    (tmp_path / "source").write_text("x")
    return tmp_path / "mark"


def left(mark: Path) -> list[Path]:
    """Returns files written or removed; only the file to copy should exist."""
    return [path for path in mark.parent.rglob("*") if path.name.startswith("mark")]


def config_of(mark: Path, content: Any) -> Any:
    """Reads a config with MARK and SOURCE replaced."""
    text = json.dumps(content).replace("MARK", str(mark)).replace("SOURCE", str(mark.with_name("source")))
    folder = mark.parent / "conf"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config")


def package(folder: Path, name: str, content: str) -> None:
    """Writes a package that records its import."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\n{content}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"), MALICIOUS_TARGETS + TARGET_ALIASES, ids=[name for name, _ in MALICIOUS_TARGETS + TARGET_ALIASES]
)
def test_malicious_yaml_target_is_rejected(name: str, values: Any, marker_file: Path) -> None:
    config = config_of(marker_file, {"dataset": {"_target_": name, **values}})
    with pytest.raises(TargetError, match=re.escape(f"dataset._target_={name} is not")):
        build(config.dataset, _convert_="all")
    assert left(marker_file) == []
    assert (marker_file.parent / "source").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "values"), MALICIOUS_TARGETS + TARGET_ALIASES, ids=[name for name, _ in MALICIOUS_TARGETS + TARGET_ALIASES]
)
def test_malicious_override_is_rejected(
    name: str, values: Any, marker_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(
            "evaluate",
            f"hydra.run.dir={marker_file.parent}/run",
            "~dataset",
            malicious_override("dataset", name, values, marker_file),
        )
    assert ended.value.code == 1
    stderr = capsys.readouterr().err
    assert f"error: dataset._target_={name} is not" in stderr
    assert "Traceback" not in stderr
    assert left(marker_file) == []
    assert (marker_file.parent / "source").exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}),
        ("builtins.open", {"file": "MARK", "mode": "w"}),
        ("urllib.request.urlretrieve", {"url": "file://SOURCE", "filename": "MARK"}),
        ("lgclip.runtime.sweep_job.Path.touch", {"_args_": [{"_target_": "pathlib.Path", "_args_": ["MARK"]}]}),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_hydra_alone_would_run_malicious_targets(name: str, values: Any, marker_file: Path) -> None:
    instantiate(config_of(marker_file, {"dataset": {"_target_": name, **values}}).dataset)
    assert left(marker_file) == [marker_file]


@pytest.mark.parametrize(("content", "place"), TARGET_PLACES, ids=[place for _, place in TARGET_PLACES])
def test_nested_targets_are_checked(content: dict[str, Any], place: str, marker_file: Path) -> None:
    values = {"save_dir": "${oc.create:${hostile}}"} if place == "part.save_dir" else {}
    bare = config_of(marker_file, content)
    if "_recursive_" not in bare.part:  # there Hydra alone would have run it
        assert not isinstance(instantiate(copy.deepcopy(bare).part, **values), TargetError)
        assert left(marker_file) == [marker_file]
        marker_file.unlink()
    with pytest.raises(TargetError, match=re.escape(f"{place}._target_=shutil.copyfile is not allowed")):
        build(bare.part, **values)
    assert left(marker_file) == []


def test_script_arguments_are_checked(marker_file: Path) -> None:
    values = [{"_target_": "shutil.copyfile", "src": str(marker_file.with_name("source")), "dst": str(marker_file)}]
    with pytest.raises(TargetError, match=r"values\[0\]._target_=shutil.copyfile"):
        build(OmegaConf.create({}), values=values)
    assert left(marker_file) == []


def test_decoded_text_is_checked(marker_file: Path) -> None:
    config = config_of(marker_file, {"part": {"a": "${oc.decode:${text}}"}, "text": "{b:[{_target_:shutil.copyfile}]}"})
    with pytest.raises(TargetError, match=r"b\[0\]._target_=shutil.copyfile is not allowed"):
        build(config.part)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_lookalike_package_is_not_imported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, name, OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetError, match="is not"):
        build(OmegaConf.create({"_target_": f"{name}.Thing", "path": "x"}))
    assert name not in sys.modules
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "name", ["lgclip", "lgclip.", ".lgclip", "lgclip..rules", "lgclip.methods.scoring.__loader__", "", 3, None]
)
def test_invalid_target_is_rejected(name: Any) -> None:
    with pytest.raises(TargetError):
        build(OmegaConf.create({"_target_": name}))


@pytest.mark.parametrize("name", NAMED)
def test_config_targets_are_allowed(name: str) -> None:
    assert isinstance(target_of(OmegaConf.create({"_target_": name})), type)


def test_lightning_trainer_parts_are_built() -> None:
    trainer = build(
        OmegaConf.create({
            "_target_": "lightning.Trainer",
            "profiler": {"_target_": "lightning.pytorch.profilers.SimpleProfiler"},
            "strategy": {"_target_": "lightning.pytorch.strategies.SingleDeviceStrategy", "device": "cpu"},
            "plugins": [{"_target_": "lightning.pytorch.plugins.environments.LightningEnvironment"}],
        }),
        _convert_="all", accelerator="cpu", logger=False, enable_checkpointing=False,
    )  # fmt: skip
    assert isinstance(trainer.profiler, SimpleProfiler)


def test_instantiate_matches_hydra(marker_file: Path) -> None:
    rule = OmegaConf.create({"_target_": "lgclip.methods.scoring.Mean", "renormalize": "${..on}"})
    full_config = OmegaConf.create({"on": True, "prototype": rule})
    assert build(full_config.prototype) == instantiate(full_config.prototype)
    scales = OmegaConf.create(
        {"_target_": "lgclip.encoder.scales.SquareCrops", "fractions": [1.0, 0.5], "weights": [1, 2]}
    )
    assert build(scales, _convert_="all") == instantiate(scales, _convert_="all")
    assert build(None) is None
    value = object()
    method = build(OmegaConf.create({"_target_": "lgclip.datasets.folder.Folder"}), _partial_=True, root=value)
    assert method.func is Folder
    assert method.keywords["root"] is value, "what is given is not copied"
    with pytest.raises(TargetError, match="must be a mapping"):
        build("{_target_: os.system}")


def test_misspelled_target_is_one_line() -> None:
    for name in ("lgclip.datasets.nowhere.Folder", "lgclip.datasets.folder.Flder"):
        with pytest.raises(TargetError, match=re.escape(f"_target_={name} is not importable: ")):
            build(OmegaConf.create({"_target_": name}))


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("allow", "name", "message"),
    [
        ("mine", "mine.Thing", "built"), ("other.x, mine", "mine.make", "built"), ("mine.Thing", "mine.Thing", "built"),
        ("", "mine.Thing", "not allowed"), ("min", "mine.Thing", "not allowed"),
        ("mine.sub", "mine.Thing", "not allowed"), ("../mine", "mine.Thing", "is no package"),
        ("mine", "mine.os.system", "mine.os is the module os"), ("mine", "mine_too.Thing", "not allowed"),
    ],
)  # fmt: skip
def test_environment_allows_more_packages(allow: str, name: str, message: str, tmp_path: Path) -> None:
    package(tmp_path, "mine", OWN)
    package(tmp_path, "mine_too", OWN)
    code = (
        "from lgclip.runtime.instantiate import *; from omegaconf import OmegaConf\n"
        f"try: print('built', build(OmegaConf.create({{'_target_': {name!r}, 'path': 'there'}})).path)\n"
        "except TargetError as error: print(error)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", ENVIRONMENT: allow},
    )  # fmt: skip
    assert message in completed.stdout
    assert ("there" in completed.stdout) == (message == "built")
    assert (tmp_path / "mark").exists() == (message == "built" or "is the module" in message), (
        "imported only if allowed"
    )


def test_config_cannot_allow_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_command("evaluate", f"hydra.run.dir={tmp_path}/run", f"+hydra.job.env_set.{ENVIRONMENT}=shutil")
    assert f"{ENVIRONMENT} has changed since the start" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", ["llm", "diffuser", "encoder", "scales", "prototype", "selection", "method", "trainer"]
)
def test_every_part_of_a_run_is_checked(
    part: str, fresh_sandbox: Sandbox, marker_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    malicious = malicious_override(f"+{part}.more", "shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}, marker_file)
    with pytest.raises(SystemExit):
        run_command(
            "evaluate", *fresh_sandbox.evaluate_overrides(), f"hydra.run.dir={marker_file.parent}/run", malicious
        )
    assert f"error: {part}.more._target_=shutil.copyfile is not allowed" in capsys.readouterr().err
    assert left(marker_file) == []


@pytest.mark.parametrize(("verb", "part"), [("generate", "llm"), ("train", "corpus")])
def test_other_scripts_check_targets(
    verb: str, part: str, marker_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    malicious = malicious_override(f"+{part}.more", "shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}, marker_file)
    with pytest.raises(SystemExit):
        run_command(verb, f"hydra.run.dir={marker_file.parent}/run", malicious)
    assert f"error: {part}.more._target_=shutil.copyfile is not allowed" in capsys.readouterr().err
    assert left(marker_file) == []


def test_foreign_run_is_not_trusted(first_run: FirstRun, marker_file: Path) -> None:
    result = copy.deepcopy(first_run.result)
    malicious = {"_target_": "shutil.copyfile", "_args_": [str(marker_file.with_name("source")), str(marker_file)]}
    result["config"]["encoder"] |= malicious
    shutil.copytree(first_run.folder, marker_file.parent / "run")
    (marker_file.parent / "run" / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match=r"cannot be restored: encoder._target_=shutil.copyfile is not allowed"):
        restore_run(Run.read(marker_file.parent / "run"))
    assert left(marker_file) == []


def test_doctor_and_logger_check_targets(marker_file: Path) -> None:
    malicious = {"_target_": "shutil.copyfile", "_args_": [str(marker_file.with_name("source")), str(marker_file)]}
    shutil.copytree(ROOT / "conf", marker_file.parent / "all")
    (marker_file.parent / "all" / "dataset" / "a.yaml").write_text(json.dumps(malicious))
    finding = next(parts(marker_file.parent / "all", "dataset"))
    assert finding.state == COPY
    assert "dataset._target_=shutil.copyfile is not allowed" in finding.detail
    with pytest.raises(TargetError, match="not allowed"):
        track(OmegaConf.create(malicious), marker_file.parent, {}).__enter__()
    assert left(marker_file) == []


def test_list_instantiation_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "_LISTS", True)
    monkeypatch.setattr(allowed, "instantiate", lambda config, **kwargs: kwargs)  # of Hydra 1.4, which is not out yet
    part = build(
        OmegaConf.create(
            {"_target_": "lgclip.methods.scoring.Mean", "_args_": [{"_target_": "lgclip.methods.scoring.Nearest"}]}
        )
    )
    assert part == {"_execution_whitelist_": ("lgclip.methods.scoring.Mean", "lgclip.methods.scoring.Nearest")}
