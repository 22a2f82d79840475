"""A user's mistake is one plain message and exit status 1; a mistake of ours keeps its trace."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from worlds import World, call, judge, picture_folder

from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.errors import plain_errors
from lgclip.generation import whole_numbers
from lgclip.image_store import ImageStore
from lgclip.prompts.template import Templates

pytest_plugins = ("run_fixtures",)

Refused = Callable[..., str]


@pytest.fixture
def refused(fresh_world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Iterator[Refused]:
    """Runs what must be refused, before anything is stored; returns the one message."""

    def run(*overrides: str, verb: str = "evaluate", world: World = fresh_world) -> str:
        own = {"evaluate": world.evaluating, "generate": world.generating, "train": list}[verb]()
        with pytest.raises(SystemExit) as exit_info:
            call(verb, *own, f"hydra.run.dir={tmp_path / 'run'}", *overrides)
        assert exit_info.value.code == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        *before, message = said.split("error: ")
        # Hydra itself says which job of a sweep it was.
        assert all(line.startswith("Error executing job") for line in "".join(before).splitlines())
        assert 0 < len(message.splitlines()) <= 16
        return message

    yield run
    left = [p for p in fresh_world.store.rglob("*") if p.is_file()] if fresh_world.store.is_dir() else []
    assert not left, "a refused run leaves nothing in the store"
    assert not (tmp_path / "run" / "result.json").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("dataset=shpes", ["no dataset=shpes", "digits", "folder", "shapes", "Did you mean 'shapes'?"]),
        ("encoder=tny", ["no encoder=tny", "Did you mean 'tiny'?"]),
        ("method=lgclp", ["clip_text", "fusion", "Did you mean 'lgclip'?"]),
        ("scales=mult", ["multi", "single", "Did you mean 'multi'?"]),
        ("prompt_per_class=5", ["prompt_per_class", "Did you mean 'prompts_per_class'?"]),
        ("diffuser.stps=5", ["diffuser.stps", "Did you mean 'diffuser.steps'?"]),
        ("sed=1", ["sed", "Did you mean 'seed'?"]),
        ("+diffuser.unknown=1", ["unknown"]),
        ("prompts_per_class", ["prompts_per_class"]),
        ("dataset.root=???", ["dataset.root has no value: add dataset.root=..."]),
    ],
)
def test_a_name_that_is_not_there_is_answered_with_those_that_are(
    refused: Refused, override: str, said: list[str]
) -> None:
    message = refused(override)
    for part in said:
        assert part in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("prompts_per_class=0", "prompts_per_class=0: it must be a whole number of at least 1"),
        ("prompts_per_class=-5", "prompts_per_class=-5: it must be a whole number of at least 1"),
        ("prompts_per_class=many", "prompts_per_class"),
        ("prompts_per_class=1.5", "prompts_per_class"),
        ("images_per_prompt=0", "images_per_prompt=0: it must be a whole number of at least 1"),
        ("seed=one", "seed"),
        ("workers=-1", "workers=-1: it must be a whole number of at least 0"),
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
        ("llm.templates=[]", "llm.templates=[]"),
        ("llm.templates=['no name in it']", "'no name in it' has no {}"),
        ("method.text_weight=1.5", "text weight of lgclip is 1.5: it must be in [0, 1]"),
        ("method.beside={fusion:-1}", "text weight of fusion is -1"),
        ("selection.keep=0", "selection.keep=0: it must be at least 1"),
        ("noise=none", "diffuser.noise=none: choose image, repeat"),
        ("precision=fp8", "precision=fp8: choose"),
        ("encoder.model=hf-hub:owner/name", "the hub cannot be reached"),
        ("diffuser.model=owner/name", "the hub cannot be reached"),
    ],
)
def test_a_value_out_of_range_is_refused_before_any_model_loads(
    refused: Refused, monkeypatch: pytest.MonkeyPatch, override: str, said: str
) -> None:
    for part in (Templates, Diffuser, OpenClip):
        monkeypatch.setattr(part, "load", None)  # calling it would be a TypeError, which is not answered plainly
    assert said in refused(override)


def test_a_folder_that_cannot_be_a_data_set_is_refused(refused: Refused, tmp_path: Path) -> None:
    assert "no such folder" in refused(f"dataset.root={tmp_path / 'nowhere'}")
    (tmp_path / "empty").mkdir()
    assert "no folder in it" in refused(f"dataset.root={tmp_path / 'empty'}")
    root = picture_folder(tmp_path / "some")
    (root / "zebra").mkdir()
    assert "zebra" in refused(f"dataset.root={root}")


def test_two_classes_of_one_name_are_refused(refused: Refused, tmp_path: Path) -> None:
    root = picture_folder(tmp_path / "twins")
    (tmp_path / "names.txt").write_text("crane\nheron\nCrane\n")
    message = refused(f"dataset.root={root}", f"dataset.names={tmp_path / 'names.txt'}")
    assert "[0, 2]" in message
    assert "crane" in message


def test_a_store_that_cannot_be_written_is_refused(refused: Refused, fresh_world: World, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused(world=replace(fresh_world, store=tmp_path / "file"))
    assert f"{tmp_path / 'file'}" in message
    assert "LGCLIP_HOME" in message


@pytest.mark.parametrize(("verb", "choice"), [("generate", []), ("train", ["method=tiny_language"])])
def test_every_verb_answers_plainly(refused: Refused, verb: str, choice: list[str]) -> None:
    assert "Did you mean 'seed'?" in refused(*choice, "sede=1", verb=verb)


def test_a_truncated_image_is_named_and_nothing_is_judged(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = picture_folder(tmp_path / "pictures")
    bad = root / "red_star" / "1.png"
    bad.write_bytes(bad.read_bytes()[:150])
    with pytest.raises(SystemExit) as exit_info:
        judge(replace(world, pictures=root), tmp_path / "run")
    said = capsys.readouterr().err
    assert exit_info.value.code == 1
    assert "Traceback" not in said
    assert f"error: 1 of 12 images of pictures: {bad} cannot be read" in said
    assert not (tmp_path / "run" / "result.json").exists()


def test_a_mistake_of_ours_keeps_its_trace(fresh_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object) -> None:
        raise TypeError("a mistake of ours")

    monkeypatch.setattr(ImageStore, "put", broken)
    with pytest.raises(TypeError, match="a mistake of ours"):
        judge(fresh_world, tmp_path / "run")


@pytest.mark.parametrize(("value", "plain"), [("0", True), ("1", False)])
def test_the_whole_trace_is_shown_on_request(monkeypatch: pytest.MonkeyPatch, value: str, plain: bool) -> None:
    def refuse() -> None:
        whole_numbers({"seed": -1})

    monkeypatch.setenv("HYDRA_FULL_ERROR", value)
    with pytest.raises(SystemExit if plain else ValueError):
        plain_errors(refuse)()
    assert os.environ["HYDRA_FULL_ERROR"] == value


def test_a_refused_run_leaves_hydra_ready_for_the_next(refused: Refused) -> None:
    refused("prompts_per_class=0")
    assert not GlobalHydra.instance().is_initialized()
