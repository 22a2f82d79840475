"""Generates images from prompts with any text-to-image pipeline of diffusers, with independent noise per image."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any, ClassVar

import torch

from lgclip.diffuser.autoencoder import check_autoencoder, replace_autoencoder
from lgclip.diffuser.base import ImageGenerator, noise_seed, shared_noise_seed
from lgclip.diffuser.batch_probe import AUTO
from lgclip.diffuser.lora_weights import adapter_file, adapter_weights, attach, check_adapter, check_fits
from lgclip.diffuser.quantization import check_device, check_quantization, quantize
from lgclip.diffuser.sampling_loop import OURS, SamplingPipeline, arguments_of
from lgclip.diffuser.schedulers import check_scheduler, replace_scheduler
from lgclip.encoder.precision import decided
from lgclip.encoder.weight_files import read_config
from lgclip.runtime.hub import commit_of, hub_errors, snapshot
from lgclip.runtime.model_folders import check_component, check_model_folder
from lgclip.runtime.versions import STORE_SCHEMA
from lgclip.store.image_codec import LOSSLESS, codec_of
from lgclip.store.keys import NOT_AN_INPUT, STANDS_FOR, WEIGHTS, hub_repositories, key_inputs, local_folder, weights_of

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NOISES = {"image": noise_seed, "repeat": shared_noise_seed}
OFFLOADS = ("none", "model", "sequential")
DECODING_BYTES = 4 * 2**30
"""Memory that decoding one image of 512 pixels takes in half precision: about ten tensors of 256 channels at full
resolution in SD's decoder, rounded up generously, since a batch that does not fit ends the run."""

MANY_IMAGES = 16
"""With `batch_size=auto`, a GPU that cannot decode so many images at once decodes them one by one."""

BEYOND_AUTO = ("SanaSprintPipeline",)
"""Text-to-image pipelines that AutoPipeline's table lacks, and whose call takes a prompt."""


@dataclass(frozen=True)
class Diffuser(ImageGenerator):
    """Generates images with a text-to-image pipeline of AutoPipelineForText2Image, or one of `BEYOND_AUTO`.

    A setting described as leaving pixels unchanged alters at most the last digits of floating-point sums, as the
    batch size does: about one gray level in fp32, a few in fp16 and bf16.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; ignored for a folder.
        variant: Variant of the weight files, such as `fp16`; None is the default one.
        steps: Denoising steps; None is the pipeline's own number, as for the next two.
        guidance: Classifier-free guidance scale; 1 is none, 0 too for most distilled models.
        size: Height and width of the images in pixels.
        negative_prompt: What the images should not show.
        options: Further arguments of the pipeline's call, such as `max_sequence_length`.
        precision: `fp32`, `fp16`, `bf16`, or `auto`: bf16 on hardware that multiplies in it, else fp32.
            The key contains the resolved value, so that two precisions never share an image.
        scheduler: Name of a scheduler of diffusers; None is the checkpoint's own.
        scheduler_options: Overrides of the scheduler's settings.
        vae: A small autoencoder (TAESD) in place of the pipeline's own, a folder or a hub id: images are decoded
            several times as fast, and are others. None keeps the pipeline's.
        vae_revision: The hub's revision of that autoencoder.
        lora: LoRA weights: a safetensors file, a folder with one, or a hub id.
        lora_revision: The hub's revision of the LoRA weights.
        lora_scale: Strength of the adapter.
        noise: `image` for independent noise per image, `repeat` for the same noises for every class, of
            seeds seed, seed + 1, ..., as in the LGCLIP release.
        retries: How often to generate again what came out black, flat or not finite.
        tiling: Whether to decode in overlapping tiles, for images that do not fit into memory; blends their edges.
        batch_size: Number of images per batch; `auto` takes what fits into a GPU's memory, by a measurement.
        slicing: Whether to decode images one by one, leaves pixels unchanged; None does so on a GPU whose free memory
            does not hold a batch, see `DECODING_BYTES`.
        channels_last: Memory layout of convolutions, leaves pixels unchanged up to a gray level; None uses it on a GPU.
        compile: Whether to compile the repeated blocks and the decoder, leaves pixels unchanged; takes minutes once,
            then is faster.
        offload: Offload idle `model`s or layers (`sequential`) from the GPU, leaves pixels unchanged; ignored on a CPU.
        image_format: `png`, which keeps every pixel, or `jpeg-QUALITY` as in `jpeg-95`: smaller files, and features
            of the decoded JPEG, under a key of their own.
        quantization: `int8` or `fp8` quantizes the denoiser's linear layers, for speed and half their memory; None does
            not. fp8 needs a GPU of compute capability 8.9.

    Raises:
        ValueError: If a number is out of range, a name is unknown, or `model` or `lora` names
            something that does not exist, or `lora` is for another network.
    """

    key_name: ClassVar[str] = "Diffuser"
    images_from: ClassVar[str] = "prompts"
    needs_prompts: ClassVar[bool] = True

    model: str = field(metadata=WEIGHTS)
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    variant: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative_prompt: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    # `auto` depends on the machine, not on the device of a run: the key of an image must be known before a device is.
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    vae: str | None = field(
        default=None, metadata={STANDS_FOR: lambda part: part.vae and weights_of(part.vae, part.vae_revision)}
    )
    vae_revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    lora: str | None = field(
        default=None, metadata={STANDS_FOR: lambda part: adapter_weights(part.lora, part.lora_revision)}
    )
    lora_revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    lora_scale: float = 1.0
    noise: str = "image"
    retries: int = field(default=2, metadata=NOT_AN_INPUT)
    tiling: bool = False
    batch_size: int | str = field(default=16, metadata=NOT_AN_INPUT)
    slicing: bool | None = field(default=None, metadata=NOT_AN_INPUT)
    channels_last: bool | None = field(default=None, metadata=NOT_AN_INPUT)
    compile: bool = field(default=False, metadata=NOT_AN_INPUT)
    offload: str = field(default="none", metadata=NOT_AN_INPUT)
    image_format: str = LOSSLESS
    quantization: str | None = None

    def __post_init__(self) -> None:
        self._check_numbers()
        codec_of(self.image_format)  # called for its error
        for name, choices in (("precision", ("auto", *PRECISIONS)), ("noise", NOISES), ("offload", OFFLOADS)):
            if getattr(self, name) not in choices:
                raise ValueError(f"diffuser.{name}={getattr(self, name)}: choose {', '.join(choices)}")
        for name in self.options:
            if name in OURS:
                raise ValueError(f"diffuser.options.{name}: this has a field of its own or is not to be set")
        if self.scheduler is not None:
            check_scheduler(self.scheduler, self.scheduler_options)
        elif self.scheduler_options:
            raise ValueError("diffuser.scheduler_options: name the scheduler too, diffuser.scheduler=NAME")
        if self.quantization is not None:
            check_quantization(self.quantization, self.precision, self.offload)
        if self.vae is not None:
            check_autoencoder(self.vae)
        if self.lora is not None:
            check_adapter(self.lora)
        # Called for its error: the model must be there before the adapter can be compared with it.
        local_folder(self.model)
        if self.lora is not None:
            check_fits(self.lora, self.model)

    def _check_numbers(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("retries", 0)):
            value = getattr(self, name)
            if name == "batch_size" and isinstance(value, str):
                if value != AUTO:
                    raise ValueError(f"diffuser.batch_size={value}: choose a number of at least 1, or {AUTO}")
                continue
            if value is not None and value < least:
                raise ValueError(f"diffuser.{name}={value}: it must be at least {least}")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ValueError(f"diffuser.size={self.size}: it must be a multiple of 8 pixels")
        # Not `< 0`, which is false for NaN too.
        if self.guidance is not None and not self.guidance >= 0:
            raise ValueError(f"diffuser.guidance={self.guidance}: it must be at least 0")
        if not math.isfinite(self.lora_scale):
            raise ValueError(f"diffuser.lora_scale={self.lora_scale}: it must be a number")

    def repositories(self) -> list[tuple[str, str | None]]:
        repositories = hub_repositories(self.model, self.revision)
        if self.vae is not None:
            repositories += hub_repositories(self.vae, self.vae_revision)
        if self.lora and adapter_file(self.lora) is None:
            repositories.append((self.lora, self.lora_revision))
        return repositories

    def download(self) -> None:
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        # Only the files that its pipeline loads: repositories also hold the same weights in one piece, and variants.
        if local_folder(self.model) is None:
            with hub_errors(self.model):
                DiffusionPipeline.download(
                    self.model, revision=self._commit(), variant=self.variant, use_safetensors=True
                )
        if self.vae is not None and local_folder(self.vae) is None:
            snapshot(self.vae, self.vae_revision)
        if self.lora and adapter_file(self.lora) is None:
            snapshot(self.lora, self.lora_revision)

    def check_weights(self) -> None:
        folder = local_folder(self.model)
        if folder is None:
            return
        key = f"diffuser.model={self.model}"
        self.kind()  # an error without a model_index.json
        check_model_folder(folder, key)
        index = read_config(folder / "model_index.json")
        for name, entry in index.items():
            # Other entries are settings of the pipeline, and optional components that it does not have.
            if isinstance(entry, list) and len(entry) == 2 and all(isinstance(part, str) for part in entry):
                check_component(folder / name, key)

    def inputs(self) -> dict[str, object]:
        """Returns everything that an image depends on besides its prompt and its noise."""
        fields = key_inputs(self)
        # The pipeline's own autoencoder is part of its weights.
        if self.vae is None:
            del fields["vae"]
        # PNG keeps every pixel, and images were stored so before there was another format.
        if self.image_format == LOSSLESS:
            del fields["image_format"]
        if self.quantization is None:
            del fields["quantization"]
        # None leaves a value to the pipeline, whose default may change with a release of diffusers. The number of the
        # release stands for it, since the default itself is known only once the pipeline is loaded.
        if None in (self.steps, self.guidance, self.size):
            fields["defaults"] = f"diffusers {version('diffusers')}"
        return {"diffuser": fields, "schema": STORE_SCHEMA}

    def load(self, device: torch.device) -> SamplingPipeline:
        """Loads the pipeline to `device`.

        Raises:
            HubError: If the model cannot be loaded from the hub.
            ValueError: If the model is not a text-to-image pipeline, or does not support a setting.
        """
        if self.quantization is not None:
            check_device(self.quantization, device)
        pipeline = self.pipeline()
        if self.vae is not None:
            replace_autoencoder(pipeline, self.vae, self.vae_revision)
        settings = {
            "steps": (self.steps, "num_inference_steps"),
            "guidance": (self.guidance, "guidance_scale"),
            "size": (self.size, "height", "width"),
        }
        arguments = arguments_of(pipeline, settings, self.negative_prompt, self.options)
        # Before the pipeline is placed, so that the adapter's layers are moved and laid out with it.
        if self.lora is not None:
            attach(pipeline, self.lora, self.lora_revision, self.lora_scale)
        if self.scheduler is not None:
            replace_scheduler(pipeline, self.scheduler, self.scheduler_options)
        if self.quantization is not None:
            quantize(pipeline, self.quantization)
        self._place(pipeline, device)
        return SamplingPipeline(pipeline, device, arguments, self.negative_prompt, NOISES[self.noise], self.size)

    def kind(self) -> str:
        """Returns the class of the pipeline, from its `model_index.json` only.

        Raises:
            HubError: If that cannot be loaded from the hub.
            ValueError: If the model is not a pipeline.
        """
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        folder = local_folder(self.model)
        commit = self._commit()
        with _calls_of_the_hub(self.model):
            try:
                config: Any = DiffusionPipeline.load_config(folder or self.model, revision=commit)
            except OSError as error:
                # For a hub id `hub_errors` reports more: no connection, no such repository, no access.
                if folder is None:
                    raise
                raise ValueError(f"diffuser.model={self.model}: no pipeline, it has no model_index.json") from error
        return str(config["_class_name"])

    def pipeline(self) -> Any:
        """Loads the pipeline to memory, on no device yet, without LoRA weights and with its own scheduler.

        Raises:
            HubError: If the model cannot be loaded from the hub.
            ValueError: If it is not a text-to-image pipeline.
        """
        import diffusers
        from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()  # the stage has its own progress bar
        transformers_logging.disable_progress_bar()
        folder = local_folder(self.model)
        commit = self._commit()
        kind = self.kind()
        loader: Any = getattr(diffusers, kind) if kind in BEYOND_AUTO else AutoPipelineForText2Image
        with _calls_of_the_hub(self.model):
            try:
                pipeline: Any = loader.from_pretrained(
                    folder or self.model,
                    revision=commit,
                    variant=self.variant,
                    use_safetensors=True,  # never a pickle
                    dtype=PRECISIONS[decided(self.precision)],
                )
            except ValueError as error:
                raise ValueError(f"diffuser.model={self.model}: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        # SDXL signs its images where the package for it is installed: pixels would depend on the environment.
        if getattr(pipeline, "watermark", None) is not None:
            pipeline.watermark = None
        return pipeline

    def _commit(self) -> str | None:
        """Returns the hub commit in the key; None for a local folder, which is identified by its content."""
        if local_folder(self.model):
            return None
        return commit_of(self.model, self.revision)

    def _place(self, pipeline: Any, device: torch.device) -> None:
        """Moves the pipeline to its device, with the memory settings of the fields."""
        on_gpu = device.type != "cpu"
        channels_last = self.channels_last
        if channels_last is None:
            channels_last = on_gpu
        parts = pipeline.components
        # Offloading moves each part itself, when its turn comes; `to` would first load all of it.
        if on_gpu and self.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif on_gpu and self.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
        # Only networks of convolutions gain from it; transformers have none to speak of.
        if channels_last:
            for name in {"unet", "vae"} & parts.keys():
                parts[name].to(memory_format=torch.channels_last)
        if "vae" in parts:
            self._prepare_decoder(parts["vae"], device)
        if self.compile:
            _compile(parts)

    def _prepare_decoder(self, vae: Any, device: torch.device) -> None:
        """Sets how images are decoded; called when the weights are on the device."""
        slicing = self.slicing
        if slicing is None and device.type != "cpu":
            # Decoding a whole batch takes more memory than all denoising steps before it; decoding the images one by
            # one leaves a large GPU idle.
            free, _ = torch.cuda.mem_get_info(device)
            slicing = free < self._decoding_bytes(vae.dtype)
        if slicing:
            vae.enable_slicing()
        if self.tiling:
            vae.enable_tiling()

    def _decoding_bytes(self, dtype: torch.dtype) -> float:
        """Returns the memory that decoding a batch takes."""
        pixels = (self.size or 1024) ** 2  # the largest of the pipelines' own sizes
        # The batch that `auto` chooses is not known before the decoder is set, since it depends on that.
        images = MANY_IMAGES if isinstance(self.batch_size, str) else self.batch_size
        return images * DECODING_BYTES * pixels / 512**2 * dtype.itemsize / 2


def _compile(parts: Mapping[str, Any]) -> None:
    """Compiles the denoiser's blocks and the decoder.

    Raises:
        ValueError: If the denoiser names no blocks.
    """
    # The repeated blocks alone: compiling the whole network takes many times as long for little more speed.
    for name in {"unet", "transformer"} & parts.keys():
        try:
            parts[name].compile_repeated_blocks()
        except ValueError as error:
            kind = type(parts[name]).__name__
            raise ValueError(f"diffuser.compile=true: {kind} names no blocks to compile") from error
    # Three quarters of the operations of a pipeline with one step.
    decoder = getattr(parts.get("vae"), "decoder", None)
    if decoder is not None:
        decoder.compile()


@contextmanager
def _calls_of_the_hub(model: str) -> Iterator[None]:
    """Turns errors of the hub into one line, and leaves out a warning about diffusers' own call of the hub's client."""
    with hub_errors(model), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
        yield
