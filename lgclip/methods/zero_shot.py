"""Nearest prototype, of images, of sentences, or of both."""

from collections.abc import Mapping

from jaxtyping import Float
from torch import Tensor

from lgclip.batch import FeatureBatch
from lgclip.methods.base import Classifier
from lgclip.prototypes import Prototypes
from lgclip.scales import Scales


class ZeroShot(Classifier):
    """LGCLIP (text weight 0), CLIP's text baseline (1), and fusion between them.

    The cosine is linear in the prototype, so `w * text + (1 - w) * image` prototypes are score
    fusion (arXiv:2512.17160, sec. 3; arXiv:2103.00020, sec. 3.1).

    Args:
        name: What the result is called.
        text_weight: Share of the text prototype, 0 to 1.
        beside: Other text weights, by name, judged in the same pass; left out are those that need
            text or images that are not there.
        renormalise: See `Prototypes`.
        scales: Adds up the views of an image.
        has_text: Whether there is a text stream.

    Raises:
        ValueError: If a weight is out of range or needs a text tower that is not there.
    """

    def __init__(
        self,
        name: str,
        text_weight: float,
        beside: Mapping[str, float] | None = None,
        renormalise: bool = True,
        *,
        scales: Scales,
        has_text: bool,
    ) -> None:
        weights = {name: text_weight, **(beside or {})}
        for who, weight in weights.items():
            if not 0 <= weight <= 1:
                raise ValueError(f"text weight of {who} is {weight}: it must be in [0, 1]")
        if text_weight > 0 and not has_text:
            raise ValueError(f"method {name} needs a text tower, which this encoder does not have; use method=lgclip")
        if text_weight == 1:  # then no image was drawn
            weights = {who: weight for who, weight in weights.items() if weight == 1}
        if not has_text:
            weights = {who: weight for who, weight in weights.items() if weight == 0}
        super().__init__(list(weights))
        self.weights = weights
        self.scales = scales
        self.renormalise = renormalise
        self.needs_images = text_weight < 1

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.text = Prototypes(data.num_classes, data.width, renormalise=self.renormalise)
        self.image = Prototypes(data.num_classes, data.width, renormalise=self.renormalise)

    def prototypes(self, text_weight: float) -> Float[Tensor, "c d"]:
        """Prototypes at one text weight."""
        if text_weight == 0:
            return self.image.compute()
        if text_weight == 1:
            return self.text.compute()
        return text_weight * self.text.compute() + (1 - text_weight) * self.image.compute()

    def test_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        stream = self.trainer.datamodule.streams[dataloader_idx].name  # pyright: ignore[reportAttributeAccessIssue]
        match stream:
            case "text":
                self.text.update(batch.features[:, 0], batch.labels)
            case "synthetic":
                self.image.update(self.scales.fuse(batch.features), batch.labels)
            case "real":
                features = self.scales.fuse(batch.features)
                for name, weight in self.weights.items():
                    self.judge(name, features @ self.prototypes(weight).T, batch)
            case _:
                raise AssertionError(stream)
