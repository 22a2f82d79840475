"""Implements learned vectors among the tokens of frozen towers: text prompts (CoOp) and visual prompts (VPT).

A prompt's state consists of its vectors only; the towers stay outside, and get no gradient.
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
from lgclip.encoder.visual_prompt import prompted_features

POSITIONS = ("front", "middle", "end")


@dataclass(frozen=True)
class TextContext:
    """Configures a text prompt (CoOp, arXiv:2109.01134, sec. 3.2; values of GRIP, arXiv:2306.01669).

    Args:
        tokens: Number of learned vectors.
        position: `front` of the sentence, at its `end`, or half and half around it (`middle`).
        template: The sentence, with `{}` for the class name.
        per_class: Whether each class has its own vectors.
        words: Words that initialize the vectors, one token each; None initializes from N(0, 0.02).
        seed: Seed of the initialization.

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
            raise ValueError(f"prompt_tuning.position={self.position}: choose {', '.join(POSITIONS)}")
        if self.template.count("{}") != 1:
            raise ValueError(f"prompt_tuning.template={self.template}: it needs {{}} once, where the class name goes")


@dataclass(frozen=True)
class VisualTokens:
    """Configures a visual prompt (VPT, arXiv:2203.12119, sec. 3.2; values of GRIP, arXiv:2306.01669).

    Args:
        tokens: Number of learned vectors.
        deep: Whether each block has its own vectors, which replace the previous block's outputs for them.
        seed: Seed of the initialization, N(0, 1 / width).

    Raises:
        ValueError: If a value is out of range.
    """

    tokens: int = 16
    deep: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        _check_tokens(self.tokens)


class Phrases(NamedTuple):
    """Holds tokenized sentences with slots for the vectors of a text prompt.

    Attributes:
        ids: Token ids; an arbitrary word's where a vector is inserted.
        slots: Index of the inserted vector; -1 for the token itself.
        shared: Length of the common prefix of all sentences, never including the end token.
    """

    ids: Int[Tensor, "c t"]
    slots: Int[Tensor, "c t"]
    shared: int


class TextPrompt(nn.Module):
    """Implements a text prompt for some classes; `vectors` is (n, w), or (c, n, w) with vectors of each class.

    Args:
        towers: Towers that it is tuned with. They stay on their device.
        context: Its configuration.
        class_names: The classes.

    Raises:
        ValueError: If there is no class, a sentence is too long for the text tower, or `words` has another number of
            tokens than there are vectors.
    """

    kind = "text"

    def __init__(self, towers: LearningTowers, context: TextContext, class_names: Sequence[str]) -> None:
        super().__init__()
        if not class_names:
            raise ValueError("a text prompt needs a class name at least")
        self.towers = towers
        self.context = context
        self.class_names = tuple(class_names)
        self._parts = _text_tower(towers.model)  # a tuple: the tower is no part of this module
        self._phrases = self._written()
        self.vectors = nn.Parameter(self._start().to(towers.device))

    def forward(self) -> Float[Tensor, "c d"]:
        """Computes unit features of the classes, in fp32."""
        from open_clip.transformer import text_global_pool

        (tower, pool, eos) = self._parts
        (ids, slots, shared) = self._phrases
        # An embedding takes no -1, so words read vector 0 here, and `where` puts the word's own embedding back.
        learned_prompts = F.embedding(
            slots.clamp(min=0), self.vectors.flatten(0, -2)
        )  # its gradient is summed in one order
        tokens = torch.where((slots >= 0)[..., None], learned_prompts, tower.token_embedding(ids))
        with arithmetic(self.towers.precision, self.towers.device):
            tokens = self._blocks(tokens + tower.positional_embedding[: ids.shape[1]], shared)
            pooled = text_global_pool(tower.ln_final(tokens), ids[:, shared:], pool, eos)
            project = tower.text_projection
            # open_clip has towers without a projection, with a matrix, and with a linear layer.
            if isinstance(project, nn.Linear):
                pooled = project(pooled)
            elif project is not None:
                pooled = pooled @ project
        return F.normalize(pooled.float(), dim=-1)

    def _blocks(self, tokens: Float[Tensor, "c t w"], shared: int) -> Float[Tensor, "c r w"]:
        """Runs the blocks on the positions after the common prefix.

        Under a causal mask the prefix does not depend on what follows, so it is processed once, not once per class.
        """
        transformer = self._parts[0].transformer
        mask = self._parts[0].attn_mask
        # The sentences may have been cut to the longest one, and the mask is of the tower's full length.
        if mask is not None:
            mask = mask[: tokens.shape[1], : tokens.shape[1]]
        if not shared:
            return transformer(tokens, attn_mask=mask)
        assert mask is not None, "places are shared under a causal mask alone"
        prefix = tokens[:1, :shared]
        suffix = tokens[:, shared:]
        # open_clip's residual block, written out: queries are of the places that differ alone, keys and values of the
        # shared ones, too. `block` itself cannot do that, since it takes queries and keys from one normed input.
        for block in transformer.resblocks:
            queries = block.ln_1(suffix)
            keys = torch.cat([block.ln_1(prefix).expand(len(suffix), -1, -1), queries], dim=1)
            suffix = suffix + block.ls_1(block.attention(queries, keys, keys, attn_mask=mask[shared:]))
            suffix = suffix + block.ls_2(block.mlp(block.ln_2(suffix)))
            # After the keys were taken: the others must see the shared places as they came into this block.
            prefix = block(prefix, attn_mask=mask[:shared, :shared])
        return suffix

    def _written(self) -> Phrases:
        """Returns the tokenized sentences of the classes."""
        from open_clip.transformer import ResidualAttentionBlock

        context = self.context
        (tower, pool, _) = self._parts
        length = len(tower.positional_embedding)
        sentences = [context.template.replace("{}", name) for name in self.class_names]
        head, contents, tail, blank = read(self.towers.tokenizer, sentences, length)
        n = context.tokens
        _check_lengths(self.class_names, contents, n, length - len(head) - 1)
        first = {"front": n, "middle": n // 2, "end": 0}[context.position]
        id_rows = []
        slot_rows = []
        for row, content in enumerate(contents):
            # The vectors are flattened to one table; with `per_class` a class's own begin at row * n.
            offset = n * row if context.per_class else 0
            prompt_slots = list(range(offset, offset + n))
            # A real word's id is where a vector is inserted. The end's id there would be taken for the end of the
            # sentence by the pooling, which looks for the highest id or for the end's.
            line = [*head, *[blank] * first, *content, *[blank] * (n - first), *tail]
            marks = [
                *[-1] * len(head),
                *prompt_slots[:first],
                *[-1] * len(content),
                *prompt_slots[first:],
                *[-1] * len(tail),
            ]
            id_rows.append(line[:length])
            slot_rows.append(marks[:length])
        ends = [len(head) + n + len(content) for content in contents]
        ids = torch.tensor(id_rows)
        slots = torch.tensor(slot_rows)
        shared = 0
        if tower.attn_mask is not None and pool in ("argmax", "eos"):
            # Nothing reads what follows the last end, so it is not computed.
            ids = ids[:, : max(ends) + 1]
            slots = slots[:, : max(ends) + 1]
            # Blocks of another class may hold what `_blocks` does not write out, so they share nothing.
            if all(isinstance(block, ResidualAttentionBlock) for block in tower.transformer.resblocks):
                is_equal = ((ids == ids[:1]) & (slots == slots[:1])).all(dim=0).tolist()
                # Up to the first place that differs. Each sentence's end stays outside, because it is pooled.
                shared = min([*ends, *(place for place, equal in enumerate(is_equal) if not equal)])
        return Phrases(ids.to(self.towers.device), slots.to(self.towers.device), shared)

    def _start(self) -> Float[Tensor, "*c n w"]:
        context = self.context
        tower = self._parts[0]
        table = tower.token_embedding.weight
        classes = (len(self.class_names),) if context.per_class else ()
        if context.words is None:
            # A separate generator on the CPU: the same initialization on every device, without effect on other samples.
            # 0.02 is the deviation of CLIP's own token embeddings at their start, and CoOp's.
            generator = torch.Generator().manual_seed(context.seed)
            return torch.randn(*classes, context.tokens, table.shape[1], generator=generator) * 0.02
        ids = read(self.towers.tokenizer, [context.words], len(tower.positional_embedding))[1][0]
        if len(ids) != context.tokens:
            raise ValueError(
                f"prompt_tuning.words={context.words} are {len(ids)} tokens; set prompt_tuning.tokens={len(ids)}"
            )
        return table[ids].detach().cpu().repeat(*classes, 1, 1)


class VisualPrompt(nn.Module):
    """Implements a visual prompt; its parameter `vectors` is (1, n, w), or (blocks, n, w) if it is deep.

    Args:
        towers: Towers that it is tuned with. They stay on their device.
        context: Its configuration.
    """

    kind = "visual"

    def __init__(self, towers: LearningTowers, context: VisualTokens) -> None:
        from open_clip.transformer import VisionTransformer

        super().__init__()
        self.towers = towers
        self.context = context
        visual = towers.model.visual
        assert isinstance(visual, VisionTransformer), "learning_towers(device, 'visual') refuses others"
        width = visual.conv1.out_channels
        blocks = len(visual.transformer.resblocks)
        # Only the first block reads vectors of a shallow prompt.
        depth = blocks if context.deep else 1
        generator = torch.Generator().manual_seed(context.seed)
        start = torch.randn(depth, context.tokens, width, generator=generator) * width**-0.5
        self.vectors = nn.Parameter(start.to(towers.device))

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b d"]:
        """Computes unit features of preprocessed images, in fp32."""
        with arithmetic(self.towers.precision, self.towers.device):
            features = prompted_features(self.towers.model.visual, self.vectors, pixels)
        return F.normalize(features.float(), dim=-1)


def read(tokenizer: Any, sentences: Sequence[str], length: int) -> tuple[list[int], list[list[int]], list[int], int]:
    """Tokenizes sentences with open_clip's tokenizers, and separates the constant tokens around each.

    Args:
        tokenizer: One of open_clip's.
        sentences: The sentences.
        length: Context length of the text tower.

    Returns:
        Ids before each sentence, of each sentence, after each (end and padding), and of an arbitrary word.

    Raises:
        ValueError: If the tokens around a sentence are not the same for each.
    """
    # Twice the length, so that a sentence that is too long is not cut unseen.
    empty, letter, *rows = tokenizer(["", "a", *sentences], context_length=2 * length).tolist()
    # The empty sentence and a sentence of one letter agree up to the place where content begins.
    before = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(empty, letter, strict=True))))
    tail = empty[before:]

    def content(row: list[int], sentence: str) -> list[int]:
        for end in range(before, len(row)):
            # The content ends where the rest of the row is what follows an empty sentence: end mark and padding.
            if row[end:] == tail[: len(row) - end]:
                return row[before:end]
        raise ValueError(f"the encoder's tokenizer reads {sentence!r} in a way that leaves a tuned prompt no place")

    return (
        empty[:before],
        [content(row, token_ids) for row, token_ids in zip(rows, sentences, strict=True)],
        tail,
        letter[before],
    )


def _text_tower(model: Any) -> tuple[Any, Any, Any]:
    """Returns the module with the text tower's parts, its pooling, and its end token id."""
    from open_clip.model import CLIP

    if isinstance(model, CLIP):
        return model, model.text_pool_type, model.text_eos_id
    return model.text, model.text.pool_type, model.text.eos_id


def _check_tokens(tokens: int) -> None:
    if isinstance(tokens, bool) or tokens < 1:
        raise ValueError(f"prompt_tuning.tokens={tokens}: it must be an integer, at least 1")


def _check_lengths(class_names: Sequence[str], contents: Sequence[list[int]], tokens: int, room: int) -> None:
    for name, content in zip(class_names, contents, strict=True):
        if len(content) + tokens > room:
            raise ValueError(
                f"class {name!r}: its sentence takes {len(content)} tokens, and beside {tokens} of the prompt the text "
                f"tower has room for {max(0, room - tokens)}; shorten the name, or lower prompt_tuning.tokens"
            )
