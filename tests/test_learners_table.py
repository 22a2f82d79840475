"""Learners of sweeps in one table: run folders with known figures, against NumPy and SciPy."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.stats import ttest_1samp, ttest_rel
from seed_checks import assert_over_seeds
from statsmodels.stats.multitest import multipletests
from written_runs import write_run

from lgclip.cli import main
from lgclip.comparison import ComparisonError
from lgclip.learner_cells import LearnersError
from lgclip.learner_rows import read_learners
from lgclip.learners_figure import curve
from lgclip.learners_table import differences, learners, table
from lgclip.row_figure import COLOURS
from lgclip.runs import RunError
from lgclip.seed_rows import Figure, Row

N, CLASSES = 40, ("ant", "bee")
HITS = {"grip": 34, "cpl": 32, "air": 30}
KINDS = ("ul", "ssl", "trzsl")


def hits_of(learner: str, kind: str, seed: int) -> int:
    """Known figures: paradigms lie apart, and the learners' seeds do not go together."""
    return HITS[learner] - 2 * KINDS.index(kind) + (seed * (2 + len(learner))) % 3


def judged(hits: int, seed: int) -> list[int]:
    """Predictions of two classes, some of which are right."""
    right = np.random.default_rng(seed).permutation(N) < hits
    return [int(c) if ok else int(1 - c) for c, ok in zip(np.arange(N) % 2, right, strict=True)]


def write(folder: Path, learner: str = "grip", kind: str = "ul", seed: int = 0, **more: Any) -> dict[str, Any]:
    """A run of a learner; `config` and `told` change its settings and what it says of the learner."""
    hits = more.get("hits", hits_of(learner, kind, seed))
    split = {"split_seed": 500} if kind == "trzsl" else {}
    rounds: list[dict[str, Any]] = [{"round": 0, "accuracy": 0.5}]
    rounds += [{"round": 1, "precision": 0.6 + seed / 10, "accuracy": 0.7 + seed / 10}] * more.get("rounds", 1)
    about = {"key": str(folder), "seed": seed, "paradigm": kind, "rounds": rounds, **more.get("told", {})}
    if kind == "trzsl":
        seen = {"seen": hits / N, "unseen": 0.4, "harmonic": 2 * 0.4 * hits / N / (0.4 + hits / N)}
        about["by_kind"] = {"air": seen, "clip_text": {"seen": 0.5, "unseen": 0.3, "harmonic": 0.375}}
    config: dict[str, Any] = {
        "learner": {"prompt": "text", "seed": seed}, "paradigm": {"kind": kind, **split}, "diffuser": {"lora": None}
    }  # fmt: skip
    for key, value in more.get("config", {}).items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    result = {
        "method": "air", "learner": about, "choices": {"dataset": "pictures", "learner": learner, "paradigm": kind}
    }  # fmt: skip
    labels = [i % 2 for i in range(N)]
    return write_run(
        folder, names=CLASSES, label=labels, prediction=judged(hits, seed), settings=config,
        more={**result, **more.get("result", {})},
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Three learners in three paradigms, with three seeds."""
    every = [(learner, kind, seed) for learner in HITS for kind in KINDS for seed in range(3)]
    for i, (learner, kind, seed) in enumerate(every):
        write(tmp_path / "sweep" / str(i), learner, kind, seed)
    return tmp_path / "sweep"


def labels(rows: Sequence[Row]) -> list[str]:
    return [row.label for row in rows]


def values_of(learner: str, kind: str) -> np.ndarray:
    return np.array([hits_of(learner, kind, seed) for seed in range(3)]) / N


def test_a_row_is_a_learner_and_its_figures_are_by_paradigm_and_over_seeds(sweep: Path) -> None:
    found = read_learners([sweep])
    assert labels(found.rows) == ["grip", "cpl", "air"]
    assert labels(found.beside) == ["clip_text"]
    assert (found.paradigms, found.notes) == (list(KINDS), [])
    assert found.figures == [
        *(Figure("top1", kind) for kind in KINDS), *(Figure(kind, "trzsl") for kind in ("seen", "unseen", "harmonic"))
    ]  # fmt: skip
    values = values_of("cpl", "ssl")
    assert_over_seeds(found.rows[1].summary(Figure("top1", "ssl")), values)
    seen = values_of("air", "trzsl")
    harmonic = found.rows[2].of(Figure("harmonic", "trzsl"))
    assert [harmonic[seed] for seed in range(3)] == pytest.approx(2 * 0.4 * seen / (0.4 + seen))
    assert curve(found.rows[0], "ul", "precision") == [(1, pytest.approx(0.7))]
    assert curve(found.rows[0], "ul", "accuracy") == [(0, 0.5), (1, pytest.approx(0.8))]


def test_differences_pair_the_seeds_and_the_images_of_a_paradigm(sweep: Path) -> None:
    told = differences(read_learners([sweep]))
    assert [(one.one, one.other, one.figure.on) for one in told] == [
        (learner, "grip", kind) for learner in ("cpl", "air") for kind in KINDS
    ]
    label, ps = np.arange(N) % 2, []
    for one in told:
        a, b = values_of(one.one, one.figure.on), values_of("grip", one.figure.on)
        oracle: Any = ttest_rel(a, b)
        assert one.mean == pytest.approx((a - b).mean())
        assert one.over_seeds is not None
        assert one.over_seeds["p"] == pytest.approx(oracle.pvalue)
        assert one.over_seeds["ci95"] == pytest.approx(list(oracle.confidence_interval(0.95)))
        right = [
            [np.array(judged(hits_of(learner, one.figure.on, seed), seed)) == label for seed in range(3)]
            for learner in (one.one, "grip")
        ]
        images: Any = ttest_1samp(np.mean(np.subtract(*np.array(right, dtype=float)), axis=0), 0)
        assert one.over_images is not None
        assert one.over_images["p"] == pytest.approx(images.pvalue)
        ps.append(oracle.pvalue)
    assert [one.p_holm for one in told] == pytest.approx(np.array(multipletests(ps, method="holm")[1]))


def test_a_method_beside_can_be_the_reference(sweep: Path) -> None:
    found = read_learners([sweep])
    told = differences(found, "clip_text")
    assert [one.one for one in told] == [learner for learner in HITS for _ in KINDS]
    assert told[0].mean == pytest.approx(values_of("grip", "ul").mean() - 0.5)
    with pytest.raises(LearnersError, match="no row is 'coop': choose one of grip, cpl, air, clip_text"):
        differences(found, "coop")


def test_the_table_is_markdown_with_means_and_standard_deviations(sweep: Path) -> None:
    told = learners([sweep]).splitlines()
    values = 100 * values_of("air", "ul")
    assert told[2].startswith("| learner | seeds | ul | ssl | trzsl | trzsl seen | trzsl unseen | trzsl harmonic |")
    assert next(one for one in told if one.startswith("| air |")).startswith(
        f"| air | 3 | {values.mean():.1f} ({values.std(ddof=1):.1f}) |"
    )
    assert "| clip_text | - | 50.0 | 50.0 | 50.0 | 50.0 | 30.0 | 37.5 |" in told
    assert sum(one.startswith("| cpl - grip | ") for one in told) == 3
    assert told[-1].startswith("p: paired t test")
    assert "family of 6" in told[-1]


def test_the_command_reads_several_sweeps_and_names_what_differs(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The adapted images change AiR and `lgclip`, not `clip_text`."""
    adapter = "/store/adapters/" + "9bb1a2de" * 4
    for run in sweep.iterdir():
        add_lgclip(run, 0)
    for seed in range(3):
        more = {"config": {"diffuser.lora": adapter}, "hits": 20 + seed}
        write(tmp_path / "lora" / str(seed), "air", "ul", seed, **more)
        add_lgclip(tmp_path / "lora" / str(seed), 1)
    assert main(["learners", str(sweep), str(tmp_path / "lora")]) == 0
    said = capsys.readouterr().out
    rows = [line.split(" | ")[0][2:] for line in said.splitlines() if line.startswith("| ")]
    assert rows[:8] == [
        "learner", "grip", "cpl", "air (lora=none)", "air (lora=9bb1a2de)", "clip_text", "lgclip (lora=none)",
        "lgclip (lora=9bb1a2de)",
    ]  # fmt: skip
    assert "air (lora=9bb1a2de): no run of ssl" in said
    assert "air (lora=9bb1a2de): no run of trzsl" in said
    assert main(["learners", str(sweep), "--with", "nothing"]) == 1
    assert "no row is 'nothing'" in capsys.readouterr().err


def add_lgclip(run: Path, answer: int) -> None:
    """A second method beside, which says the same class of every image."""
    result = json.loads((run / "result.json").read_text())
    result["beside"]["lgclip"] = {**result["beside"]["clip_text"], "top1": 0.5}
    (run / "result.json").write_text(json.dumps(result))
    header, *body = (run / "predictions.csv").read_text().splitlines()
    rows = [f"{header},lgclip", *(f"{line},{answer}" for line in body)]
    (run / "predictions.csv").write_text("\n".join(rows) + "\n")


def test_a_row_is_compared_with_the_reference_whose_settings_it_shares(tmp_path: Path) -> None:
    for learner in ("grip", "air"):
        for prompt in ("text", "visual"):
            for seed in range(2):
                write(tmp_path / f"{learner}{prompt}{seed}", learner, seed=seed, config={"learner.prompt": prompt})
    found = read_learners([tmp_path])
    assert sorted((one.one, one.other) for one in differences(found)) == [
        (f"air (prompt={prompt})", f"grip (prompt={prompt})") for prompt in ("text", "visual")
    ]
    assert [one.other for one in differences(found, "air (prompt=text)")] == ["air (prompt=text)"] * 3


def test_a_setting_of_one_learner_alone_is_told(tmp_path: Path) -> None:
    write(tmp_path / "0", "grip")
    write(tmp_path / "1", "air", config={"prompts_per_class": 50})
    assert labels(read_learners([tmp_path]).rows) == ["grip", "air (prompts_per_class=50)"]


def test_what_is_known_of_the_pool_makes_columns_and_its_draws_are_repetitions(tmp_path: Path) -> None:
    """Three splits of one learner seed are the sample; with several seeds a seed's splits are averaged."""
    hits = {500: 30, 0: 33, 200: 36}
    for split, right in hits.items():
        config: Mapping[str, Any] = {"paradigm.split_seed": split}
        write(tmp_path / "one" / str(split), "grip", "trzsl", hits=right, config=config)
    top1 = Figure("top1", "trzsl")
    (row,) = read_learners([tmp_path / "one"]).rows
    assert row.of(top1) == {split: right / N for split, right in hits.items()}
    for split, right in hits.items():
        config = {"paradigm.split_seed": split}
        write(tmp_path / "two" / str(split), "grip", "trzsl", 1, hits=right - 3, config=config)
    (row,) = read_learners([tmp_path]).rows
    assert row.of(top1) == pytest.approx({0: 33 / N, 1: 30 / N})
    for shots in (2, 4):
        write(tmp_path / "ssl" / str(shots), "grip", "ssl", config={"paradigm.shots": shots})
    assert read_learners([tmp_path / "ssl"]).paradigms == ["ssl (shots=2)", "ssl (shots=4)"]


def test_what_is_missing_is_said(sweep: Path) -> None:
    (sweep / "10" / "result.json").unlink()
    write_run(sweep / "zero_shot")
    write(sweep / "elsewhere", "air", config={"ckpt": "STORE/prompts_learned/KEY"})
    found = read_learners([sweep])
    assert found.notes == [
        "left out: 1 without a learner", "left out: 1 with ckpt=, which do not say how the prompt was learnt",
        "cpl: ul has 2 of 3 repetitions, none of learner.seed=1",
    ]  # fmt: skip
    assert found.notes[-1] in table(found)
    assert "| cpl | 2 to 3 |" in table(found)
    first = differences(found)[0]
    assert (first.figure.on, first.n) == ("ul", 2)


def test_a_difference_is_over_the_splits_that_both_have(tmp_path: Path) -> None:
    hits = {(0, 500): 30, (0, 0): 20, (1, 500): 34, (1, 0): 24}
    for (seed, split), right in hits.items():
        for learner, more in {"grip": 0, "cpl": 2 + 2 * seed}.items():
            if (learner, seed, split) != ("cpl", 1, 0):
                config = {"paradigm.split_seed": split}
                write(tmp_path / f"{learner}{seed}{split}", learner, "trzsl", seed, hits=right + more, config=config)
    found = read_learners([tmp_path])
    assert found.notes == ["cpl: trzsl has 3 of 4 repetitions"]
    assert found.rows[0].of(Figure("top1", "trzsl")) == pytest.approx({0: 27 / N, 1: 38 / N})
    (one,) = differences(found)
    assert (one.n, one.mean) == (2, pytest.approx(3 / N)), "of seed 1 they share one split"


def test_a_run_that_is_there_twice_and_a_setting_without_a_part_in_it_count_once(sweep: Path) -> None:
    whole = table(read_learners([sweep]))
    told = {"key": str(sweep / "0")}
    write(sweep / "twice", "grip", told=told)
    write(sweep / "more", "grip", told=told, config={"prompts_per_class": 5})
    assert table(read_learners([sweep])) == whole


def test_what_makes_no_table_is_said(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no finished run"):
        learners([tmp_path / "empty"])
    write_run(tmp_path / "a" / "0")
    with pytest.raises(LearnersError, match=r"a: no run learnt a prompt, of 1 in all: run evaluate\.py method=air"):
        learners([tmp_path / "a"])
    write(tmp_path / "other", result={"dataset": {
        "name": "words", "split": "test", "names": "own", "source": {}, "context": "", "templates": []
    }})  # fmt: skip
    with pytest.raises(ComparisonError, match="did not judge the same images"):
        learners([sweep, tmp_path / "other"])
    write(sweep / "twice", "grip", hits=10)
    with pytest.raises(LearnersError, match="two learners of one setting with the same seeds: leave one of them out"):
        learners([sweep])
    write(tmp_path / "alone" / "0", "cpl")
    assert "No differences: the reference (grip, or that of --with) shares no seed" in learners([tmp_path / "alone"])


def test_the_figure_shows_every_learner_in_its_colour(sweep: Path, tmp_path: Path) -> None:
    learners([sweep], figure=tmp_path / "learners.png")
    with Image.open(tmp_path / "learners.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(2**20) or []}
        assert picture.width > picture.height
        width = picture.width
    assert set(COLOURS[:3]) <= colours
    for seed in range(3):
        write(sweep / f"long{seed}", "air", seed=seed, told={"rounds": []}, config={"prompts_per_class": 50})
    learners([sweep], figure=tmp_path / "learners.png")
    with Image.open(tmp_path / "learners.png") as picture:
        assert picture.width > width, "there is room for a longer label"
    with pytest.raises(ValueError, match=r"learners\.pdf: the figure is a PNG file"):
        learners([sweep], figure=tmp_path / "learners.pdf")
