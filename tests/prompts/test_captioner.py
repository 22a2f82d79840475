"""Tests captioners: forms, keys, and real models against an oracle."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import FAMILIES, WORDS, blip2, build_tokenizer, qwen2_vl, synthetic_images, transformers, vit_gpt2
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lgclip.datasets.base import Dataset
from lgclip.datasets.embedded import Digits, Shapes
from lgclip.datasets.subsets import First
from lgclip.datasets.unlabeled import Unlabeled
from lgclip.prompts.caption_file import single_line
from lgclip.prompts.captioner import FORMS, Captioner, CaptionFile, CaptionGenerator, SceneDescriptions
from lgclip.prompts.captioning_models import CPU_IMAGES, ImageToTextModel
from lgclip.store.keys import NOT_AN_INPUT, content_key, key_inputs
from lgclip.tiny.captions import description_of
from lgclip.tiny.world import scene_of
from lgclip.types import TargetClass

CPU = torch.device("cpu")
NEW = 6
ASKED = "a red star"
ROBIN = TargetClass(3, "robin")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name) / name) for name, make in FAMILIES.items()}


def captioner(folders: dict[str, Path], family: str, **settings: Any) -> Captioner:
    instruction = {"instruction": ASKED} if family == "qwen2_vl" else {}
    return Captioner(model=str(folders[family]), max_new_tokens=NEW, **instruction, **settings)


def captions(prompt_generator: Captioner, images: Sequence[Any]) -> list[str]:
    """Returns a captioner's texts for some images, in passes of its batch size."""
    preprocessor = prompt_generator.preprocessor()
    captioning_model = prompt_generator.load_model(CPU)
    seen = [preprocessor(image) for image in images]
    texts = []
    for start in range(0, len(seen), captioning_model.batch_size):
        batch = seen[start : start + captioning_model.batch_size]
        texts += captioning_model([*batch, *batch[-1:] * (captioning_model.batch_size - len(batch))])[: len(batch)]
    return texts


def reference_caption(family: str, folder: Path, image: Any) -> str:
    """Decodes greedily with a full forward pass per word: no cache, no batch, no `generate`."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    inputs: dict[str, Any] = {}
    if family == "qwen2_vl":
        talk = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": ASKED}]}]
        inputs = dict(
            transformers.AutoProcessor.from_pretrained(folder).apply_chat_template(
                talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
        )
        begun = inputs.pop("input_ids")[0].tolist()
        inputs = {name: inputs[name] for name in ("pixel_values", "image_grid_thw")}
    else:
        looker = transformers.AutoImageProcessor.from_pretrained(folder)
        inputs["pixel_values"] = looker(images=image, return_tensors="pt").pixel_values
        begun = [4, 4, 4, 4, 1] if family == "blip2" else [1]
    tokens = list(begun)
    where = "decoder_input_ids" if family == "vit_gpt2" else "input_ids"
    while len(tokens) < len(begun) + NEW and tokens[-1] != 2:
        so_far = {where: torch.tensor([tokens])}
        if family == "qwen2_vl":
            so_far["mm_token_type_ids"] = (so_far["input_ids"] == 4).int()
        with torch.inference_mode():
            tokens.append(int(model(**inputs, **so_far).logits[0, -1].argmax()))
    spoken = build_tokenizer().convert_ids_to_tokens(tokens[len(begun) :])
    return " ".join(word for word in spoken if word in WORDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_caption_is_the_greedy_decoding(family: str, folders: dict[str, Path]) -> None:
    images = synthetic_images(4)
    texts = captions(captioner(folders, family), images)
    assert texts == [reference_caption(family, folders[family], image) for image in images]
    assert len(set(texts)) > 1, "another image, another caption"


@pytest.mark.parametrize("family", FAMILIES)
def test_caption_does_not_depend_on_its_batch(family: str, folders: dict[str, Path]) -> None:
    prompt_generator = captioner(folders, family)
    images = synthetic_images(11)
    together = captions(prompt_generator, images)
    assert captions(prompt_generator, images[::-1]) == together[::-1]
    assert captions(prompt_generator, images[5:6]) == together[5:6]


def test_caption_length_is_limited(folders: dict[str, Path]) -> None:
    longer = dataclasses.replace(captioner(folders, "vit_gpt2"), max_new_tokens=12)
    short = captions(captioner(folders, "vit_gpt2"), synthetic_images(3))
    longer_texts = captions(longer, synthetic_images(3))
    assert all(longer_text.startswith(start) for start, longer_text in zip(short, longer_texts, strict=True))
    assert max(len(text.split()) for text in longer_texts) > NEW


def test_generation_config_of_a_model_is_ignored(folders: dict[str, Path]) -> None:
    config = json.loads((folders["vit_gpt2"] / "generation_config.json").read_text())
    assert (config["num_beams"], config["max_length"]) == (4, 99), "the fixture asks for what is not to be"
    captioning_model: Any = captioner(folders, "vit_gpt2").load_model(CPU)
    for part in (captioning_model._model, captioning_model._model.decoder):
        assert (part.generation_config.num_beams, part.generation_config.do_sample) == (1, False)
        assert part.generation_config.max_new_tokens == NEW


def test_chat_models_keep_the_image_size(folders: dict[str, Path]) -> None:
    prompt_generator = captioner(folders, "qwen2_vl")
    assert [tuple(prompt_generator.preprocessor()(image).shape) for image in synthetic_images(2)] == [
        (40, 48, 3),
        (64, 64, 3),
    ]
    assert prompt_generator.load_model(CPU).batch_size == 1
    assert captioner(folders, "vit_gpt2").load_model(CPU).batch_size == CPU_IMAGES


@pytest.mark.parametrize(
    ("form", "prompt"),
    [
        ("basic", "a photo of robin"),
        ("cip", "a photo of robin, a bird {name} on grass"),
        ("caption_only", "a bird {name} on grass"),
        ("{caption}; {name}, {name}", "a bird {name} on grass; robin, robin"),
        ("a {name}", "a robin"),
    ],
)
def test_prompt_form_is_filled_once(form: str, prompt: str) -> None:
    prompt_generator = Captioner(model="hub/some", form=form)
    assert prompt_generator.prompt(ROBIN, "a bird {name} on grass") == prompt
    assert prompt_generator.reads_captions == ("{caption}" in FORMS.get(form, form))


@pytest.mark.parametrize("form", ["cip", "caption_only", "{caption} of {name}"])
def test_empty_caption_gives_the_basic_form(form: str) -> None:
    assert Captioner(model="hub/some", form=form).prompt(ROBIN, "") == "a photo of robin"


@given(name=TEXT, caption=TEXT.filter(bool))
def test_braces_in_names_are_not_placeholders(name: str, caption: str) -> None:
    assert Captioner(model="hub/some").prompt(TargetClass(0, name), caption) == f"a photo of {name}, {caption}"


@given(st.text())
def test_clean_caption_is_idempotent(text: str) -> None:
    clean = single_line(text)
    assert clean == single_line(clean) == clean.strip()
    assert clean.isprintable() or not set(clean) & set("\n\r\t\0\x1b\x85")
    clean.encode()


def test_caption_is_sanitized() -> None:
    assert single_line(" a\tred\n\nstar\x1b[31m \u202eon\u2028grey\x00 ") == "a red star [31m ongrey"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"form": "a photo"}, r"llm\.form='a photo': it has no \{name\} or \{caption\}.*basic, cip, caption_only"),
        ({"form": ""}, "it has no"),
        ({"form": "a {nmae}, {caption}"}, r"\{nmae\} is not known"),
        ({"form": "a {}, {caption}"}, r"\{\} is not known"),
        ({"form": "{name} {count}"}, r"\{count\} is not known"),
        ({"form": "{caption} {name"}, "half a brace"),
        ({"empty": "skip"}, r"llm\.empty=skip: choose error or name"),
        ({"shuffle": "images"}, r"llm\.shuffle=images: choose none, class, all"),
        ({"shuffle": "all", "form": "basic"}, r"llm\.shuffle=all: llm\.form=basic uses no captions to shuffle"),
        ({"max_new_tokens": 0}, r"llm\.max_new_tokens=0: it must be at least 1"),
        ({"batch_size": -1}, r"llm\.batch_size=-1"),
        ({"model": ""}, r"llm\.model='': name a model"),
        ({"model": "/no/such"}, "no such folder"),
        ({"model": "tiny:no"}, "the package holds"),
    ],
)
def test_invalid_values_are_rejected_before_loading(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captioner(**{"model": "hub/some", **settings})


def test_key_separates_captions_and_forms(
    folders: dict[str, Path],
) -> None:
    prompt_generator = captioner(folders, "vit_gpt2")
    changed_values: dict[str, Any] = {
        "form": "basic", "empty": "name", "model": str(folders["blip2"]), "revision": "x", "instruction": "what?",
        "max_new_tokens": 7, "batch_size": 3, "shuffle": "all",
    }  # fmt: skip
    assert changed_values.keys() == {field.name for field in dataclasses.fields(Captioner)}
    apart = {name: dataclasses.replace(prompt_generator, **{name: value}) for name, value in changed_values.items()}
    changes = {
        name
        for name, variant in apart.items()
        if content_key(key_inputs(variant)) != content_key(key_inputs(prompt_generator))
    }
    outputs = {
        name
        for name, variant in apart.items()
        if content_key(variant.captioned_by()) != content_key(prompt_generator.captioned_by())
    }
    assert changes == {"form", "empty", "model", "instruction", "max_new_tokens", "shuffle"}
    assert outputs == changes - {"form", "empty", "shuffle"}
    left_out = {field.name for field in dataclasses.fields(Captioner) if field.metadata == NOT_AN_INPUT}
    assert left_out == {"revision", "batch_size"}


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({}, "cip"),
        ({"form": "basic"}, "basic"),
        ({"shuffle": "class"}, "cip, shuffled by class"),
        ({"shuffle": "all", "form": "caption_only"}, "caption_only, shuffled over all"),
    ],
)
def test_form_name_tells_controls_apart(settings: dict[str, Any], name: str) -> None:
    assert Captioner(model="hub/some", **settings).form_name == name


def test_captions_keep_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a", "caption": "a red star"}\n')
    for shuffle in ("none", "class", "all"):
        inputs = CaptionFile(file=str(path), shuffle=shuffle).captioned_by()
        assert content_key(inputs) == "1993586011f4dd7fd2ef09228d93b40c", "as before captions could be shuffled"


def test_descriptions_are_those_of_the_scenes() -> None:
    training = Shapes("train")
    captions = SceneDescriptions().available_captions(First(training, 2))
    assert list(captions) == [training.ids[100 * label + place] for label in range(30) for place in range(2)]
    for index in (0, 101, 2900):
        scene, _ = scene_of("train", index)
        assert captions[training.ids[index]] == description_of(scene)
        assert scene.kind.name in captions[training.ids[index]]
    assert Shapes("test").description(3) == description_of(scene_of("test", 3)[0])


def test_descriptions_of_unlabelled_images_are_withheld() -> None:
    assert Unlabeled(Shapes("train"), 5).description(0) is None, "a description names the class"


@pytest.mark.parametrize("dataset", [Digits("train"), Shapes("train", "inverted"), Shapes("train", "sketch")])
def test_dataset_without_descriptions_is_rejected(dataset: Dataset) -> None:
    with pytest.raises(
        ValueError, match=rf"llm=scene_descriptions: {dataset.name} has no descriptions.*dataset=shapes"
    ):
        SceneDescriptions().check_images(dataset)


def test_captioner_requires_images() -> None:
    prompt_generator = Captioner(model="hub/some", revision="f" * 40)
    assert isinstance(prompt_generator, CaptionGenerator)
    assert prompt_generator.needs_images
    assert prompt_generator.repositories() == [("hub/some", "f" * 40)]
    with pytest.raises(ValueError, match="Captioner captions images and cannot write from class names only"):
        prompt_generator.load(CPU)


def test_instruction_is_for_chat_models_only(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a chat model: give the request.*llm\.instruction"):
        Captioner(model=str(folders["qwen2_vl"])).load_model(CPU)
    bare = vit_gpt2(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare cannot be loaded: .*"):
        Captioner(model=str(bare), instruction="what?").load_model(CPU)


def test_pickle_is_rejected(tmp_path: Path) -> None:
    folder = vit_gpt2(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .*safetensors only"):
        Captioner(model=str(folder)).load_model(CPU)


@pytest.mark.parametrize("make", [vit_gpt2, blip2, qwen2_vl])
def test_model_code_is_not_run(make: Any, tmp_path: Path) -> None:
    folder = make(tmp_path / "model")
    marker = tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file():
            config = json.loads((folder / name).read_text())
            kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor")
            config["auto_map"] = {**dict.fromkeys(kinds, "own.Own"), "AutoTokenizer": ["own.Own", "own.Own"]}
            (folder / name).write_text(json.dumps(config))
    prompt_generator = Captioner(model=str(folder), instruction=ASKED if make is qwen2_vl else "", max_new_tokens=NEW)
    captions(prompt_generator, synthetic_images(2))
    assert not marker.exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{", "cannot be loaded"),
        ("config.json", '{"model_type": "bert"}', "cannot be loaded"),
        ("model.safetensors", "no weights", "cannot be loaded"),
        ("tokenizer.json", "{", "cannot be loaded"),
        ("preprocessor_config.json", None, "cannot be loaded"),
    ],
)
def test_damaged_model_is_one_error(file: str, content: str | None, message: str, tmp_path: Path) -> None:
    folder = vit_gpt2(tmp_path / "model")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    prompt_generator = Captioner(model=str(folder))
    with pytest.raises(ValueError, match=rf"llm\.model={folder}.*{message}.*image-to-text or vision-language"):
        captions(prompt_generator, synthetic_images(1))


def test_captioning_model_returns_texts(folders: dict[str, Path]) -> None:
    captioning_model = ImageToTextModel(str(folders["blip2"]), None, NEW, 2, CPU)
    preprocessor = captioner(folders, "blip2").preprocessor()
    texts = captioning_model([preprocessor(image) for image in synthetic_images(CPU_IMAGES)])
    assert set(" ".join(texts).split()) <= set(WORDS), "no special token of the prompt that BLIP-2 begins with"


def test_caption_file_is_keyed_by_content(tmp_path: Path) -> None:
    original, two, changed = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "other.jsonl"))
    lines = ['{"image": "a", "caption": "a red star"}', '{"file": "b/1.png", "caption": "a\\nmoon"}']
    original.write_text("\n".join(lines))
    two.write_text("\n\n".join(lines[::-1]) + "\n")
    changed.write_text(lines[0])
    first, second, third = (CaptionFile(file=str(path)) for path in (original, two, changed))
    assert first.captioned_by() == second.captioned_by() != third.captioned_by()
    assert dict(first.lines.by_file) == {"b/1.png": "a moon"}
    assert key_inputs(dataclasses.replace(first, form="basic")) != key_inputs(first)
    assert str(tmp_path) not in json.dumps(key_inputs(first))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "it holds no captions"),
        ("{", "line 1: it is not JSON"),
        ('{"image": "a", "caption": "x"}\n[1]', 'line 2: it is not an object with a text under "caption"'),
        ('{"image": "a", "caption": 3}', "line 1: it is not an object"),
        ('{"caption": "x"}', "line 1: it names no image"),
        ('{"image": 3, "caption": "x"}', "line 1: it names no image"),
        ('{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}', "line 2: 'a' has another caption"),
        ('{"image": "a", "caption": "x", "caption": "y"}', "line 1: 'caption' is there twice; keep one"),
        ('{"image": "a", "image": "b", "caption": "x"}', "line 1: 'image' is there twice; keep one"),
        (b"\xff\xfe", "not in UTF-8"),
        ("[" * 99_999, "line 1: it is not JSON"),
    ],
)
def test_invalid_caption_file_names_the_line(content: str | bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"llm\.file={path}.*{message}"):
        CaptionFile(file=str(path))
