"""Tests prompt generators: templates, local models, and the stage that stores their prompts."""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf
from transformers import LlamaConfig, LlamaForCausalLM

from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.chat import INSTRUCTION, ChatHistory
from lgclip.prompts.local_llm import TODAY, LocalLLM
from lgclip.prompts.seeded_sampling import sampler
from lgclip.prompts.template import Templates, fill
from lgclip.tiny.vocabulary import language_tokenizer
from lgclip.types import TargetClass

CPU = torch.device("cpu")
ODD_NAMES = ["cat", "a/b", "..", "🦙 llama", "n" * 300, "{name}", "{}", "\\1 %s {0}"]


@pytest.mark.parametrize(
    ("templates", "message"), [((), "it has no sentence"), (("a {}", "a cat"), "'a cat' has no {}")]
)
def test_templates_require_a_placeholder(templates: Sequence[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Templates(templates)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_templates_rotate_and_keep_names(name: str) -> None:
    prompts = generate_prompts(Templates(("a {}.", "the {}!")).load(CPU), TargetClass(0, name), 5)
    assert prompts == [f"a {name}.", f"the {name}!", f"a {name}.", f"the {name}!", f"a {name}."]


@pytest.mark.parametrize(
    ("target_class", "prompt"),
    [
        (TargetClass(0, "robin", "a type of bird"), "a photo of a robin, a type of bird."),
        (TargetClass(0, "robin"), "a photo of a robin."),
        (TargetClass(0, "{context}", "[{name}]"), "a photo of a {context}, [{name}]."),
    ],
)
def test_template_context_is_optional(target_class: TargetClass, prompt: str) -> None:
    assert generate_prompts(Templates(("a photo of a {}[, {context}].",)).load(CPU), target_class, 1) == [prompt]


@pytest.mark.parametrize(
    ("text", "with_context", "without"),
    [
        ("Write {count} of {name}[ ({context})].", "Write 3 of robin (a bird).", "Write 3 of robin."),
        ("{name}: {context}", "robin: a bird", "robin:"),
        ('a {context} {name} {"k": ["..."]}', 'a a bird robin {"k": ["..."]}', 'a robin {"k": ["..."]}'),
    ],
)
def test_instruction_placeholders_are_filled(text: str, with_context: str, without: str) -> None:
    assert fill(text, TargetClass(0, "robin", "a bird"), 3) == with_context
    assert fill(text, TargetClass(0, "robin"), 3) == without


def test_default_instruction_has_an_example() -> None:
    instruction = fill(INSTRUCTION, TargetClass(0, "laysan albatross", "a type of bird"), 10)
    assert "Write 10 " in instruction
    assert "laysan albatross (a type of bird)" in instruction
    assert '{"prompts": ["...", "..."]}' in instruction
    assert not set("[]{}") & set(instruction.replace('{"prompts": ["...", "..."]}', ""))


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
def test_invalid_settings_are_rejected(setting: dict[str, Any], message: str) -> None:
    (name,) = setting
    with pytest.raises(ValueError, match=rf"llm\.{name}=.*{message}"):
        LocalLLM("hub/llm", **setting)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Creates an untrained chat model in the hub's format, which generates random letters."""
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


def prompt_generator(folder: Path, **settings: Any) -> LocalLLM:
    # Any reply holds the empty name, which lets a model without any learning write prompts.
    plain = {"instruction": "{name}", "again": "", "min_words": 1, "max_rounds": 8}
    return LocalLLM(str(folder), **{**plain, "max_new_tokens": 6, "replies_per_round": 3, **settings})


def generate_all(writer: Any, tasks: Sequence[Task], seed: int = 0) -> dict[int, GeneratedPrompts | PromptError]:
    results = list(writer(tasks, seed))
    assert sorted(place for place, _ in results) == list(range(len(tasks))), "each task once"
    return dict(results)


def generate_prompts(
    writer: Any, target_class: TargetClass, requested: int, seed: int = 0, existing: Sequence[str] = (), turn: int = 0
) -> list[str]:
    outcome = generate_all(writer, [Task(target_class, requested, tuple(existing), turn)], seed)[0]
    assert isinstance(outcome, GeneratedPrompts), outcome
    return outcome.prompts


def test_more_prompts_extend_fewer(folder: Path) -> None:
    writer = prompt_generator(folder).load(CPU)
    few = generate_prompts(writer, TargetClass(0, ""), 2)
    many = generate_prompts(writer, TargetClass(0, ""), 8)
    assert len(few) >= 2
    assert len(many) >= 8
    assert len(set(many)) == len(many)
    assert many[: len(few)] == few


def test_generation_continues_where_it_stopped(folder: Path) -> None:
    writer = prompt_generator(folder).load(CPU)
    written = generate_all(writer, [Task(TargetClass(0, ""), 2)])[0]
    complete = generate_all(writer, [Task(TargetClass(0, ""), 8)])[0]
    assert isinstance(written, GeneratedPrompts)
    assert isinstance(complete, GeneratedPrompts)
    assert written.turn < complete.turn
    continued = generate_prompts(writer, TargetClass(0, ""), 8, existing=written.prompts, turn=written.turn)
    assert continued == complete.prompts, "in two steps as in one"


def test_prompts_depend_on_class_and_seed(folder: Path) -> None:
    writer = prompt_generator(folder).load(CPU)
    first = generate_prompts(writer, TargetClass(0, ""), 3)
    torch.rand(5)  # what else drew random numbers meanwhile is no matter
    assert generate_prompts(prompt_generator(folder).load(CPU), TargetClass(0, ""), 3) == first
    assert generate_prompts(writer, TargetClass(1, ""), 3) == first
    assert generate_prompts(writer, TargetClass(0, "", occurrence=1), 3) != first
    assert generate_prompts(writer, TargetClass(0, ""), 3, seed=1) != first


@pytest.mark.parametrize("settings", [{}, {"top_p": 0.6, "top_k": 50, "temperature": 0.7}])
def test_prompts_do_not_depend_on_the_batch(settings: dict[str, Any], folder: Path) -> None:
    """Checks chat texts of different lengths, which are padded, and classes that end after different rounds."""
    target_classes = [TargetClass(i, "", "context " * (7 * i % 5), occurrence=i) for i in range(6)]
    values = {"instruction": "{name}{context}", **settings}
    tasks = [Task(target_class, 2 + 3 * (target_class.class_index % 2)) for target_class in target_classes]
    alone = prompt_generator(folder, batch_size=1, **values).load(CPU)
    together, pairs = (prompt_generator(folder, batch_size=n, **values).load(CPU) for n in (6, 2))
    expected = {i: generate_all(alone, [task])[0] for i, task in enumerate(tasks)}
    assert generate_all(together, tasks) == generate_all(pairs, tasks) == expected
    assert len({tuple(written.prompts) for written in expected.values()}) == len(tasks)


def test_sampling_matches_torch() -> None:
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(1))
    for seed in range(20):
        torch.manual_seed(seed)
        expected = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
        process = sampler([seed], 5, CPU, temperature=1.0, top_p=1.0, top_k=0)
        assert torch.equal(process(torch.zeros(5, 0, dtype=torch.long), scores).argmax(-1), expected)  # pyright: ignore


def test_sampling_follows_the_probabilities() -> None:
    scores = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05])).expand(20_000, 4)
    nothing: Any = torch.zeros(20_000, 0, dtype=torch.long)
    for settings, expected in (
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 0}, [0.5, 0.3, 0.15, 0.05]),
        ({"temperature": 1.0, "top_p": 1.0, "top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"temperature": 1.0, "top_p": 0.9, "top_k": 0}, [0.5 / 0.95, 0.3 / 0.95, 0.15 / 0.95, 0]),
        ({"temperature": 0.5, "top_p": 1.0, "top_k": 0}, [x / 0.365 for x in (0.25, 0.09, 0.0225, 0.0025)]),
    ):
        generated = sampler([3], 20_000, CPU, **settings)(nothing, scores).argmax(-1)  # pyright: ignore
        shares = torch.bincount(generated, minlength=4) / 20_000
        torch.testing.assert_close(shares, torch.tensor(expected), rtol=0, atol=0.015)


def test_sampling_keeps_the_random_state(folder: Path) -> None:
    writer = prompt_generator(folder).load(CPU)
    before = torch.get_rng_state()
    generate_prompts(writer, TargetClass(0, ""), 1)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    "settings", [{"temperature": 0.0001}, {"top_p": 0.001}, {"top_k": 1}, {"max_new_tokens": 1}], ids=str
)
def test_sampling_settings_reach_the_model(settings: dict[str, Any], folder: Path) -> None:
    def replies(**changed: Any) -> list[str]:
        writer = prompt_generator(folder, replies_per_round=16, max_rounds=1, **changed).load(CPU)
        return generate_prompts(writer, TargetClass(0, ""), 1)

    # Sure of itself, or short of words, the model repeats itself.
    assert len(replies(**settings)) < len(replies())


def test_too_few_prompts_name_the_class(folder: Path) -> None:
    writer = prompt_generator(folder, max_rounds=4).load(CPU)
    failed = generate_all(writer, [Task(TargetClass(4, "axolotl"), 3), Task(TargetClass(0, ""), 3)])
    assert isinstance(failed[0], PromptError)
    assert re.search(r"class 4 \('axolotl'\): 0 usable prompts of 3 in 4 rounds \(without the", str(failed[0]))
    assert failed[0].turn == 4
    assert isinstance(failed[1], GeneratedPrompts), "one class fails alone"


TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if enable_thinking %}<think>{% else %}<no_think>{% endif %}{{ strftime_now('%d %B %Y') }}|"
)


def rendered(folder: Path, template: str, tmp_path: Path, **settings: Any) -> str:
    """Returns the text that a model with this chat template is given."""
    place = shutil.copytree(folder, tmp_path / "chat", dirs_exist_ok=True)
    (place / "chat_template.jinja").write_text(template)
    llm = LocalLLM(str(place), **settings)
    tokenizer, _ = llm._load(CPU)
    return llm._rendered(tokenizer, ChatHistory(Task(TargetClass(0, "cat", "a pet"), 3, ("a red cat",)), llm))


def test_chat_template_gets_the_request(folder: Path, tmp_path: Path) -> None:
    text = rendered(folder, TEMPLATE, tmp_path, system="Be brief.", instruction="{count} of {name}[, {context}]")
    request = "2 of cat, a pet\n\nThese are written already; do not repeat them, write others:\n- a red cat"
    assert text == f"<system>Be brief.<user>{request}<no_think>{TODAY}|", "on every day the same"
    text = rendered(folder, TEMPLATE, tmp_path, thinking=True, again="", instruction="{name}")
    assert text == f"<user>cat<think>{TODAY}|"
    plain = "{{ messages[0].content }}"
    assert rendered(folder, plain, tmp_path, again="", instruction="{name}") == "cat"


def test_model_without_chat_template_is_rejected(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "base")
    (place / "chat_template.jinja").unlink()
    with pytest.raises(ValueError, match=r"llm\.model=.*no chat template; name an instruct"):
        LocalLLM(str(place)).load(CPU)


def test_sampling_config_of_a_model_is_ignored(folder: Path, tmp_path: Path) -> None:
    place = shutil.copytree(folder, tmp_path / "own")
    config = json.loads((place / "generation_config.json").read_text())
    generation_config = {"do_sample": True, "temperature": 0.01, "top_k": 1, "top_p": 0.1, "repetition_penalty": 9.0}
    (place / "generation_config.json").write_text(json.dumps({**config, **generation_config}))
    task = [Task(TargetClass(0, ""), 5)]
    assert generate_all(prompt_generator(place).load(CPU), task) == generate_all(
        prompt_generator(folder).load(CPU), task
    )


CONF = Path(__file__).parents[2] / "conf"
PRESETS = {path.stem: path for path in (CONF / "llm").glob("*.yaml")}


@pytest.mark.parametrize(
    ("preset", "model_type"),
    [
        ("qwen3_4b", "qwen3"), ("qwen3_30b", "qwen3_moe"), ("smollm3_3b", "smollm3"), ("phi4_mini", "phi3"),
        ("llama31_8b", "llama"), ("gemma3_4b", "gemma3"), ("mistral_small", "mistral"),
    ],
)  # fmt: skip
def test_preset_architectures_exist_in_transformers(preset: str, model_type: str) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    instantiate(OmegaConf.load(PRESETS[preset]))


def test_hub_presets_document_license_and_size() -> None:
    texts = {name: path.read_text() for name, path in PRESETS.items() if "LocalLLM" in path.read_text()}
    assert len(texts) >= 8
    for name in texts.keys() - {"tiny", "local"}:
        header = " ".join(line for line in texts[name].splitlines() if line.startswith("#"))
        assert re.search(r"Apache-2\.0|MIT|License|Terms", header), name
        assert "gate" in header, name
        assert re.search(r"[\d.]+ B parameters, *(?:# )?\d+ GB in bf16", header), name
        with initialize_config_dir(str(CONF), version_base="1.3"):
            model = compose("evaluate", [f"llm={name}"]).llm.model
        assert f"https://huggingface.co/{model}" in header, name
