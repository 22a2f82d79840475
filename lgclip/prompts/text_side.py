"""Defines the text sides: which sentences stand for a class, and how their scores are averaged."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from lgclip.datasets.base import Dataset
from lgclip.datasets.ensembles import imagenet_templates, published_ensemble
from lgclip.prompts.base import PromptGenerator
from lgclip.store.keys import NOT_AN_INPUT

ALTERNATIVES = ("template", "ensemble", "llm", "waffle")
"""Text sides that can be evaluated next to the configured one without further work of a language model."""


@dataclass(frozen=True)
class TextSide(ABC):
    """Provides the sentences that stand for each class.

    Args:
        alternatives: Text sides that are reported next to the baseline `clip_text`, where their sentences differ from
            the configured ones; `llm` only in a run that generates images from prompts.

    Attributes:
        averages_scores: Whether the score of a class is the mean score of its sentences. Otherwise it is the cosine to
            their mean, scaled to unit length: CLIP's prompt ensemble (arXiv:2103.00020, sec. 3.1.4).

    Raises:
        ValueError: If an alternative is unknown.
    """

    key_name: ClassVar[str]
    averages_scores: ClassVar[bool] = False

    alternatives: Sequence[str] = field(default=ALTERNATIVES, kw_only=True, metadata=NOT_AN_INPUT)

    def __post_init__(self) -> None:
        for name in self.alternatives:
            if name not in ALTERNATIVES:
                raise ValueError(f"text.alternatives: {name!r} is unknown; choose among {', '.join(ALTERNATIVES)}")

    @property
    def texts_per_class(self) -> int | None:
        """Returns the number of texts to generate per class; None for the run's number of prompts."""
        return None

    def generator(self, llm: PromptGenerator) -> PromptGenerator | None:
        """Returns the generator of the texts that the sentences are made from; None if they need none.

        Args:
            llm: The run's prompt generator.

        Raises:
            ValueError: If the prompt generator cannot provide them.
        """
        return None

    def check(self, dataset: Dataset, llm: PromptGenerator) -> None:
        """Checks that the sentences can be had, before anything is generated.

        Args:
            dataset: The classes.
            llm: The run's prompt generator.

        Raises:
            ValueError: If the prompt generator cannot provide the texts, or a class has no sentence.
        """
        if self.generator(llm) is None:
            self.sentences(dataset)

    @abstractmethod
    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        """Returns the sentences of each class, at least one.

        Args:
            dataset: The classes.
            texts: Texts of the generator for each class; None without one.

        Raises:
            ValueError: If a class has no sentence.
        """

    def for_added_classes(self, dataset: Dataset) -> dict[str, object]:
        """Returns config values with which classes that are known by name alone get the same sentences.

        Args:
            dataset: The data set that a classifier was built for.
        """
        return {}


@dataclass(frozen=True)
class SingleTemplate(TextSide):
    """Provides one sentence per class.

    Args:
        template: The sentence, with `{}` for the class name; None is the data set's own, CLIP's single prompt of it.

    Raises:
        ValueError: If the template has no placeholder.
    """

    key_name: ClassVar[str] = "template"

    template: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.template is not None:
            _check_templates([self.template], "text.template")

    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        if self.template is not None:
            return _filled([self.template], dataset)
        return [dataset.text_sentences(label)[:1] for label in range(len(dataset.class_names))]


ENSEMBLES = {"imagenet80": 80, "imagenet7": 7}
"""Named ensembles: CLIP's templates for ImageNet."""


@dataclass(frozen=True)
class Ensemble(TextSide):
    """Provides the sentences of a template ensemble.

    Args:
        templates: `published`: CLIP's ensemble of the data set, or the data set's templates where it published none or
            `dataset.templates` was set; `dataset`: the data set's templates; `imagenet80` or `imagenet7`: CLIP's for
            ImageNet; or a list of templates with `{}` for the class name.

    Raises:
        ValueError: If the name is unknown, the list is empty, or a template has no placeholder.
    """

    key_name: ClassVar[str] = "ensemble"

    templates: str | Sequence[str] = "published"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.templates, str):
            _check_templates(self.templates, "text.templates")
        elif self.templates not in ("published", "dataset", *ENSEMBLES):
            raise ValueError(
                f"text.templates={self.templates}: choose published, dataset, {', '.join(ENSEMBLES)}, or give a list"
            )

    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        templates = self._templates(dataset)
        if templates == dataset.templates:
            # The data set itself fills them in, since a class of the user's own may have a description.
            return [dataset.text_sentences(label) for label in range(len(dataset.class_names))]
        return _filled(templates, dataset)

    def _templates(self, dataset: Dataset) -> tuple[str, ...]:
        if not isinstance(self.templates, str):
            return tuple(self.templates)
        if self.templates in ENSEMBLES:
            return imagenet_templates(ENSEMBLES[self.templates])
        if self.templates == "dataset":
            return dataset.templates
        return published_ensemble(dataset)

    def for_added_classes(self, dataset: Dataset) -> dict[str, object]:
        templates = self._templates(dataset)
        # Names alone belong to no data set with a published ensemble, so it is spelled out.
        return {} if templates == dataset.templates else {"templates": list(templates)}


@dataclass(frozen=True)
class LlmSentences(TextSide):
    """Provides the run's own prompts, each distinct one once: CuPL (arXiv:2209.03320).

    They are the prompts that the run's images are generated from.
    """

    key_name: ClassVar[str] = "llm"

    def generator(self, llm: PromptGenerator) -> PromptGenerator:
        if llm.needs_images:
            raise ValueError(
                "text=llm with captions as prompts: captions describe real training images, not classes; choose a "
                "language model, llm=file or llm=template"
            )
        return llm

    def sentences(self, dataset: Dataset, texts: Sequence[Sequence[str]] | None = None) -> list[list[str]]:
        assert texts is not None
        return [list(dict.fromkeys(of_class)) for of_class in texts]


def text_side(name: str) -> TextSide:
    """Returns the text side of an alternative's name with its default values."""
    from lgclip.prompts.waffle import Waffle

    parts: dict[str, type[TextSide]] = {
        "template": SingleTemplate,
        "ensemble": Ensemble,
        "llm": LlmSentences,
        "waffle": Waffle,
    }
    return parts[name]()


def _filled(templates: Sequence[str], dataset: Dataset) -> list[list[str]]:
    sentences: list[list[str]] = []
    for name in dataset.class_names:
        sentences.append([template.replace("{}", name) for template in templates])
    return sentences


def _check_templates(templates: Sequence[str], key: str) -> None:
    if not templates:
        raise ValueError(f"{key}=[]: give at least one sentence with {{}} for the class name")
    for template in templates:
        if "{}" not in template:
            raise ValueError(f"{key}: {template!r} has no {{}} for the class name")
