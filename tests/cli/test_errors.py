"""Tests that a user's mistake gives one plain message and exit status 1, and a bug keeps its traceback."""

import gc
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from factories import Sandbox, evaluate_run, make_image_folder, run_command
from hydra.core.global_hydra import GlobalHydra
from safetensors.torch import load_file, save_file

from lgclip.cli.errors import plain_errors
from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.prompts.template import Templates
from lgclip.stages.counts import ImageCounts
from lgclip.store.images import ImageStore

pytest_plugins = ("run_fixtures",)

Rejected = Callable[..., str]


@pytest.fixture
def rejected(fresh_sandbox: Sandbox, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Rejected]:
    """Runs a command that must be rejected before anything is stored and returns its single message."""

    def run(*overrides: str, verb: str = "evaluate", sandbox: Sandbox = fresh_sandbox) -> str:
        settings = {"evaluate": sandbox.evaluate_overrides, "generate": sandbox.generate_overrides, "train": list}[
            verb
        ]()
        with pytest.raises(SystemExit) as exit_info:
            run_command(verb, *settings, f"hydra.run.dir={tmp_path / 'run'}", *overrides)
        assert exit_info.value.code == 1
        stderr = capsys.readouterr().err
        assert "Traceback" not in stderr
        *before, message = stderr.split("error: ")
        # Hydra itself says which job of a sweep it was.
        assert all(line.startswith("Error executing job") for line in "".join(before).splitlines())
        assert 0 < len(message.splitlines()) <= 16
        return message

    yield run
    left = [p for p in fresh_sandbox.store.rglob("*") if p.is_file()] if fresh_sandbox.store.is_dir() else []
    assert not left, "a refused run leaves nothing in the store"
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("dataset=shpes", ["no dataset=shpes", "digits", "folder", "shapes", "Did you mean 'shapes'?"]),
        ("encoder=tny", ["no encoder=tny", "Did you mean 'tiny'?"]),
        ("method=lgclp", ["clip_text", "fusion", "Did you mean 'lgclip'?"]),
        ("scales=mult", ["multi", "single", "Did you mean 'multi'?"]),
        ("prompt_per_class=5", ["prompt_per_class", "Did you mean 'prompts_per_class'?"]),
        ("method.baselines=[1]", ["method.baselines=[1]: Cannot merge DictConfig with ListConfig"]),
        ("diffuser.stps=5", ["diffuser.stps", "Did you mean 'diffuser.steps'?"]),
        ("sed=1", ["sed", "Did you mean 'seed'?"]),
        ("+diffuser.unknown=1", ["unknown"]),
        ("prompts_per_class", ["prompts_per_class"]),
        ("dataset.root=???", ["dataset.root has no value: add dataset.root=..."]),
    ],
)
def test_unknown_names_list_valid_choices(rejected: Rejected, override: str, expected: list[str]) -> None:
    message = rejected(override)
    for part in expected:
        assert part in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("prompts_per_class=0", "prompts_per_class=0: it must be an integer of at least 1"),
        ("prompts_per_class=-5", "prompts_per_class=-5: it must be an integer of at least 1"),
        ("prompts_per_class=many", "prompts_per_class"),
        ("prompts_per_class=1.5", "prompts_per_class"),
        ("images_per_prompt=0", "images_per_prompt=0: it must be an integer of at least 1"),
        ("seed=one", "seed"),
        ("workers=-1", "workers=-1: it must be an integer of at least 0, or auto"),
        ("workers=many", "workers=many: it must be an integer of at least 0, or auto"),
        ("scales.weights=[0]", "scales.weights=[0]"),
        ("scales.weights=[-1]", "scales.weights=[-1]"),
        ("scales.weights=[nan]", "scales.weights=[nan]"),
        ("scales.weights=[1,1]", "2 weights for 1 fractions"),
        ("scales.fractions=[]", "scales.fractions=[]"),
        ("scales.fractions=[1.5]", "scales.fractions: 1.5"),
        ("diffuser.steps=0", "diffuser.steps=0: it must be at least 1"),
        ("diffuser.size=63", "diffuser.size=63: it must be a multiple of 8"),
        ("diffuser.guidance=-1", "diffuser.guidance=-1"),
        ("diffuser.batch_size=0", "diffuser.batch_size=0"),
        ("diffuser.model=./nowhere", "'./nowhere': no such folder"),
        ("encoder.model=./nowhere", "'./nowhere': no such folder"),
        ("encoder.model=tiny:nothing", "tiny:encoder"),
        ("encoder.batch_size=0", "encoder.batch_size=0"),
        ("llm.templates=[]", "llm.templates: it has no sentence"),
        ("llm.templates=['no name in it']", "'no name in it' has no {}"),
        ("method.text_weight=1.5", "text weight of lgclip is 1.5: it must be in [0, 1]"),
        ("method.baselines={fusion:-1}", "text weight of fusion is -1"),
        ("selection.keep=0", "selection.keep=0: it must be at least 1"),
        ("noise=none", "diffuser.noise=none: choose image, repeat"),
        ("precision=fp8", "precision=fp8: choose"),
        ("encoder.model=hf-hub:owner/name", "the hub cannot be reached"),
        ("diffuser.model=owner/name", "the hub cannot be reached"),
    ],
)
def test_invalid_values_are_rejected_before_loading(
    rejected: Rejected, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    for part in (Templates, Diffuser, OpenClip):
        monkeypatch.setattr(part, "load", None)  # calling it would be a TypeError, which is not answered plainly
    assert message in rejected(override)


def test_invalid_dataset_folders_are_rejected(rejected: Rejected, tmp_path: Path) -> None:
    assert "no such folder" in rejected(f"dataset.root={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    assert "no folder in it" in rejected(f"dataset.root={tmp_path / 'empty'}")
    root = make_image_folder(tmp_path / "some")
    (root / "zebra").mkdir()
    assert "zebra" in rejected(f"dataset.root={root}")


def test_duplicate_class_names_are_rejected(rejected: Rejected, tmp_path: Path) -> None:
    root = make_image_folder(tmp_path / "twins")
    (tmp_path / "names.txt").write_text("crane\nheron\nCrane\n")
    message = rejected(f"dataset.root={root}", f"dataset.names={tmp_path / 'names.txt'}")
    assert "[0, 2]" in message
    assert "crane" in message


def test_unwritable_store_is_rejected(rejected: Rejected, fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = rejected(sandbox=replace(fresh_sandbox, store=tmp_path / "file"))
    assert f"{tmp_path / 'file'}" in message
    assert "LGCLIP_HOME" in message


@pytest.mark.parametrize(("verb", "choice"), [("generate", []), ("train", ["method=tiny_language"])])
def test_every_command_reports_errors_plainly(rejected: Rejected, verb: str, choice: list[str]) -> None:
    assert "Did you mean 'seed'?" in rejected(*choice, "sede=1", verb=verb)


def test_truncated_image_stops_the_run(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make_image_folder(tmp_path / "pictures")
    bad = root / "red_star" / "1.png"
    bad.write_bytes(bad.read_bytes()[:150])
    with pytest.raises(SystemExit) as exit_info:
        evaluate_run(replace(sandbox, synthetic_images=root), tmp_path / "run")
    stderr = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert "Traceback" not in stderr
    assert f"error: 1 of 12 images of pictures: {bad} cannot be read" in stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_internal_errors_keep_their_traceback(
    fresh_sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> None:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(ImageStore, "put", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        evaluate_run(fresh_sandbox, tmp_path / "run")


@pytest.mark.parametrize(("value", "plain"), [("0", True), ("1", False)])
def test_full_traceback_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, value: str, plain: bool) -> None:
    def refuse() -> None:
        ImageCounts.from_values({"seed": -1})

    monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    with pytest.raises(SystemExit if plain else ValueError):
        plain_errors(refuse)()
    assert os.environ["HYDRA_FULL_ERROR"] == value


def test_rejected_run_leaves_hydra_usable(rejected: Rejected) -> None:
    rejected("prompts_per_class=0")
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "hydra.job_logging.handlers.console.class=foo.Bar",
            "hydra.job_logging or hydra.hydra_logging: Unable to configure handler 'console': Cannot resolve 'foo.Bar'",
        ),
        ("hydra.job_logging.root.handlers=[nope]", "Unable to configure root logger: Unable to add handler 'nope'"),
        ("hydra.hydra_logging.version=2", "hydra.job_logging or hydra.hydra_logging: Unsupported version: 2"),
        ("+hydra.callbacks.mine._target_=foo.Bar", "hydra.callbacks.mine: Error locating target 'foo.Bar'"),
        ("+hydra.callbacks.mine._target_=logging.Logger", "hydra.callbacks.mine: Error in call to target"),
        pytest.param(
            "hydra.run.dir=${nope}",
            "hydra.run.dir: Interpolation key 'nope' not found",
            marks=pytest.mark.filterwarnings("ignore:Callback SecretsCheck"),
        ),
    ],
)
def test_wrong_logging_or_callback_is_one_line(rejected: Rejected, override: str, message: str) -> None:
    line = rejected(override)
    # Logging drops an open log file when its configuration fails; collected later, it would fail another test.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()
    assert message in line
    assert len(line.splitlines()) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.launcher._target_=foo.Bar", "hydra.launcher: Invalid plugin 'foo.Bar'"),
        ("hydra.sweeper._target_=foo.Bar", "hydra.sweeper: Invalid plugin 'foo.Bar'"),
        ("hydra.launcher._target_=7", "hydra.launcher: Invalid plugin '7'"),
        ("+hydra.launcher.nope=1", "hydra.launcher: Error in call to target"),
        ("hydra/launcher=submitit_slurm", 'hydra.launcher: Could not detect "srun"'),
    ],
)
def test_wrong_launcher_is_one_line(
    fresh_sandbox: Sandbox, override: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = [*fresh_sandbox.evaluate_overrides(), f"hydra.sweep.dir={tmp_path / 'sweep'}", "seed=0,1", override]
    with pytest.raises(SystemExit) as exit_info:
        run_command("evaluate", "-m", *overrides)
    assert exit_info.value.code == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert message in line


@pytest.mark.slow
def test_wrong_weights_are_refused_before_anything_is_generated(
    rejected: Rejected, fresh_sandbox: Sandbox, tmp_path: Path
) -> None:
    encoder = Path(shutil.copytree(fresh_sandbox.encoder, tmp_path / "encoder"))
    weights = load_file(encoder / "open_clip_model.safetensors")
    del weights["visual.proj"]
    save_file(weights, encoder / "open_clip_model.safetensors")
    message = rejected(f"encoder.model={encoder}")
    assert "1 of the model's 38 weights are missing (visual.proj)" in message
    diffuser = Path(shutil.copytree(fresh_sandbox.diffuser, tmp_path / "diffuser"))
    weights_file = diffuser / "vae" / "diffusion_pytorch_model.safetensors"
    weights_file.write_bytes(weights_file.read_bytes()[:-1])
    assert f"{weights_file} is damaged" in rejected(f"diffuser.model={diffuser}")
    assert f"{weights_file} is damaged" in rejected(f"diffuser.model={diffuser}", verb="generate")
