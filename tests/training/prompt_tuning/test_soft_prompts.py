"""Tests soft prompts against the towers' own code, by hand, and where they are rejected."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from factories import make_encoder
from open_clip.model import CLIP, CustomTextCLIP
from safetensors.torch import save_file
from torch import Tensor

from lgclip.encoder.base import LearningTowers
from lgclip.encoder.open_clip import OpenClip
from lgclip.training.prompt_tuning.soft_prompts import TextContext, TextPrompt, VisualPrompt, VisualTokens, read

CPU = torch.device("cpu")
NAMES = ("red star", "green ring on grey paper", "moon")
TOWERS = {
    "clip": {},
    "argmax": {"custom_text": True},
    "end": {"custom_text": True, "text_cfg": {"pool_type": "eos"}},
    "siglip": {
        "custom_text": True,
        "text_cfg": {"pool_type": "last", "no_causal_mask": True, "proj_bias": True},
        "vision_cfg": {"pool_type": "avg", "no_ln_pre": True},
    },
    "scaled": {"text_cfg": {"ls_init_value": 0.5}, "vision_cfg": {"ls_init_value": 0.5}},
    "odd": {"custom_text": True, "text_cfg": {"scale_fc": True}},  # its blocks are of another class
}


def model_folder(folder: Path, **changes: Any) -> Path:
    """Creates an open_clip model with random weights, two blocks per tower and a changed config."""
    make_encoder(folder)
    path = folder / "open_clip_config.json"
    content = json.loads(path.read_text())
    config = content["model_cfg"]
    tokenizer = OpenClip(str(folder))._tokenizer().tokenizer
    changes = {name: dict(value) if isinstance(value, dict) else value for name, value in changes.items()}
    for part in ("text_cfg", "vision_cfg"):
        config[part] |= {"layers": 2} | changes.pop(part, {})
    config["text_cfg"]["eos_id"] = tokenizer.eos_token_id
    config |= changes
    path.write_text(json.dumps(content))
    plain_config = {name: value for name, value in config.items() if name != "custom_text"}
    torch.manual_seed(3)
    model = (CustomTextCLIP if "custom_text" in config else CLIP)(**plain_config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim == 1:  # a norm or a bias that is nothing would hide where it is forgotten
                value.add_(0.2 * torch.randn_like(value))
            elif "embedding" in name or "attn" in name:  # and so would words that hardly matter
                value.mul_(8 if "token" in name else 3)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("towers")
    return {name: model_folder(root / name, **changes) for name, changes in TOWERS.items()}


@pytest.fixture(params=list(TOWERS))
def towers(request: pytest.FixtureRequest, folders: dict[str, Path]) -> LearningTowers:
    return OpenClip(str(folders[request.param]), precision="fp32").learning_towers(CPU, "text", "visual")


@pytest.fixture
def clip(folders: dict[str, Path]) -> LearningTowers:
    return OpenClip(str(folders["clip"]), precision="fp32").learning_towers(CPU, "text", "visual")


def assert_close_enough(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, F.normalize(expected, dim=-1), rtol=0, atol=2e-6)


def sentences(towers: LearningTowers, *texts: str) -> Tensor:
    return towers.model.encode_text(towers.tokenizer(list(texts)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "position", "template", "sentence"),
    [
        ("a photo of a", "front", "{}", "a photo of a {}"),
        ("a photo of a", "front", "small {}.", "a photo of a small {}."),
        ("on grey paper.", "end", "a {}", "a {} on grey paper."),
        ("a small on grey paper", "middle", "{}", "a small {} on grey paper"),
    ],
)
def test_word_vectors_give_sentence_features(
    towers: LearningTowers, words: str, position: str, template: str, sentence: str
) -> None:
    count = len(read(towers.tokenizer, [words], 32)[1][0])
    context = TextContext(tokens=count, position=position, template=template, words=words)
    if position == "middle":
        assert count == 5  # two before, three behind
    expected = sentences(towers, *(sentence.replace("{}", name) for name in NAMES))
    assert_close_enough(TextPrompt(towers, context, NAMES)(), expected)
    assert_close_enough(TextPrompt(towers, context, NAMES[:1])(), expected[:1])
    same_names = TextPrompt(towers, context, ("moon", "moon", "moon"))()  # nothing differs between the sentences
    assert_close_enough(same_names, expected[2:].expand(3, -1))
    per_class = TextPrompt(towers, replace(context, per_class=True), NAMES)
    assert per_class.vectors.shape == (3, count, 32)
    assert_close_enough(per_class(), expected)


@pytest.mark.parametrize("position", ["front", "middle", "end"])
@pytest.mark.parametrize("per_class", [False, True])
def test_text_features_match_a_manual_forward(clip: LearningTowers, position: str, per_class: bool) -> None:
    prompt = TextPrompt(clip, TextContext(5, position, per_class=per_class, template="a {}", seed=2), NAMES)
    model = clip.model
    before = {"front": 1, "middle": 1, "end": None}[position]
    rows = []
    for number, name in enumerate(NAMES):
        ids = clip.tokenizer([f"a {name}"])
        end = int(ids.argmax())
        vectors = prompt.vectors[number] if per_class else prompt.vectors
        words = model.token_embedding(ids)[0]
        first = 5 if position == "front" else 2
        parts = [words[:1], vectors[:first], words[1:end], vectors[first:], words[end:]]
        x = torch.cat(parts if before else [words[:end], vectors, words[end:]])[:32] + model.positional_embedding
        x = model.transformer(x[None], attn_mask=model.attn_mask)
        rows.append(model.ln_final(x)[0, end + 5] @ model.text_projection)
    assert_close_enough(prompt(), torch.stack(rows))


@contextmanager
def inserted(visual: Any, vectors: Tensor) -> Iterator[None]:
    """Runs the tower's own forward with vectors inserted and removed by hooks."""
    n = vectors.shape[1]
    blocks = visual.transformer.resblocks

    def put(number: int, skip: int) -> Any:
        def change(module: object, args: tuple[Tensor]) -> tuple[Tensor]:
            (x,) = args
            return (torch.cat([x[:, :1], vectors[number].expand(len(x), -1, -1), x[:, 1 + skip :]], dim=1),)

        return change

    hooks = [visual.ln_pre.register_forward_pre_hook(put(0, 0))]
    if len(vectors) > 1:
        hooks += [block.register_forward_pre_hook(put(i, n)) for i, block in enumerate(blocks) if i]
    hooks.append(visual.transformer.register_forward_hook(lambda _, __, x: torch.cat([x[:, :1], x[:, 1 + n :]], dim=1)))
    yield
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("deep", [False, True])
def test_image_features_match_the_towers_forward(towers: LearningTowers, deep: bool) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    model = towers.model
    prompt = VisualPrompt(towers, VisualTokens(5, deep=deep))
    assert prompt.vectors.shape == (2 if deep else 1, 5, 32)
    with inserted(model.visual, prompt.vectors):
        expected = model.encode_image(pixels)
    assert_close_enough(prompt(pixels), expected)
    assert not torch.allclose(prompt(pixels), F.normalize(model.encode_image(pixels), dim=-1), atol=1e-3)
    prompt.vectors = torch.nn.Parameter(prompt.vectors[:, :0])
    assert_close_enough(prompt(pixels), model.encode_image(pixels))


@pytest.mark.parametrize("deep", [False, True])
def test_image_features_match_a_manual_forward(clip: LearningTowers, deep: bool) -> None:
    prompt = VisualPrompt(clip, VisualTokens(4, deep=deep))
    visual = clip.model.visual
    image = torch.randn(3, 32, 32)
    patches = image.unfold(1, 8, 8).unfold(2, 8, 8).permute(1, 2, 0, 3, 4).reshape(16, 192)
    x = torch.cat([visual.class_embedding[None], patches @ visual.conv1.weight.reshape(32, 192).T])
    x = x + visual.positional_embedding
    x = visual.ln_pre(torch.cat([x[:1], prompt.vectors[0], x[1:]]))[None]
    for number, block in enumerate(visual.transformer.resblocks):
        if deep and number:
            x[:, 1:5] = prompt.vectors[number]
        x = x + block.attn(*[block.ln_1(x)] * 3)[0]
        x = x + block.mlp(block.ln_2(x))
    assert_close_enough(prompt(image[None]), visual.ln_post(x[:, 0]) @ visual.proj)


def test_training_changes_only_the_vectors(towers: LearningTowers) -> None:
    before = {name: value.clone() for name, value in towers.model.state_dict().items()}
    text = TextPrompt(towers, TextContext(4), NAMES)
    visual = VisualPrompt(towers, VisualTokens(4, deep=True))
    pixels = torch.randn(3, 3, 32, 32)
    labels = torch.arange(3)
    for prompt in (text, visual):
        assert list(prompt.state_dict()) == [name for name, _ in prompt.named_parameters()] == ["vectors"]
    optimizer = torch.optim.Adam([text.vectors, visual.vectors], lr=0.05)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        loss = F.cross_entropy(10 * visual(pixels) @ text().T, labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    assert all(value.grad is None and not value.requires_grad for value in towers.model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in towers.model.state_dict().items())
    assert not any(module.training for module in towers.model.modules())


@pytest.mark.parametrize("position", ["front", "middle", "end"])
def test_shared_positions_pass_the_same_gradient(clip: LearningTowers, position: str) -> None:
    context = TextContext(5, position)
    together = TextPrompt(clip, context, NAMES)
    target = torch.randn(3, 32)
    (together() * target).sum().backward()
    expected = torch.zeros_like(together.vectors)
    for name, aim in zip(NAMES, target, strict=True):
        alone = TextPrompt(clip, context, [name])
        alone._phrases = alone._phrases._replace(shared=0)
        (alone()[0] * aim).sum().backward()
        assert alone.vectors.grad is not None
        expected += alone.vectors.grad
    torch.testing.assert_close(together.vectors.grad, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_class_vectors_are_independent(clip: LearningTowers) -> None:
    prompt = TextPrompt(clip, TextContext(4, per_class=True), NAMES)
    before = prompt().detach()
    with torch.no_grad():
        prompt.vectors[1] += torch.randn(4, 32)
    moved = (prompt() - before).abs().amax(dim=1) > 1e-4
    assert moved.tolist() == [False, True, False]


def test_initialization_depends_on_the_seed(clip: LearningTowers) -> None:
    many = TextPrompt(clip, TextContext(24, per_class=True, seed=4), ["moon"] * 200).vectors
    assert (float(many.detach().mean()), float(many.detach().std())) == pytest.approx((0, 0.02), abs=2e-4)
    image = VisualPrompt(clip, VisualTokens(2000)).vectors
    assert float(image.detach().std()) == pytest.approx(32**-0.5, rel=0.02)
    torch.manual_seed(9)
    again = TextPrompt(clip, TextContext(24, per_class=True, seed=4), ["moon"] * 200).vectors
    assert torch.equal(many, again)
    reseeded = TextPrompt(clip, TextContext(24, per_class=True, seed=5), ["moon"] * 200).vectors
    assert not torch.equal(many, reseeded)


def test_half_precision_is_close_and_returns_fp32(folders: dict[str, Path], clip: LearningTowers) -> None:
    half = OpenClip(str(folders["clip"]), precision="bf16").learning_towers(CPU, "text", "visual")
    assert half.key == clip.key
    pixels = torch.randn(2, 3, 32, 32)
    for actual, expected in (
        (TextPrompt(half, TextContext(4), NAMES)(), TextPrompt(clip, TextContext(4), NAMES)()),
        (VisualPrompt(half, VisualTokens(4))(pixels), VisualPrompt(clip, VisualTokens(4))(pixels)),
    ):
        assert actual.dtype == torch.float32
        assert 0 < float((actual - expected).detach().abs().max()) < 0.03


def test_tiny_clip_supports_both_prompts() -> None:
    towers = OpenClip("tiny:encoder", precision="fp32").learning_towers(CPU, "text", "visual")
    assert_close_enough(
        TextPrompt(towers, TextContext(4, words="a photo of a"), NAMES)(),
        sentences(towers, *(f"a photo of a {n}" for n in NAMES)),
    )
    prompt = VisualPrompt(towers, VisualTokens(16, deep=True))
    pixels = torch.randn(2, 3, 64, 64)
    with inserted(towers.model.visual, prompt.vectors):
        expected = towers.model.encode_image(pixels)
    assert_close_enough(prompt(pixels), expected)
