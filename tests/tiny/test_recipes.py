from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from lightning import Trainer

from lgclip.diffuser.pipeline import Diffuser
from lgclip.encoder.open_clip import OpenClip
from lgclip.prompts.base import Task
from lgclip.prompts.local_llm import LocalLLM
from lgclip.stages.runner import quiet
from lgclip.store.checkpoints import SafetensorsIO
from lgclip.tiny import install
from lgclip.tiny.autoencoder import TinyAutoencoder
from lgclip.tiny.captioner import TinyCaptioner
from lgclip.tiny.corpus import Corpus
from lgclip.tiny.denoiser import TinyDenoiser
from lgclip.tiny.encoder import TinyEncoder
from lgclip.tiny.language import TinyLanguageModel
from lgclip.tiny.recipe import Recipe
from lgclip.tiny.world import HELD_OUT_KINDS, SCANNED_DIGITS, SEEN_KINDS
from lgclip.types import Prompt, TargetClass

pytestmark = [
    # The autoencoder under the denoiser is not trained, and so rightly not in training mode.
    pytest.mark.filterwarnings("ignore:Found .* module.s. in eval mode"),
    # The loader only counts: a step's pictures depend on its number.
    pytest.mark.filterwarnings("ignore:.*your dataloader is not resumable"),
]

CPU = torch.device("cpu")
SCHEDULE: dict[str, Any] = {"steps": 3, "batch_size": 8, "lr": 1e-3, "warmup": 1}


def weights(recipe: Recipe) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in recipe.named_parameters() if p.requires_grad}


def fit(recipe: Recipe, steps: int = 3, resume: Path | None = None) -> Trainer:
    quiet()
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        plugins=[SafetensorsIO()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(recipe, ckpt_path=resume)
    return trainer


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def corpus(build: Path) -> Iterator[Corpus]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lgclip.tiny.corpus.DIGIT_REPEATS", 2)  # half as much to read into tokens
        yield Corpus(420, 0, build)


@pytest.fixture(scope="module")
def recipes(corpus: Corpus, build: Path) -> dict[str, Callable[[], Recipe]]:
    """Returns the recipes at their smallest; the denoiser's first build trains the autoencoder it needs."""
    vae = build / "tiny_autoencoder" / "model"
    return {
        "tiny_autoencoder": lambda: TinyAutoencoder(corpus, channels=(8, 8, 16), latent_channels=4, **SCHEDULE),
        "tiny_denoiser": lambda: TinyDenoiser(corpus, autoencoder=vae, channels=(16, 32), text_layers=1, **SCHEDULE),
        "tiny_encoder": lambda: TinyEncoder(corpus, width=32, layers=1, text_layers=1, **SCHEDULE),
        "tiny_language": lambda: TinyLanguageModel(corpus, width=16, layers=1, **SCHEDULE),
        "tiny_captioner": lambda: TinyCaptioner(corpus, stem=8, width=16, blocks=1, layers=1, **SCHEDULE),
    }


class Trained(NamedTuple):
    """Holds a recipe after three steps and its weights before rounding and saving."""

    recipe: Recipe
    weights: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def trained(recipes: dict[str, Callable[[], Recipe]], build: Path) -> dict[str, Trained]:
    """Trains and saves every recipe as `train.py` does."""
    done: dict[str, Trained] = {}
    for name, make in recipes.items():
        torch.manual_seed(0)
        recipe = make()
        before = weights(recipe)
        trainer = fit(recipe)
        assert trainer.callback_metrics["loss"].isfinite()
        done[name] = Trained(recipe, weights(recipe))
        assert not [key for key, p in done[name].weights.items() if torch.equal(p, before[key])], name
        recipe.save(build / name / "model")
    return done


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["tiny_autoencoder", "tiny_denoiser", "tiny_encoder", "tiny_language", "tiny_captioner"]
)
def test_resumed_training_matches_uninterrupted(
    name: str, recipes: dict[str, Callable[[], Recipe]], trained: dict[str, Trained], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    fit(recipes[name](), steps=2).save_checkpoint(tmp_path / "last")
    resumed = recipes[name]()
    torch.rand(5)  # what else drew random numbers meanwhile is no matter
    fit(resumed, resume=tmp_path / "last")
    ends = weights(resumed)
    for key, value in trained[name].weights.items():
        torch.testing.assert_close(ends[key], value, rtol=0, atol=0)


@pytest.mark.slow
def test_scaled_latents_have_unit_variance(trained: dict[str, Trained], build: Path, corpus: Corpus) -> None:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(build / "tiny_autoencoder" / "model").float()
    with torch.inference_mode():
        latents = vae.encode(corpus.images[::8].float() / 127.5 - 1).latent_dist.mean * vae.config.scaling_factor
    assert latents.shape[1:] == (4, 16, 16)
    assert latents.std() == pytest.approx(1, rel=0.05)


@pytest.mark.slow
def test_diffuser_is_a_complete_pipeline(trained: dict[str, Trained], build: Path) -> None:
    brush = Diffuser(str(build / "tiny_denoiser" / "model"), steps=2, guidance=3.0, size=64).load(CPU)
    generated = brush([Prompt(TargetClass(0, "ring"), "a photo of a ring", repeat) for repeat in (0, 1)], 0)
    assert generated.shape == (2, 64, 64, 3)
    assert (generated[0] != generated[1]).any()


@pytest.mark.slow
def test_encoder_gives_trained_features(trained: dict[str, Trained], build: Path, corpus: Corpus) -> None:
    from PIL import Image

    recipe = trained["tiny_encoder"].recipe
    encoder = OpenClip(str(build / "tiny_encoder" / "model"))
    towers = encoder.load(CPU)
    transform = encoder.transform()
    pixels = torch.stack([transform(Image.fromarray(x.permute(1, 2, 0).numpy())) for x in corpus.images[:4]])
    expected = corpus.images[:4].float() / 127.5 - 1
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    captions = [corpus.caption(i, 0) for i in range(4)]
    model: Any = recipe.model
    with torch.no_grad():
        images = model.encode_image(expected, normalize=True)
        texts = model.encode_text(recipe.tokens[:4, 0], normalize=True)  # pyright: ignore
    torch.testing.assert_close(towers.images(pixels), images, rtol=0, atol=5e-3)  # saved in half precision
    torch.testing.assert_close(towers.texts(captions), texts, rtol=0, atol=5e-3)


def test_language_model_writes_a_line_per_name(trained: dict[str, Trained], build: Path) -> None:
    from transformers import AutoTokenizer

    folder = build / "tiny_language" / "model"
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    chat_prompt = tokenizer.apply_chat_template([{"role": "user", "content": "red star"}], tokenize=False)
    assert chat_prompt == f"{tokenizer.bos_token}red star\n"  # what the recipe's loss puts before the caption
    # Any reply holds the empty name, which lets a model that has hardly learned write prompts.
    llm = LocalLLM(
        str(folder), instruction="{name}", again="", min_words=1, max_new_tokens=8, replies_per_round=4, max_rounds=8
    )
    ((_, written),) = llm.load(CPU)([Task(TargetClass(0, ""), 3)], 0)
    assert len(written.prompts) >= 3
    assert not any(token in prompt for prompt, token in product(written.prompts, tokenizer.all_special_tokens))


def test_pair_is_a_name_and_its_caption(trained: dict[str, Trained], corpus: Corpus) -> None:
    recipe = trained["tiny_language"].recipe
    assert isinstance(recipe, TinyLanguageModel)
    rng = np.random.default_rng(0)
    pairs = [recipe.pair(int(i), rng) for i in rng.integers(0, len(corpus), 300)]
    assert all(name in caption for name, caption in pairs)
    known = {kind.name for kind in SEEN_KINDS} | set(SCANNED_DIGITS)
    assert 0.35 < np.mean([name in known for name, _ in pairs]) < 0.65
    assert not {kind.name for kind in HELD_OUT_KINDS} & {name for name, _ in pairs}


def test_only_safetensors_and_text_are_saved(trained: dict[str, Trained], build: Path) -> None:
    suffixes = set()
    for name in trained:
        for path in (build / name / "model").rglob("*"):
            if path.is_file():
                suffixes.add(path.suffix)
    assert suffixes <= {".safetensors", ".json", ".txt", ".jinja"}


def test_installation_is_atomic(
    trained: dict[str, Trained], build: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(install, "WEIGHTS", tmp_path / "weights")
    with pytest.raises(ValueError, match=r"train\.py method=tiny_encoder"):
        install.install(tmp_path)
    monkeypatch.setattr(install, "LIMIT", 1000)
    with pytest.raises(ValueError, match="at most 1000 may go"):
        install.install(build)
    assert not (tmp_path / "weights").exists()
    monkeypatch.undo()
    monkeypatch.setattr(install, "WEIGHTS", tmp_path / "weights")
    (tmp_path / "weights" / "encoder").mkdir(parents=True)
    (tmp_path / "weights" / "encoder" / "old.safetensors").touch()
    size = install.install(build)
    installed = list((tmp_path / "weights").rglob("*.safetensors"))
    assert size == sum(path.stat().st_size for path in installed)
    assert {path.relative_to(tmp_path / "weights").parts[0] for path in installed} == {
        "encoder",
        "diffuser",
        "language",
        "captioner",
    }
    assert "old.safetensors" not in {path.name for path in installed}
