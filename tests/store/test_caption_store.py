"""Tests stored captions: atomic, verified, kept, transferred, and exchanged as JSON lines."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from captioners import ScriptedCaptioner, caption_dataset, vit_gpt2
from factories import Sandbox, computed_counts, evaluate_run, make_image_folder, read_store, read_tree
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store_corruption import edit_json, truncate, truncate_to_zero, write_html
from store_maintenance import collect_failure, files_of_kind, make_older

from lgclip.cli.captions import captions_command, export_captions, import_captions
from lgclip.cli.store.archive import export, import_archive
from lgclip.cli.store.gc import collect
from lgclip.cli.store.inventory import Kind, kind_of
from lgclip.cli.store.verify import verify
from lgclip.datasets.folder import Folder
from lgclip.prompts.captioner import CaptionFile
from lgclip.reporting.restore import restore_run
from lgclip.reporting.run_folder import Run
from lgclip.runtime.instantiate import build
from lgclip.stages.caption_set import Captions
from lgclip.store.captions import CaptionStore
from lgclip.store.root import StoreError

pytest_plugins = ("run_fixtures",)
CONF = Path(__file__).parents[2] / "conf"
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


def open_store(root: Path, captioner: str = "c") -> CaptionStore:
    store = CaptionStore(root, {"captioner": captioner}, {"source": "s"})
    store.refresh()
    return store


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(batches=st.lists(st.dictionaries(TEXT, TEXT, max_size=4), max_size=4))
def test_stored_captions_are_read_back(batches: list[dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("store")
    store = open_store(root)
    captions = dict[str, str]()
    for batch in batches:
        store.add(fresh := {image: text for image, text in batch.items() if image not in captions})
        captions |= fresh
    store.refresh()
    for reopened in (store, open_store(root)):
        assert {image: reopened.get(image) for image in captions} == captions
    assert open_store(root).get("another \ud7ff image") is None
    assert open_store(root, "other").get(next(iter(captions), "x")) is None


def test_damaged_file_is_ignored_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    open_store(tmp_path).add({"a": "a star"})
    open_store(tmp_path).add({"b": "a moon", "c": ""})
    first = next(path for path in files_of_kind(tmp_path, Kind.CAPTIONS) if '"a star"' in path.read_text())
    content = first.read_bytes()
    first.write_text(first.read_text().replace("star", "ring"))
    with caplog.at_level(logging.WARNING):
        store = open_store(tmp_path)
        store.refresh()
    assert (store.get("a"), store.get("b"), store.get("c")) == (None, "a moon", "")
    assert caplog.text.count("is damaged; the images that it lists are captioned again") == 1
    store.add({"a": "a star"})
    store.refresh()
    assert store.get("a") == "a star"
    assert first.read_bytes() == content


def test_damaged_batch_is_recaptioned(tmp_path: Path) -> None:
    training = Folder(str(make_image_folder(tmp_path / "train")))
    before = caption_dataset(training, ScriptedCaptioner(), tmp_path / "store").texts()
    bad = files_of_kind(tmp_path / "store", Kind.CAPTIONS)[0]
    truncate(bad)
    prompt_generator = ScriptedCaptioner()
    assert caption_dataset(training, prompt_generator, tmp_path / "store").texts() == before
    assert prompt_generator.passes == [3]
    assert list(verify(tmp_path / "store"))[-1].endswith("0 faults"), "the same batch has the same name"


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (truncate_to_zero, "it is empty"),
    "cut": (truncate, "it is not JSON"),
    "HTML": (write_html, "it is not JSON"),
    "a letter": (lambda p: p.write_text(p.read_text().replace("moon", "mood")), "not the key of its content"),
    "a number": (lambda p: edit_json(p, captions={"b": 3}), "it holds no captions by image id"),
    "a list": (lambda p: edit_json(p, captions=["b"]), "it holds no captions by image id"),
    "an older schema": (lambda p: edit_json(p, schema=0), "it is of schema 0, this package reads"),
    "another name": (lambda p: p.rename(p.with_stem("0" * 32)), "not the key of its content"),
    "half a letter": (lambda p: edit_json(p, captions={"b": "\ud800"}), "surrogates not allowed"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_verify_finds_and_repairs_damage(damage: str, tmp_path: Path) -> None:
    open_store(tmp_path).add({"b": "a moon"})
    assert "1 captions, 1 inputs" in list(verify(tmp_path))[-1]
    harm, message = DAMAGES[damage]
    harm(files_of_kind(tmp_path, Kind.CAPTIONS)[0])
    lines = collect_failure(verify(tmp_path), "1 faults")
    assert message in lines[0]
    list(verify(tmp_path, repair=True))
    assert not files_of_kind(tmp_path, Kind.CAPTIONS)
    assert open_store(tmp_path).get("b") is None


def test_inventory_finds_captions(tmp_path: Path) -> None:
    key = "0" * 32
    assert kind_of(f"captions/{key}/{key}.json") is Kind.CAPTIONS
    assert kind_of(f"captions/{key}/inputs.json") is Kind.INPUTS
    assert kind_of(f"captions/{key}/costs.jsonl") is Kind.COST_LOG
    assert kind_of(f"captions/{key}/{key}/{key}.json") is Kind.FOREIGN
    open_store(tmp_path).add({"b": "a moon"})
    (inputs,) = files_of_kind(tmp_path, Kind.INPUTS)
    edit_json(inputs, captioner={})
    assert "its folder is not the key of its inputs" in collect_failure(verify(tmp_path))[0]


def caption_overrides(sandbox: Sandbox, train: Path, folder: Path, *overrides: str) -> list[str]:
    return [
        "dataset=folder", f"dataset.root={sandbox.synthetic_images}", f"dataset.train_root={train}", "llm=vit_gpt2",
        f"llm.model={folder / 'captioner'}", "llm.revision=null", "llm.max_new_tokens=6",
        f"diffuser.model={sandbox.diffuser}", "diffuser.size=32", "diffuser.steps=2", "prompts_per_class=3",
        f"paths.store={sandbox.store}", "trainer.accelerator=cpu", f"encoder.model={sandbox.encoder}", "logger=none",
        *overrides,
    ]  # fmt: skip


@pytest.mark.slow
def test_gc_and_archives_keep_captions(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    train = make_image_folder(tmp_path / "train", per_class=4)
    store = fresh_sandbox.store
    vit_gpt2(tmp_path / "captioner")
    overrides = caption_overrides(fresh_sandbox, train, tmp_path)
    first = evaluate_run(overrides, tmp_path / "first")
    assert computed_counts(first)["prompts"] == 9
    assert first["cost"]["computed_before"]["prompts"]["parts"]["prompts"]["unit"] == "caption"
    back = restore_run(Run.read(tmp_path / "first"))
    assert back.synthetic_images is not None
    assert list(back.synthetic_images.sources) == [
        Folder(str(train)).ids[index] for index in (0, 1, 2, 4, 5, 6, 8, 9, 10)
    ]
    before = read_store(store)
    longer = evaluate_run(overrides, tmp_path / "longer", "llm.max_new_tokens=7", "prompts_per_class=2")
    assert computed_counts(longer)["prompts"] == 6
    assert len({path.parent for path in files_of_kind(store, Kind.CAPTIONS)}) == 2
    make_older(store, 3)
    list(collect(store, keep=[tmp_path / "first"], yes=True))
    kept_names = {name for name in read_store(store) if name.startswith("captions")}
    assert kept_names == {name for name in before if name.startswith("captions")}
    assert set(computed_counts(evaluate_run(overrides, tmp_path / "again", "rerun=true")).values()) == {0}

    list(export(store, tmp_path / "runs.tar", [tmp_path / "first"]))
    list(import_archive(tmp_path / "elsewhere", tmp_path / "runs.tar"))
    captions = {name: data for name, data in read_tree(tmp_path / "elsewhere").items() if name.startswith("captions")}
    assert captions == {name: data for name, data in read_tree(store).items() if name.startswith("captions")}
    list(verify(tmp_path / "elsewhere"))
    list(collect(store, older_than=1, yes=True))
    assert not files_of_kind(store, Kind.CAPTIONS)


def test_captions_round_trip_as_json_lines(tmp_path: Path) -> None:
    training = Folder(str(make_image_folder(tmp_path / "train")))
    data = caption_dataset(training, ScriptedCaptioner(), tmp_path / "store")
    assert export_captions(data, tmp_path / "out" / "captions.jsonl") == 12
    lines = [json.loads(line) for line in (tmp_path / "out" / "captions.jsonl").read_text().splitlines()]
    assert [line["image"] for line in lines] == list(training.ids)
    assert lines[0] == {
        "image": training.ids[0], "file": training.where(0), "class": 0, "name": "blue moon",
        "caption": data.caption(training.ids[0]),
    }  # fmt: skip
    imported = Captions(training, ScriptedCaptioner(), tmp_path / "there", 12)
    with pytest.raises(StoreError, match="no training image of train has a stored caption"):
        export_captions(imported, tmp_path / "none.jsonl")
    assert not (tmp_path / "none.jsonl").exists()
    assert import_captions(imported, tmp_path / "out" / "captions.jsonl") == 12
    assert import_captions(imported, tmp_path / "out" / "captions.jsonl") == 0
    looks_at_nothing = ScriptedCaptioner(breaks_after=0)
    assert caption_dataset(training, looks_at_nothing, tmp_path / "there").texts() == data.texts()
    from_file = CaptionFile(file=str(tmp_path / "out" / "captions.jsonl"))
    assert caption_dataset(training, from_file, tmp_path / "there").texts() == data.texts()


def test_contradicting_import_is_rejected(tmp_path: Path) -> None:
    training = Folder(str(make_image_folder(tmp_path / "train")))
    captions = caption_dataset(training, ScriptedCaptioner(), tmp_path / "store", per_class=1)
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps({"image": image, "caption": "x"}) + "\n" for image in training.ids))
    before = read_store(tmp_path / "store")
    with pytest.raises(StoreError, match=r"3 images have another caption in the store, first .*0\.png"):
        import_captions(Captions(training, ScriptedCaptioner(), tmp_path / "store", 4), path)
    path.write_text(json.dumps({"image": training.ids[0], "caption": captions.caption(training.ids[0])}))
    with pytest.raises(ValueError, match=r"captions\.jsonl: 11 of 12 images of train have no caption there"):
        import_captions(Captions(training, ScriptedCaptioner(), tmp_path / "store", 4), path)
    assert read_store(tmp_path / "store") == before


def test_command_accepts_generate_overrides(tmp_path: Path) -> None:
    train = make_image_folder(tmp_path / "train")
    test = make_image_folder(tmp_path / "test", per_class=1)
    vit_gpt2(tmp_path / "captioner")
    arguments = [
        "dataset=folder", f"dataset.root={test}", f"dataset.train_root={train}", "llm=vit_gpt2", "llm.revision=null",
        f"llm.model={tmp_path / 'captioner'}", f"paths.store={tmp_path / 'store'}",
    ]  # fmt: skip
    output_path = tmp_path / "said.jsonl"
    images = Folder(str(train)).ids
    output_path.write_text(
        "".join(json.dumps({"image": image, "caption": f"number {image}"}) + "\n" for image in images)
    )
    (line,) = captions_command("import", output_path, arguments, CONF)
    assert line.endswith(": 12 of 12 captions are new")
    (line,) = captions_command("export", tmp_path / "out.jsonl", arguments, CONF)
    assert line == f"{tmp_path / 'out.jsonl'}: 12 captions of 12 training images of train"
    assert [json.loads(row)["caption"] for row in (tmp_path / "out.jsonl").read_text().splitlines()] == [
        f"number {image}" for image in images
    ]
    bad: dict[str, list[str]] = {
        "name a captioner, such as llm=blip2": ["dataset=shapes", "llm=template"],
        "has no training split": [*arguments, "dataset.train_root=null"],
        "no such folder": [*arguments, "llm.model=/no/such"],
    }
    for message, overrides in bad.items():
        with pytest.raises(ValueError, match=message):
            list(captions_command("export", tmp_path / "no.jsonl", overrides, CONF))
    assert not (tmp_path / "no.jsonl").exists()


def test_config_can_name_captioners(tmp_path: Path) -> None:
    from omegaconf import OmegaConf

    output_path = tmp_path / "said.jsonl"
    output_path.write_text('{"image": "a", "caption": "b"}\n')
    for config in (
        {"_target_": "lgclip.prompts.captioner.CaptionFile", "file": str(output_path)},
        {"_target_": "lgclip.prompts.captioner.Captioner", "model": "hub/some", "form": "{name}: {caption}"},
    ):
        part: Any = build(OmegaConf.create(config), _convert_="all")
        assert part.needs_images
