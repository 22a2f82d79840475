"""Learnt vectors among the tokens of frozen towers: text prompts (CoOp) and visual prompts (VPT).

A prompt's state is its vectors alone; the towers stay outside, and take no gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from lgclip.encoder.base import LearningTowers
from lgclip.encoder.precision import arithmetic

POSITIONS = ("front", "middle", "end")


@dataclass(frozen=True)
class TextContext:
    """How a text prompt is made (CoOp, arXiv:2109.01134, sec. 3.2; values of GRIP, arXiv:2306.01669).

    Args:
        tokens: Learnt vectors.
        position: `front` of the sentence, at its `end`, or half and half around it (`middle`).
        template: The sentence, with `{}` for the class name.
        per_class: Whether each class has vectors of its own.
        words: What the vectors start as, one token each; None starts them at N(0, 0.02).
        seed: Of the start.

    Raises:
        ValueError: If a value is out of range.
    """

    tokens: int = 16
    position: str = "front"
    template: str = "{}"
    per_class: bool = False
    words: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)
        if self.position not in POSITIONS:
            raise ValueError(f"learner.position={self.position}: choose {', '.join(POSITIONS)}")
        if self.template.count("{}") != 1:
            raise ValueError(f"learner.template={self.template}: it needs {{}} once, where the class name goes")


@dataclass(frozen=True)
class VisualTokens:
    """How a visual prompt is made (VPT, arXiv:2203.12119, sec. 3.2; values of GRIP, arXiv:2306.01669).

    Args:
        tokens: Learnt vectors.
        deep: Whether each block reads vectors of its own, in place of what became of the ones before.
        seed: Of the start, N(0, 1 / width).

    Raises:
        ValueError: If a value is out of range.
    """

    tokens: int = 16
    deep: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)


class Phrases(NamedTuple):
    """Sentences with room for the vectors of a text prompt.

    Attributes:
        ids: Token ids; where a vector goes, those of some word.
        slots: Which vector stands there; -1 for the word itself.
        shared: How many first places are the same in each sentence, the end never among them.
    """

    ids: Int[Tensor, "c t"]
    slots: Int[Tensor, "c t"]
    shared: int


class TextPrompt(nn.Module):
    """A text prompt for some classes; its parameter `vectors` is (n, w), or (c, n, w) with vectors of each class.

    Args:
        towers: What it is learned through. They stay on their device.
        context: How it is made.
        class_names: The classes.

    Raises:
        ValueError: If there is no class, a sentence is too long for the text tower, or `words` are not as many tokens
            as there are vectors.
    """

    kind = "text"

    def __init__(self, towers: LearningTowers, context: TextContext, class_names: Sequence[str]) -> None:
        super().__init__()
        if not class_names:
            raise ValueError("a text prompt needs a class name at least")
        self.towers, self.context, self.class_names = towers, context, tuple(class_names)
        self._parts = _text_tower(towers.model)  # a tuple: the tower is no part of this module
        self._phrases = self._written()
        self.vectors = nn.Parameter(self._start().to(towers.device))

    def forward(self) -> Float[Tensor, "c d"]:
        """Unit features of the classes, in fp32."""
        from open_clip.transformer import text_global_pool

        (tower, pool, eos), (ids, slots, shared) = self._parts, self._phrases
        learnt = F.embedding(slots.clamp(min=0), self.vectors.flatten(0, -2))  # its gradient is summed in one order
        tokens = torch.where((slots >= 0)[..., None], learnt, tower.token_embedding(ids))
        with arithmetic(self.towers.precision, self.towers.device):
            tokens = self._blocks(tokens + tower.positional_embedding[: ids.shape[1]], shared)
            pooled = text_global_pool(tower.ln_final(tokens), ids[:, shared:], pool, eos)
            project = tower.text_projection
            if project is not None:
                pooled = project(pooled) if isinstance(project, nn.Linear) else pooled @ project
        return F.normalize(pooled.float(), dim=-1)

    def _blocks(self, tokens: Float[Tensor, "c t w"], shared: int) -> Float[Tensor, "c r w"]:
        """What the blocks make of the places that are not shared.

        Under a causal mask the shared ones do not depend on what follows, so they go through once, not once a class.
        """
        transformer, mask = self._parts[0].transformer, self._parts[0].attn_mask
        if not shared:
            return transformer(tokens, attn_mask=None if mask is None else mask[: tokens.shape[1], : tokens.shape[1]])
        mask = mask[: tokens.shape[1], : tokens.shape[1]]
        first, own = tokens[:1, :shared], tokens[:, shared:]
        for block in transformer.resblocks:
            asked = block.ln_1(own)
            seen = torch.cat([block.ln_1(first).expand(len(own), -1, -1), asked], dim=1)
            own = own + block.ls_1(block.attention(asked, seen, seen, attn_mask=mask[shared:]))
            own = own + block.ls_2(block.mlp(block.ln_2(own)))
            first = block(first, attn_mask=mask[:shared, :shared])
        return own

    def _written(self) -> Phrases:
        """The classes' sentences, as the text tower will read them."""
        from open_clip.transformer import ResidualAttentionBlock

        context, (tower, pool, _) = self.context, self._parts
        length = len(tower.positional_embedding)
        sentences = [context.template.replace("{}", name) for name in self.class_names]
        head, contents, tail, blank = read(self.towers.tokenizer, sentences, length)
        n = context.tokens
        _check_lengths(self.class_names, contents, n, length - len(head) - 1)
        first = {"front": n, "middle": n // 2, "end": 0}[context.position]
        ids, slots = [], []
        for row, content in enumerate(contents):
            own = [n * row * context.per_class + slot for slot in range(n)]
            line = [*head, *[blank] * first, *content, *[blank] * (n - first), *tail]
            marks = [*[-1] * len(head), *own[:first], *[-1] * len(content), *own[first:], *[-1] * len(tail)]
            ids.append(line[:length])
            slots.append(marks[:length])
        ends = [len(head) + n + len(content) for content in contents]
        found, places = torch.tensor(ids), torch.tensor(slots)
        shared = 0
        if tower.attn_mask is not None and pool in ("argmax", "eos"):
            # Nothing reads what stands after the last end, so it is not computed.
            found, places = found[:, : max(ends) + 1], places[:, : max(ends) + 1]
            if all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks):
                same = ((found == found[:1]) & (places == places[:1])).all(dim=0).tolist()
                shared = min([*ends, *(place for place, alike in enumerate(same) if not alike)])
        return Phrases(found.to(self.towers.device), places.to(self.towers.device), shared)

    def _start(self) -> Float[Tensor, "*c n w"]:
        context, tower = self.context, self._parts[0]
        table = tower.token_embedding.weight
        classes = (len(self.class_names),) if context.per_class else ()
        if context.words is None:
            drawn = torch.Generator().manual_seed(context.seed)
            return torch.randn(*classes, context.tokens, table.shape[1], generator=drawn) * 0.02
        ids = read(self.towers.tokenizer, [context.words], len(tower.positional_embedding))[1][0]
        if len(ids) != context.tokens:
            raise ValueError(f"learner.words={context.words} are {len(ids)} tokens; set learner.tokens={len(ids)}")
        return table[ids].detach().cpu().repeat(*classes, 1, 1)


class VisualPrompt(nn.Module):
    """A visual prompt; its parameter `vectors` is (1, n, w), or (blocks, n, w) if it is deep.

    Args:
        towers: What it is learned through. They stay on their device.
        context: How it is made.
    """

    kind = "visual"

    def __init__(self, towers: LearningTowers, context: VisualTokens) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        self.towers, self.context = towers, context
        visual = towers.model.visual
        assert isinstance(visual, VisionTransformer), "learning_towers(device, 'visual') refuses others"
        width, blocks = visual.conv1.out_channels, len(visual.transformer.resblocks)
        drawn = torch.Generator().manual_seed(context.seed)
        start = torch.randn(blocks if context.deep else 1, context.tokens, width, generator=drawn) * width**-0.5
        self.vectors = nn.Parameter(start.to(towers.device))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Unit features of preprocessed images, in fp32."""
        visual: Any = self.towers.model.visual
        patches = 1 + self.vectors.shape[1]  # where they start
        with arithmetic(self.towers.precision, self.towers.device):
            x = visual.conv1(pixels).flatten(2).transpose(1, 2)
            own = visual.class_embedding.to(x.dtype).expand(len(x), 1, -1)
            x = torch.cat([own, x], dim=1) + visual.positional_embedding.to(x.dtype)
            x = visual.ln_pre(self._with(0, x[:, :1], x[:, 1:]))
            for number, block in enumerate(visual.transformer.resblocks):
                if number and self.context.deep:  # eq. 6 of VPT
                    x = self._with(number, x[:, :1], x[:, patches:])
                x = block(x)
            # What the prompt has become is no part of the image: means over patches are without it.
            pooled = visual._pool(torch.cat([x[:, :1], x[:, patches:]], dim=1))[0]
            pooled = pooled if visual.proj is None else pooled @ visual.proj
        return F.normalize(pooled.float(), dim=-1)

    def _with(self, number: int, first: Float[Tensor, "b 1 w"], rest: Float[Tensor, "b p w"]) -> Tensor:
        """The class token, the vectors of a block and the patches (eq. 4 of VPT)."""
        return torch.cat([first, self.vectors[number].to(first.dtype).expand(len(first), -1, -1), rest], dim=1)


def read(tokenizer: Any, sentences: Sequence[str], length: int) -> tuple[list[int], list[list[int]], list[int], int]:
    """Sentences as open_clip's tokenizers read them, apart from what is the same around each.

    Args:
        tokenizer: One of open_clip's.
        sentences: What is read.
        length: Tokens that the text tower reads.

    Returns:
        Ids before each sentence, of each sentence, after each (end and padding), and of some word.

    Raises:
        ValueError: If what stands around a sentence is not the same for each.
    """
    # Twice the length, so that a sentence that is too long is not cut unseen.
    empty, letter, *rows = tokenizer(["", "a", *sentences], context_length=2 * length).tolist()
    before = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(empty, letter, strict=True))))
    tail = empty[before:]

    def content(row: list[int], sentence: str) -> list[int]:
        for end in range(before, len(row)):
            if row[end:] == tail[: len(row) - end]:
                return row[before:end]
        raise ValueError(f"the encoder's tokenizer reads {sentence!r} in a way that leaves a soft prompt no place")

    return empty[:before], [content(row, of) for row, of in zip(rows, sentences, strict=True)], tail, letter[before]


def _text_tower(model: Any) -> tuple[Any, Any, Any]:
    """What holds the text tower's parts, how it pools, and its id of the end."""
    from open_clip.model import CLIP

    if isinstance(model, CLIP):
        return model, model.text_pool_type, model.text_eos_id
    return model.text, model.text.pool_type, model.text.eos_id


def _check_tokens(tokens: int) -> None:
    if isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"learner.tokens={tokens}: it must be a whole number, at least 1")


def _check_lengths(class_names: Sequence[str], contents: Sequence[list[int]], tokens: int, room: int) -> None:
    for name, content in zip(class_names, contents, strict=True):
        if len(content) + tokens > room:
            raise ValueError(
                f"class {name!r}: its sentence takes {len(content)} tokens, and beside {tokens} of the prompt the text "
                f"tower has room for {max(0, room - tokens)}; shorten the name, or lower learner.tokens"
            )
