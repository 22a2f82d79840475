"""Text sides in complete runs: against NumPy, in the result, in a saved classifier, on shifted sets and in the plan."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from chat_server import ChatServer, Handler, completion, send
from factories import (
    NAMES,
    SENTENCES,
    Sandbox,
    build_in,
    computed_counts,
    evaluate_run,
    make_image_folder,
    read_arrays,
    read_csv,
    run_command,
)
from store_maintenance import make_older

import lgclip
from lgclip.api import experiments_of
from lgclip.cli.main import main
from lgclip.cli.store.gc import collect
from lgclip.encoder.open_clip import OpenClip
from lgclip.prompts.waffle import Waffle
from lgclip.reporting.restore import restore_run
from lgclip.reporting.result_schema import from_json
from lgclip.reporting.run_folder import Run

pytest_plugins = ("run_fixtures", "chat_fixtures")

DESCRIPTORS = {NAMES[0]: ["a cold light"], NAMES[1]: ["a hole", "one edge"], NAMES[2]: ["five tips", "a glow", "arms"]}
ALL = "text.alternatives=[template,ensemble,llm,waffle]"


@pytest.fixture
def descriptor_file(tmp_path: Path) -> Path:
    file = tmp_path / "descriptors.json"
    file.write_text(json.dumps(DESCRIPTORS))
    return file


def prompts_of(name: str) -> list[str]:
    return [sentence.replace("{}", name) for sentence in SENTENCES[:3]]


def expected_sentences(kind: str, name: str) -> list[str]:
    """Returns the sentences of a class in the sandbox, written out."""
    match kind:
        case "template" | "ensemble":
            return [f"a photo of a {name}."]
        case "llm":
            return prompts_of(name)
        case "waffle":
            return [f"a photo of a {name}, which has {descriptor}." for descriptor in Waffle().descriptors()]
    verb = {"a": "is"}
    return [f"{name}, which {verb.get(d.split()[0], 'has')} {d}" for d in DESCRIPTORS[name]]


def encoded(encoder: Path, sentences: Sequence[str]) -> np.ndarray:
    towers = OpenClip(str(encoder), None, precision="fp32").load(torch.device("cpu"))
    return towers.texts(list(sentences)).double().numpy()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["template", "ensemble", "llm", "waffle", "descriptors"])
def test_text_prototypes_match_numpy(kind: str, sandbox: Sandbox, tmp_path: Path, descriptor_file: Path) -> None:
    file = [f"text.file={descriptor_file}"] if kind == "descriptors" else []
    result = evaluate_run(sandbox, tmp_path / "run", "method=clip_text", f"text={kind}", *file)
    assert main(["store", "features", str(tmp_path / "run"), str(tmp_path / "out.npz")]) == 0
    exported = read_arrays(tmp_path / "out.npz")

    prototypes: list[np.ndarray] = []
    for name in NAMES:
        mean = encoded(sandbox.encoder, expected_sentences(kind, name)).mean(axis=0)
        # Descriptors average scores: f . mean(t) is the mean of f . t. The others scale the mean to unit length.
        prototypes.append(mean if kind in ("waffle", "descriptors") else mean / np.linalg.norm(mean))
    scores = exported["real"][:, 0] @ np.stack(prototypes).T

    predictions = read_csv(tmp_path / "run" / "predictions.csv")
    assert [int(row["prediction"]) for row in predictions] == scores.argmax(axis=1).tolist()
    ratios = np.exp((scores - scores.max(axis=1, keepdims=True)) / 0.01)
    np.testing.assert_allclose([float(row["confidence"]) for row in predictions], 1 / ratios.sum(axis=1), atol=1e-4)
    record = result["text"]["text"]
    counts = [len(expected_sentences(kind, name)) for name in NAMES]
    assert (record["kind"], record["sentences"]) == (kind, [min(counts), max(counts)])
    assert record["example"] == expected_sentences(kind, NAMES[0])[0]


@pytest.mark.slow
def test_alternatives_stand_next_to_the_text_baseline(sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", ALL, "method=fusion")
    # `template` and `ensemble` have the same sentence here, which is the configured one.
    assert list(result["baselines"]) == ["lgclip", "clip_text", "clip_text_llm", "clip_text_waffle"]
    assert list(result["text"]) == ["text", "text_llm", "text_waffle"]
    assert list(result["paired"]) == list(result["baselines"])
    assert result["store"].keys() == {"text", "text_llm", "text_waffle", "synthetic", "real"}
    assert result["baseline"] == result["baselines"]["clip_text"]
    for kind in ("llm", "waffle"):
        alone = evaluate_run(sandbox, tmp_path / kind, f"text={kind}", "method=clip_text", "text.alternatives=[]")
        assert result["baselines"][f"clip_text_{kind}"] == alone["metrics"]
        assert computed_counts(alone) == dict.fromkeys(computed_counts(alone), 0), "the sentences are encoded already"
    assert restore_run(Run.read(tmp_path / "run")).streams.keys() == result["store"].keys()
    assert from_json(result).text


@pytest.mark.slow
def test_shared_sentences_are_encoded_once(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(fresh_sandbox, tmp_path / "run", "text.alternatives=[llm]")
    # Three prompts of each class, one of which is the template; nine synthetic and twelve real images.
    assert computed_counts(result)["features"] == 9 + 9 + 12
    cost = result["cost"]["computed_before"]["features"]["parts"]
    assert (cost["text"]["computed"], cost["text_llm"]["computed"]) == (3, 6)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        (("text.alternatives=[]",), ["clip_text", "fusion"]),
        (("~method.baselines.clip_text", ALL), ["fusion"]),
        (("text=llm", "text.alternatives=[template,ensemble,llm]"), ["clip_text", "fusion", "clip_text_template"]),
    ],
    ids=["none", "without clip_text", "other than the configured"],
)
def test_alternatives_follow_the_config(
    overrides: tuple[str, ...], names: list[str], sandbox: Sandbox, tmp_path: Path
) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", *overrides)
    assert list(result["baselines"]) == names


@pytest.mark.slow
def test_prompts_without_images_are_no_alternative(sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(sandbox, tmp_path / "run", "method=clip_text", "text.alternatives=[llm]")
    assert result["baselines"] == {}
    assert result["llm"] is None


@pytest.mark.slow
def test_prompts_are_generated_without_images(fresh_sandbox: Sandbox, tmp_path: Path) -> None:
    result = evaluate_run(fresh_sandbox, tmp_path / "run", "method=clip_text", "text=llm")
    assert computed_counts(result) == {"prompts": 3, "features": 3 * 3 + 12}
    assert (result["diffuser"], result["llm"]["part"]) == (None, "Templates")
    assert not (fresh_sandbox.store / "images").exists()
    assert main(["audit", str(tmp_path / "run")]) == 0
    # The same prompts as those of images: nothing is written again.
    again = evaluate_run(fresh_sandbox, tmp_path / "images", "text=llm")
    assert computed_counts(again)["prompts"] == 0
    assert [stage["stage"] for stage in again["stages"]] == ["prompts", "images", "features", "evaluation"]
    make_older(fresh_sandbox.store, 3)
    list(collect(fresh_sandbox.store, keep=[tmp_path / "run"], yes=True))
    assert not list((fresh_sandbox.store / "images").rglob("*.png")), "the images were another run's"
    assert len(list((fresh_sandbox.store / "prompts").glob("*.json"))) == len(NAMES)


@pytest.mark.slow
def test_shuffled_prompts_are_those_of_the_images(sandbox: Sandbox, tmp_path: Path) -> None:
    overrides = ["prompt_order_seed=1", "prompt_pool=4", "prompts_per_class=2", "text.alternatives=[llm]"]
    evaluate_run(sandbox, tmp_path / "run", *overrides)
    restored = restore_run(Run.read(tmp_path / "run"))
    assert restored.synthetic_images is not None
    used = {prompt.text for prompt in restored.synthetic_images.prompts}
    stream = restored.streams["text_llm"]
    assert {str(stream.load(place)) for place in range(len(stream.ids))} == used
    assert len(used) == 2 * len(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ensemble", "llm", "waffle"])
def test_added_classes_have_the_same_text_side(kind: str, sandbox: Sandbox, tmp_path: Path) -> None:
    overrides = ["method=fusion", f"text={kind}", *(["text.templates=imagenet7"] if kind == "ensemble" else [])]
    complete = build_in(sandbox, NAMES, *overrides)
    build_in(sandbox, NAMES[:2], *overrides).save(tmp_path / "two")
    classifier = lgclip.load(tmp_path / "two", overrides=[f"paths.store={sandbox.store}", "trainer.accelerator=cpu"])
    classifier.add(NAMES[2])
    assert classifier.text is not None
    assert complete.text is not None
    assert torch.equal(classifier.text, complete.text)
    default = build_in(sandbox, NAMES, "method=fusion").text
    assert default is not None
    assert not torch.allclose(classifier.text, default)


@pytest.mark.slow
def test_added_class_needs_a_sentence_of_its_own_alone(
    sandbox: Sandbox, tmp_path: Path, descriptor_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overrides = ["method=fusion", "text=descriptors", f"text.file={descriptor_file}", "rejection=positives"]
    complete = build_in(sandbox, NAMES, *overrides).text
    assert complete is not None
    described = dict(DESCRIPTORS)
    new = tmp_path / "new class.json"
    new.write_text(json.dumps({NAMES[2]: described.pop(NAMES[2])}))
    descriptor_file.write_text(json.dumps(described))
    build_in(sandbox, NAMES[:2], *overrides).save(tmp_path / "two")
    # On another machine.
    descriptor_file.unlink()
    command = ["add", str(tmp_path / "two"), NAMES[2], "--override", f"paths.store={sandbox.store}"]
    command += ["--override", "trainer.accelerator=cpu"]
    assert main(command) == 1
    assert f"1 of 1 classes have no descriptors in the classifier: {NAMES[2]!r}" in capsys.readouterr().err
    assert main([*command, "--override", f"++text.file='{new}'"]) == 0
    classifier = lgclip.load(tmp_path / "two", overrides=[f"paths.store={sandbox.store}", "trainer.accelerator=cpu"])
    assert classifier.text is not None
    assert torch.equal(classifier.text, complete)
    new.unlink()
    # The new one is kept as well: all classes can be built again.
    (experiment,) = experiments_of(classifier, [f"paths.store={sandbox.store}", "trainer.accelerator=cpu"])
    again = experiment.build_classifier().text
    assert again is not None
    assert torch.equal(again, complete)


@pytest.mark.slow
def test_file_of_descriptors_has_to_fit_the_classifier(sandbox: Sandbox, tmp_path: Path, descriptor_file: Path) -> None:
    with pytest.raises(ValueError, match=r"rejection\.similar_names=3: text\.file has no descriptors of the things"):
        build_in(
            sandbox, NAMES, "method=fusion", "text=descriptors", f"text.file={descriptor_file}", "rejection=negatives"
        )
    build_in(sandbox, NAMES[:2], "method=fusion").save(tmp_path / "two")
    classifier = lgclip.load(
        tmp_path / "two", overrides=[f"paths.store={sandbox.store}", f"text.file={descriptor_file}"]
    )
    with pytest.raises(ValueError, match=r"text\.file=.*: the sentences of this classifier came from no file"):
        classifier.add(NAMES[2])


@pytest.mark.slow
def test_classifier_of_a_run_has_its_text_side(sandbox: Sandbox, tmp_path: Path) -> None:
    evaluate_run(sandbox, tmp_path / "run", "method=fusion", "text=waffle", ALL)
    classifier = lgclip.load(tmp_path / "run", overrides=[f"paths.store={sandbox.store}", "trainer.accelerator=cpu"])
    rows = read_csv(tmp_path / "run" / "predictions.csv")
    labels = lgclip.evaluate(classifier, sandbox.synthetic_images).predictions
    assert [NAMES.index(prediction.label or "") for prediction in labels] == [int(row["prediction"]) for row in rows]
    classifier.add("old boot")
    built = build_in(sandbox, [*NAMES, "old boot"], "method=fusion", "text=waffle")
    assert classifier.text is not None
    assert built.text is not None
    torch.testing.assert_close(classifier.text, built.text)


def test_published_ensemble_is_spelled_out_for_added_classes(tmp_path: Path) -> None:
    from lgclip.datasets.names import ClassNames
    from lgclip.prompts.text_side import Ensemble

    textures = ClassNames(["banded", "dotted"], templates=["{} texture."])
    textures.name = "dtd"
    values = Ensemble().for_added_classes(textures)
    added = ClassNames(["striped", "woven"], templates=["{} texture."])
    assert Ensemble(**values).sentences(added)[0][0] == "a photo of a striped texture."  # pyright: ignore[reportArgumentType]
    assert Ensemble().for_added_classes(added) == {}


@pytest.mark.slow
def test_shifted_set_with_some_classes_has_their_prompts(sandbox: Sandbox, tmp_path: Path) -> None:
    make_image_folder(tmp_path / "shifted", NAMES[1:], per_class=2)
    shifted = "+ood.part={_target_: lgclip.datasets.folder.Folder, root: %s}" % (tmp_path / "shifted")
    result = evaluate_run(sandbox, tmp_path / "run", shifted, "text.alternatives=[llm]")
    part = result["ood"]["part"]
    assert "clip_text_llm" in part["baselines"]
    exported = encoded(sandbox.encoder, [text for name in NAMES[1:] for text in prompts_of(name)]).reshape(2, 3, -1)
    prototypes = exported.mean(axis=1)
    prototypes /= np.linalg.norm(prototypes, axis=1, keepdims=True)
    from lgclip.reporting.restore import additional_streams

    run = Run.read(tmp_path / "run")
    streams = additional_streams(run, restore_run(run))
    assert [stream.name for stream in streams] == ["text", "text_llm", "real"]
    features = streams[1].features()[:, 0].double().numpy()
    np.testing.assert_allclose(features.reshape(2, 3, -1), exported, atol=1e-6)
    real = streams[2].features()[:, 0].double().numpy()
    correct = (real @ prototypes.T).argmax(axis=1) == np.array(streams[2].labels)
    assert part["baselines"]["clip_text_llm"]["top1"] == pytest.approx(correct.mean())


def server_overrides(sandbox: Sandbox, url: str) -> list[str]:
    overrides = [part for part in sandbox.evaluate_overrides() if not part.startswith(("llm", "diffuser"))]
    return [
        *overrides, "llm=server", "llm.model=good-model", f"llm.base_url={url}", "llm.api_key_env=null",
        "method=clip_text", "text=descriptors", "text.count=2", "llm.max_rounds=1",
    ]  # fmt: skip


@pytest.mark.slow
def test_descriptors_are_asked_of_a_chat_model(serve: Any, sandbox: Sandbox, tmp_path: Path) -> None:
    def answer(server: ChatServer, handler: Handler, body: dict[str, Any], name: str, number: int) -> None:
        requests.append(body["messages"][-1]["content"])
        send(handler, 200, completion(json.dumps({"prompts": ["four legs", "a long tail"]})))

    requests: list[str] = []
    overrides = server_overrides(sandbox, serve(answer).url)
    result = evaluate_run(overrides, tmp_path / "run")
    assert [request.startswith("List 2 visual features") for request in requests] == [True] * len(NAMES)
    assert computed_counts(result)["descriptors"] == len(NAMES)
    assert result["text"]["text"]["sentences"] == [2, 2]
    assert result["llm"]["part"] == "ServerLLM"
    restored = restore_run(Run.read(tmp_path / "run"))
    stream = restored.streams["text"]
    assert [stream.load(place) for place in range(2)] == [
        f"{NAMES[0]}, which has four legs", f"{NAMES[0]}, which is a long tail"
    ]  # fmt: skip
    assert computed_counts(evaluate_run(overrides, tmp_path / "again"))["descriptors"] == 0


def test_too_few_descriptors_are_an_error(
    serve: Any, sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(server: ChatServer, handler: Handler, body: dict[str, Any], name: str, number: int) -> None:
        send(handler, 200, completion(json.dumps({"prompts": ["four legs"]})))

    with pytest.raises(SystemExit):
        evaluate_run(server_overrides(sandbox, serve(answer).url), tmp_path / "run")
    assert "3 of 3 classes have too few prompts" in capsys.readouterr().err


@pytest.mark.slow
def test_plan_counts_all_sentences(sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate_run(sandbox, tmp_path / "run", ALL)
    capsys.readouterr()
    run_command("evaluate", *sandbox.evaluate_overrides(), ALL, "plan=true", f"hydra.run.dir={tmp_path / 'plan'}")
    row = next(line for line in capsys.readouterr().out.splitlines() if "sentence" in line)
    # Three prompts, one of which is the template, and thirty random descriptors of each class.
    assert row.split() == ["features", "sentence", "99", "99", "0"]
