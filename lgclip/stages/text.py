"""Prepares the text sides of a run: the configured sentences of its classes, and those of further text baselines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lgclip.datasets.base import Dataset
from lgclip.prompts.text_side import LlmSentences, TextSide, text_side
from lgclip.stages.context import RunContext
from lgclip.stages.generate import places
from lgclip.stages.parts import RunParts
from lgclip.stages.prompts import PromptGenerationStage
from lgclip.store.keys import key_inputs
from lgclip.store.prompts import PromptStore


@dataclass(frozen=True)
class ClassTexts:
    """Holds a text side with the texts that its sentences are made from.

    Attributes:
        side: The text side.
        texts: Texts of its generator for each class of the run; None if it needs none.
    """

    side: TextSide
    texts: Sequence[Sequence[str]] | None = None

    def sentences(self, dataset: Dataset, classes: Sequence[int] | None = None) -> list[list[str]]:
        """Returns the sentences of each class.

        Args:
            dataset: The classes.
            classes: Index of each of them among the classes of the run; None if they are the same.
        """
        texts = self.texts
        if texts is not None and classes is not None:
            texts = [texts[index] for index in classes]
        return self.side.sentences(dataset, texts)


@dataclass(frozen=True)
class RunTexts:
    """Holds the text sides of a run.

    Attributes:
        configured: Stands for the classes in every score that uses text.
        alternatives: Further text baselines whose sentences differ from the configured ones, by the name of their
            stream, such as `text_llm`.
    """

    configured: ClassTexts
    alternatives: Mapping[str, ClassTexts] = field(default_factory=dict)

    def record(self, dataset: Dataset) -> dict[str, dict[str, object]]:
        """Returns the kind and the inputs of each text side, an example, and its fewest and most sentences per class.

        Args:
            dataset: The classes of the run.
        """
        records: dict[str, dict[str, object]] = {}
        for name, texts in {"text": self.configured, **self.alternatives}.items():
            sentences = texts.sentences(dataset)
            counts = [len(of_class) for of_class in sentences]
            inputs = key_inputs(texts.side)
            records[name] = {
                "kind": inputs.pop("part"),
                "sentences": [min(counts), max(counts)],
                "example": sentences[0][0],
                "inputs": inputs,
            }
        return records


def writing_stage(side: TextSide, parts: RunParts, store: Path) -> PromptGenerationStage | None:
    """Returns the stage that generates the texts of a text side; None if it needs none.

    Args:
        side: The text side.
        parts: The parts of the run.
        store: The store's folder.

    Raises:
        ValueError: If the run's prompt generator cannot provide them.
    """
    generator = side.generator(parts.llm)
    if generator is None:
        return None
    counts = parts.counts
    count = side.texts_per_class or counts.written_prompts
    target_classes = parts.data.evaluated.target_classes
    return PromptGenerationStage(generator, PromptStore(store), target_classes, count, counts.seed)


def stage_title(side: TextSide) -> str:
    """Returns the name of the stage that generates the texts of a text side."""
    return "prompts" if isinstance(side, LlmSentences) else "descriptors"


def stored_texts(side: TextSide, parts: RunParts, store: Path) -> ClassTexts:
    """Returns a text side with its texts as far as they are in the store.

    Args:
        side: The text side.
        parts: The parts of the run.
        store: The store's folder.
    """
    stage = writing_stage(side, parts, store)
    if stage is None:
        return ClassTexts(side)
    if not isinstance(side, LlmSentences):
        return ClassTexts(side, stage.texts())
    # Those from which the images are generated: of a shuffled pool not all are used.
    counts = parts.counts
    texts: list[list[str]] = []
    for target_class, written in zip(stage.target_classes, stage.texts(), strict=True):
        order = places(target_class, len(written), counts.prompt_order_seed)[: counts.prompts_per_class]
        texts.append([written[place] for place in order])
    return ClassTexts(side, texts)


def stored_run_texts(parts: RunParts, store: Path, *, has_prompts: bool, compares: bool = True) -> RunTexts:
    """Returns the text sides of a run, as far as their texts are in the store.

    Args:
        parts: The parts of the run.
        store: The store's folder.
        has_prompts: Whether the run has generated prompts for images.
        compares: Whether further text baselines are evaluated.
    """
    configured = stored_texts(parts.text, parts, store)
    if not compares:
        return RunTexts(configured)
    dataset = parts.data.evaluated
    sentence_lists = [_distinct(configured.sentences(dataset))]
    alternatives: dict[str, ClassTexts] = {}
    for name in dict.fromkeys(parts.text.alternatives):
        if name == "llm" and not (has_prompts and not parts.llm.needs_images):
            continue
        texts = stored_texts(text_side(name), parts, store)
        sentences = _distinct(texts.sentences(dataset))
        # The same sentences are the same baseline, whatever they are called.
        if sentences not in sentence_lists:
            sentence_lists.append(sentences)
            alternatives[f"text_{name}"] = texts
    return RunTexts(configured, alternatives)


def complete_texts(context: RunContext, parts: RunParts, *, has_prompts: bool, compares: bool = True) -> RunTexts:
    """Returns the text sides of a run; generates the texts that are missing.

    Args:
        context: Runs the stages, and holds the store.
        parts: The parts of the run.
        has_prompts: Whether the run has generated prompts for images.
        compares: Whether further text baselines are evaluated.

    Raises:
        PromptError: If the generator provides too few texts for a class.
    """
    stage = writing_stage(parts.text, parts, context.store)
    title = stage_title(parts.text)
    # The prompts of the images have been generated as such, in a stage of the same name.
    completed = {stats.stage for stats in context.stages.stage_stats}
    if stage is not None and (title not in completed or stage.missing()):
        context.stages.check_before(stage.prompt_generator.check_weights)
        context.stages.complete(title, stage, len(stage.target_classes))
    return stored_run_texts(parts, context.store, has_prompts=has_prompts, compares=compares)


def _distinct(sentences: Sequence[Sequence[str]]) -> list[list[str]]:
    return [sorted(of_class) for of_class in sentences]
