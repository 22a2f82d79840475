"""Tests random configs, names and model replies: they are accepted or rejected plainly, never with a crash."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import SUBJECTS
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lgclip.datasets.base import checked_names
from lgclip.prompts.base import GeneratedPrompts, PromptError, Task
from lgclip.prompts.chat import ChatHistory
from lgclip.prompts.local_llm import LocalLLM
from lgclip.prompts.openai_client import Endpoint, Reply, _LaterError
from lgclip.prompts.reply_parsing import NoPromptsError, sentences_of
from lgclip.prompts.template import Templates, fill
from lgclip.runtime.instantiate import build
from lgclip.runtime.secrets import KeyInConfigError, refuse_on_command_line, refuse_secrets
from lgclip.stages.counts import ImageCounts
from lgclip.types import TargetClass

CONF = Path(__file__).parents[2] / "conf"
PARTS = ("llm", "encoder", "scales", "prototype", "selection", "calibration", "diffuser")
ODD = [
    None, True, False, 0, 1, -1, 2**31, -(2**63), 10**30, 0.0, -0.5, 1e-9, 1e308, math.nan, math.inf, -math.inf, "",
    " ", "0", "-1", "nan", "none", "x", "auto", "é\u202e\x00", "../..", "/", "{}", "{name}", [], [1], [None], ["x"],
    [[1, 2], [3]], {}, {"a": 1}, {"a": {"b": [None]}}, "x" * 3000,
]  # fmt: skip
values = st.sampled_from(ODD) | st.integers() | st.floats() | st.text(max_size=20) | st.lists(st.integers(), max_size=3)
FEW = settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(scope="module")
def config() -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("evaluate", ["llm=server", "llm.model=m"])


def places(config: DictConfig) -> list[str]:
    """Returns every value of the parts that can be built without files."""
    return [f"{part}.{key}" for part in PARTS if config.get(part) for key in config[part] if key != "_target_"]


def assert_single_line(look: Callable[[], object]) -> None:
    """Runs a check; an error must be one that is printed as a single line."""
    try:
        look()
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        cause = error.__cause__ if isinstance(error, HydraException) and error.__cause__ else error
        message = str(error)
    else:
        return
    assert isinstance(cause, ValueError | OSError | OmegaConfBaseException | HydraException), repr(cause)
    assert message


def changed(config: DictConfig, place: str, value: Any) -> DictConfig:
    copy: Any = OmegaConf.create(OmegaConf.to_container(config))
    OmegaConf.update(copy, place, value, merge=False)
    return copy


@FEW
@given(data=st.data())
def test_any_value_is_built_or_rejected(data: st.DataObject, config: DictConfig) -> None:
    place = data.draw(st.sampled_from(places(config)))
    value = data.draw(values)
    try:
        full_config = changed(config, place, value)
    except OmegaConfBaseException:
        return  # OmegaConf says what it does not hold
    part = place.partition(".")[0]
    assert_single_line(lambda: build(full_config[part], _convert_="all"))


COUNTS = ("prompts_per_class", "images_per_prompt", "seed", "prompt_pool", "prompt_order_seed", "workers")


@FEW
@given(settings=st.dictionaries(st.sampled_from(COUNTS), values))
def test_counts_are_integers_or_rejected(settings: dict[str, Any], config: DictConfig) -> None:
    least = {
        "prompts_per_class": 1,
        "images_per_prompt": 1,
        "seed": 0,
        "prompt_pool": 1,
        "workers": 0,
        "prompt_order_seed": 0,
    }
    full = {**{name: config[name] for name in COUNTS}, **settings}
    try:
        checked = asdict(ImageCounts.from_values(full))
    except ValueError as error:
        message = str(error)
        checked = {}
    else:
        message = ""
    assert bool(checked) != any(message.startswith(f"{name}=") for name in COUNTS)
    set_names = [name for name in checked if full[name] is not None]
    for name in set_names:
        assert checked[name] == full[name]
        assert type(full[name]) is int
        assert full[name] >= least[name]
    assert checked.keys() <= set(COUNTS)


@FEW
@given(name=st.text(max_size=20), value=values)
def test_any_config_is_searched_for_keys(name: str, value: Any) -> None:
    for argument in (name, f"{name}={value}", f"+{name}={{{name}:{value}}}"):
        with suppress(KeyInConfigError):
            refuse_on_command_line([argument])
    with suppress(KeyInConfigError, OmegaConfBaseException):  # OmegaConf says what it does not hold
        refuse_secrets(OmegaConf.create({"hydra": {"a": [value]}, "x": {"y": value}}))


any_text = st.text(alphabet=st.characters(), max_size=60) | st.sampled_from([v for v in ODD if isinstance(v, str)])


@given(names=st.lists(any_text, max_size=6), unique=st.booleans())
def test_any_names_are_clean_or_rejected(names: list[str], unique: bool) -> None:
    try:
        clean = checked_names(names, unique=unique)
    except ValueError as error:
        str(error).encode()
        return
    assert len(clean) == len(names)
    for name in clean:
        assert name == " ".join(name.split())
        name.encode()
    assert checked_names(clean, unique=unique) == clean


@given(template=any_text, name=any_text, context=any_text, count=st.integers(0, 5))
def test_any_template_accepts_any_name(template: str, name: str, context: str, count: int) -> None:
    target_class = TargetClass(0, name, context)
    assert isinstance(fill(template, target_class, count, "have"), str)
    assert fill("a {name}.", target_class) == f"a {name}."
    try:
        prompt_generator = Templates((template,))
    except ValueError:
        assert "{}" not in template
        return
    ((_, written),) = prompt_generator.load(torch.device("cpu"))([Task(target_class, 3)], 0)
    assert isinstance(written, GeneratedPrompts)
    assert name in written.prompts[0]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(any_text, inside, max_size=4),
    max_leaves=12,
)
KEYS = ("prompts", "descriptions", "prompt", "text", "error", "caption")
replies = (
    any_text
    | json_values.map(json.dumps)
    | st.dictionaries(st.sampled_from(KEYS), json_values).map(json.dumps)
    | st.lists(st.sampled_from(["{", "[", '"', "}", "]", ",", ":", "\\", "\\u", "<think>", "</think>", "```",
                                "a red fox", "1. ", "\n", "- ", "[THINK]", "\ud800", "null"]), max_size=30).map("".join)
)  # fmt: skip


@settings(max_examples=200)
@given(reply=replies)
@example(reply='["a\\b\\u001b[2J red\\u202e fox \\ud800"]')
def test_any_reply_gives_lines_or_a_reason(reply: str) -> None:
    try:
        sentences = sentences_of(reply)
    except NoPromptsError:
        return
    for sentence in sentences:
        assert sentence == " ".join(sentence.split())
        assert sentence
        assert not [letter for letter in sentence if ord(letter) < 0x20 or 0x7F <= ord(letter) < 0xA0]
        assert not {"\u202e", "\u2066", "\ufeff"} & set(sentence)
        sentence.encode()


@pytest.mark.parametrize(
    "reply",
    ["[" * 100_000, '{"a":' * 50_000, '{"prompts": [' + "[" * 50_000, '{"prompts": "' + "\\u" * 5000, "1. " * 50_000,
     '{"' * 20_000, "<think>" * 20_000, '"' * 50_000, '{"prompts": [' + "9" * 5000 + "]}", "**" * 20_000, "`" * 50_000],
    ids=range(11),
)  # fmt: skip
def test_exhausting_reply_is_parsed(reply: str) -> None:
    try:
        sentences_of(reply)
    except NoPromptsError:
        return


@FEW
@given(chat_replies=st.lists(replies, min_size=1, max_size=4), requested=st.integers(1, 3))
def test_prompts_satisfy_filters_or_error(chat_replies: list[str], requested: int) -> None:
    history = ChatHistory(Task(SUBJECTS[0], requested), LocalLLM("tiny:language"))
    for reply in chat_replies:
        history.add([reply])
    outcome = history.result()
    if isinstance(outcome, PromptError):
        assert str(outcome).startswith("class 0 ('red fox')")
    assert all("fox" in prompt.casefold() and len(prompt.split()) >= 3 for prompt in outcome.prompts)
    assert len({prompt.casefold() for prompt in outcome.prompts}) == len(outcome.prompts)


class FakeResponse:
    """Mimics a parsed reply of the client, with nothing validated."""

    def __init__(self, **values: Any) -> None:
        vars(self).update(values)


messages = (
    st.builds(FakeResponse)
    | st.builds(lambda c, r: FakeResponse(content=c, refusal=r), json_values, json_values)
    | json_values
)
choices = st.builds(lambda m, f: FakeResponse(message=m, finish_reason=f), messages, json_values) | json_values
completions = json_values | st.builds(
    lambda c, u: FakeResponse(choices=c, usage=u), st.lists(choices, max_size=2) | json_values, json_values
)


@settings(max_examples=100)
@given(completion=completions)
def test_any_completion_is_a_reply_or_retried(completion: Any) -> None:
    none: Callable[[], Any] = lambda: None  # noqa: E731
    endpoint = Endpoint(
        none, {"model": "m"}, structured=True, max_tokens=1, timeout_s=1, backoff_s=1, secret="s3cret-s3cret"
    )
    try:
        reply = endpoint._read(completion)
    except _LaterError as later:
        reply = Reply(str(later))
    assert isinstance(reply, Reply)
    assert isinstance(reply.text, str)


LOOK = """
import json, sys
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from hydra import compose, initialize_config_dir
from lgclip.runtime.instantiate import build
from lgclip.cli.errors import plain_errors
conf, places, odd = json.loads(sys.argv[1])
sys.argv[1:] = []
with initialize_config_dir(conf, version_base="1.3"):
    config = compose("evaluate", ["llm=server", "llm.model=m"])
def look(place, value):
    whole = OmegaConf.create(OmegaConf.to_container(config))
    OmegaConf.update(whole, place, value, merge=False)
    build(whole[place.partition(".")[0]], _convert_="all")
for place in places:
    for value in odd:
        print(f"\\n@ {place}={value!r:.60}", file=sys.stderr, flush=True)
        try: plain_errors(lambda: look(place, value))()
        except SystemExit as end: assert end.code == 1
"""


@pytest.mark.multiprocess
def test_errors_of_types_are_plain(config: DictConfig) -> None:
    """Checks in a separate process, without the annotation checks of the tests."""
    unusual = [None, True, -1, 0.5, math.nan, -math.inf, "", "x", "../..", [], ["x"], {"a": {"b": [None]}}]
    arguments = json.dumps([str(CONF), places(config), unusual])
    completed = subprocess.run(
        [sys.executable, "-c", LOOK, arguments], cwd=CONF.parent, capture_output=True, text=True, timeout=400,
        check=False, env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert completed.returncode == 0, completed.stderr[-2000:]
    assert "Traceback" not in completed.stderr
    looks = completed.stderr.split("\n@ ")
    assert len(looks) == len(places(config)) * len(unusual) + 1
    assert [look for look in looks if len(look.splitlines()) > 8] == []
