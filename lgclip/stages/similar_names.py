"""Names objects that look similar to the classes and belong to none."""

import logging
from collections.abc import Callable

from lgclip.prompts.base import PromptError
from lgclip.prompts.similar_names import names_generator, recombined_names, usable_names
from lgclip.runtime.terminal import single_line
from lgclip.stages.context import RunContext
from lgclip.stages.parts import GenerationParts
from lgclip.stages.prompts import PromptGenerationStage
from lgclip.store.prompts import PromptStore

log = logging.getLogger(__name__)


def similar_names(make_context: Callable[[], RunContext], parts: GenerationParts, count: int) -> list[str]:
    """Returns distinct names; fewer than requested, or none, where the model has no more or the names have one word.

    The chat model of `llm` is asked; without one, words of the class names are recombined.

    Args:
        make_context: Makes the context of the stage, where the chat model is asked.
        parts: The classes and the chat model.
        count: Number of names per class.
    """
    if not parts.diffuser.needs_prompts:
        return []
    target_classes = parts.data.evaluated.target_classes
    class_names = [target_class.name for target_class in target_classes]
    generator = names_generator(parts.llm)
    if generator is None:
        return recombined_names(class_names, count)
    context = make_context()
    # Twice as many, since some are a class or a kind of one, and are left out.
    stage = PromptGenerationStage(generator, PromptStore(context.store), target_classes, 2 * count, parts.counts.seed)
    context.stages.check_before(generator.check_weights)
    try:
        with context.stages:
            context.stages.complete("similar names", stage, len(target_classes))
    except PromptError as error:
        # A class with fewer names is no reason to stop: the other classes have some.
        log.warning("fewer similar names than asked: %s", single_line(str(error)))
    return usable_names(stage.texts(), class_names, count)
