"""What the writers that ask a chat model share: the words of the request and the judging of replies."""

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from lgclip.identity import NOT_AN_INPUT
from lgclip.ledger import Tokens, both
from lgclip.prompts.base import Pen, PromptError, PromptWriter, Task, Written
from lgclip.prompts.replies import NoPromptsError, sentences_of
from lgclip.prompts.verdicts import Outcome, sameness, spoilt, verdict
from lgclip.prompts.wording import fill

INSTRUCTION = """\
Write {count} text-to-image prompts that each describe one photograph of: {name}[ ({context})].
Every prompt
- names "{name}" and is a full description on its own, 15 to 40 words of plain English on one line;
- tells only what can be seen: shape, colours, texture, parts, pose, size, surroundings, light, point of view;
- shows the features by which this class is told from similar ones;
- differs from the others in viewpoint, distance, setting, light or variant of the class.
No text or logos in the picture, no opinions, no story, no numbering.
Answer with one JSON object and nothing else: {"prompts": ["...", "..."]}"""

AGAIN = """\
These are written already; do not repeat them, write others:
{have}"""

_SHOWN = 40
"""Prompts that are there and are shown to the model when it is asked for more."""


class Notebook:
    """What is written of one class so far, and what became of the rest.

    Args:
        task: The class.
        writer: Whose rules hold.
    """

    def __init__(self, task: Task, writer: "ChatWriter") -> None:
        self.task, self.turn = task, task.turn
        self.tokens: Tokens | None = None
        self._paid = False
        self.prompts = list(task.have)
        self._known = {sameness(prompt) for prompt in self.prompts}
        self._writer = writer
        self._tally: Counter[Outcome] = Counter()

    @property
    def missing(self) -> int:
        """Prompts that are still wanted."""
        return max(0, self.task.wanted - len(self.prompts))

    def add(self, replies: Sequence[str]) -> None:
        """Takes the usable sentences of one round's replies."""
        self.turn += 1
        for reply in replies:
            try:
                sentences = sentences_of(reply)
            except NoPromptsError as error:
                self.note(spoilt(str(error)) or Outcome.NOT_PROMPTS)
                continue
            if not sentences:
                self.note(spoilt(reply) or Outcome.EMPTY)
            for sentence in sentences:
                self._take(sentence)

    def spend(self, tokens: Tokens | None) -> None:
        """Counts what a reply took; None if the model does not tell."""
        self.tokens = both(self.tokens, tokens) if self._paid else tokens
        self._paid = True

    def note(self, outcome: Outcome) -> None:
        """Counts a reply without sentences."""
        self._tally[outcome] += 1

    def _take(self, sentence: str) -> None:
        rules = self._writer
        outcome = verdict(
            sentence,
            self.task.subject,
            self._known,
            must_name=rules.must_name,
            exact_name=rules.exact_name,
            min_words=rules.min_words,
        )
        self._tally[outcome] += 1
        if outcome is Outcome.USABLE:
            self._known.add(sameness(sentence))
            self.prompts.append(sentence)

    def result(self, because: str = "") -> Written | PromptError:
        """What there is if it is enough, else why it is not.

        Args:
            because: A reason besides what the replies were.
        """
        if not self.missing:
            return Written(self.prompts, self.turn, self.tokens)
        bad = [f"{outcome} {n}" for outcome, n in self._tally.most_common() if outcome is not Outcome.USABLE]
        said = "; ".join([*([because] if because else []), *([", ".join(bad)] if bad else [])])
        subject, rounds = self.task.subject, self.turn - self.task.turn
        return PromptError(
            f"class {subject.class_index} ({subject.name!r}): {len(self.prompts)} usable prompts of "
            f"{self.task.wanted} in {rounds} round{'s' * (rounds != 1)}{f' ({said})' if said else ''}",
            self.prompts,
            self.turn,
            self.tokens,
        )


@dataclass(frozen=True)
class ChatWriter(PromptWriter):
    """A chat model that is asked for descriptions, in rounds until there are enough usable ones.

    Every round has a seed of its own, of the class and of its number, so that asking for more later goes on
    where the last round ended. What is usable is in `verdicts`.

    Args:
        model: Its name.
        instruction: What it is told: `{name}`, `{count}` and `{context}` are filled in, and what stands in
            square brackets around `{context}` vanishes where a data set has none.
        system: The system message; none if empty.
        again: Put below the instruction when prompts are there already: `{have}`, one a line. Not if empty.
        must_name: Whether a prompt has to hold the class name; its case, its plural and how it is spaced and
            hyphened do not matter, and of "highway or road" one is enough.
        exact_name: Whether it has to hold it letter by letter, but for case.
        min_words: Fewest words of a prompt.
        temperature: Sampling temperature, above 0.
        top_p: Nucleus of the sampling, in (0, 1].
        max_rounds: Rounds after which too few prompts are an error.
        allow_fallback: Whether template sentences, marked as such, stand in for what is missing then.
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
            self._at_least(name, 1)

    def _at_least(self, name: str, least: float) -> None:
        value = getattr(self, name)
        if not value >= least:
            raise ValueError(f"llm.{name}={value}: it must be at least {least}")

    @property
    def falls_back(self) -> bool:
        return self.allow_fallback

    @abstractmethod
    def load(self, device: torch.device) -> Pen: ...

    def chat(self, notebook: Notebook) -> list[dict[str, str]]:
        """The messages that ask for what a class lacks."""
        subject, wanted = notebook.task.subject, notebook.missing
        asked = fill(self.instruction, subject, wanted)
        if self.again and notebook.prompts:
            have = "\n".join(f"- {prompt}" for prompt in notebook.prompts[-_SHOWN:])
            asked += "\n\n" + fill(self.again, subject, wanted, have)
        system = [{"role": "system", "content": fill(self.system, subject, wanted)}] if self.system else []
        return [*system, {"role": "user", "content": asked}]


def seed_of(seed: int, notebook: Notebook) -> int:
    """The seed of a class's next round, in 48 bits: of the run, the class and the round's number alone."""
    subject = notebook.task.subject
    digest = hashlib.sha256(f"{seed}/{subject.class_index}/{subject.name}/{notebook.turn}".encode()).digest()
    return int.from_bytes(digest[:6])
