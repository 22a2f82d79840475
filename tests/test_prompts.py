"""Writers of prompts: templates, local models, and the stage that keeps what they write."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from lgclip.batch import Subject
from lgclip.prompts.base import PromptError, Task, Written
from lgclip.prompts.chat import INSTRUCTION, Notebook
from lgclip.prompts.local import TODAY, LocalLLM
from lgclip.prompts.sampling import sampler
from lgclip.prompts.template import Templates
from lgclip.prompts.wording import fill
from lgclip.tiny.vocabulary import language_tokenizer

CPU = torch.device("cpu")
ODD_NAMES = ["cat", "a/b", "..", "🦙 llama", "n" * 300, "{name}", "{}", "\\1 %s {0}"]


@pytest.mark.parametrize(
    ("templates", "message"), [((), "at least one sentence"), (("a {}", "a cat"), "'a cat' has no {}")]
)
def test_templates_without_a_place_for_the_name_are_refused(templates: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Templates(templates)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_templates_take_turns_and_hold_any_name_as_it_is(name: str) -> None:
    prompts = one(Templates(("a {}.", "the {}!")).load(CPU), Subject(0, name), 5)
    assert prompts == [f"a {name}.", f"the {name}!", f"a {name}.", f"the {name}!", f"a {name}."]


@pytest.mark.parametrize(
    ("subject", "prompt"),
    [
        (Subject(0, "robin", "a type of bird"), "a photo of a robin, a type of bird."),
        (Subject(0, "robin"), "a photo of a robin."),
        (Subject(0, "{context}", "[{name}]"), "a photo of a {context}, [{name}]."),
    ],
)
def test_a_template_takes_the_context_and_does_without(subject: Subject, prompt: str) -> None:
    assert one(Templates(("a photo of a {}[, {context}].",)).load(CPU), subject, 1) == [prompt]


@pytest.mark.parametrize(
    ("text", "with_context", "without"),
    [
        ("Write {count} of {name}[ ({context})].", "Write 3 of robin (a bird).", "Write 3 of robin."),
        ("{name}: {context}", "robin: a bird", "robin:"),
        ('a {context} {name} {"k": ["..."]}', 'a a bird robin {"k": ["..."]}', 'a robin {"k": ["..."]}'),
    ],
)
def test_the_gaps_of_an_instruction_are_filled(text: str, with_context: str, without: str) -> None:
    assert fill(text, Subject(0, "robin", "a bird"), 3) == with_context
    assert fill(text, Subject(0, "robin"), 3) == without


def test_the_default_instruction_names_the_class_and_holds_an_example_of_the_format() -> None:
    said = fill(INSTRUCTION, Subject(0, "laysan albatross", "a type of bird"), 10)
    assert "Write 10 " in said
    assert "laysan albatross (a type of bird)" in said
    assert '{"prompts": ["...", "..."]}' in said
    assert not set("[]{}") & set(said.replace('{"prompts": ["...", "..."]}', ""))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"instruction": "write"}, "no {name}"),
        ({"again": "others"}, "no {have}"),
        ({"min_words": 0}, "at least 1"),
        ({"top_k": -1}, "at least 0"),
        ({"batch_size": 0}, "at least 1"),
        ({"temperature": 0}, "above 0"),
        ({"temperature": float("nan")}, "above 0"),
        ({"top_p": 0}, r"\(0, 1\]"),
        ({"top_p": 1.1}, r"\(0, 1\]"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"replies_per_round": -1}, "at least 1"),
        ({"max_rounds": 0}, "at least 1"),
    ],
)
def test_settings_out_of_range_are_refused(setting: dict[str, Any], message: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"llm\.{name}=.*{message}"):
        LocalLLM("hub/llm", **setting)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A chat model in the hub's format that has learned nothing: it says any letter."""
    torch.manual_seed(0)
    tokenizer: Any = language_tokenizer(["a cat"], size=258)
    place = tmp_path_factory.mktemp("llm")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(place)
    tokenizer.save_pretrained(place)
    return place


def writer(folder: Path, **settings: Any) -> LocalLLM:
    # Any reply holds the empty name, which lets a model without any learning write prompts.
    plain = {"instruction": "{name}", "again": "", "min_words": 1, "max_rounds": 8}
    return LocalLLM(str(folder), **{**plain, "max_new_tokens": 6, "replies_per_round": 3, **settings})


def outcomes(pen: Any, tasks: Sequence[Task], seed: int = 0) -> dict[int, Written | PromptError]:
    found = list(pen(tasks, seed))
    assert sorted(place for place, _ in found) == list(range(len(tasks))), "each task once"
    return dict(found)


def one(pen: Any, subject: Subject, wanted: int, seed: int = 0, have: Sequence[str] = (), turn: int = 0) -> list[str]:
    outcome = outcomes(pen, [Task(subject, wanted, tuple(have), turn)], seed)[0]
    assert isinstance(outcome, Written), outcome
    return outcome.prompts


def test_more_prompts_continue_fewer(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    few, many = one(pen, Subject(0, ""), 2), one(pen, Subject(0, ""), 8)
    assert len(few) >= 2
    assert len(many) >= 8
    assert len(set(many)) == len(many)
    assert many[: len(few)] == few


def test_asked_for_more_later_it_goes_on_where_it_ended(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    written = outcomes(pen, [Task(Subject(0, ""), 2)])[0]
    assert isinstance(written, Written)
    assert written.turn == 1
    more = one(pen, Subject(0, ""), 8, have=written.prompts, turn=written.turn)
    assert more == one(pen, Subject(0, ""), 8), "in two steps as in one"


def test_prompts_depend_on_class_name_and_seed_alone(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    first = one(pen, Subject(0, ""), 3)
    torch.rand(5)  # what else drew random numbers meanwhile is no matter
    assert one(writer(folder).load(CPU), Subject(0, ""), 3) == first
    assert one(pen, Subject(1, ""), 3) != first
    assert one(pen, Subject(0, ""), 3, seed=1) != first


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6, "top_k": 50, "temperature": 0.7}])
def test_prompts_do_not_depend_on_the_batch(settings: dict[str, Any], folder: Path) -> None:
    """Chat texts of unlike length are padded, and classes end after unlike numbers of rounds."""
    subjects = [Subject(i, "", "context " * (7 * i % 5)) for i in range(6)]
    said = {"instruction": "{name}{context}", **settings}
    tasks = [Task(subject, 2 + 3 * (subject.class_index % 2)) for subject in subjects]
    alone = writer(folder, batch_size=1, **said).load(CPU)
    together, pairs = (writer(folder, batch_size=n, **said).load(CPU) for n in (6, 2))
    expected = {i: outcomes(alone, [task])[0] for i, task in enumerate(tasks)}
    assert outcomes(together, tasks) == outcomes(pairs, tasks) == expected
    assert len({tuple(written.prompts) for written in expected.values()}) == len(tasks)


def test_a_token_is_drawn_as_torch_draws_one() -> None:
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    for seed in range(20):
        torch.manual_seed(seed)
        expected = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        process = sampler([seed], 5, CPU, temperature=1.0, top_p=1.0, top_k=0)
        assert torch.equal(process(torch.zeros(5, 0, dtype=torch.long), scores).argmax(-1), expected)  # pyright: ignore


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    nothing: Any = torch.zeros(20_000, 0, dtype=torch.long)
    for settings, expected in (
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 0}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"temperature": 0.5, "top_p": 1.0, "top_k": 0}, [x / 0.365 for x in (0.25, 0.09, 0.0225, 0.0025)]),
    ):
        drawn = sampler([3], 20_000, CPU, **settings)(nothing, scores).argmax(-1)  # pyright: ignore
        shares = torch.bincount(drawn, minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.015)


def test_writing_leaves_the_random_state_alone(folder: Path) -> None:
    pen = writer(folder).load(CPU)
    before = torch.get_rng_state()
    one(pen, Subject(0, ""), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.01}, {"top_p": 0.001}, {"top_k": 1}, {"max_new_tokens": 1}], ids=str
)
def test_the_sampling_settings_reach_the_model(settings: dict[str, Any], folder: Path) -> None:
    def replies(**changed: Any) -> list[str]:
        pen = writer(folder, replies_per_round=16, max_rounds=1, **changed).load(CPU)
        return one(pen, Subject(0, ""), 1)

    # Sure of itself, or short of words, the model repeats itself.
    assert len(replies(**settings)) < len(replies())


def test_too_few_prompts_are_an_error_that_names_the_class(folder: Path) -> None:
    pen = writer(folder, max_rounds=2).load(CPU)
    failed = outcomes(pen, [Task(Subject(4, "axolotl"), 3), Task(Subject(0, ""), 3)])
    assert isinstance(failed[0], PromptError)
    assert re.search(r"class 4 \('axolotl'\): 0 usable prompts of 3 in 2 rounds \(without the", str(failed[0]))
    assert failed[0].turn == 2
    assert isinstance(failed[1], Written), "one class fails alone"


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if enable_thinking %}<think>{% else %}<no_think>{% endif %}{{ strftime_now('%d %B %Y') }}|"
)


def rendered(folder: Path, template: str, tmp_path: Path, **settings: Any) -> str:
    """What a model with this chat template is given."""
    place = shutil.copytree(folder, tmp_path / "chat", dirs_exist_ok=True)
    (place / "chat_template.jinja").write_text(template)
    llm = LocalLLM(str(place), **settings)
    tokenizer, _ = llm._load(CPU)
    return llm._rendered(tokenizer, Notebook(Task(Subject(0, "cat", "a pet"), 3, ("a red cat",)), llm))


def test_the_chat_template_is_told_what_it_asks_for(folder: Path, tmp_path: Path) -> None:
    said = rendered(folder, TEMPLATE, tmp_path, system="Be brief.", instruction="{count} of {name}[, {context}]")
    asked = "2 of cat, a pet\n\nThese are written already; do not repeat them, write others:\n- a red cat"
    assert said == f"<system>Be brief.<user>{asked}<no_think>{TODAY}|", "on every day the same"
    said = rendered(folder, TEMPLATE, tmp_path, thinking=True, again="", instruction="{name}")
    assert said == f"<user>cat<think>{TODAY}|"
    plain = "{{ messages[0].content }}"
    assert rendered(folder, plain, tmp_path, again="", instruction="{name}") == "cat"


def test_a_model_without_a_chat_template_is_refused(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "base")
    (place / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.*no chat template; name an instruct"):
        LocalLLM(str(place)).load(CPU)


def test_a_models_own_settings_for_sampling_are_put_aside(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((place / "generation_config.json").read_text())
    own = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0}
    (place / "generation_config.json").write_text(json.dumps({**config, **own}))
    task = [Task(Subject(0, ""), 5)]
    assert outcomes(writer(place).load(CPU), task) == outcomes(writer(folder).load(CPU), task)


PRESETS = {path.stem: path for path in (Path(__file__).parents[1] / "conf" / "llm").glob("*.yaml")}


@pytest.mark.parametrize(
    ("preset", "model_type"),
    [
        ("qwen3_4b", "qwen3"), ("qwen3_30b", "qwen3_moe"), ("smollm3_3b", "smollm3"), ("phi4_mini", "phi3"),
        ("llama31_8b", "llama"), ("gemma3_4b", "gemma3"), ("mistral_small", "mistral"),
    ],
)  # fmt: skip
def test_transformers_knows_the_kind_of_each_preset(preset: str, model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    instantiate(OmegaConf.load(PRESETS[preset]))


def test_every_hub_preset_says_its_licence_gate_and_size() -> None:
    told = {name: path.read_text() for name, path in PRESETS.items() if "LocalLLM" in path.read_text()}
    assert len(told) >= 8
    for name in told.keys() - {"tiny", "local"}:
        header = " ".join(line for line in told[name].splitlines() if line.startswith("#"))
        assert re.search(r"Apache-2\.0|MIT|License|Terms", header), name
        assert "gate" in header, name
        assert re.search(r"[\d.]+ B parameters, *(?:# )?\d+ GB in bf16", header), name
        assert f"https://huggingface.co/{OmegaConf.load(PRESETS[name]).model}" in header, name
