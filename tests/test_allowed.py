"""What a config may name: hostile targets are refused before they run, and all that conf/ names is built."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hostile import ALIASES, HOSTILE, LOOKALIKES, PLACES, override
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.profilers import SimpleProfiler
from omegaconf import OmegaConf
from worlds import FirstRun, World, call

from lgclip import allowed
from lgclip.allowed import ENVIRONMENT, TargetError, build, target_of
from lgclip.datasets.folder import Folder
from lgclip.doctor import MISSING, parts
from lgclip.reopen import reopen
from lgclip.runs import Run, RunError
from lgclip.tracking import track

pytest_plugins = ("run_fixtures",)

ROOT = Path(__file__).parents[1]
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
def mark(tmp_path: Path) -> Path:
    """Where hostile targets leave their mark; beside it lies a file that they would copy."""
    (tmp_path / "source").write_text("x")
    return tmp_path / "mark"


def left(mark: Path) -> list[Path]:
    """What was written or taken away; the file to copy is what should be there."""
    return [path for path in mark.parent.rglob("*") if path.name.startswith("mark")]


def config_of(mark: Path, content: Any) -> Any:
    """A config of a file in a folder, with MARK and SOURCE in their places."""
    text = json.dumps(content).replace("MARK", str(mark)).replace("SOURCE", str(mark.with_name("source")))
    folder = mark.parent / "conf"
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(text)
    with initialize_config_dir(str(folder), version_base="1.3"):
        return compose("config")


def package(folder: Path, name: str, content: str) -> None:
    """A package that says that it was imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").write_text(f"open({str(folder / 'mark')!r}, 'w').close()\n{content}")


@pytest.mark.parametrize(("name", "values"), HOSTILE + ALIASES, ids=[name for name, _ in HOSTILE + ALIASES])
def test_a_hostile_target_of_a_yaml_is_refused(name: str, values: Any, mark: Path) -> None:
    config = config_of(mark, {"dataset": {"_target_": name, **values}})
    with pytest.raises(TargetError, match=re.escape(f"dataset._target_={name} is not")):
        build(config.dataset, _convert_="all")
    assert left(mark) == []
    assert (mark.parent / "source").exists()


@pytest.mark.parametrize(("name", "values"), HOSTILE + ALIASES, ids=[name for name, _ in HOSTILE + ALIASES])
def test_a_hostile_target_of_the_command_line_is_refused(
    name: str, values: Any, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        call("evaluate", f"hydra.run.dir={mark.parent}/run", "~dataset", override("dataset", name, values, mark))
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert f"error: dataset._target_={name} is not" in said
    assert "Traceback" not in said
    assert left(mark) == []
    assert (mark.parent / "source").exists()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}),
        ("builtins.open", {"file": "MARK", "mode": "w"}),
        ("urllib.request.urlretrieve", {"url": "file://SOURCE", "filename": "MARK"}),
        ("lgclip.jobs.Path.touch", {"_args_": [{"_target_": "pathlib.Path", "_args_": ["MARK"]}]}),
    ],
)
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_hydra_alone_would_have_run_it(name: str, values: Any, mark: Path) -> None:
    instantiate(config_of(mark, {"dataset": {"_target_": name, **values}}).dataset)
    assert left(mark) == [mark]


@pytest.mark.parametrize(("content", "place"), PLACES, ids=[place for _, place in PLACES])
def test_a_target_is_found_wherever_it_stands(content: dict[str, Any], place: str, mark: Path) -> None:
    given = {"save_dir": "${oc.create:${hostile}}"} if place == "part.save_dir" else {}
    bare = config_of(mark, content)
    if "_recursive_" not in bare.part:  # there Hydra alone would have run it
        assert not isinstance(instantiate(copy.deepcopy(bare).part, **given), TargetError)
        assert left(mark) == [mark]
        mark.unlink()
    with pytest.raises(TargetError, match=re.escape(f"{place}._target_=shutil.copyfile is not allowed")):
        build(bare.part, **given)
    assert left(mark) == []


def test_what_a_script_gives_is_looked_at_too(mark: Path) -> None:
    values = [{"_target_": "shutil.copyfile", "src": str(mark.with_name("source")), "dst": str(mark)}]
    with pytest.raises(TargetError, match=r"values\[0\]._target_=shutil.copyfile"):
        build(OmegaConf.create({}), values=values)
    assert left(mark) == []


def test_a_decoded_text_is_looked_at_too(mark: Path) -> None:
    config = config_of(mark, {"part": {"a": "${oc.decode:${text}}"}, "text": "{b:[{_target_:shutil.copyfile}]}"})
    with pytest.raises(TargetError, match=r"b\[0\]._target_=shutil.copyfile is not allowed"):
        build(config.part)


@pytest.mark.parametrize("name", LOOKALIKES)
def test_a_lookalike_is_not_even_imported(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package(tmp_path, name, OWN)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TargetError, match="is not"):
        build(OmegaConf.create({"_target_": f"{name}.Thing", "path": "x"}))
    assert name not in sys.modules
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "name", ["lgclip", "lgclip.", ".lgclip", "lgclip..rules", "lgclip.rules.__loader__", "", 3, None]
)
def test_what_is_no_name_of_a_part_is_refused(name: Any) -> None:
    with pytest.raises(TargetError):
        build(OmegaConf.create({"_target_": name}))


@pytest.mark.parametrize("name", NAMED)
def test_all_that_the_configs_name_is_allowed(name: str) -> None:
    assert isinstance(target_of(OmegaConf.create({"_target_": name})), type)


def test_what_lightning_offers_for_a_trainer_is_built() -> None:
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


def test_a_part_is_built_as_hydra_builds_it(mark: Path) -> None:
    rule = OmegaConf.create({"_target_": "lgclip.rules.Mean", "renormalise": "${..on}"})
    whole = OmegaConf.create({"on": True, "prototype": rule})
    assert build(whole.prototype) == instantiate(whole.prototype)
    scales = OmegaConf.create({"_target_": "lgclip.scales.SquareCrops", "fractions": [1.0, 0.5], "weights": [1, 2]})
    assert build(scales, _convert_="all") == instantiate(scales, _convert_="all")
    assert build(None) is None
    thing = object()
    method = build(OmegaConf.create({"_target_": "lgclip.datasets.folder.Folder"}), _partial_=True, root=thing)
    assert method.func is Folder
    assert method.keywords["root"] is thing, "what is given is not copied"
    with pytest.raises(TargetError, match="must be a mapping"):
        build("{_target_: os.system}")


def test_a_misspelt_part_is_one_line() -> None:
    for name in ("lgclip.datasets.nowhere.Folder", "lgclip.datasets.folder.Flder"):
        with pytest.raises(TargetError, match=re.escape(f"_target_={name} is not to be had: ")):
            build(OmegaConf.create({"_target_": name}))


@pytest.mark.parametrize(
    ("allow", "name", "said"),
    [
        ("mine", "mine.Thing", "built"), ("other.x, mine", "mine.make", "built"), ("mine.Thing", "mine.Thing", "built"),
        ("", "mine.Thing", "not allowed"), ("min", "mine.Thing", "not allowed"),
        ("mine.sub", "mine.Thing", "not allowed"), ("../mine", "mine.Thing", "is no package"),
        ("mine", "mine.os.system", "mine.os is the module os"), ("mine", "mine_too.Thing", "not allowed"),
    ],
)  # fmt: skip
def test_the_environment_names_more_packages(allow: str, name: str, said: str, tmp_path: Path) -> None:
    package(tmp_path, "mine", OWN)
    package(tmp_path, "mine_too", OWN)
    code = (
        "from lgclip.allowed import *; from omegaconf import OmegaConf\n"
        f"try: print('built', build(OmegaConf.create({{'_target_': {name!r}, 'path': 'there'}})).path)\n"
        "except TargetError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT,
        env={"PYTHONPATH": str(tmp_path), "PATH": "", ENVIRONMENT: allow},
    )  # fmt: skip
    assert said in done.stdout
    assert ("there" in done.stdout) == (said == "built")
    assert (tmp_path / "mark").exists() == (said == "built" or "is the module" in said), "imported only if allowed"


def test_a_config_cannot_name_more_packages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call("evaluate", f"hydra.run.dir={tmp_path}/run", f"+hydra.job.env_set.{ENVIRONMENT}=shutil")
    assert f"{ENVIRONMENT} has changed since the start" in capsys.readouterr().err


@pytest.mark.parametrize(
    "part", ["llm", "diffuser", "encoder", "scales", "prototype", "selection", "method", "trainer"]
)
def test_every_part_of_a_run_is_looked_at(
    part: str, fresh_world: World, mark: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile = override(f"+{part}.more", "shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}, mark)
    with pytest.raises(SystemExit):
        call("evaluate", *fresh_world.evaluating(), f"hydra.run.dir={mark.parent}/run", hostile)
    assert f"error: {part}.more._target_=shutil.copyfile is not allowed" in capsys.readouterr().err
    assert left(mark) == []


@pytest.mark.parametrize(("verb", "part"), [("generate", "llm"), ("train", "corpus")])
def test_the_other_scripts_look_too(verb: str, part: str, mark: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = override(f"+{part}.more", "shutil.copyfile", {"_args_": ["SOURCE", "MARK"]}, mark)
    with pytest.raises(SystemExit):
        call(verb, f"hydra.run.dir={mark.parent}/run", hostile)
    assert f"error: {part}.more._target_=shutil.copyfile is not allowed" in capsys.readouterr().err
    assert left(mark) == []


def test_a_run_that_came_from_elsewhere_is_not_trusted(first_run: FirstRun, mark: Path) -> None:
    result = copy.deepcopy(first_run.result)
    hostile = {"_target_": "shutil.copyfile", "_args_": [str(mark.with_name("source")), str(mark)]}
    result["config"]["encoder"] |= hostile
    shutil.copytree(first_run.folder, mark.parent / "run")
    (mark.parent / "run" / "result.json").write_text(json.dumps(result))
    with pytest.raises(RunError, match=r"cannot be brought back: encoder._target_=shutil.copyfile is not allowed"):
        reopen(Run.read(mark.parent / "run"))
    assert left(mark) == []


def test_doctor_and_logger_look_too(mark: Path) -> None:
    hostile = {"_target_": "shutil.copyfile", "_args_": [str(mark.with_name("source")), str(mark)]}
    shutil.copytree(ROOT / "conf", mark.parent / "all")
    (mark.parent / "all" / "dataset" / "a.yaml").write_text(json.dumps(hostile))
    finding = next(parts(mark.parent / "all", "dataset"))
    assert finding.state == MISSING
    assert "dataset._target_=shutil.copyfile is not allowed" in finding.said
    with pytest.raises(TargetError, match="not allowed"):
        track(OmegaConf.create(hostile), mark.parent, {}).__enter__()
    assert left(mark) == []


def test_a_hydra_that_asks_for_a_list_is_given_what_was_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allowed, "_LISTS", True)
    monkeypatch.setattr(allowed, "instantiate", lambda config, **given: given)  # of Hydra 1.4, which is not out yet
    told = build(OmegaConf.create({"_target_": "lgclip.rules.Mean", "more": [{"_target_": "lgclip.rules.Nearest"}]}))
    assert told == {"_execution_whitelist_": ("lgclip.rules.Mean", "lgclip.rules.Nearest")}
