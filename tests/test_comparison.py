"""Runs against each other: what may be compared, what a test says, and what is told of it."""

import csv
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from lgclip.comparison import (
    ComparisonError,
    Side,
    comparable,
    compare,
    over_groups,
    read_sides,
    read_spec,
    seed_groups,
)
from lgclip.comparison_table import as_json, compare_command, table
from lgclip.runs import Run, RunError, differing
from lgclip.statistics import metrics, paired

CLASSES = ("ant", "bee", "cat")
LABELS = np.repeat([0, 1, 2], 20)


@dataclass
class Written:
    """What is written of a run."""

    accuracy: float = 0.8
    chance: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    names: Sequence[str] = CLASSES
    labels: Any = field(default_factory=lambda: LABELS)


Writer = Callable[[str, Written], Path]


def predicted(labels: Any, accuracy: float, chance: int) -> Any:
    rng = np.random.default_rng(chance)
    return np.where(rng.random(len(labels)) < accuracy, labels, (labels + 1) % 3)


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Writes a run's folder as the report does, as far as a comparison reads it."""

    def written(name: str, run: Written) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        labels, n = run.labels, len(run.labels)
        own = predicted(labels, run.accuracy, run.chance)
        text = predicted(labels, 0.7, 99)
        ranks = [(x != labels).astype(int) for x in (own, text)]
        with (folder / "predictions.csv").open("w", newline="") as file:
            csv.writer(file).writerows([
                ("index", "label", "prediction", "rank", "confidence", "clip_text"),
                *((i, labels[i], own[i], ranks[0][i], "", text[i]) for i in range(n)),
            ])  # fmt: skip
        with (folder / "per_class.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("class", "name"), *enumerate(run.names)])
        figures = [metrics(labels, rank, len(run.names)) for rank in ranks]
        result = {
            "schema": 2, "method": "lgclip", "n": n, "num_classes": len(run.names),
            "dataset": {"name": "insects", "split": "test", "names": "own", "source": {"schema": 1}, **run.dataset},
            "metrics": figures[0], "beside": {"clip_text": figures[1]},
            "choices": {"scales": "single", **run.choices},
            "config": {"seed": 0, "prompt_order_seed": None, "prompts_per_class": 10, "scales": {"n": 1}, **run.config},
        }  # fmt: skip
        (folder / "result.json").write_text(json.dumps(result))
        return folder

    return written


def run_of(write: Writer, name: str, run: Written | None = None) -> Run:
    return Run.read(write(name, run or Written()))


def test_a_place_is_a_run_a_method_beside_it_or_a_folder_with_a_colon(write: Writer, tmp_path: Path) -> None:
    plain, odd = write("a", Written()), write("b:clip_text", Written())
    assert read_spec(str(plain)).column is None
    assert read_spec(f"{plain}:clip_text").method == "clip_text"
    assert read_spec(f"{plain}:lgclip").column is None, "the run's own method"
    assert read_spec(str(odd)).run.folder == odd
    assert read_spec(f"{odd}:clip_text").column == "clip_text"
    assert [(s.run.folder.name, s.column) for s in read_sides([f"{tmp_path}:clip_text"])] == [
        ("a", "clip_text"), ("b:clip_text", "clip_text")
    ]  # fmt: skip


def test_what_is_not_there_is_said_with_what_is(write: Writer, tmp_path: Path) -> None:
    folder = write("a", Written())
    with pytest.raises(ComparisonError, match=r"did not judge 'fusion': choose one of lgclip, clip_text"):
        read_spec(f"{folder}:fusion")
    for missing in ("nowhere", "nowhere:clip_text"):
        with pytest.raises(RunError, match="nowhere holds no"):
            read_spec(str(tmp_path / missing))
    with pytest.raises(ComparisonError, match="no run is named"):
        compare_command([])


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (Written(dataset={"name": "birds"}), "data set's name 'insects' and 'birds'"),
        (Written(dataset={"split": "val"}), "split 'test' and 'val'"),
        (Written(dataset={"names": "latin"}), "names 'own' and 'latin'"),
        (Written(dataset={"source": {"schema": 2}}), r"images' source \{'schema': 1\} and \{'schema': 2\}"),
        (Written(labels=LABELS[:-1]), "number of images 60 and 59"),
        (Written(names=(*CLASSES, "dog")), "number of classes 3 and 4"),
        (Written(names=("ant", "wasp", "dog")), "name of class 1 'bee' and 'wasp', one of 2"),
        (Written(labels=LABELS[::-1]), "labels of 40 images"),
        (Written(dataset={"name": "birds", "split": "val"}), "'birds'; the data set's split"),
    ],
)
def test_runs_on_other_images_are_not_compared(write: Writer, other: Written, told: str) -> None:
    a, b = run_of(write, "a"), run_of(write, "b", other)
    comparable(a, a)
    for refused in (lambda: comparable(a, b), lambda: compare([Side(a), Side(b)])):
        with pytest.raises(ComparisonError, match=told):
            refused()


def test_each_run_is_tested_against_the_first_and_holm_counts_all(write: Writer) -> None:
    """Holm of three p values, by hand: the least threefold, and none below one before it."""
    folders = [
        run_of(write, str(i), Written(accuracy=x, chance=i, config={"prompts_per_class": i}))
        for i, x in enumerate((0.9, 0.3, 0.6, 0.85))
    ]
    sides = [Side(run) for run in folders]
    found = compare([*sides, sides[1]])
    assert [one.side for one in found] == sides[1:], "once each, and the reference not against itself"
    assert [one.settings for one in found] == [{"prompts_per_class": i} for i in (1, 2, 3)]
    assert {one.reference_settings["prompts_per_class"] for one in found} == {0}
    for one in found:
        assert one.test == paired(LABELS, one.side.prediction, sides[0].prediction)
    raw = sorted((one.test["p"], one.p_holm) for one in found)
    steps = np.maximum.accumulate([(3 - i) * p for i, (p, _) in enumerate(raw)])
    assert [p for _, p in raw] == pytest.approx(np.minimum(steps, 1))


def test_a_method_beside_is_a_judgement_like_any_other(write: Writer) -> None:
    run = run_of(write, "a")
    (found,) = compare([Side(run, "clip_text")], Side(run))
    right = {
        name: judged == LABELS for name, judged in (("a", run.predictions.prediction), ("text", found.side.prediction))
    }
    assert found.test["only_this"] == (right["text"] & ~right["a"]).sum()
    assert found.side.figures["top1"] == right["text"].mean()
    assert found.settings == {}


def test_one_run_alone_is_nothing_to_compare(write: Writer) -> None:
    side = Side(run_of(write, "a"))
    with pytest.raises(ComparisonError, match="name another run, or a method beside it"):
        compare([side, side])


def test_seeds_are_gathered_and_settings_told_apart_below_a_choice(write: Writer) -> None:
    """`differing` tells of scales=single and multi by choice alone, yet two multi may have other values."""
    kinds = [("single", 1), ("multi", 4), ("multi", 5)]
    sides = [
        Side(run_of(write, f"{k}-{n}-{seed}", Written(
            chance=seed, config={"seed": seed, "scales": {"n": n}}, choices={"scales": k}
        )))
        for seed in (0, 1, 2) for k, n in kinds
    ]  # fmt: skip
    groups = seed_groups([*sides, sides[0]])
    assert [[side.run.result["config"]["seed"] for side in group.sides] for group in groups] == [[0, 1, 2]] * 3
    assert [group.settings for group in groups] == [
        {"scales": "single"}, {"scales": "multi", "scales.n": 4}, {"scales": "multi", "scales.n": 5}
    ]  # fmt: skip
    assert groups[0].values == [side.figures["top1"] for side in sides[::3]]


def test_a_seed_of_a_part_that_follows_the_runs_is_told_by_it(write: Writer) -> None:
    """Every run has a learner's seed in its config, `${seed}`, whether it learns or not."""

    def side(seed: int, own: int) -> Side:
        config = {"seed": seed, "learner": {"seed": own}, "student": {"seed": seed}}
        return Side(run_of(write, f"{seed}-{own}", Written(chance=seed, config=config)))

    follow = [side(seed, seed) for seed in (0, 1, 2)]
    assert list(differing([one.run for one in follow])) == ["seed"]
    (group,) = seed_groups(follow)
    assert (group.unit, len(group.sides), group.settings) == ("seed", 3, {})
    assert list(differing([one.run for one in (*follow, side(2, 7))])) == ["seed", "learner.seed"]


def test_orders_within_a_seed_are_one_repetition(write: Writer) -> None:
    """They choose among the same images, so four runs of two seeds are no four seeds."""
    sides = [
        Side(run_of(write, f"{s}{o}", Written(chance=4 * s + o, config={"seed": s, "prompt_order_seed": o})))
        for s in (0, 1) for o in (0, 1)
    ]  # fmt: skip
    (both,) = seed_groups(sides)
    top1 = [side.figures["top1"] for side in sides]
    assert both.unit == "seed"
    assert both.values == pytest.approx([sum(top1[:2]) / 2, sum(top1[2:]) / 2])
    (orders,) = seed_groups(sides[:2])
    assert (orders.unit, orders.values) == ("prompt_order_seed", top1[:2])
    assert "the orders of the prompts are the sample" in table(compare(sides[:2]), over_groups([orders], sides[0]))


def test_the_same_seed_twice_is_one_repetition_unless_it_judged_otherwise(write: Writer) -> None:
    a, again = Side(run_of(write, "a")), Side(run_of(write, "b"))
    assert [group.sides for group in seed_groups([a, again])] == [(a,)]
    other = Side(run_of(write, "c", Written(chance=5)))
    with pytest.raises(ComparisonError, match="have the same config and seeds but judge otherwise"):
        seed_groups([a, other])
    places = [str(side.run.folder) for side in (a, other)]
    assert "\n\nno means over seeds: " in compare_command(places), "what changed between them is tested all the same"
    assert "judge otherwise" in json.loads(compare_command(places, json=True))["seeds_refused"]


def seeded(write: Writer, prompts: int, seeds: int, accuracy: float) -> list[Side]:
    return [
        Side(run_of(write, f"sweep/{prompts}-{s}", Written(
            accuracy=accuracy, chance=10 * prompts + s, config={"seed": s, "prompts_per_class": prompts}
        )))
        for s in range(seeds)
    ]  # fmt: skip


def test_settings_are_compared_by_their_seeds_with_welch(write: Writer) -> None:
    sides = seeded(write, 1, 3, 0.6) + seeded(write, 5, 4, 0.9) + seeded(write, 10, 1, 0.9)
    base, other = found = over_groups(seed_groups(sides), sides[0])
    assert [one.summary["n"] for one in found] == [3, 4], "one seed says nothing of the spread"
    assert base.test is None
    assert other.test is not None
    oracle: Any = ttest_ind(other.group.values, base.group.values, equal_var=False)
    assert (other.test["p"], other.p_holm) == pytest.approx((oracle.pvalue, oracle.pvalue))
    assert other.test["difference"] == pytest.approx(np.mean(other.group.values) - np.mean(base.group.values))
    alone = over_groups(seed_groups(sides), sides[-1])
    assert [one.test for one in alone] == [None, None], "the reference's setting has one seed"


def test_the_table_says_everything_once_and_in_columns(write: Writer, tmp_path: Path) -> None:
    sides = seeded(write, 1, 2, 0.6) + seeded(write, 5, 2, 0.9)
    reference = f"{sides[0].run.folder}:clip_text"
    paired_part, seed_part = compare_command([str(tmp_path / "sweep")], reference).split("\n\n")
    head, columns, *body, last = paired_part.splitlines()
    top1 = sides[0].run.result["beside"]["clip_text"]["top1"]
    assert head.startswith(f"60 images; the reference is 1-0, clip_text seed=0 prompts_per_class=1: top-1 {top1:.1%} (")
    assert columns.split()[:4] == ["run", "seed", "prompts_per_class", "method"]
    assert [line.split()[:4] for line in body] == [
        [f"{p}-{s}", str(s), str(p), "lgclip"] for p, s in ((1, 0), (1, 1), (5, 0), (5, 1))
    ]
    assert "a family of 4" in last
    assert len({len(line) for line in body}) == 1
    assert [line.split()[:3] for line in seed_part.splitlines()[1:3]] == [["1", "lgclip", "2"], ["5", "lgclip", "2"]]
    assert "no difference is tested" in seed_part, "clip_text has one run here"
    assert "Welch" in compare_command([str(tmp_path / "sweep")])


def test_a_table_has_room_for_so_many_settings_and_names_the_others(write: Writer) -> None:
    config = {f"option_{i}": 0 for i in range(8)}
    a = Side(run_of(write, "a", Written(config=config)))
    b = Side(run_of(write, "b", Written(config=dict.fromkeys(config, "x" * 40))))
    text = table(compare([a, b]))
    assert text.splitlines()[-1] == "they differ in option_6, option_7 too"
    assert "x" * 23 + "…" in text
    assert "x" * 24 not in text


def test_json_has_the_figures_unrounded_and_the_settings(write: Writer, tmp_path: Path) -> None:
    sides = seeded(write, 1, 2, 0.6) + seeded(write, 5, 2, 0.9)
    found = json.loads(compare_command([str(tmp_path)], json=True))
    assert found == json.loads(json.dumps(as_json(compare(sides), over_groups(seed_groups(sides), sides[0]))))
    assert found["reference"]["run"] == str(sides[0].run.folder)
    last = found["compared"][-1]
    assert last["settings"] == {"seed": 1, "prompts_per_class": 5}
    assert last["top1"] == sides[-1].figures["top1"]
    assert math.isclose(last["difference"], last["top1"] - found["reference"]["top1"])
    assert [(one["settings"], one["unit"], one["n"]) for one in found["seeds"]] == [
        ({"prompts_per_class": p}, "seed", 2) for p in (1, 5)
    ]
    assert found["seeds"][0]["against_reference"] is None
    assert found["seeds"][1]["against_reference"].keys() == {"difference", "ci95", "p", "p_holm"}
