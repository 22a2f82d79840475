"""Implements what prompt generators with a chat model share: the request texts and the filtering of replies."""

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import torch

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptGenerator, PromptWriter, Task
from lgclip.prompts.filtering import FilterResult, error_or_refusal, filter_reply, normal_form
from lgclip.prompts.reply_parsing import MAX_REPLY_CHARACTERS, NoPromptsError, parse_reply
from lgclip.prompts.template import fill
from lgclip.runtime.versions import REPLY_PARSER
from lgclip.store.cost_log import Tokens, both
from lgclip.store.keys import NOT_AN_INPUT
from lgclip.types import TargetClass

INSTRUCTION = """\
Write {count} text-to-image prompts that each describe one photograph of: {name}[ ({context})].
Every prompt
- names "{name}" and is a full description on its own, 15 to 40 words of plain English on one line;
- tells only what can be seen: shape, colors, texture, parts, pose, size, surroundings, light, point of view;
- shows the features by which this class is told from similar ones;
- differs from the others in viewpoint, distance, setting, light or variant of the class.
No text or logos in the picture, no opinions, no story, no numbering.
Answer with one JSON object and nothing else: {"prompts": ["...", "..."]}"""

AGAIN = """\
These are written already; do not repeat them, write others:
{have}"""

_MAX_LISTED = 40
"""Maximum number of existing prompts that are shown to the model in a request for more."""


class ChatHistory:
    """Collects the usable sentences of one class, and counts why others were rejected.

    Args:
        task: The class.
        prompt_generator: Generator whose filter settings apply.
    """

    def __init__(self, task: Task, prompt_generator: "ChatPromptGenerator") -> None:
        self.task = task
        self.turn = task.turn
        self.tokens: Tokens | None = None
        # None before the first reply means zero, afterwards it means that some reply did not report them.
        self._paid = False
        self.prompts = list(task.existing)
        self._existing = {normal_form(prompt) for prompt in self.prompts}
        self._prompt_generator = prompt_generator
        self._tally: Counter[FilterResult] = Counter()

    @property
    def missing(self) -> int:
        """Returns the number of prompts that are still missing."""
        return max(0, self.task.requested - len(self.prompts))

    def add(self, replies: Sequence[str], truncated: Collection[int] = ()) -> None:
        """Adds the usable sentences of one round's replies.

        Args:
            replies: The replies.
            truncated: Indices of the replies that reached the token limit.
        """
        self.turn += 1
        name = self.task.target_class.name
        for index, reply in enumerate(replies):
            try:
                parsed = parse_reply(reply, name, is_truncated=index in truncated)
            except NoPromptsError as error:
                # A server's error often comes as JSON; its text is more informative than "wrong format".
                self.note(error_or_refusal(str(error)) or FilterResult.NOT_PROMPTS)
                continue
            self._tally.update(parsed.dropped)
            # Lines that only introduce a list are not sentences; the complete reply is still checked for a refusal.
            if not parsed.sentences and FilterResult.REFUSAL not in parsed.dropped:
                self.note(error_or_refusal(reply[:MAX_REPLY_CHARACTERS], name) or FilterResult.EMPTY)
            for sentence in parsed.sentences:
                self._take(sentence)

    def spend(self, tokens: Tokens | None) -> None:
        """Adds the tokens of a reply; None if the model does not report them."""
        if self._paid:
            tokens = both(self.tokens, tokens)
        self.tokens = tokens
        self._paid = True

    def note(self, outcome: FilterResult) -> None:
        """Counts a reply without sentences."""
        self._tally[outcome] += 1

    def _take(self, sentence: str) -> None:
        settings = self._prompt_generator
        outcome = filter_reply(
            sentence,
            self.task.target_class,
            self._existing,
            must_name=settings.must_name,
            exact_name=settings.exact_name,
            min_words=settings.min_words,
        )
        self._tally[outcome] += 1
        if outcome is FilterResult.USABLE:
            self._existing.add(normal_form(sentence))
            self.prompts.append(sentence)

    def result(self, reason: str = "") -> GeneratedPrompts | PromptError:
        """Returns the prompts if there are enough, else the error with the reason.

        Args:
            reason: A further reason besides rejected replies.
        """
        if not self.missing:
            return GeneratedPrompts(self.prompts, self.turn, self.tokens)
        rejected = [f"{outcome} {n}" for outcome, n in self._tally.most_common() if outcome is not FilterResult.USABLE]
        reasons = "; ".join(text for text in (reason, ", ".join(rejected)) if text)
        if reasons:
            reasons = f" ({reasons})"
        target_class = self.task.target_class
        # Only this run's: rounds of earlier runs left nothing in the tally.
        rounds = self.turn - self.task.turn
        return PromptError(
            f"class {target_class.class_index} ({target_class.name!r}): {len(self.prompts)} usable prompts of "
            f"{self.task.requested} in {rounds} round{'s' * (rounds != 1)}{reasons}",
            self.prompts,
            self.turn,
            self.tokens,
        )


@dataclass(frozen=True)
class ChatPromptGenerator(PromptGenerator):
    """Requests descriptions from a chat model, in rounds until there are enough usable ones.

    Every round has its own seed, derived from the class and the round's number, so that a later request for more
    prompts continues after the last round. `filtering` decides which sentences are usable.

    Args:
        model: Name of the model.
        instruction: User message: `{name}`, `{count}` and `{context}` are filled in, and text in
            square brackets around `{context}` is dropped where a data set has no context.
        system: System message; none if empty.
        again: Appended to the instruction when prompts already exist: `{have}`, one a line. Not if empty.
        must_name: Whether a prompt must contain the class name; case, plural, spacing and hyphens
            do not matter, and of "highway or road" one is enough.
        exact_name: Whether it must contain the name letter by letter, ignoring case.
        min_words: Minimum number of words of a prompt.
        temperature: Sampling temperature, above 0.
        top_p: Nucleus of the sampling, in (0, 1].
        max_rounds: Rounds after which too few prompts are an error.
        allow_fallback: Whether template sentences, marked as such, fill the gap then.
    """

    model: str
    instruction: str = INSTRUCTION
    system: str = ""
    again: str = AGAIN
    must_name: bool = True
    exact_name: bool = False
    min_words: int = 3
    temperature: float = 1.0
    top_p: float = 1.0
    max_rounds: int = field(default=4, metadata=NOT_AN_INPUT)
    allow_fallback: bool = field(default=False, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if not self.model:
            raise ValueError("llm.model='': name a model")
        if "{name}" not in self.instruction:
            raise ValueError(f"llm.instruction={self.instruction!r}: it has no {{name}} for the class name")
        if self.again and "{have}" not in self.again:
            raise ValueError(f"llm.again={self.again!r}: it has no {{have}} for the prompts that are there")
        if not self.temperature > 0:
            raise ValueError(f"llm.temperature={self.temperature}: it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"llm.top_p={self.top_p}: it must be in (0, 1]")
        for name in ("min_words", "max_rounds"):
            self._check_at_least(name, 1)

    def _check_at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not value >= least:
            raise ValueError(f"llm.{name}={value}: it must be at least {least}")

    @property
    def falls_back(self) -> bool:
        return self.allow_fallback

    @abstractmethod
    def load(self, device: torch.device) -> PromptWriter: ...

    def inputs(self, target_class: TargetClass, seed: int) -> dict[str, object]:
        # Other prompt generators read no replies: theirs are not made again when the parser changes.
        return {**super().inputs(target_class, seed), "reply_parser": REPLY_PARSER}

    def chat(self, history: ChatHistory) -> list[dict[str, str]]:
        """Returns the messages that request the missing prompts of a class."""
        target_class = history.task.target_class
        requested = history.missing
        request = fill(self.instruction, target_class, requested)
        if self.again and history.prompts:
            # The last ones only: with hundreds of prompts the request would outgrow the model's context.
            have = "\n".join(f"- {prompt}" for prompt in history.prompts[-_MAX_LISTED:])
            request += "\n\n" + fill(self.again, target_class, requested, have)
        messages: list[dict[str, str]] = []
        # No empty system message: some chat templates refuse the role altogether.
        if self.system:
            messages.append({"role": "system", "content": fill(self.system, target_class, requested)})
        messages.append({"role": "user", "content": request})
        return messages


def reads_requests(generator: PromptGenerator) -> bool:
    """Returns whether a generator's chat model can answer other requests than for prompts."""
    # The small model of the package continues a name with a caption; it understands no request.
    return isinstance(generator, ChatPromptGenerator) and generator.instruction.strip() != "{name}"


def seed_of(seed: int, history: ChatHistory) -> int:
    """Returns the seed of a class's next round, in 48 bits, which depends only on run, class and round number."""
    target_class = history.task.target_class
    # The name is last, since it may hold any character.
    text = f"{seed}/{history.turn}/{target_class.occurrence}/{target_class.name}"
    # Python's own `hash` of a string differs from process to process.
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:6])
