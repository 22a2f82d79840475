"""Loads captioning models: images in, captions out."""

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

from lgclip.prompts.local_llm import steady
from lgclip.runtime.hub import HubError, commit_of, hub_errors
from lgclip.store.keys import local_folder

CPU_IMAGES = 8
"""Images per forward pass on a CPU, for a model with a fixed image size."""


class ImagePreprocessor(Protocol):
    """Preprocesses an image for a captioning model; picklable, since it is sent to worker processes."""

    def __call__(self, image: Image.Image) -> Tensor: ...


class CaptioningModel(Protocol):
    """Captions images, with its model in memory."""

    @property
    def batch_size(self) -> int:
        """Returns the number of images per forward pass."""
        ...

    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        """Captions a batch of `batch_size` images, preprocessed by its `ImagePreprocessor`."""
        ...


class Processed:
    """Computes pixels with a model's image processor, all images of one size.

    Args:
        processor: The image processor of transformers.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor

    def __call__(self, image: Image.Image) -> Float[Tensor, "3 h w"]:
        return self._processor(images=image, return_tensors="pt").pixel_values[0]


def unchanged_pixels(image: Image.Image) -> UInt8[Tensor, "h w 3"]:
    """Returns the image's unchanged pixels, for a model whose processor resizes images together with the text."""
    return torch.from_numpy(np.array(image))


def preprocessor_of(model: str, revision: str | None) -> Processed:
    """Returns the preprocessing of a model that takes only images; loads no weights.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.

    Raises:
        ValueError: If it cannot be loaded.
    """
    from transformers import AutoImageProcessor

    with _explain_errors(model):
        place, safely = _where(model, revision)
        return Processed(AutoImageProcessor.from_pretrained(place, **safely))


class ImageToTextModel:
    """Captions with a model that takes an image and no text, such as BLIP-2 or a vision encoder with a decoder.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.
        max_new_tokens: Maximum caption length, in tokens.
        batch_size: Images per forward pass on a GPU.
        device: Device of the model: in fp32 on a CPU, in bf16 elsewhere.
    """

    def __init__(
        self, model: str, revision: str | None, max_new_tokens: int, batch_size: int, device: torch.device
    ) -> None:
        from transformers import AutoTokenizer

        with _explain_errors(model):
            place, safely = _where(model, revision)
            self._tokenizer: Any = AutoTokenizer.from_pretrained(place, **safely)
            self._model = _loaded(place, safely, device)
        # Without words such a model goes on from an empty chat and describes no image. An encoder-decoder (BLIP-2
        # with T5) may come with a chat template that it does not need.
        if self._tokenizer.chat_template and not self._model.config.is_encoder_decoder:
            raise ValueError(f"llm.model={model} is a chat model: give the request for an image by llm.instruction=...")
        self._settings = _greedy(self._model, self._tokenizer, max_new_tokens)
        self.batch_size = CPU_IMAGES if device.type == "cpu" else batch_size

    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        pixels = torch.stack(list(images)).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(pixel_values=pixels, generation_config=self._settings)
        # Where a model gives back what it began with, those are special tokens too.
        return self._tokenizer.batch_decode(tokens, skip_special_tokens=True)


class VisionLanguageModel:
    """Captions with a vision-language chat model, which is asked about each image.

    Images of different sizes give prompts of different lengths, and padding changes the rounding: on a CPU each image
    is therefore processed alone, and its caption does not depend on the batch.

    Args:
        model: A folder or a hub id.
        revision: The hub's revision.
        instruction: Question about each image.
        max_new_tokens: Maximum caption length, in tokens.
        batch_size: Images per forward pass on a GPU.
        device: Device of the model: in fp32 on a CPU, in bf16 elsewhere.
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

        with _explain_errors(model):
            place, safely = _where(model, revision)
            self._processor: Any = AutoProcessor.from_pretrained(place, **safely)
            template = getattr(self._processor, "chat_template", None)
            if template is None:
                raise ValueError("it has no chat template; llm.instruction='' shows it images without words")
            self._model = _loaded(place, safely, device)
        # A decoder continues from the last position, which must be the request and not padding.
        self._processor.tokenizer.padding_side = "left"
        self._instruction = instruction
        self._template, self._template_options = steady(template, thinking=False)
        self._settings = _greedy(self._model, self._processor.tokenizer, max_new_tokens)
        self.batch_size = 1 if device.type == "cpu" else batch_size

    def __call__(self, images: Sequence[Tensor]) -> list[str]:
        inputs = self._processor.apply_chat_template(
            [self._question(Image.fromarray(pixels.numpy())) for pixels in images],
            chat_template=self._template,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
            **self._template_options,
        ).to(self._model.device, self._model.dtype)
        with torch.inference_mode():
            tokens = self._model.generate(**inputs, generation_config=self._settings)
        # A decoder-only model returns the request in front of its answer; left padding makes it equally long in all.
        answers = tokens[:, inputs["input_ids"].shape[1] :]
        return self._processor.tokenizer.batch_decode(answers, skip_special_tokens=True)

    def _question(self, image: Image.Image) -> list[dict[str, Any]]:
        words = {"type": "text", "text": self._instruction}
        return [{"role": "user", "content": [{"type": "image", "image": image}, words]}]


def _where(model: str, revision: str | None) -> tuple[Path | str, dict[str, Any]]:
    """Returns the loading arguments of a model: its location, and common settings that forbid remote code."""
    folder = local_folder(model)
    commit: str | None = None
    if folder is None:
        # The commit in the key, so that the loaded model is the recorded one, even if the branch moves.
        commit = commit_of(model, revision)
    return folder or model, {"revision": commit, "trust_remote_code": False}


@contextmanager
def _explain_errors(model: str) -> Iterator[None]:
    """Turns a library's errors about a model that cannot be loaded into one line with the fix."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # the stage has its own progress bar
    try:
        with hub_errors(model):
            yield
    except HubError:
        raise
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"llm.model={model} cannot be loaded: {reason[:300]} (a model's own code is not run, and weights are read "
            "from safetensors only; name an image-to-text or vision-language model of transformers)"
        ) from error


def _loaded(place: Path | str, safely: dict[str, Any], device: torch.device) -> Any:
    from transformers import AutoModelForImageTextToText

    options: dict[str, Any] = {"dtype": torch.float32}
    if device.type != "cpu":
        # Straight onto the device, not by way of the CPU's memory, which may be smaller than the model.
        options = {"dtype": torch.bfloat16, "device_map": {"": device}}
    model: Any = AutoModelForImageTextToText.from_pretrained(place, **safely, use_safetensors=True, **options)
    return model.eval()


def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Any:
    """Returns a greedy decoding config; of the model's own settings only the start and end tokens are kept."""
    from transformers import GenerationConfig
    from transformers.generation.utils import GenerationMixin

    published = model.generation_config
    end = published.eos_token_id
    if end is None:
        end = tokenizer.eos_token_id
    padding = tokenizer.pad_token_id
    if padding is None:
        # Chat models may have several ends; any of them pads, because padding is cut off with the special tokens.
        padding = end[0] if isinstance(end, list) else end
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        bos_token_id=published.bos_token_id,
        decoder_start_token_id=published.decoder_start_token_id,
        eos_token_id=end,
        pad_token_id=padding,
    )
    # What these settings leave open is taken from the part that generates. BLIP-2's language model, for example,
    # has its own number of beams.
    for part in model.modules():
        if isinstance(part, GenerationMixin):
            part.generation_config = settings
    return settings
