"""A model's own code is never run: no file of its folder, no config and no answer on the terminal switches it on."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from worlds import World, call

from lgclip.datasets.hub import HubImages
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.prompts.local import LocalLLM

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")
LANGUAGE = Path(__file__).parents[1] / "lgclip" / "tiny" / "weights" / "language"
OWN = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}
TOKENIZER = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}, "tokenizer_class": "Tokenizer"}


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What a payload would leave; whoever is asked on the terminal says yes."""
    monkeypatch.setattr("builtins.input", lambda *said: "y")
    return tmp_path / "mark"


def payload(folder: Path, mark: Path, name: str = "own.py") -> None:
    """Code that leaves a mark when it is imported, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = "".join(f"class {kind}:\n    pass\n" for kind in ("Config", "Model", "Tokenizer"))
    (folder / name).write_text(f"open({str(mark)!r}, 'w').close()\n{classes}")


def change(path: Path, **values: Any) -> None:
    """Sets values of a JSON file, which is made if it is not there."""
    told = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**told, **values}), encoding="utf-8")


def text_cfg(folder: Path, **values: Any) -> None:
    """Sets what a folder of open_clip says of its text tower."""
    path = folder / "open_clip_config.json"
    told = json.loads(path.read_text(encoding="utf-8"))
    told["model_cfg"]["text_cfg"] |= values
    path.write_text(json.dumps(told), encoding="utf-8")


Attack = Callable[[Path, Path], None]


def tokenizer_by_kwargs(folder: Path, mark: Path) -> None:
    payload(folder, mark)
    change(folder / "tokenizer_config.json", **TOKENIZER)
    text_cfg(folder, tokenizer_kwargs={"trust_remote_code": True})


def tokenizer_by_map(folder: Path, mark: Path) -> None:
    payload(folder, mark)
    change(folder / "tokenizer_config.json", **TOKENIZER)


def text_tower(folder: Path, mark: Path) -> None:
    payload(folder / "text", mark)
    change(folder / "text" / "config.json", model_type="own", auto_map=OWN)
    text_cfg(folder, hf_model_name=str(folder / "text"))


@pytest.mark.parametrize("attack", [tokenizer_by_kwargs, tokenizer_by_map, text_tower])
def test_a_folder_of_open_clip_runs_no_code(attack: Attack, empty_world: World, tmp_path: Path, mark: Path) -> None:
    folder = shutil.copytree(empty_world.encoder, tmp_path / "model")
    attack(folder, mark)
    with pytest.raises(ValueError, match=r"tokenizer_kwargs|own code|custom code|trust_remote_code|of the tokenizer"):
        OpenClip(str(folder)).load(CPU)
    assert not mark.exists()


def class_name(folder: Path, mark: Path) -> None:
    payload(folder, mark)
    change(folder / "model_index.json", _class_name=["own", "Model"])


def component(folder: Path, mark: Path) -> None:
    payload(folder / "unet", mark)
    change(folder / "model_index.json", unet=["own", "Model"])


def foreign_library(folder: Path, mark: Path) -> None:
    change(folder / "model_index.json", unet=["antigravity", "geohash"])


def loaded_library(folder: Path, mark: Path) -> None:
    change(folder / "model_index.json", unet=["subprocess", "Popen"])


def auto_tokenizer(folder: Path, mark: Path) -> None:
    payload(folder / "tokenizer", mark)
    change(folder / "model_index.json", tokenizer=["transformers", "AutoTokenizer"])
    change(folder / "tokenizer" / "tokenizer_config.json", **TOKENIZER)


def auto_model(folder: Path, mark: Path) -> None:
    payload(folder / "text_encoder", mark)
    change(folder / "model_index.json", text_encoder=["transformers", "AutoModel"])
    change(folder / "text_encoder" / "config.json", model_type="own", auto_map=OWN)


def auto_model_of_diffusers(folder: Path, mark: Path) -> None:
    payload(folder / "unet", mark)
    change(folder / "model_index.json", unet=["diffusers", "AutoModel"])
    change(folder / "unet" / "config.json", auto_map=OWN)


def ignored(folder: Path, mark: Path) -> None:
    payload(folder, mark, "pipeline.py")
    payload(folder / "unet", mark)
    change(folder / "model_index.json", custom_pipeline="pipeline", trust_remote_code=True)
    change(folder / "unet" / "config.json", auto_map=OWN)
    change(folder / "text_encoder" / "config.json", auto_map=OWN)


DIFFUSERS = [
    class_name,
    component,
    foreign_library,
    loaded_library,
    auto_tokenizer,
    auto_model,
    auto_model_of_diffusers,
]


@pytest.mark.parametrize("attack", DIFFUSERS)
def test_a_folder_of_diffusers_runs_no_code(attack: Attack, empty_world: World, tmp_path: Path, mark: Path) -> None:
    folder = shutil.copytree(empty_world.diffuser, tmp_path / "model")
    attack(folder, mark)
    with pytest.raises(ValueError, match=re.escape(f"diffuser.model={folder}: ")):
        Diffuser(str(folder)).load(CPU)
    assert not mark.exists()
    assert "antigravity" not in sys.modules


def test_what_a_pipeline_asks_for_besides_is_not_heard(empty_world: World, tmp_path: Path, mark: Path) -> None:
    folder = shutil.copytree(empty_world.diffuser, tmp_path / "model")
    ignored(folder, mark)
    Diffuser(str(folder)).load(CPU)
    assert not mark.exists()


@pytest.mark.parametrize("architecture", ["local-dir:{}", "hf-hub:owner/name", "own.Model", "own"])
def test_a_folder_of_timm_names_an_architecture_of_timm_and_no_place(
    architecture: str, tmp_path: Path, mark: Path
) -> None:
    folder = tmp_path / "model"
    payload(folder, mark)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    change(folder / "config.json", architecture=architecture.format(folder), auto_map=OWN, pretrained_cfg={"url": "x"})
    with pytest.raises(ValueError, match=re.escape(f"encoder.model={folder} cannot be built")):
        Timm(str(folder)).load(CPU)
    assert not mark.exists()


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_a_language_model_runs_no_code_whatever_file_asks_for_it(place: str, tmp_path: Path, mark: Path) -> None:
    folder = Path(shutil.copytree(LANGUAGE, tmp_path / "model"))
    payload(folder, mark)
    payload(folder / "custom_generate", mark, "generate.py")
    told = TOKENIZER if "tokenizer" in place else {"auto_map": OWN, "trust_remote_code": True, "custom_generate": "."}
    change(folder / place, **told)
    try:
        LocalLLM(str(folder)).load(CPU)
    except ValueError as error:
        assert "own code is not run" in str(error)  # noqa: PT017
    assert not mark.exists()


def test_a_chat_template_reaches_nothing(tmp_path: Path, mark: Path) -> None:
    from lgclip.batch import Subject
    from lgclip.prompts.base import PromptError, Task

    folder = Path(shutil.copytree(LANGUAGE, tmp_path / "model"))
    reach = f"cycler.__init__.__globals__.os.mkdir({str(mark)!r})"
    hostile = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ {reach} }}}}"
    (folder / "chat_template.jinja").write_text(hostile)
    pen = LocalLLM(str(folder), max_rounds=1, max_new_tokens=2).load(CPU)
    with pytest.raises(Exception, match=r"unsafe|not safely|SecurityError|undefined") as raised:
        list(pen([Task(Subject(0, "cat", ""), 1)], 0))
    assert not isinstance(raised.value, PromptError)
    assert not mark.exists()


def test_the_code_of_a_data_set_is_not_looked_at(tmp_path: Path, mark: Path) -> None:
    payload(tmp_path / "set", mark, "set.py")
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: set.py\n---\n")
    with pytest.raises(ValueError, match="holds no parquet file"):
        HubImages(root=str(tmp_path / "set"))
    assert not mark.exists()


WAYS = [
    (["+diffuser.trust_remote_code=true"], "diffuser"), (["+diffuser.custom_pipeline=MODEL"], "diffuser"),
    (["+diffuser.options.custom_pipeline=MODEL"], "custom"), (["+encoder.trust_remote_code=true"], "encoder"),
    (["+diffuser.options.trust_remote_code=true"], "trust_remote_code"), (["+llm.trust_remote_code=true"], "llm"),
    (["llm=local", f"llm.model={LANGUAGE}", "+llm.trust_remote_code=true"], "llm"),
    (["dataset=hub", "dataset.root=MODEL", "+dataset.trust_remote_code=true"], "dataset"),
]  # fmt: skip


@pytest.mark.parametrize("how", ["typed", "file"])
@pytest.mark.parametrize(("values", "said"), WAYS, ids=[values[-1] for values, _ in WAYS])
def test_no_value_of_a_config_switches_code_on(
    how: str, values: list[str], said: str, fresh_world: World, mark: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    root = mark.parent
    folder = shutil.copytree(fresh_world.diffuser, root / "model")
    component(folder, mark)
    payload(folder, mark, "pipeline.py")
    given = [value.replace("MODEL", str(folder)) for value in values]
    if how == "file":
        key, _, value = given.pop().removeprefix("+").partition("=")
        *groups, last = key.split(".")
        content: dict[str, Any] = {last: True if value == "true" else value}
        for group in reversed(groups):
            content = {group: content}
        (root / "own" / "experiment").mkdir(parents=True)
        (root / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{json.dumps(content)}\n")
        given.append("experiment=mine")
    more = ["--config-dir", str(root / "own")] if how == "file" else []
    given = [*more, *fresh_world.evaluating(), *given, f"diffuser.model={folder}", f"hydra.run.dir={root}/run"]
    with pytest.raises(SystemExit):
        call("evaluate", *given)
    message = capfd.readouterr().err
    assert "\nerror: " in f"\n{message}"
    assert "usage: " not in message
    assert said in message
    assert "Traceback" not in message
    assert not mark.exists()
