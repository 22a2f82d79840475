"""Generates prompts with a local chat model."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Bool, Int

from lgclip.prompts.base import GeneratedPrompts, PromptError, PromptWriter, Task
from lgclip.prompts.chat import ChatHistory, ChatPromptGenerator, seed_of
from lgclip.runtime.hub import HubError, commit_of, hub_errors
from lgclip.runtime.model_folders import check_language_model
from lgclip.store.cost_log import Tokens
from lgclip.store.keys import NOT_AN_INPUT, WEIGHTS, hub_repositories, local_folder

TODAY = "01 Jan 2025"
"""Date for chat templates that insert one: prompts must be the same on every day."""

_NOW = re.compile(r"strftime_now\(\s*(?:'[^'\n]*'|\"[^\"\n]*\")\s*\)")


@dataclass(frozen=True)
class LocalLLM(ChatPromptGenerator):
    """Generates prompts with a local chat model of transformers: fp32 on a CPU, bf16 elsewhere.

    Several classes are processed in one batch, padded on the left. Each has its own random numbers, so that its
    prompts do not depend on the batch, up to the rounding of the model.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; ignored for a folder.
        top_k: Number of most likely tokens to sample from; 0 for all.
        max_new_tokens: Maximum reply length, in tokens.
        replies_per_round: Number of replies to one request.
        thinking: Whether to enable the thinking mode of a model that has one.
        batch_size: Number of classes per batch.
    """

    key_name: ClassVar[str] = "LocalLLM"
    prompts_from: ClassVar[str] = "class_names"

    model: str = field(metadata=WEIGHTS)
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    top_k: int = 0
    max_new_tokens: int = 1024
    replies_per_round: int = 1
    thinking: bool = False
    batch_size: int = field(default=8, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_new_tokens", "replies_per_round", "batch_size"):
            self._check_at_least(name, 1)
        self._check_at_least("top_k", 0)
        local_folder(self.model)

    @property
    def items_per_call(self) -> int:
        return self.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return hub_repositories(self.model, self.revision)

    def check_weights(self) -> None:
        check_language_model(local_folder(self.model), f"llm.model={self.model}")

    def load(self, device: torch.device) -> PromptWriter:
        tokenizer, model = self._load(device)

        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, GeneratedPrompts | PromptError]]:
            unfinished = {place: ChatHistory(task, self) for place, task in enumerate(tasks)}
            # One pass more than there are rounds: the last one only hands out what is left.
            for turn in range(self.max_rounds + 1):
                is_over = turn == self.max_rounds
                finished = [place for place, history in unfinished.items() if is_over or not history.missing]
                for place in finished:
                    yield place, unfinished.pop(place).result()
                # Batches are formed again in each round, so that a batch is not left with a few unfinished classes.
                histories = list(unfinished.values())
                for start in range(0, len(histories), self.batch_size):
                    batch = histories[start : start + self.batch_size]
                    answers = self._replies(tokenizer, model, batch, seed)
                    for history, answer in zip(batch, answers, strict=True):
                        history.spend(answer.tokens)
                        history.add(answer.replies, answer.truncated)

        return write

    def _load(self, device: torch.device) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # the stage has its own progress bar
        folder = local_folder(self.model)
        place = folder or self.model
        revision: str | None = None
        if folder is None:
            # The commit in the key, even if the branch has moved since.
            revision = commit_of(self.model, self.revision)
        options: dict[str, Any] = {"dtype": torch.float32}
        if device.type != "cpu":
            # Straight onto the device, not by way of the CPU's memory, which may be smaller than the model.
            options = {"dtype": torch.bfloat16, "device_map": {"": device}}
        safely = {"revision": revision, "trust_remote_code": False}  # a model's own code is never run
        try:
            with hub_errors(self.model):
                tokenizer: Any = AutoTokenizer.from_pretrained(place, **safely)
                model: Any = AutoModelForCausalLM.from_pretrained(place, **safely, use_safetensors=True, **options)
                model = model.eval()
        except HubError:
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"llm.model={self.model} cannot be loaded: {reason[:300]} (a model's own code is not run, and weights "
                "are read from safetensors only; name another model, or serve it and use llm=server)"
            ) from error
        if not tokenizer.chat_template:
            raise ValueError(f"llm.model={self.model}: it has no chat template; name an instruct or chat model")
        # Padding is masked, so any token serves; Llama's tokenizers declare none.
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The sampling is ours alone: of the model's own settings only the ends of a reply count.
        ends = model.generation_config.eos_token_id
        if ends is None:
            ends = tokenizer.eos_token_id
        model.generation_config = GenerationConfig(
            do_sample=False,  # `sampler` samples, and greedy search then picks the sample
            eos_token_id=ends,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.max_new_tokens,
        )
        return tokenizer, model

    def _replies(self, tokenizer: Any, model: Any, histories: Sequence[ChatHistory], seed: int) -> list["Answer"]:
        """Returns `replies_per_round` replies for each class, and their token counts."""
        from lgclip.prompts.seeded_sampling import sampler

        rows_per_class = self.replies_per_round
        requests: list[str] = []
        for history in histories:
            # Rows of one class lie together: `sampler` gives the next `rows_per_class` rows to the next seed.
            requests += [self._rendered(tokenizer, history)] * rows_per_class
        encoding = tokenizer(
            requests,
            add_special_tokens=False,  # the template has put them in
            padding=True,
            padding_side="left",  # a decoder continues from the last position, which must not be padding
            return_tensors="pt",
        ).to(model.device)
        sampling = sampler(
            [seed_of(seed, history) for history in histories],
            rows_per_class,
            model.device,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )
        # Some tokenizers also return token types, which a causal model refuses.
        inputs = {name: encoding[name] for name in ("input_ids", "attention_mask")}
        try:
            with torch.inference_mode():
                tokens = model.generate(**inputs, logits_processor=sampling)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"llm.batch_size={self.batch_size}: {self.model} has no room for {len(histories)} classes at once; ask "
                "for fewer (finished prompts are stored), or take a smaller model"
            ) from None
        # `generate` returns the request in front of the reply; left padding makes it equally long in all rows.
        replies = tokens[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(replies, skip_special_tokens=True)
        read = inputs["attention_mask"].sum(dim=1).tolist()
        written = _lengths(replies, model.generation_config.eos_token_id).tolist()
        is_open = _is_open(replies, model.generation_config.eos_token_id).tolist()
        by_class: list[Answer] = []
        for start in range(0, len(texts), rows_per_class):
            rows = slice(start, start + rows_per_class)
            # A small model may write a single line without an end, which is all that it can give.
            truncated = [i for i, text in enumerate(texts[rows]) if is_open[start + i] and "\n" in text.strip()]
            by_class.append(Answer(texts[rows], Tokens(sum(read[rows]), sum(written[rows])), truncated))
        return by_class

    def _rendered(self, tokenizer: Any, history: ChatHistory) -> str:
        template, options = steady(tokenizer.get_chat_template(), thinking=self.thinking)
        return tokenizer.apply_chat_template(
            self.chat(history), chat_template=template, add_generation_prompt=True, tokenize=False, **options
        )


class Answer(NamedTuple):
    """Holds the replies to one request.

    Attributes:
        replies: The replies.
        tokens: Their token counts.
        truncated: Indices of the replies that reached the token limit.
    """

    replies: list[str]
    tokens: Tokens
    truncated: list[int]


def steady(template: str, *, thinking: bool) -> tuple[str, dict[str, Any]]:
    """Returns a chat template without the current date, and its arguments.

    Args:
        template: The template.
        thinking: Whether to enable the thinking mode; templates without one do not get the argument.
    """
    # Templates get the date in two ways: they call a function, or they read a variable that may be set.
    template = _NOW.sub(repr(TODAY), template)
    variables = {"enable_thinking": thinking, "date_string": TODAY}
    return template, {name: value for name, value in variables.items() if name in template}


def _lengths(tokens: Int[torch.Tensor, "b t"], ends: int | Sequence[int] | None) -> Int[torch.Tensor, " b"]:
    """Returns the number of tokens of each reply, including its end token: replies shorter than others are padded."""
    end = _is_end(tokens, ends)
    # Ends before each token. The padding behind a reply may be the end token again, so ends cannot just be counted.
    before = end.cumsum(dim=1) - end.long()
    return (before == 0).sum(dim=1)


def _is_open(tokens: Int[torch.Tensor, "b t"], ends: int | Sequence[int] | None) -> Bool[torch.Tensor, " b"]:
    """Returns which replies have no end token, because the model reached its limit first."""
    return ~_is_end(tokens, ends).any(dim=1)


def _is_end(tokens: Int[torch.Tensor, "b t"], ends: int | Sequence[int] | None) -> Bool[torch.Tensor, "b t"]:
    if ends is None:
        ends = []
    return torch.isin(tokens, torch.tensor(ends, dtype=tokens.dtype, device=tokens.device))
