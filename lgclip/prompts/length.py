"""How many tokens of a prompt a CLIP text tower does not see."""

from collections.abc import Sequence

CLIP_TOKENS = 77
"""What CLIP's text towers read, start and end included; the T5 towers of newer diffusers read more."""


def cut_tokens(prompts: Sequence[str]) -> list[int]:
    """Tokens of each prompt that CLIP's text tower cuts off, by CLIP's own vocabulary."""
    room = CLIP_TOKENS - 2
    # A token is a byte at least, so most prompts need no tokenizer.
    if not any(len(prompt.encode()) > room for prompt in prompts):
        return [0] * len(prompts)
    from open_clip.tokenizer import SimpleTokenizer  # its vocabulary comes with the package

    tokenizer = SimpleTokenizer()
    return [max(0, len(tokenizer.encode(prompt)) - room) for prompt in prompts]
