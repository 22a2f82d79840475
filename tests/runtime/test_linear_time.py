# ruff: noqa: E501
"""Tests that every regular expression of the package takes linear time, and every function that reads foreign text.

The expressions are found in the source, and their inputs are derived from their parts: what they repeat is repeated
thousands of times, behind what has to come first and in front of what does not match.
"""

import ast
import functools
import importlib
import itertools
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import lgclip
from lgclip.prompts.base import Task
from lgclip.prompts.caption_file import single_line
from lgclip.prompts.chat import ChatHistory
from lgclip.prompts.filtering import error_or_refusal, names, normal_form
from lgclip.prompts.local_llm import LocalLLM, steady
from lgclip.prompts.reply_parsing import MAX_REPLY_CHARACTERS, NoPromptsError, parse_reply, sentences_of
from lgclip.prompts.template import fill
from lgclip.types import TargetClass

# Private modules, without which the parts of an expression are known to no program.
constants: Any = importlib.import_module("re._constants")
parser: Any = importlib.import_module("re._parser")

PACKAGE = Path(str(lgclip.__file__)).parent
FUNCTIONS = ("compile", "search", "match", "fullmatch", "sub", "subn", "split", "findall", "finditer")
METHODS = FUNCTIONS[1:]
FLOOR = 0.004
"""Seconds below which a time says nothing about the growth."""
LENGTHS = (24, 250, 1000, 6000)
"""Lengths of the inputs: exponential time shows in the first, quadratic time in the last."""
GROWTH = 2.5
CONFIRMATIONS = 4
"""How often a growth is measured again before it is a fault."""


def modules() -> list[str]:
    return sorted(
        ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__")
        for path in PACKAGE.rglob("*.py")
        if "re." in path.read_text(encoding="utf-8")
    )


def patterns_in(value: Any) -> Iterator[re.Pattern[str]]:
    if isinstance(value, re.Pattern):
        yield value
    elif isinstance(value, dict):
        for inside in value.values():
            yield from patterns_in(inside)
    elif isinstance(value, list | tuple | set | frozenset):
        for inside in value:
            yield from patterns_in(inside)


@functools.cache
def expressions() -> list[tuple[str, re.Pattern[str], str]]:
    """Returns the place, the expression and the method of each regular expression of the package."""
    return sorted(set(_expressions()), key=str)


def _expressions() -> Iterator[tuple[str, re.Pattern[str], str]]:
    """Yields the place, the expression and the method of each regular expression of the package."""
    for name in modules():
        module = importlib.import_module(name)
        tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
        used: dict[str, set[str]] = {}
        for call in calls:
            function = call.func
            assert isinstance(function, ast.Attribute)
            if isinstance(function.value, ast.Name) and function.attr in METHODS:
                used.setdefault(function.value.id, set()).add(function.attr)
            if isinstance(function.value, ast.Name) and function.value.id == "re" and function.attr in METHODS:
                source = call.args[0]
                if isinstance(source, ast.Constant):
                    flags = re.DOTALL if "DOTALL" in ast.dump(call) else 0
                    yield f"{name}:{call.lineno}", re.compile(str(source.value), flags), function.attr
        others = set().union(*used.values()) if used else set()
        for variable, value in vars(module).items():
            for pattern in patterns_in(value):
                for method in used.get(variable) or others or {"search"}:
                    yield f"{name}.{variable}", pattern, method
        for inner in (value for value in vars(module).values() if isinstance(value, type)):
            for variable, value in vars(inner).items():
                for pattern in patterns_in(value):
                    yield f"{name}.{inner.__name__}.{variable}", pattern, "search"


def sample(tree: Any, cut: Any = None) -> tuple[str, bool]:
    """Returns a text that a parsed expression accepts, up to the part `cut`, and whether that was reached."""
    text = ""
    for operation in tree:
        if operation is cut:
            return text, True
        code, value = operation
        inside, reached = _sample_part(code, value, cut)
        text += inside
        if reached:
            return text, True
    return text, False


def _sample_part(code: Any, value: Any, cut: Any) -> tuple[str, bool]:
    if code is constants.LITERAL:
        return chr(value), False
    if code is constants.NOT_LITERAL:
        return ("a" if value != ord("a") else "b"), False
    if code is constants.ANY:
        return "a", False
    if code is constants.IN:
        return _member(value), False
    if code is constants.BRANCH:
        for branch in value[1]:
            inside, reached = sample(branch, cut)
            if reached:
                return inside, True
        return sample(value[1][0])
    if code in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
        inside, reached = sample(value[2], cut)
        return (inside if reached else inside * max(1, value[0])), reached
    if code is constants.SUBPATTERN:
        return sample(value[3], cut)
    if code is constants.ATOMIC_GROUP:
        return sample(value, cut)
    return "", False


CATEGORIES = {
    constants.CATEGORY_DIGIT: "1",
    constants.CATEGORY_SPACE: " ",
    constants.CATEGORY_WORD: "a",
    constants.CATEGORY_NOT_DIGIT: "a",
    constants.CATEGORY_NOT_SPACE: "a",
    constants.CATEGORY_NOT_WORD: "-",
}
CLASSES = {
    constants.CATEGORY_DIGIT: r"\d",
    constants.CATEGORY_SPACE: r"\s",
    constants.CATEGORY_WORD: r"\w",
    constants.CATEGORY_NOT_DIGIT: r"\D",
    constants.CATEGORY_NOT_SPACE: r"\S",
    constants.CATEGORY_NOT_WORD: r"\W",
}
MAX_LETTERS = 5


def _member(members: Any) -> str:
    """Returns a letter of a class of letters."""
    if members[0][0] is constants.NEGATE:
        excluded = re.compile("[" + "".join(_class_text(member) for member in members[1:]) + "]")
        return next(letter for letter in "a1 -_.:'\"([{<é\n" if not excluded.match(letter))
    code, value = members[0]
    if code is constants.LITERAL:
        return chr(value)
    if code is constants.RANGE:
        return chr(value[0])
    return CATEGORIES[value]


def _class_text(member: Any) -> str:
    code, value = member
    if code is constants.LITERAL:
        return re.escape(chr(value))
    if code is constants.RANGE:
        return f"{re.escape(chr(value[0]))}-{re.escape(chr(value[1]))}"
    return CLASSES[value]


def repeats(tree: Any) -> Iterator[Any]:
    """Yields the parts of a parsed expression that repeat something many times."""
    for operation in tree:
        code, value = operation
        if code in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            if value[1] > 8:
                yield operation
            yield from repeats(value[2])
        elif code is constants.BRANCH:
            for branch in value[1]:
                yield from repeats(branch)
        elif code is constants.SUBPATTERN:
            yield from repeats(value[3])
        elif code is constants.ATOMIC_GROUP:
            yield from repeats(value)


def variants(tree: Any) -> Iterator[str]:
    """Yields texts that a parsed expression accepts, with each of its alternatives."""
    yield sample(tree)[0]
    for code, value in tree:
        if code is constants.BRANCH:
            for branch in value[1]:
                yield from variants(branch)
        elif code is constants.SUBPATTERN:
            yield from variants(value[3])
        elif code is constants.ATOMIC_GROUP:
            yield from variants(value)
        elif code in (constants.MAX_REPEAT, constants.MIN_REPEAT, constants.POSSESSIVE_REPEAT):
            yield from variants(value[2])


def attacks(pattern: re.Pattern[str]) -> list[tuple[str, str, str]]:
    """Returns beginnings, repeated units and ends of inputs that may take an expression much time."""
    tree = parser.parse(pattern.pattern, pattern.flags & ~re.UNICODE)
    complete, _ = sample(tree)
    units = {(("", complete, "\0")), ("", complete[:-1], "\0"), ("", " ", "\0"), ("", "a", "\0"), ("", "\n", "\0")}
    for text in itertools.islice(variants(tree), 30):
        units.add(("", text, "\0"))
    # The rarest letters are the ones that the expression names: marks, rather than the letters of words.
    letters = sorted(set("".join(itertools.islice(variants(tree), 30))), key=lambda letter: (letter.isalnum(), letter))
    for pair in itertools.product(letters[:MAX_LETTERS], repeat=2):
        units.add((complete[:1], "".join(pair), "\0"))
    for part in itertools.islice(repeats(tree), 12):
        before, _ = sample(tree, part)
        for body in itertools.islice(variants(part[1][2]), 4):
            for end in ("\0", "", "\n\0"):
                units.add((before, body, end))
                units.add((before, body + before, end))
            units.add(("", before + body, "\0"))
        units.add(("", before, "\0"))
    places = list(itertools.islice(repeats(tree), 8))
    for first, second in itertools.combinations(places, 2):
        before, _ = sample(tree, first)
        until, _ = sample(tree, second)
        units.add((before, until[len(before) :], "\0"))
    return sorted(unit for unit in units if unit[1])


def seconds(run: Callable[[], object]) -> float:
    """Returns the shortest of several times of this thread alone: other programs do not count."""
    best = float("inf")
    for _ in range(3):
        start = time.thread_time()
        run()
        best = min(best, time.thread_time() - start)
        # One is enough where it says nothing or where the others would take too long.
        if best < FLOOR:
            break
    return best


def growth_fault(run: Callable[[str], object], begin: str, unit: str, end: str) -> str:
    """Returns how much longer an input twice as long takes, empty if at most `GROWTH` times."""
    for length in LENGTHS:
        text = begin + unit * (length // len(unit)) + end
        now = seconds(lambda text=text: run(text))
        if now < FLOOR:
            continue
        half = begin + unit * (length // 2 // len(unit)) + end
        before = seconds(lambda text=half: run(text))
        # Measured again, both of them, since other programs take a share of the caches: quadratic time shows each time.
        for _ in range(CONFIRMATIONS):
            if now <= GROWTH * before:
                break
            before = max(before, seconds(lambda text=half: run(text)))
            now = min(now, seconds(lambda text=text: run(text)))
        else:
            return f"{begin!r} + {unit!r} * n + {end!r}: {before:.4f} s, then {now:.4f} s for {length} characters"
    return ""


def apply(pattern: re.Pattern[str], method: str) -> Callable[[str], object]:
    if method in ("sub", "subn"):
        return lambda text: getattr(pattern, method)("", text)
    if method == "finditer":
        return lambda text: sum(1 for _ in pattern.finditer(text))
    return getattr(pattern, method)


@pytest.mark.slow
def test_growth_is_measured() -> None:
    """Checks the check: it finds expressions that are known to be quadratic or worse."""
    for source in (
        r'"((?:[^"\\]|\\.)*)"',
        r"\s+or\s+",
        r"(a+)+$",
        r"\(.*?\)",
        r"[\w-]+\s*:",
        r"\[([^\[\]]*x[^\[\]]*)\]",
    ):
        pattern = re.compile(source, re.DOTALL)
        assert any(growth_fault(apply(pattern, "findall"), *attack) for attack in attacks(pattern)), source


@pytest.mark.slow
def test_every_expression_is_found() -> None:
    patterns = expressions()
    assert len(patterns) > 80
    sources = [place for place, _, _ in patterns]
    for name in ("filtering", "reply_markup", "loose_json", "template"):
        assert any(f"prompts.{name}" in place for place in sources), name


@pytest.mark.slow
def test_regular_expressions_take_linear_time() -> None:
    faults = []
    for place, pattern, method in expressions():
        for attack in attacks(pattern):
            if fault := growth_fault(apply(pattern, method), *attack):
                faults.append(f"{place} ({pattern.pattern[:60]!r}, {method}): {fault}")
                break
    assert not faults, "\n".join(faults)


UNITS = [
    *"[]{}()<>\"'`*_~|#-+=:;,.!?\\/&%$@^ \n\ta1\u00e9\u732b\u201c\u25c1",
    '\\"', '["', '{"', '[{"', '"a" ', '"a", ', '["a", ', '{"a":', "['", "'a's ", "\\u", "\\n", "1. ", "1. a b 2. ", "- ", "* ", "**", "__",
    "```", "```\n", "~~~", "<think>", "</think>", "<a>", "</a>", "<a></a>", "<a", "[A]", "[/A]", "<|", "<|a|>", "<|im_start|>",
    "<|channel|>analysis", "<|message|>", "<\uff5c", "assistantfinal", "analysis", "| ", "|a|b|\n", "|---|", "a|b\n", "a,b\n", '"a","b"\n',
    "Prompt 1: ", "i can't ", "i ", ", ", "but i ", "your request ", "content policy ", "sorry ", "here are ", "prompts ",
    "the prompts ", "as an ai ", "error ", "a.Error", "http://", "{{", "{context}", "[{context}", "strftime_now('", "cat ", " or ", "s ",
    "http://a:b", "status code ", "...done thinking", "final answer: ", "[INST]", "<s>", "\u25c1think\u25b7",
]  # fmt: skip
"""What replies, names and templates are made of."""


def read_reply(text: str) -> object:
    try:
        return parse_reply(text, "cat", is_truncated=True)
    except NoPromptsError:
        return None


def add_reply(text: str) -> object:
    history = ChatHistory(Task(TargetClass(0, "cat"), 99_999), LocalLLM("hub/llm"))
    history.add([text, json.dumps({"prompts": [text]}, ensure_ascii=False)])
    return history.result()


CAT = TargetClass(0, "cat")
READERS: dict[str, Callable[[str], object]] = {
    "reply": read_reply,
    "filtered reply": add_reply,
    "name in a text": lambda text: names(text, "red panda bear"),
    "name": lambda text: names("a red panda bear", text),
    "normal_form": normal_form,
    "error_or_refusal": lambda text: error_or_refusal(text, "cat"),
    "caption": single_line,
    "template": lambda text: fill(text, CAT),
    "chat template": lambda text: steady(text, thinking=False),
}
"""Functions that read foreign text."""


@pytest.mark.slow
@pytest.mark.parametrize("read", READERS.values(), ids=READERS.keys())
def test_foreign_text_is_read_in_linear_time(read: Callable[[str], object]) -> None:
    faults = []
    for unit, (begin, end) in itertools.product(UNITS, (("", ""), ('["', "x"))):
        if fault := growth_fault(read, begin, unit, end):
            faults.append(fault)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("begin", ['["', "", "<think>x</think>", '{"prompts": ["'])
@pytest.mark.parametrize("unit", ['\\"', '"', "\\", "' ", "<a>"])
def test_long_reply_takes_less_than_seconds(begin: str, unit: str) -> None:
    start = time.thread_time()
    add_reply(begin + unit * (200_000 // len(unit)))
    assert time.thread_time() - start < 10


def test_long_reply_is_cut_and_reported() -> None:
    sentences = [f"a cat in room {number} of a house" for number in range(3000)]
    history = ChatHistory(Task(TargetClass(0, "cat"), 3000), LocalLLM("hub/llm"))
    history.add([json.dumps({"prompts": sentences})])
    assert 400 < len(history.prompts) < MAX_REPLY_CHARACTERS / 20
    assert history.prompts == sentences[: len(history.prompts)]
    assert "text beyond the limit of a reply 1" in str(history.result())
    assert sentences_of(f"<think>{'a draft cat ' * 5000}</think>" + sentences[0]) == [sentences[0]]
