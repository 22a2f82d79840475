"""Tests that a model's own code is never run, whatever files, config or terminal answers enable it."""

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import Sandbox, run_command
from safetensors.torch import save_file

from lgclip.datasets.hugging_face import HubImages
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.encoder.timm import Timm
from lgclip.prompts.local_llm import LocalLLM

pytest_plugins = ("run_fixtures",)

CPU = torch.device("cpu")
LANGUAGE = Path(__file__).parents[2] / "lgclip" / "tiny" / "weights" / "language"
OWN = {"AutoConfig": "own.Config", "AutoModel": "own.Model", "AutoModelForCausalLM": "own.Model"}
TOKENIZER = {"auto_map": {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}, "tokenizer_class": "Tokenizer"}


@pytest.fixture
def marker_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the file a payload would write; every question on the terminal is answered with yes."""
    monkeypatch.setattr("builtins.input", lambda *args: "y")
    return tmp_path / "mark"


def payload(folder: Path, mark: Path, name: str = "own.py") -> None:
    """Writes code to a folder that creates the marker file when it is imported."""
    folder.mkdir(parents=True, exist_ok=True)
    classes = "".join(f"class {kind}:\n    pass\n" for kind in ("Config", "Model", "Tokenizer"))
    (folder / name).write_text(f"open({str(mark)!r}, 'w').close()\n{classes}")


def change(path: Path, **values: Any) -> None:
    """Sets values of a JSON file, which is created if missing."""
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**config, **values}), encoding="utf-8")


def text_cfg(folder: Path, **values: Any) -> None:
    """Sets the text tower's config in an open_clip folder."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_cfg"]["text_cfg"] |= values
    path.write_text(json.dumps(config), encoding="utf-8")


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
def test_open_clip_folder_runs_no_code(
    attack: Attack, empty_sandbox: Sandbox, tmp_path: Path, marker_file: Path
) -> None:
    folder = shutil.copytree(empty_sandbox.encoder, tmp_path / "model")
    attack(folder, marker_file)
    with pytest.raises(ValueError, match=r"tokenizer_kwargs|own code|custom code|trust_remote_code|of the tokenizer"):
        OpenClip(str(folder)).load(CPU)
    assert not marker_file.exists()


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
def test_diffusers_folder_runs_no_code(
    attack: Attack, empty_sandbox: Sandbox, tmp_path: Path, marker_file: Path
) -> None:
    folder = shutil.copytree(empty_sandbox.diffuser, tmp_path / "model")
    attack(folder, marker_file)
    with pytest.raises(ValueError, match=re.escape(f"diffuser.model={folder}: ")):
        Diffuser(str(folder)).load(CPU)
    assert not marker_file.exists()
    assert "antigravity" not in sys.modules


def test_pipeline_options_cannot_enable_code(empty_sandbox: Sandbox, tmp_path: Path, marker_file: Path) -> None:
    folder = shutil.copytree(empty_sandbox.diffuser, tmp_path / "model")
    ignored(folder, marker_file)
    Diffuser(str(folder)).load(CPU)
    assert not marker_file.exists()


@pytest.mark.parametrize("architecture", ["local-dir:{}", "hf-hub:owner/name", "own.Model", "own"])
def test_timm_folder_names_only_timm_architectures(architecture: str, tmp_path: Path, marker_file: Path) -> None:
    folder = tmp_path / "model"
    payload(folder, marker_file)
    save_file({"x": torch.zeros(1)}, folder / "model.safetensors")
    change(folder / "config.json", architecture=architecture.format(folder), auto_map=OWN, pretrained_cfg={"url": "x"})
    with pytest.raises(ValueError, match=re.escape(f"encoder.model={folder} cannot be built")):
        Timm(str(folder)).load(CPU)
    assert not marker_file.exists()


@pytest.mark.parametrize("place", ["config.json", "tokenizer_config.json", "generation_config.json"])
def test_language_model_runs_no_code(place: str, tmp_path: Path, marker_file: Path) -> None:
    folder = Path(shutil.copytree(LANGUAGE, tmp_path / "model"))
    payload(folder, marker_file)
    payload(folder / "custom_generate", marker_file, "generate.py")
    config = TOKENIZER if "tokenizer" in place else {"auto_map": OWN, "trust_remote_code": True, "custom_generate": "."}
    change(folder / place, **config)
    try:
        LocalLLM(str(folder)).load(CPU)
    except ValueError as error:
        assert "own code is not run" in str(error)  # noqa: PT017
    assert not marker_file.exists()


def test_chat_template_is_sandboxed(tmp_path: Path, marker_file: Path) -> None:
    from lgclip.prompts.base import PromptError, Task
    from lgclip.types import TargetClass

    folder = Path(shutil.copytree(LANGUAGE, tmp_path / "model"))
    reach = f"cycler.__init__.__globals__.os.mkdir({str(marker_file)!r})"
    malicious = f"{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}{{{{ {reach} }}}}"
    (folder / "chat_template.jinja").write_text(malicious)
    writer = LocalLLM(str(folder), max_rounds=1, max_new_tokens=2).load(CPU)
    with pytest.raises(Exception, match=r"unsafe|not safely|SecurityError|undefined") as raised:
        list(writer([Task(TargetClass(0, "cat", ""), 1)], 0))
    assert not isinstance(raised.value, PromptError)
    assert not marker_file.exists()


def test_dataset_code_is_not_read(tmp_path: Path, marker_file: Path) -> None:
    payload(tmp_path / "set", marker_file, "set.py")
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: set.py\n---\n")
    with pytest.raises(ValueError, match="holds no parquet file"):
        HubImages(root=str(tmp_path / "set"))
    assert not marker_file.exists()


WAYS = [
    (["+diffuser.trust_remote_code=true"], "diffuser"), (["+diffuser.custom_pipeline=MODEL"], "diffuser"),
    (["+diffuser.options.custom_pipeline=MODEL"], "custom"), (["+encoder.trust_remote_code=true"], "encoder"),
    (["+diffuser.options.trust_remote_code=true"], "trust_remote_code"), (["+llm.trust_remote_code=true"], "llm"),
    (["llm=local", f"llm.model={LANGUAGE}", "+llm.trust_remote_code=true"], "llm"),
    (["dataset=hub", "dataset.root=MODEL", "+dataset.trust_remote_code=true"], "dataset"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("source", ["typed", "file"])
@pytest.mark.parametrize(("values", "expected"), WAYS, ids=[values[-1] for values, _ in WAYS])
def test_config_cannot_enable_remote_code(
    source: str,
    values: list[str],
    expected: str,
    fresh_sandbox: Sandbox,
    marker_file: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    root = marker_file.parent
    folder = shutil.copytree(fresh_sandbox.diffuser, root / "model")
    component(folder, marker_file)
    payload(folder, marker_file, "pipeline.py")
    overrides = [value.replace("MODEL", str(folder)) for value in values]
    if source == "file":
        key, _, value = overrides.pop().removeprefix("+").partition("=")
        *groups, last = key.split(".")
        content: dict[str, Any] = {last: True if value == "true" else value}
        for group in reversed(groups):
            content = {group: content}
        (root / "own" / "experiment").mkdir(parents=True)
        (root / "own" / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{json.dumps(content)}\n")
        overrides.append("experiment=mine")
    config_dir = ["--config-dir", str(root / "own")] if source == "file" else []
    overrides = [
        *config_dir,
        *fresh_sandbox.evaluate_overrides(),
        *overrides,
        f"diffuser.model={folder}",
        f"hydra.run.dir={root}/run",
    ]
    with pytest.raises(SystemExit):
        run_command("evaluate", *overrides)
    message = capfd.readouterr().err
    assert "error: " in message
    assert "usage: " not in message
    assert expected in message
    assert "Traceback" not in message
    assert not marker_file.exists()
