"""Who captions, and the words around a caption: forms, keys, and real models against an oracle."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from captioners import FAMILIES, WORDS, blip2, pictures, qwen2_vl, transformers, vit_gpt2, words
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from lgclip.batch import Subject
from lgclip.identity import NOT_AN_INPUT, inputs_of, key_of
from lgclip.prompts.caption_lines import one_line
from lgclip.prompts.captioner import FORMS, Captioner, CaptionFile, ImageWriter
from lgclip.prompts.eyes import CPU_IMAGES, Beholder

CPU = torch.device("cpu")
NEW, ASKED = 6, "a red star"
ROBIN = Subject(3, "robin")
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: make(tmp_path_factory.mktemp(name) / name) for name, make in FAMILIES.items()}


def captioner(folders: dict[str, Path], family: str, **settings: Any) -> Captioner:
    asked = {"instruction": ASKED} if family == "qwen2_vl" else {}
    return Captioner(model=str(folders[family]), max_new_tokens=NEW, **asked, **settings)


def captions(writer: Captioner, images: Sequence[Any]) -> list[str]:
    """What a captioner says of some images, in passes of its own size."""
    sight, eyes = writer.sight(), writer.look(CPU)
    seen, said = [sight(image) for image in images], []
    for start in range(0, len(seen), eyes.at_once):
        own = seen[start : start + eyes.at_once]
        said += eyes([*own, *own[-1:] * (eyes.at_once - len(own))])[: len(own)]
    return said


def by_hand(family: str, folder: Path, image: Any) -> str:
    """The likeliest word after the other, each from a whole forward pass: no cache, no batch, no `generate`."""
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder).eval()
    asked: dict[str, Any] = {}
    if family == "qwen2_vl":
        talk = [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": ASKED}]}]
        asked = dict(
            transformers.AutoProcessor.from_pretrained(folder).apply_chat_template(
                talk, tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True
            )
        )
        begun = asked.pop("input_ids")[0].tolist()
        asked = {name: asked[name] for name in ("pixel_values", "image_grid_thw")}
    else:
        looker = transformers.AutoImageProcessor.from_pretrained(folder)
        asked["pixel_values"] = looker(images=image, return_tensors="pt").pixel_values
        begun = [4, 4, 4, 4, 1] if family == "blip2" else [1]
    tokens, where = list(begun), "decoder_input_ids" if family == "vit_gpt2" else "input_ids"
    while len(tokens) < len(begun) + NEW and tokens[-1] != 2:
        so_far = {where: torch.tensor([tokens])}
        if family == "qwen2_vl":
            so_far["mm_token_type_ids"] = (so_far["input_ids"] == 4).int()
        with torch.inference_mode():
            tokens.append(int(model(**asked, **so_far).logits[0, -1].argmax()))
    spoken = words().convert_ids_to_tokens(tokens[len(begun) :])
    return " ".join(word for word in spoken if word in WORDS)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_is_the_likeliest_word_after_the_other(family: str, folders: dict[str, Path]) -> None:
    images = pictures(4)
    said = captions(captioner(folders, family), images)
    assert said == [by_hand(family, folders[family], image) for image in images]
    assert len(set(said)) > 1, "another image, another caption"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_caption_does_not_depend_on_its_company(family: str, folders: dict[str, Path]) -> None:
    writer, images = captioner(folders, family), pictures(11)
    together = captions(writer, images)
    assert captions(writer, images[::-1]) == together[::-1]
    assert captions(writer, images[5:6]) == together[5:6]


def test_a_caption_is_as_long_as_it_may_be(folders: dict[str, Path]) -> None:
    longer = dataclasses.replace(captioner(folders, "vit_gpt2"), max_new_tokens=12)
    short, more = captions(captioner(folders, "vit_gpt2"), pictures(3)), captions(longer, pictures(3))
    assert all(whole.startswith(start) for start, whole in zip(short, more, strict=True))
    assert max(len(text.split()) for text in more) > NEW


def test_a_models_own_beams_and_lengths_do_not_count(folders: dict[str, Path]) -> None:
    own = json.loads((folders["vit_gpt2"] / "generation_config.json").read_text())
    assert (own["num_beams"], own["max_length"]) == (4, 99), "the fixture asks for what is not to be"
    eyes: Any = captioner(folders, "vit_gpt2").look(CPU)
    for part in (eyes._model, eyes._model.decoder):
        assert (part.generation_config.num_beams, part.generation_config.do_sample) == (1, False)
        assert part.generation_config.max_new_tokens == NEW


def test_chat_models_see_the_image_at_its_own_size_and_alone_on_a_cpu(folders: dict[str, Path]) -> None:
    writer = captioner(folders, "qwen2_vl")
    assert [tuple(writer.sight()(image).shape) for image in pictures(2)] == [(40, 48, 3), (64, 64, 3)]
    assert writer.look(CPU).at_once == 1
    assert captioner(folders, "vit_gpt2").look(CPU).at_once == CPU_IMAGES


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
def test_a_prompt_is_the_form_with_its_gaps_filled_once(form: str, prompt: str) -> None:
    writer = Captioner(model="hub/some", form=form)
    assert writer.prompt(ROBIN, "a bird {name} on grass") == prompt
    assert writer.reads_captions == ("{caption}" in FORMS.get(form, form))


@pytest.mark.parametrize("form", ["cip", "caption_only", "{caption} of {name}"])
def test_an_image_of_which_nothing_is_said_has_the_basic_form(form: str) -> None:
    assert Captioner(model="hub/some", form=form).prompt(ROBIN, "") == "a photo of robin"


@given(name=TEXT, caption=TEXT.filter(bool))
def test_what_stands_in_a_name_or_caption_is_never_a_gap(name: str, caption: str) -> None:
    assert Captioner(model="hub/some").prompt(Subject(0, name), caption) == f"a photo of {name}, {caption}"


@given(st.text())
def test_a_clean_caption_is_one_line_of_text_and_stays_so(text: str) -> None:
    clean = one_line(text)
    assert clean == one_line(clean) == clean.strip()
    assert clean.isprintable() or not set(clean) & set("\n\r\t\0\x1b\x85")
    clean.encode()


def test_a_caption_loses_what_breaks_lines_or_steers_terminals() -> None:
    assert one_line(" a\tred\n\nstar\x1b[31m \u202eon\u2028grey\x00 ") == "a red star [31m ongrey"


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
        ({"max_new_tokens": 0}, r"llm\.max_new_tokens=0: it must be at least 1"),
        ({"batch_size": -1}, r"llm\.batch_size=-1"),
        ({"model": ""}, r"llm\.model='': name a model"),
        ({"model": "/no/such"}, "no such folder"),
        ({"model": "tiny:no"}, "the package holds"),
    ],
)
def test_a_bad_value_is_an_error_before_anything_loads(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Captioner(**{"model": "hub/some", **settings})


def test_every_field_is_in_the_key_and_the_words_around_a_caption_are_not_in_the_captions_key(
    folders: dict[str, Path],
) -> None:
    writer = captioner(folders, "vit_gpt2")
    other: dict[str, Any] = {
        "form": "basic", "empty": "name", "model": str(folders["blip2"]), "revision": "x", "instruction": "what?",
        "max_new_tokens": 7, "batch_size": 3,
    }  # fmt: skip
    assert other.keys() == {field.name for field in dataclasses.fields(Captioner)}
    apart = {name: dataclasses.replace(writer, **{name: value}) for name, value in other.items()}
    changes = {name for name, one in apart.items() if key_of(inputs_of(one)) != key_of(inputs_of(writer))}
    said = {name for name, one in apart.items() if key_of(one.captioned_by()) != key_of(writer.captioned_by())}
    assert changes == {"form", "empty", "model", "instruction", "max_new_tokens"}
    assert said == changes - {"form", "empty"}
    left_out = {field.name for field in dataclasses.fields(Captioner) if field.metadata == NOT_AN_INPUT}
    assert left_out == {"revision", "batch_size"}


def test_a_captioner_says_that_it_needs_images_and_writes_nothing_from_names() -> None:
    writer = Captioner(model="hub/some", revision="f" * 40)
    assert isinstance(writer, ImageWriter)
    assert writer.needs_images
    assert writer.repositories() == [("hub/some", "f" * 40)]
    with pytest.raises(ValueError, match="Captioner captions images and cannot write from class names alone"):
        writer.load(CPU)


def test_a_chat_model_wants_words_and_another_wants_none(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"is a chat model: say what to ask.*llm\.instruction"):
        Captioner(model=str(folders["qwen2_vl"])).look(CPU)
    bare = vit_gpt2(tmp_path / "bare")
    with pytest.raises(ValueError, match=r"bare cannot be loaded: .*"):
        Captioner(model=str(bare), instruction="what?").look(CPU)


def test_a_pickle_is_refused_and_never_read(tmp_path: Path) -> None:
    folder = vit_gpt2(tmp_path / "model")
    weights = folder / "model.safetensors"
    torch.save(load_file(weights), folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.* cannot be loaded: .*safetensors alone"):
        Captioner(model=str(folder)).look(CPU)


@pytest.mark.parametrize("make", [vit_gpt2, blip2, qwen2_vl])
def test_a_models_own_code_is_never_run(make: Any, tmp_path: Path) -> None:
    folder, marker = make(tmp_path / "model"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(marker)!r}, 'w')\nclass Own: pass\n")
    for name in ("config.json", "preprocessor_config.json", "tokenizer_config.json", "processor_config.json"):
        if (folder / name).is_file():
            said = json.loads((folder / name).read_text())
            kinds = ("AutoConfig", "AutoModelForImageTextToText", "AutoImageProcessor", "AutoProcessor")
            said["auto_map"] = {**dict.fromkeys(kinds, "own.Own"), "AutoTokenizer": ["own.Own", "own.Own"]}
            (folder / name).write_text(json.dumps(said))
    writer = Captioner(model=str(folder), instruction=ASKED if make is qwen2_vl else "", max_new_tokens=NEW)
    captions(writer, pictures(2))
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
def test_a_damaged_model_is_one_error_that_names_it(
    file: str, content: str | None, message: str, tmp_path: Path
) -> None:
    folder = vit_gpt2(tmp_path / "model")
    (folder / file).unlink()
    if content is not None:
        (folder / file).write_text(content)
    writer = Captioner(model=str(folder))
    with pytest.raises(ValueError, match=rf"llm\.model={folder}.*{message}.*image-to-text or vision-language"):
        captions(writer, pictures(1))


def test_a_beholder_gives_words_alone(folders: dict[str, Path]) -> None:
    eyes = Beholder(str(folders["blip2"]), None, NEW, 2, CPU)
    sight = captioner(folders, "blip2").sight()
    said = eyes([sight(image) for image in pictures(CPU_IMAGES)])
    assert set(" ".join(said).split()) <= set(WORDS), "no special token of the prompt that BLIP-2 begins with"


def test_a_file_of_captions_counts_by_its_content(tmp_path: Path) -> None:
    one, two, other = (tmp_path / name for name in ("one.jsonl", "two.jsonl", "other.jsonl"))
    lines = ['{"image": "a", "caption": "a red star"}', '{"file": "b/1.png", "caption": "a\\nmoon"}']
    one.write_text("\n".join(lines))
    two.write_text("\n\n".join(lines[::-1]) + "\n")
    other.write_text(lines[0])
    first, second, third = (CaptionFile(file=str(path)) for path in (one, two, other))
    assert first.captioned_by() == second.captioned_by() != third.captioned_by()
    assert dict(first.lines.by_file) == {"b/1.png": "a moon"}
    assert inputs_of(dataclasses.replace(first, form="basic")) != inputs_of(first)
    assert str(tmp_path) not in json.dumps(inputs_of(first))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such file"),
        ("", "it holds no captions"),
        ("{", "line 1: it is no JSON"),
        ('{"image": "a", "caption": "x"}\n[1]', 'line 2: it is no object with a text under "caption"'),
        ('{"image": "a", "caption": 3}', "line 1: it is no object"),
        ('{"caption": "x"}', "line 1: it names no image"),
        ('{"image": 3, "caption": "x"}', "line 1: it names no image"),
        ('{"image": "a", "caption": "x"}\n{"image": "a", "caption": "y"}', "line 2: 'a' has another caption"),
        (b"\xff\xfe", "not in UTF-8"),
        ("[" * 99_999, "line 1: it is no JSON"),
    ],
)
def test_a_bad_file_of_captions_is_an_error_with_its_line(
    content: str | bytes | None, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "captions.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=rf"llm\.file={path}.*{message}"):
        CaptionFile(file=str(path))
