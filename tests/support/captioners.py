"""Creates captioners with random weights, one per family, as the hub has them, and a scripted one."""

import dataclasses
import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from lightning import Trainer
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import Tensor

from lgclip.datasets.base import Dataset
from lgclip.prompts.captioner import CaptionGenerator
from lgclip.prompts.captioning_models import unchanged_pixels
from lgclip.stages.caption_set import Captions
from lgclip.stages.captions import caption
from lgclip.stages.context import RunContext
from lgclip.stages.runner import StageBar, Stages, quiet
from lgclip.store.keys import NOT_AN_INPUT

transformers: Any = importlib.import_module("transformers")  # lazy modules, closed to the type checker

WORDS = [
    "a", "red", "green", "blue", "star", "ring", "moon", "cross", "small", "large", "on", "grey", "white", "paper",
    "left", "right", "striped", "dotted",
]  # fmt: skip
SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"]
SIDE = 32
WIDTH = 16
CHAT = (
    "{% for m in messages %}<s> {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|> <|image_pad|> <|vision_end|> {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endfor %}"
)


def build_tokenizer(*, chat: bool = False) -> Any:
    """Returns a word-level tokenizer."""
    vocab = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    word_level = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    word_level.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    named = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=word_level, **named)
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[4:]})
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer


def randomize_weights(model: Any, seed: int) -> Any:
    """Enlarges weights so that captions of images differ; the seeds leave no caption empty."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def vit_gpt2(folder: Path, seed: int = 22) -> Path:
    """Saves a ViT with GPT-2 as decoder."""
    tokenizer = build_tokenizer()
    ends = {"bos_token_id": 1, "eos_token_id": 2}
    seeing = transformers.ViTConfig(
        image_size=SIDE, patch_size=8, hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    saying = transformers.GPT2Config(
        vocab_size=len(tokenizer), n_embd=WIDTH, n_layer=1, n_head=2, n_positions=64, add_cross_attention=True,
        is_decoder=True, **ends,
    )  # fmt: skip
    model = transformers.VisionEncoderDecoderModel(
        transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(seeing, saying)
    )
    model.config.decoder_start_token_id = 1
    model.config.eos_token_id = 2
    model.config.pad_token_id = 0
    model.generation_config = transformers.GenerationConfig(
        decoder_start_token_id=1, pad_token_id=0, num_beams=4, max_length=99, **ends
    )
    randomize_weights(model, seed).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def blip2(folder: Path, seed: int = 3) -> Path:
    """Saves BLIP-2 with OPT."""
    tokenizer = build_tokenizer()
    config = transformers.Blip2Config(
        vision_config={
            "image_size": SIDE, "patch_size": 8, "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        qformer_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 2,
            "num_attention_heads": 2, "encoder_hidden_size": WIDTH,
        },
        text_config={
            "model_type": "opt", "vocab_size": len(tokenizer), "hidden_size": WIDTH, "ffn_dim": 32,
            "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": WIDTH, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 0, "max_position_embeddings": 64,
        },
        num_query_tokens=4, image_token_index=4, image_text_hidden_size=WIDTH,
    )  # fmt: skip
    model = randomize_weights(transformers.Blip2ForConditionalGeneration(config), seed)
    model.save_pretrained(folder)
    transformers.BlipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def qwen2_vl(folder: Path, seed: int = 8) -> Path:
    """Saves Qwen2-VL, a vision-language chat model that takes images at their own size."""
    tokenizer = build_tokenizer(chat=True)
    config = transformers.Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer), "hidden_size": WIDTH, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2,
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0},
        },
        vision_config={"depth": 1, "embed_dim": WIDTH, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 8},
        image_token_id=4, video_token_id=3, vision_start_token_id=5, vision_end_token_id=6,
    )  # fmt: skip
    model = randomize_weights(transformers.Qwen2VLForConditionalGeneration(config), seed)
    model.generation_config = transformers.GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model.save_pretrained(folder)
    looker = transformers.Qwen2VLImageProcessor(patch_size=8, size={"shortest_edge": 256, "longest_edge": 4096})
    processor = transformers.Qwen2VLProcessor(
        image_processor=looker, tokenizer=tokenizer, chat_template=CHAT,
        video_processor=transformers.Qwen2VLVideoProcessor(patch_size=8),
    )  # fmt: skip
    processor.save_pretrained(folder)
    return folder


FAMILIES: dict[str, Callable[[Path], Path]] = {"vit_gpt2": vit_gpt2, "blip2": blip2, "qwen2_vl": qwen2_vl}


def synthetic_images(
    count: int = 6, sizes: Sequence[tuple[int, int]] = ((48, 40), (64, 64), (40, 80))
) -> list[Image.Image]:
    """Returns colored patches, all different."""
    torch.manual_seed(7)
    patches = [torch.randint(0, 256, (3, 4, 3), dtype=torch.uint8).numpy() for _ in range(count)]
    return [Image.fromarray(patch).resize(sizes[index % len(sizes)]) for index, patch in enumerate(patches)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScriptedCaptioner(CaptionGenerator):
    """Captions an image by its brightness in passes of three and records its images; may return nothing or fail."""

    key_name: ClassVar[str] = "ScriptedCaptioner"

    silent: bool = False
    reply: str = "grey {}"
    breaks_after: int = dataclasses.field(default=10**9, metadata=NOT_AN_INPUT)
    batch: int = dataclasses.field(default=3, metadata=NOT_AN_INPUT)
    passes: list[int] = dataclasses.field(default_factory=list, metadata=NOT_AN_INPUT)
    loads: list[str] = dataclasses.field(default_factory=list, metadata=NOT_AN_INPUT)

    @property
    def items_per_call(self) -> int:
        return self.batch

    def available_captions(self, images: Dataset) -> dict[str, str]:
        return {}

    def preprocessor(self) -> Any:
        return unchanged_pixels

    def load_model(self, device: torch.device) -> Any:
        self.loads.append(str(device))
        prompt_generator = self

        class CaptioningModel:
            batch_size = 3

            def __call__(self, images: Sequence[Tensor]) -> list[str]:
                if len(prompt_generator.passes) == prompt_generator.breaks_after:
                    raise RuntimeError("power cut")
                prompt_generator.passes.append(len(images))
                return [
                    "" if prompt_generator.silent else prompt_generator.reply.format(int(entry.float().mean()))
                    for entry in images
                ]

        return CaptioningModel()


def stages() -> Stages:
    """Returns stages on a CPU."""
    quiet()
    return Stages(
        Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[StageBar()],
            enable_model_summary=False,
        )
    )  # fmt: skip


def caption_dataset(
    training: Dataset, prompt_generator: CaptionGenerator, root: Path, per_class: int = 5, **kwargs: Any
) -> Captions:
    """Returns the captions of some training images, computed where they are missing."""
    captions = Captions(training, prompt_generator, root, per_class)
    caption(RunContext(root, kwargs.pop("stages", None) or stages(), **kwargs), captions)
    return captions
