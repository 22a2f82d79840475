"""Prompts by a chat model on this machine."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Int

from lgclip.hub import HubError, commit_of, hub_errors
from lgclip.identity import NOT_AN_INPUT, WEIGHTS, hub_repositories, local_folder
from lgclip.ledger import Tokens
from lgclip.prompts.base import Pen, PromptError, Task, Written
from lgclip.prompts.chat import ChatWriter, Notebook, seed_of

TODAY = "01 Jan 2025"
"""What a chat template that puts in the date is told: the same prompts on every day."""

_NOW = re.compile(r"strftime_now\(\s*(['\"]).*?\1\s*\)")


@dataclass(frozen=True)
class LocalLLM(ChatWriter):
    """A chat model of transformers that runs on this machine: fp32 on a CPU, bf16 elsewhere.

    Several classes are asked together, padded on the left. Each draws its own random numbers, so what a
    class gets does not depend on its batch, up to the rounding of the model.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; of no use for a folder.
        top_k: Likeliest tokens that are drawn from; 0 for all.
        max_new_tokens: Longest reply, in tokens.
        replies_per_round: Replies to one request.
        thinking: Whether a model that can think before it answers does so.
        batch_size: Classes asked together.
    """

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
            self._at_least(name, 1)
        self._at_least("top_k", 0)
        local_folder(self.model)

    @property
    def at_once(self) -> int:
        return self.batch_size

    def repositories(self) -> list[tuple[str, str | None]]:
        return hub_repositories(self.model, self.revision)

    def load(self, device: torch.device) -> Pen:
        tokenizer, model = self._load(device)

        def write(tasks: Sequence[Task], seed: int) -> Iterator[tuple[int, Written | PromptError]]:
            open_ = {place: Notebook(task, self) for place, task in enumerate(tasks)}
            for turn in range(self.max_rounds + 1):
                for place in [place for place, book in open_.items() if not book.missing or turn == self.max_rounds]:
                    yield place, open_.pop(place).result()
                books = list(open_.values())
                for start in range(0, len(books), self.batch_size):
                    batch = books[start : start + self.batch_size]
                    for book, (replies, tokens) in zip(
                        batch, self._replies(tokenizer, model, batch, seed), strict=True
                    ):
                        book.spend(tokens)
                        book.add(replies)

        return write

    def _load(self, device: torch.device) -> tuple[Any, Any]:
        from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # the stage has a bar of its own
        folder = local_folder(self.model)
        place = folder or self.model
        revision = commit_of(self.model, self.revision) if folder is None else None
        onto = {} if device.type == "cpu" else {"device_map": {"": device}}  # not by way of the CPU's memory
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        safely = {"revision": revision, "trust_remote_code": False}  # a model's own code is never run
        try:
            with hub_errors(self.model):
                tokenizer: Any = AutoTokenizer.from_pretrained(place, **safely)
                model: Any = AutoModelForCausalLM.from_pretrained(
                    place, **safely, dtype=dtype, use_safetensors=True, **onto
                ).eval()
        except HubError:
            raise
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"llm.model={self.model} cannot be loaded: {reason[:300]} (a model's own code is not run, and weights "
                "are read from safetensors alone; name another model, or serve it and use llm=server)"
            ) from error
        if not tokenizer.chat_template:
            raise ValueError(f"llm.model={self.model}: it has no chat template; name an instruct or chat model")
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        # The sampling is ours alone: of the model's own settings only the ends of a reply count.
        ends = model.generation_config.eos_token_id
        model.generation_config = GenerationConfig(
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id if ends is None else ends,
            pad_token_id=tokenizer.pad_token_id,
            max_new_tokens=self.max_new_tokens,
        )
        return tokenizer, model

    def _replies(
        self, tokenizer: Any, model: Any, books: Sequence[Notebook], seed: int
    ) -> list[tuple[list[str], Tokens]]:
        """`replies_per_round` replies for each class, and what they took."""
        from lgclip.prompts.sampling import sampler

        each = self.replies_per_round
        asked = tokenizer(
            [text for book in books for text in [self._rendered(tokenizer, book)] * each],
            add_special_tokens=False,  # the template has put them in
            padding=True,
            padding_side="left",
            return_tensors="pt",
        ).to(model.device)
        draw = sampler(
            [seed_of(seed, book) for book in books],
            each,
            model.device,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
        )
        inputs = {name: asked[name] for name in ("input_ids", "attention_mask")}
        try:
            with torch.inference_mode():
                tokens = model.generate(**inputs, logits_processor=draw)
        except torch.OutOfMemoryError:
            raise ValueError(
                f"llm.batch_size={self.batch_size}: {self.model} has no room for {len(books)} classes at once; ask for "
                "fewer (what is written is kept), or take a smaller model"
            ) from None
        said = tokens[:, inputs["input_ids"].shape[1] :]
        texts = tokenizer.batch_decode(said, skip_special_tokens=True)
        read, written = (
            inputs["attention_mask"].sum(dim=1).tolist(),
            _lengths(said, model.generation_config.eos_token_id).tolist(),
        )
        rows = [slice(start, start + each) for start in range(0, len(texts), each)]
        return [(texts[own], Tokens(sum(read[own]), sum(written[own]))) for own in rows]

    def _rendered(self, tokenizer: Any, book: Notebook) -> str:
        template, known = steady(tokenizer.get_chat_template(), thinking=self.thinking)
        return tokenizer.apply_chat_template(
            self.chat(book), chat_template=template, add_generation_prompt=True, tokenize=False, **known
        )


def steady(template: str, *, thinking: bool) -> tuple[str, dict[str, Any]]:
    """A chat template that says the same on every day, and what it is to be told.

    Args:
        template: The template.
        thinking: Whether a model that can think does so; one that cannot does not hear of it.
    """
    template = _NOW.sub(repr(TODAY), template)
    told = {"enable_thinking": thinking, "date_string": TODAY}
    return template, {name: value for name, value in told.items() if name in template}


def _lengths(said: Int[torch.Tensor, "b t"], ends: int | Sequence[int] | None) -> Int[torch.Tensor, " b"]:
    """How many tokens each reply has, its end included: one shorter than its neighbours' is padded."""
    end = torch.isin(said, torch.tensor([] if ends is None else ends, dtype=said.dtype, device=said.device))
    before = end.cumsum(dim=1) - end.long()  # ends before each token
    return (before == 0).sum(dim=1)
