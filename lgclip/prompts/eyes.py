"""Image-to-text models that are ready to look: images in, what they say of them out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from lgclip.hub import HubError, commit_of, hub_errors
from lgclip.identity import local_folder
from lgclip.prompts.local import steady

CPU_IMAGES = 8
"""Images of a pass on a CPU of a model that is shown images of one size."""


class Sight(Protocol):
    """An image as a model takes it in; it goes to worker processes, so it can be pickled."""

    def __call__(self, image: Image.Image) -> Tensor: ...


class Eyes(Protocol):
    """A captioner that is ready to look, its model in memory."""

    @property
    def at_once(self) -> int:
        """Images of one pass."""
        ...

    def __call__(self, seen: Sequence[Tensor]) -> list[str]:
        """What it says of each of `at_once` images, as they left its `Sight`."""
        ...


class Processed:
    """Pixels as a model's image processor makes them, all images of one size.

    Args:
        processor: The image processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return self._processor(images=image, return_tensors="pt").pixel_values[0]


def as_it_is(image: Image.Image) -> UInt8[Tensor, "h w 3"]:
    """The image's own pixels, for a model that chooses the size with the words around it."""
    return torch.from_numpy(np.array(image))


def sight_of(model: str, revision: str | None) -> Processed:
    """The preprocessing of a model that is shown images alone; loads no weights.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from transformers import AutoImageProcessor

    with _told(model):
        place, safely = _where(model, revision)
        return Processed(AutoImageProcessor.from_pretrained(place, **safely))


class Beholder:
    """A model that is shown an image and no words, such as BLIP-2 or a vision encoder with a decoder.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.
        max_new_tokens: Longest caption, in tokens.
        batch_size: Images of a pass on a GPU.
        device: Where it runs: in fp32 on a CPU, in bf16 elsewhere.
    """

    def __init__(
        self, model: str, revision: str | None, max_new_tokens: int, batch_size: int, device: torch.device
    ) -> None:
        from transformers import AutoTokenizer

        with _told(model):
            place, safely = _where(model, revision)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place, **safely)
            self._model = _loaded(place, safely, device)
        if self._tokenizer.chat_template and not self._model.config.is_encoder_decoder:
            raise ValueError(f"llm.model={model} is a chat model: say what to ask of an image by llm.instruction=...")
        self._settings = _greedy(self._model, self._tokenizer, max_new_tokens)
        self.at_once = CPU_IMAGES if device.type == "cpu" else batch_size

    def __call__(self, seen: Sequence[Tensor]) -> list[str]:
        pixels = torch.stack(list(seen)).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(pixel_values=pixels, generation_config=self._settings)
        # Where a model gives back what it began with, those are special tokens too.
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)


class Conversant:
    """A vision-language chat model, which is asked about each image.

    Images of other sizes make prompts of other lengths, and padding rounds otherwise: so on a CPU each is asked about
    alone, and gets the same caption in any company.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.
        instruction: What it is asked.
        max_new_tokens: Longest caption, in tokens.
        batch_size: Images of a pass on a GPU.
        device: Where it runs: in fp32 on a CPU, in bf16 elsewhere.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        instruction: str,
        max_new_tokens: int,
        batch_size: int,
        device: torch.device,
    ) -> None:
        from transformers import AutoProcessor

        with _told(model):
            place, safely = _where(model, revision)
            self._processor: Any = AutoProcessor.from_pretrained(place, **safely)
            template = getattr(self._processor, "chat_template", None)
            if template is None:
                raise ValueError("it has no chat template; llm.instruction='' shows it images without words")
            self._model = _loaded(place, safely, device)
        self._processor.tokenizer.padding_side = "left"
        self._instruction = instruction
        self._template, self._known = steady(template, thinking=False)
        self._settings = _greedy(self._model, self._processor.tokenizer, max_new_tokens)
        self.at_once = 1 if device.type == "cpu" else batch_size

    def __call__(self, seen: Sequence[Tensor]) -> list[str]:
        asked = self._processor.apply_chat_template(
            [self._question(Image.fromarray(one.numpy())) for one in seen],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **self._known,
        ).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**asked, generation_config=self._settings)
        said = tokens[:, asked["input_ids"].shape[1] :]
        return self._processor.tokenizer.batch_decode(said, skip_special_tokens=True)

    def _question(self, image: Image.Image) -> list[dict[str, Any]]:
        words = {"type": "text", "text": self._instruction}
        return [{"role": "user", "content": [{"type": "image", "image": image}, words]}]


def _where(model: str, revision: str | None) -> tuple[Path | str, dict[str, Any]]:
    """Where a model is loaded from, and what holds for all that is; a model's own code is never run."""
    folder = local_folder(model)
    commit = commit_of(model, revision) if folder is None else None
    return folder or model, {"revision": commit, "trust_remote_code": False}


@contextmanager
def _told(model: str) -> Iterator[None]:
    """Turns what a library says of a model that it cannot load into one line with the way out."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the stage has a bar of its own
    try:
        with hub_errors(model):
            yield
    except HubError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"llm.model={model} cannot be loaded: {reason[:300]} (a model's own code is not run, and weights are read "
            "from safetensors alone; name an image-to-text or vision-language model of transformers)"
        ) from error


def _loaded(place: Path | str, safely: dict[str, Any], device: torch.device) -> Any:
    from transformers import AutoModelForImageTextToText

    onto = {} if device.type == "cpu" else {"device_map": {"": device}}  # not by way of the CPU's memory
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    model: Any = AutoModelForImageTextToText.from_pretrained(place, **safely, dtype=dtype, use_safetensors=True, **onto)
    return model.eval()


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """Greedy decoding: of the model's own settings only where a caption begins and ends counts."""
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    own = model.generation_config
    end = tokenizer.eos_token_id if own.eos_token_id is None else own.eos_token_id
    first = end[0] if isinstance(end, list) else end
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        decoder_start_token_id=own.decoder_start_token_id,
        eos_token_id=end,
        pad_token_id=first if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    for part in model.modules():  # what is not said is taken from there: a part's own beams, for one
        if isinstance(part, GenerationMixin):
            part.generation_config = settings
    return settings
