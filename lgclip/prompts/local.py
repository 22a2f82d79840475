"""Prompts by a chat model on this machine."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import torch

from lgclip.batch import Subject
from lgclip.identity import NOT_AN_INPUT, WEIGHTS, local_folder
from lgclip.prompts.base import Pen, PromptError, PromptWriter
from lgclip.prompts.replies import usable_lines


@dataclass(frozen=True)
class LocalLLM(PromptWriter):
    """A chat model of transformers that runs on this machine.

    It is asked in rounds of several replies, each round seeded by the class and its number, so that
    more prompts continue fewer. A line of a reply is a prompt if it holds the class name and is new.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; of no use for a folder.
        instruction: What the model is told; `{name}` is the class name.
        temperature: Sampling temperature, above 0.
        top_p: Nucleus of the sampling, in (0, 1].
        max_new_tokens: Longest reply, in tokens.
        replies_per_round: Replies drawn at once.
        max_rounds: Rounds after which too few prompts are an error.
    """

    model: str = field(metadata=WEIGHTS)
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    instruction: str = "{name}"
    temperature: float = 1.0
    top_p: float = 1.0
    max_new_tokens: int = 64
    replies_per_round: int = 16
    max_rounds: int = field(default=8, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        if "{name}" not in self.instruction:
            raise ValueError(f"llm.instruction={self.instruction!r}: it has no {{name}} for the class name")
        if not self.temperature > 0:
            raise ValueError(f"llm.temperature={self.temperature}: it must be above 0")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"llm.top_p={self.top_p}: it must be in (0, 1]")
        for name in ("max_new_tokens", "replies_per_round", "max_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"llm.{name}={getattr(self, name)}: it must be at least 1")
        local_folder(self.model)

    def load(self, device: torch.device) -> Pen:
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        transformers_logging.disable_progress_bar()  # the stage has a bar of its own
        place = local_folder(self.model) or self.model
        tokenizer: Any = AutoTokenizer.from_pretrained(place, revision=self.revision)
        dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        model: Any = AutoModelForCausalLM.from_pretrained(place, revision=self.revision, dtype=dtype)
        model = model.to(device).eval()

        def replies(name: str, seed: int) -> list[str]:
            chat = [{"role": "user", "content": self.instruction.replace("{name}", name)}]
            asked = tokenizer.apply_chat_template(
                chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
            ).to(device)
            with torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]), torch.inference_mode():
                torch.manual_seed(seed)
                tokens = model.generate(
                    **asked,
                    do_sample=True,
                    temperature=self.temperature,
                    top_p=self.top_p,
                    top_k=0,
                    max_new_tokens=self.max_new_tokens,
                    num_return_sequences=self.replies_per_round,
                )
            return tokenizer.batch_decode(tokens[:, asked["input_ids"].shape[1] :], skip_special_tokens=True)

        def write(subject: Subject, count: int, seed: int) -> list[str]:
            return self._write(replies, subject.class_index, subject.name, count, seed)

        return write

    def _write(self, replies: Any, class_index: int, class_name: str, count: int, seed: int) -> list[str]:
        prompts: dict[str, None] = {}
        for turn in range(self.max_rounds):
            for reply in replies(class_name, _seed_of(seed, class_index, class_name, turn)):
                prompts |= dict.fromkeys(usable_lines(reply, class_name))
            if len(prompts) >= count:
                return list(prompts)
        raise PromptError(
            f"class {class_index} ({class_name!r}): {self.model} gave {len(prompts)} usable prompts of {count} in "
            f"{self.max_rounds} rounds; ask for fewer, raise llm.temperature or llm.max_rounds, or use llm=template"
        )


def _seed_of(seed: int, class_index: int, class_name: str, turn: int) -> int:
    digest = hashlib.sha256(f"{seed}/{class_index}/{class_name}/{turn}".encode()).digest()
    return int.from_bytes(digest[:6])
