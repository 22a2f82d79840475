"""Captions in the store: whole or absent, verified, kept, carried elsewhere, and exchanged as JSON lines."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from captioners import Scripted, captioned, vit_gpt2
from custody_damages import cut, edit, empty, html
from custody_stores import age, fails, files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from worlds import World, judge, made, picture_folder, stored, tree

from lgclip.allowed import build
from lgclip.caption_exchange import captions_command, export_captions, import_captions
from lgclip.caption_store import CaptionStore
from lgclip.captions import Captions
from lgclip.datasets.folder import Folder
from lgclip.inventory import Kind, kind_of
from lgclip.prompts.captioner import CaptionFile
from lgclip.reopen import reopen
from lgclip.retention import collect
from lgclip.runs import Run
from lgclip.store import StoreError
from lgclip.transport import export, import_archive
from lgclip.verification import verify

pytest_plugins = ("run_fixtures",)
CONF = Path(__file__).parents[1] / "conf"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def opened(root: Path, captioner: str = "c") -> CaptionStore:
    store = CaptionStore(root, {"captioner": captioner}, {"source": "s"})
    store.refresh()
    return store


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(batches=st.lists(st.dictionaries(TEXT, TEXT, max_size=4), max_size=4))
def test_what_is_stored_is_found_again(batches: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    store, said = opened(root), dict[str, str]()
    for batch in batches:
        store.add(fresh := {image: text for image, text in batch.items() if image not in said})
        said |= fresh
    store.refresh()
    for one in (store, opened(root)):
        assert {image: one.get(image) for image in said} == said
    assert opened(root).get("another \ud7ff image") is None
    assert opened(root, "other").get(next(iter(said), "x")) is None


def test_a_damaged_file_is_as_good_as_none_and_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    opened(tmp_path).add({"a": "a star"})
    opened(tmp_path).add({"b": "a moon", "c": ""})
    first = next(path for path in files(tmp_path, Kind.CAPTIONS) if '"a star"' in path.read_text())
    whole = first.read_bytes()
    first.write_text(first.read_text().replace("star", "ring"))
    with caplog.at_level(logging.WARNING):
        store = opened(tmp_path)
        store.refresh()
    assert (store.get("a"), store.get("b"), store.get("c")) == (None, "a moon", "")
    assert caplog.text.count("is damaged; the images that it tells of are captioned again") == 1
    store.add({"a": "a star"})
    store.refresh()
    assert store.get("a") == "a star"
    assert first.read_bytes() == whole


def test_a_damaged_batch_is_captioned_again(tmp_path: Path) -> None:
    training = Folder(str(picture_folder(tmp_path / "train")))
    before = captioned(training, Scripted(), tmp_path / "store").texts()
    bad = files(tmp_path / "store", Kind.CAPTIONS)[0]
    cut(bad)
    writer = Scripted()
    assert captioned(training, writer, tmp_path / "store").texts() == before
    assert writer.passes == [3]
    assert list(verify(tmp_path / "store"))[-1].endswith("0 faults"), "the same batch has the same name"


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (empty, "it is empty"),
    "cut": (cut, "it is not JSON"),
    "HTML": (html, "it is not JSON"),
    "a letter": (lambda p: p.write_text(p.read_text().replace("moon", "mood")), "not the key of its content"),
    "a number": (lambda p: edit(p, captions={"b": 3}), "it holds no captions by image id"),
    "a list": (lambda p: edit(p, captions=["b"]), "it holds no captions by image id"),
    "an older schema": (lambda p: edit(p, schema=0), "it is of schema 0, this package reads"),
    "another name": (lambda p: p.rename(p.with_stem("0" * 32)), "not the key of its content"),
    "half a letter": (lambda p: edit(p, captions={"b": "\ud800"}), "surrogates not allowed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_names_every_damage_and_repair_takes_it_away(damage: str, tmp_path: Path) -> None:
    opened(tmp_path).add({"b": "a moon"})
    assert "1 captions, 1 inputs" in list(verify(tmp_path))[-1]
    harm, said = DAMAGES[damage]
    harm(files(tmp_path, Kind.CAPTIONS)[0])
    told = fails(verify(tmp_path), "1 faults")
    assert said in told[0]
    list(verify(tmp_path, repair=True))
    assert not files(tmp_path, Kind.CAPTIONS)
    assert opened(tmp_path).get("b") is None


def test_a_store_knows_its_captions_by_their_place(tmp_path: Path) -> None:
    key = "0" * 32
    assert kind_of(f"captions/{key}/{key}.json") is Kind.CAPTIONS
    assert kind_of(f"captions/{key}/inputs.json") is Kind.INPUTS
    assert kind_of(f"captions/{key}/costs.jsonl") is Kind.LEDGER
    assert kind_of(f"captions/{key}/{key}/{key}.json") is Kind.FOREIGN
    opened(tmp_path).add({"b": "a moon"})
    (inputs,) = files(tmp_path, Kind.INPUTS)
    edit(inputs, captioner={})
    assert "its folder is not the key of its inputs" in fails(verify(tmp_path))[0]


def told(world: World, train: Path, folder: Path, *overrides: str) -> list[str]:
    return [
        "dataset=folder", f"dataset.root={world.pictures}", f"dataset.train_root={train}", "llm=vit_gpt2",
        f"llm.model={folder / 'captioner'}", "llm.revision=null", "llm.max_new_tokens=6",
        f"diffuser.model={world.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=3",
        f"paths.store={world.store}", "trainer.accelerator=cpu", f"encoder.model={world.encoder}", "logger=none",
        *overrides,
    ]  # fmt: skip


def test_gc_and_archives_keep_the_captions_of_named_runs(fresh_world: World, tmp_path: Path) -> None:
    train, store = picture_folder(tmp_path / "train", each=4), fresh_world.store
    vit_gpt2(tmp_path / "captioner")
    overrides = told(fresh_world, train, tmp_path)
    first = judge(overrides, tmp_path / "first")
    assert made(first)["prompts"] == 9
    assert first["cost"]["made_before"]["prompts"]["parts"]["prompts"]["unit"] == "caption"
    back = reopen(Run.read(tmp_path / "first"))
    assert back.drawing is not None
    assert list(back.drawing.sources) == [Folder(str(train)).ids[at] for at in (0, 1, 2, 4, 5, 6, 8, 9, 10)]
    before = stored(store)
    longer = judge(overrides, tmp_path / "longer", "llm.max_new_tokens=7", "prompts_per_class=2")
    assert made(longer)["prompts"] == 6
    assert len({path.parent for path in files(store, Kind.CAPTIONS)}) == 2
    age(store, 3)
    list(collect(store, keep=[tmp_path / "first"], yes=True))
    kept = {name for name in stored(store) if name.startswith("captions")}
    assert kept == {name for name in before if name.startswith("captions")}
    assert set(made(judge(overrides, tmp_path / "again", "rerun=true")).values()) == {0}

    list(export(store, tmp_path / "runs.tar", [tmp_path / "first"]))
    list(import_archive(tmp_path / "elsewhere", tmp_path / "runs.tar"))
    captions = {name: data for name, data in tree(tmp_path / "elsewhere").items() if name.startswith("captions")}
    assert captions == {name: data for name, data in tree(store).items() if name.startswith("captions")}
    list(verify(tmp_path / "elsewhere"))
    list(collect(store, older_than=1, yes=True))
    assert not files(store, Kind.CAPTIONS)


def test_captions_go_out_and_come_in_as_json_lines(tmp_path: Path) -> None:
    training = Folder(str(picture_folder(tmp_path / "train")))
    here = captioned(training, Scripted(), tmp_path / "store")
    assert export_captions(here, tmp_path / "out" / "captions.jsonl") == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(training.ids)
    assert lines[0] == {
        "image": training.ids[0], "file": training.where(0), "class": 0, "name": "blue moon",
        "caption": here.caption(training.ids[0]),
    }  # fmt: skip
    there = Captions(training, Scripted(), tmp_path / "there", 12)
    with pytest.raises(StoreError, match="no training image of train has a stored caption"):
        export_captions(there, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    assert import_captions(there, tmp_path / "out" / "captions.jsonl") == 12
    assert import_captions(there, tmp_path / "out" / "captions.jsonl") == 0
    looks_at_nothing = Scripted(breaks_after=0)
    assert captioned(training, looks_at_nothing, tmp_path / "there").texts() == here.texts()
    from_file = CaptionFile(file=str(tmp_path / "out" / "captions.jsonl"))
    assert captioned(training, from_file, tmp_path / "there").texts() == here.texts()


def test_an_import_that_contradicts_the_store_stores_nothing(tmp_path: Path) -> None:
    training = Folder(str(picture_folder(tmp_path / "train")))
    captions, path = captioned(training, Scripted(), tmp_path / "store", per_class=1), tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": image, "caption": "x"}) + "\n" for image in training.ids))
    before = stored(tmp_path / "store")
    with pytest.raises(StoreError, match=r"3 images have another caption in the store, first .*0\.png"):
        import_captions(Captions(training, Scripted(), tmp_path / "store", 4), path)
    path.write_text(json.dumps({"image": training.ids[0], "caption": captions.caption(training.ids[0])}))
    with pytest.raises(ValueError, match=r"captions\.jsonl: 11 of 12 images of train have no caption there"):
        import_captions(Captions(training, Scripted(), tmp_path / "store", 4), path)
    assert stored(tmp_path / "store") == before


def test_the_command_takes_the_words_of_generate(tmp_path: Path) -> None:
    train, test = picture_folder(tmp_path / "train"), picture_folder(tmp_path / "test", each=1)
    vit_gpt2(tmp_path / "captioner")
    asked = [
        "dataset=folder", f"dataset.root={test}", f"dataset.train_root={train}", "llm=vit_gpt2", "llm.revision=null",
        f"llm.model={tmp_path / 'captioner'}", f"paths.store={tmp_path / 'store'}",
    ]  # fmt: skip
    said = tmp_path / "said.jsonl"
    images = Folder(str(train)).ids
    said.write_text("".join(json.dumps({"image": image, "caption": f"number {image}"}) + "\n" for image in images))
    (line,) = captions_command("import", said, asked, CONF)
    assert line.endswith(": 12 of 12 captions are new")
    (line,) = captions_command("export", tmp_path / "out.jsonl", asked, CONF)
    assert line == f"{tmp_path / 'out.jsonl'}: 12 captions of 12 training images of train"
    assert [json.loads(row)["caption"] for row in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        f"number {image}" for image in images
    ]
    bad: dict[str, list[str]] = {
        "name a captioner, such as llm=blip2": ["dataset=shapes", "llm=template"],
        "has no training split": [*asked, "dataset.train_root=null"],
        "no such folder": [*asked, "llm.model=/no/such"],
    }
    for message, overrides in bad.items():
        with pytest.raises(ValueError, match=message):
            list(captions_command("export", tmp_path / "no.jsonl", overrides, CONF))
    assert not (tmp_path / "no.jsonl").exists()


def test_a_config_may_name_captioners(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    said = tmp_path / "said.jsonl"
    said.write_text('{"image": "a", "caption": "b"}\n')
    for config in (
        {"_target_": "lgclip.prompts.captioner.CaptionFile", "file": str(said)},
        {"_target_": "lgclip.prompts.captioner.Captioner", "model": "hub/some", "form": "{name}: {caption}"},
    ):
        part: Any = build(OmegaConf.create(config), _convert_="all")
        assert part.needs_images
