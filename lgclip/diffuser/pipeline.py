"""Prompts to images: any text-to-image pipeline of diffusers, one noise a picture."""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar

import torch

from lgclip.batch import Prompt, Subject
from lgclip.diffuser.adapter import adapter_file, adapter_weights, attach, check_adapter, check_fits
from lgclip.diffuser.base import ImageSource, noise_seed, shared_noise_seed
from lgclip.diffuser.brush import OURS, PipelineBrush, arguments_of
from lgclip.diffuser.sampler import check_scheduler, replace_scheduler
from lgclip.drawing import Drawing
from lgclip.hub import commit_of, hub_errors
from lgclip.identity import NOT_AN_INPUT, SCHEMA, STANDS_FOR, WEIGHTS, hub_repositories, inputs_of, local_folder

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
NOISES = {"image": noise_seed, "repeat": shared_noise_seed}
OFFLOADS = ("none", "model", "sequential")


def decided(precision: str) -> str:
    """What `auto` comes to: bf16 where there is a CUDA device that computes in it, else fp32.

    It is asked of the machine, not of the device that a run is on: the key of an image must be known
    before a device is, and what is loaded is what the key says.
    """
    if precision != "auto":
        return precision
    capable = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16" if capable else "fp32"


@dataclass(frozen=True)
class Diffuser(ImageSource):
    """A text-to-image pipeline that AutoPipelineForText2Image can load.

    What says that it changes no pixel changes at most the last digits of sums of floats, as the
    batch size does: about one grey level in fp32, a few in fp16 and bf16.

    Args:
        model: `tiny:NAME`, a folder, or a hub id.
        revision: The hub's revision; of no use for a folder.
        variant: Which of the weight files to read, such as `fp16`; None is the plain ones.
        steps: Denoising steps; None is the pipeline's own number, as for the next two.
        guidance: Classifier-free guidance scale; 1 is none, 0 too for most distilled models.
        size: Height and width of the images in pixels.
        negative_prompt: What not to draw.
        options: Further arguments of the pipeline's call, such as `max_sequence_length`.
        precision: `fp32`, `fp16`, `bf16`, or `auto`: bf16 where there is a CUDA device, else fp32.
            The key names what it comes to, so the two never share an image.
        scheduler: Name of a scheduler of diffusers; None is the checkpoint's own.
        scheduler_options: What to change of the scheduler's settings.
        lora: LoRA weights: a safetensors file, a folder with one, or a hub id.
        lora_revision: The hub's revision of the LoRA weights.
        lora_scale: How strongly they count.
        noise: `image` for noise of an image's own, `repeat` for the same noises for every class, of
            seeds seed, seed + 1, ..., as in the LGCLIP release.
        retries: How often to draw again what came out black, flat or not finite.
        tiling: Decode in overlapping tiles, for images that do not fit into memory; blends their edges.
        batch_size: Images drawn at once.
        slicing: Decode one image after another, changes no pixel; None does so on a GPU.
        channels_last: Memory layout of convolutions, changes no pixel by more than a grey level; None uses it on a GPU.
        compile: Compile the repeated blocks, changes no pixel; minutes once, then faster.
        offload: Keep `model`s or layers (`sequential`) off the GPU while they are idle, changes no
            pixel; of no effect on a CPU.

    Raises:
        ValueError: If a number is out of range, a name is not known, or `model` or `lora` names
            something that is not there, or `lora` is for another network.
    """

    needs_prompts: ClassVar[bool] = True

    model: str = field(metadata=WEIGHTS)
    revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    variant: str | None = None
    steps: int | None = None
    guidance: float | None = None
    size: int | None = None
    negative_prompt: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = field(default="auto", metadata={STANDS_FOR: lambda part: decided(part.precision)})
    scheduler: str | None = None
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    lora: str | None = field(
        default=None, metadata={STANDS_FOR: lambda part: adapter_weights(part.lora, part.lora_revision)}
    )
    lora_revision: str | None = field(default=None, metadata=NOT_AN_INPUT)
    lora_scale: float = 1.0
    noise: str = "image"
    retries: int = field(default=2, metadata=NOT_AN_INPUT)
    tiling: bool = False
    batch_size: int = field(default=16, metadata=NOT_AN_INPUT)
    slicing: bool | None = field(default=None, metadata=NOT_AN_INPUT)
    channels_last: bool | None = field(default=None, metadata=NOT_AN_INPUT)
    compile: bool = field(default=False, metadata=NOT_AN_INPUT)
    offload: str = field(default="none", metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        self._check_numbers()
        for name, known in (("precision", ("auto", *PRECISIONS)), ("noise", NOISES), ("offload", OFFLOADS)):
            if getattr(self, name) not in known:
                raise ValueError(f"diffuser.{name}={getattr(self, name)}: choose {', '.join(known)}")
        for name in self.options:
            if name in OURS:
                raise ValueError(f"diffuser.options.{name}: this has a field of its own or is not to be set")
        if self.scheduler is not None:
            check_scheduler(self.scheduler, self.scheduler_options)
        elif self.scheduler_options:
            raise ValueError("diffuser.scheduler_options: name the scheduler too, diffuser.scheduler=NAME")
        if self.lora is not None:
            check_adapter(self.lora)
        local_folder(self.model)
        if self.lora is not None:
            check_fits(self.lora, self.model)

    def _check_numbers(self) -> None:
        for name, least in (("steps", 1), ("batch_size", 1), ("retries", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"diffuser.{name}={value}: it must be at least {least}")
        if self.size is not None and (self.size < 8 or self.size % 8):
            raise ValueError(f"diffuser.size={self.size}: it must be a multiple of 8 pixels")
        if self.guidance is not None and not self.guidance >= 0:
            raise ValueError(f"diffuser.guidance={self.guidance}: it must be at least 0")
        if not math.isfinite(self.lora_scale):
            raise ValueError(f"diffuser.lora_scale={self.lora_scale}: it must be a number")

    def repositories(self) -> list[tuple[str, str | None]]:
        lora = [(self.lora, self.lora_revision)] if self.lora and adapter_file(self.lora) is None else []
        return [*hub_repositories(self.model, self.revision), *lora]

    def inputs(self) -> dict[str, object]:
        """Everything that an image depends on besides its prompt and its noise."""
        found = inputs_of(self)
        if None in (self.steps, self.guidance, self.size):  # what they stand for is written there
            found["defaults"] = f"diffusers {version('diffusers')}"
        return {"diffuser": found, "schema": SCHEMA}

    def stage(self, root: Path, subjects: Sequence[Subject], prompts: Sequence[Prompt], seed: int) -> Drawing:
        return Drawing(self, root, subjects, prompts, seed)

    def load(self, device: torch.device) -> PipelineBrush:
        """The pipeline on `device`.

        Raises:
            HubError: If the model cannot be had from the hub.
            ValueError: If the model is no text-to-image pipeline, or does not take what is set.
        """
        pipeline = self.pipeline()
        settings = {
            "steps": (self.steps, "num_inference_steps"),
            "guidance": (self.guidance, "guidance_scale"),
            "size": (self.size, "height", "width"),
        }
        arguments = arguments_of(pipeline, settings, self.negative_prompt, self.options)
        if self.lora is not None:
            attach(pipeline, self.lora, self.lora_revision, self.lora_scale)
        if self.scheduler is not None:
            replace_scheduler(pipeline, self.scheduler, self.scheduler_options)
        self._place(pipeline, device)
        return PipelineBrush(pipeline, device, arguments, self.negative_prompt, NOISES[self.noise], self.size)

    def kind(self) -> str:
        """Class of the pipeline, told by its `model_index.json` alone.

        Raises:
            HubError: If that cannot be had from the hub.
            ValueError: If the model is no pipeline.
        """
        from diffusers.pipelines.pipeline_utils import DiffusionPipeline

        folder = local_folder(self.model)
        commit = None if folder else commit_of(self.model, self.revision)
        with hub_errors(self.model):
            try:
                config: Any = DiffusionPipeline.load_config(folder or self.model, revision=commit)
            except OSError as error:
                if folder is None:
                    raise
                raise ValueError(f"diffuser.model={self.model}: no pipeline, it has no model_index.json") from error
        return config["_class_name"]

    def pipeline(self) -> Any:
        """The pipeline in memory, on no device yet, without LoRA weights and with its own scheduler.

        Raises:
            HubError: If the model cannot be had from the hub.
            ValueError: If it is no text-to-image pipeline.
        """
        from diffusers.pipelines.auto_pipeline import AutoPipelineForText2Image
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        diffusers_logging.disable_progress_bar()  # the stage has a bar of its own
        transformers_logging.disable_progress_bar()
        folder = local_folder(self.model)
        commit = None if folder else commit_of(self.model, self.revision)
        with hub_errors(self.model), warnings.catch_warnings():
            # diffusers' own call of the hub's client
            warnings.filterwarnings("ignore", message="The `local_dir_use_symlinks` argument is deprecated")
            try:
                pipeline: Any = AutoPipelineForText2Image.from_pretrained(
                    folder or self.model,
                    revision=commit,
                    variant=self.variant,
                    use_safetensors=True,  # never a pickle
                    dtype=PRECISIONS[decided(self.precision)],
                )
            except ValueError as error:
                raise ValueError(f"diffuser.model={self.model}: {error}") from error
        pipeline.set_progress_bar_config(disable=True)
        if (
            getattr(pipeline, "watermark", None) is not None
        ):  # SDXL signs its images where a package for it is installed
            pipeline.watermark = None
        return pipeline

    def _place(self, pipeline: Any, device: torch.device) -> None:
        """Brings the pipeline to its device, laid out as the fields say."""
        on_gpu = device.type != "cpu"
        parts = pipeline.components
        if on_gpu and self.offload == "model":
            pipeline.enable_model_cpu_offload(device=device)
        elif on_gpu and self.offload == "sequential":
            pipeline.enable_sequential_cpu_offload(device=device)
        else:
            pipeline.to(device)
        if on_gpu if self.channels_last is None else self.channels_last:
            for name in {"unet", "vae"} & parts.keys():
                parts[name].to(memory_format=torch.channels_last)
        for wanted, switch in (
            (on_gpu if self.slicing is None else self.slicing, "enable_slicing"),
            (self.tiling, "enable_tiling"),
        ):
            if wanted and "vae" in parts:
                getattr(parts["vae"], switch)()
        if self.compile:
            for name in {"unet", "transformer"} & parts.keys():
                try:
                    parts[name].compile_repeated_blocks()
                except ValueError as error:
                    kind = type(parts[name]).__name__
                    raise ValueError(f"diffuser.compile=true: {kind} names no blocks to compile") from error
