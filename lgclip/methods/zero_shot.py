"""Nearest prototype, of images, of sentences, or of both."""

from collections.abc import Mapping

from lgclip.batch import FeatureBatch
from lgclip.calibration import Choice, LeaveOneOut, Temperature, temperature_of
from lgclip.logits import from_unit
from lgclip.methods.base import Classifier
from lgclip.prototypes import Gathered
from lgclip.rules import Rule, Scorer
from lgclip.scales import Scales
from lgclip.selection import Selection

LEARNT = ("student", "prompt")
"""What may answer in place of a comparison with prototypes."""


class ZeroShot(Classifier):
    """LGCLIP (text weight 0), CLIP's text baseline (1), and fusion between them.

    The cosine is linear in the prototype, so `w * text + (1 - w) * image` prototypes are score
    fusion (arXiv:2512.17160, sec. 3; arXiv:2103.00020, sec. 3.1).

    Args:
        name: What the result is called.
        text_weight: Share of the text prototype, 0 to 1; None for a student, whose scores are streamed.
        beside: Other text weights, by name, judged in the same pass; left out are those that need
            text or images that are not there.
        prototype: Score of a class from its images.
        selection: Which images stand for a class.
        calibration: Chooses the free parameters on synthetic images; None leaves them as they are.
        scales: Adds up the views of an image.
        has_text: Whether there is a text stream.
        learns: With no text weight, what answers: a `student` or a `prompt`.

    Raises:
        ValueError: If a weight is out of range or needs a text tower that is not there.
    """

    def __init__(
        self,
        name: str,
        text_weight: float | None,
        beside: Mapping[str, float] | None = None,
        learns: str = "student",
        *,
        prototype: Rule,
        selection: Selection,
        calibration: LeaveOneOut | None = None,
        scales: Scales,
        has_text: bool,
    ) -> None:
        if learns not in LEARNT:
            raise ValueError(f"method.learns={learns}: choose {' or '.join(LEARNT)}")
        self.learns = learns if text_weight is None else None
        weights = {**({} if text_weight is None else {name: text_weight}), **(beside or {})}
        for who, weight in weights.items():
            if not 0 <= weight <= 1:
                raise ValueError(f"text weight of {who} is {weight}: it must be in [0, 1]")
        if (text_weight or 0) > 0 and not has_text:
            raise ValueError(f"method {name} needs a text tower, which this encoder does not have; use method=lgclip")
        if text_weight != 1 and selection.needs_text and selection.keep is not None and not has_text:
            raise ValueError("selection=text needs a text tower, which this encoder lacks; use selection=medoid")
        if text_weight == 1:  # then no image was drawn
            weights = {who: weight for who, weight in weights.items() if weight == 1}
        if not has_text:
            weights = {who: weight for who, weight in weights.items() if weight == 0}
        super().__init__([*([name] if self.learns else []), *weights])
        self.given = {who: Choice(prototype, selection, weight) for who, weight in weights.items()}
        self.calibration = calibration
        self.scales, self.has_text = scales, has_text
        self.needs_images = text_weight != 1
        self._scorers: dict[str, Scorer] = {}
        if self.learns:  # its scores are logits
            self.temperatures[name] = Temperature(1.0, "default")
            self.choices[name] = {"learned": self.learns}

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule  # pyright: ignore[reportAttributeAccessIssue]
        self.text = Gathered(data.num_classes, data.width)
        self.image = Gathered(data.num_classes, data.width)
        self._scorers = {}  # of another data set, if one was judged before

    def _fit(self) -> None:
        text = self.text.support().means(renormalise=True) if self.has_text else None
        images = self.image.support() if self.needs_images else None
        for name, choice in self.given.items():
            used, loo = choice, None
            if self.calibration is not None and images is not None and choice.text_weight < 1:
                used, loo = self.calibration.choose(choice, images, text)
            self._scorers[name] = used.fit(images, text)
            self.choices[name] = {**used.described(), "leave_one_out": loo}
            self.temperatures[name] = temperature_of(used, images, text)
            if images is not None and name == next(iter(self.given)):
                self.support = used.selection.select(images, text)

    def test_step(self, batch: FeatureBatch, batch_idx: int, dataloader_idx: int = 0) -> None:
        stream = self.trainer.datamodule.streams[dataloader_idx].name  # pyright: ignore[reportAttributeAccessIssue]
        match stream:
            case "text":
                self.text.update(batch.features[:, 0], batch.labels, batch.indices)
            case "synthetic":
                self.image.update(self.scales.fuse(batch.features), batch.labels, batch.indices)
            case "student" | "prompted":  # a student's columns are its own classes, a prompt's those of the data set
                columns = self.trainer.datamodule.columns if stream == "student" else None  # pyright: ignore[reportAttributeAccessIssue]
                logits = from_unit(batch.features[:, 0])
                self.judge(self.names[0], logits if columns is None else logits[:, list(columns)], batch)
            case "real":
                if not self._scorers:  # every device has a first batch of real images
                    self._fit()
                features = self.scales.fuse(batch.features)
                for name, score in self._scorers.items():
                    self.judge(name, score(features), batch)
            case _:
                raise AssertionError(stream)
