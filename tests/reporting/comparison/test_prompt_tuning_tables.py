"""Tests tables of prompt tuning against NumPy and SciPy, from run folders with known metrics."""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from run_factories import prompt_tuning_record, write_run
from scipy.stats import ttest_1samp, ttest_rel
from seed_checks import assert_over_seeds
from statsmodels.stats.multitest import multipletests

from lgclip.cli.main import main
from lgclip.reporting.comparison.command import CompareOptions, compare, select_results
from lgclip.reporting.comparison.plots import COLORS, curve
from lgclip.reporting.comparison.results import ComparisonError
from lgclip.reporting.comparison.significance import compare_rows
from lgclip.reporting.comparison.table import ComparisonTable, Row, build_table, missing_notes
from lgclip.reporting.run_folder import RunError
from lgclip.reporting.text_tables import to_text

N = 40
CLASSES = ("ant", "bee")
HITS = {"grip": 34, "cpl": 32, "air": 30}
KINDS = ("ul", "ssl", "trzsl")


def hits_of(prompt_tuning: str, kind: str, seed: int) -> int:
    """Returns known numbers of hits: paradigms are far apart, and seeds of methods are not correlated."""
    return HITS[prompt_tuning] - 2 * KINDS.index(kind) + (seed * (2 + len(prompt_tuning))) % 3


def predictions(hits: int, seed: int) -> list[int]:
    """Returns predictions of two classes with a given number of hits."""
    right = np.random.default_rng(seed).permutation(N) < hits
    return [int(c) if ok else int(1 - c) for c, ok in zip(np.arange(N) % 2, right, strict=True)]


def write(folder: Path, prompt_tuning: str = "grip", kind: str = "ul", seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Writes a run of prompt tuning; `config` and `record` change its settings and its record."""
    hits = kwargs.get("hits", hits_of(prompt_tuning, kind, seed))
    split = {"split_seed": 500} if kind == "trzsl" else {}
    rounds: list[dict[str, Any]] = [{"round": 0, "accuracy": 0.5}]
    rounds += [{"round": 1, "precision": 0.6 + seed / 10, "accuracy": 0.7 + seed / 10}] * kwargs.get("rounds", 1)
    about = prompt_tuning_record(
        **{"key": str(folder), "seed": seed, "paradigm": kind, "rounds": rounds, **kwargs.get("record", {})}
    )
    if kind == "trzsl":
        seen = {"seen": hits / N, "unseen": 0.4, "harmonic": 2 * 0.4 * hits / N / (0.4 + hits / N)}
        about["by_type"] = {"air": seen, "clip_text": {"seen": 0.5, "unseen": 0.3, "harmonic": 0.375}}
    config: dict[str, Any] = {
        "prompt_tuning": {"prompt": "text", "seed": seed}, "paradigm": {"kind": kind, **split}, "diffuser": {"lora":
        None}
    }  # fmt: skip
    for key, value in kwargs.get("config", {}).items():
        group, _, name = key.rpartition(".")
        (config[group] if group else config)[name] = value
    result = {
        "method": "air", "prompt_tuning": about, "choices": {"dataset": "pictures", "prompt_tuning": prompt_tuning,
        "paradigm": kind}
    }  # fmt: skip
    labels = [i % 2 for i in range(N)]
    return write_run(
        folder, names=CLASSES, label=labels, prediction=predictions(hits, seed), settings=config,
        extra={**result, **kwargs.get("result", {})},
    )  # fmt: skip


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Writes three methods in three paradigms with three seeds."""
    every = [(prompt_tuning, kind, seed) for prompt_tuning, kind, seed in product(HITS, KINDS, range(3))]
    for i, (prompt_tuning, kind, seed) in enumerate(every):
        write(tmp_path / "sweep" / str(i), prompt_tuning, kind, seed)
    return tmp_path / "sweep"


def options(*places: Path, **kwargs: Any) -> CompareOptions:
    axes = {"by": ["prompt_tuning"], "columns": ["paradigm"]}
    return CompareOptions([str(place) for place in places], **{**axes, **kwargs})


def text_of(compare_options: CompareOptions) -> str:
    return "\n".join(part if isinstance(part, str) else to_text(part) for part in compare(compare_options))


def table_of(*places: Path) -> ComparisonTable:
    compare_options = options(*places)
    return build_table(select_results(compare_options), compare_options.by, compare_options.columns)


def own_rows(table: ComparisonTable) -> list[Row]:
    return [row for row in table.rows if not row.is_baseline]


def labels(rows: Sequence[Row]) -> list[str]:
    return [row.label for row in rows]


def values_of(prompt_tuning: str, kind: str) -> np.ndarray:
    return np.array([hits_of(prompt_tuning, kind, seed) for seed in range(3)]) / N


def test_row_is_a_method_with_paradigm_columns(sweep: Path) -> None:
    table = table_of(sweep)
    assert labels(table.rows) == ["grip", "cpl", "air", "clip_text"]
    assert [row.is_baseline for row in table.rows] == [False, False, False, True]
    assert ([column for (column,) in table.column_values], missing_notes(table)) == (list(KINDS), [])
    assert_over_seeds(table.rows[1].cells["ssl",].summary("top1"), values_of("cpl", "ssl"))
    seen = values_of("air", "trzsl")
    harmonic = table.rows[2].cells["trzsl",].values("harmonic")
    assert [harmonic[seed] for seed in range(3)] == pytest.approx(2 * 0.4 * seen / (0.4 + seen))
    assert curve(table.rows[0], ("ul",), "precision") == [(1, pytest.approx(0.7))]
    assert curve(table.rows[0], ("ul",), "accuracy") == [(0, 0.5), (1, pytest.approx(0.8))]


def test_differences_are_paired_by_seed_and_image(sweep: Path) -> None:
    table = compare_rows(table_of(sweep), "grip")
    assert [(comparison.row.label, comparison.reference.label, *comparison.column) for comparison in table] == [
        (prompt_tuning, "grip", kind) for prompt_tuning, kind in product(("cpl", "air"), KINDS)
    ]
    label = np.arange(N) % 2
    ps = []
    for comparison in table:
        prompt_tuning, (kind,) = comparison.row.label, comparison.column
        a = values_of(prompt_tuning, kind)
        b = values_of("grip", kind)
        oracle: Any = ttest_rel(a, b)
        assert comparison.difference == pytest.approx((a - b).mean())
        assert comparison.over_seeds is not None
        assert comparison.over_seeds["p"] == pytest.approx(oracle.pvalue)
        assert comparison.over_seeds["ci95"] == pytest.approx(list(oracle.confidence_interval(0.95)))
        right = []
        for name in (prompt_tuning, "grip"):
            right.append([np.array(predictions(hits_of(name, kind, seed), seed)) == label for seed in range(3)])
        images: Any = ttest_1samp(np.mean(np.subtract(*np.array(right, dtype=float)), axis=0), 0)
        assert comparison.over_images is not None
        assert comparison.over_images["p"] == pytest.approx(images.pvalue)
        ps.append(oracle.pvalue)
    assert [comparison.p_holm for comparison in table] == pytest.approx(np.array(multipletests(ps, method="holm")[1]))


def test_baseline_can_be_the_reference(sweep: Path) -> None:
    table = table_of(sweep)
    comparisons = compare_rows(table, "clip_text")
    assert [entry.row.label for entry in comparisons] == [prompt_tuning for prompt_tuning, _ in product(HITS, KINDS)]
    assert comparisons[0].difference == pytest.approx(values_of("grip", "ul").mean() - 0.5)
    with pytest.raises(ComparisonError, match=r"no row is 'coop', .*choose one of grip; cpl; air; clip_text"):
        compare_rows(table, "coop")


def test_markdown_has_mean_and_standard_deviation(sweep: Path) -> None:
    metrics = ["top1", "seen", "unseen", "harmonic"]
    text = text_of(options(sweep, format="markdown", metrics=metrics, reference="grip"))
    lines = []
    for line in text.splitlines():
        if line.startswith("| "):
            lines.append([cell.strip() for cell in line.split("|")[1:-1]])
    assert lines[0] == [
        "prompt_tuning", "seeds", "ul top-1", "ssl top-1", "trzsl top-1", "trzsl seen", "trzsl unseen", "trzsl harmonic"
    ]  # fmt: skip
    values = 100 * values_of("air", "ul")
    (air,) = [line for line in lines if line[0] == "air"]
    assert air[1:3] == ["3", f"{values.mean():.1f} ± {values.std(ddof=1):.1f}"]
    assert ["clip_text", "-", "50.0", "50.0", "50.0", "50.0", "30.0", "37.5"] in lines
    assert sum(line[0] == "cpl - grip" for line in lines) == 3
    assert "p: paired t test" in text
    assert "family of 6" in text
    (grip,) = [line for line in lines if line[0] == "grip"]
    assert grip[2].startswith("**"), "the best of a column is bold"


def test_several_sweeps_are_compared(sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that adapted images change AiR and `lgclip` but not `clip_text`."""
    adapter = "/store/adapters/" + "9bb1a2de" * 4
    for run in sweep.iterdir():
        add_lgclip(run, 0)
    for seed in range(3):
        extra = {"config": {"diffuser.lora": adapter}, "hits": 20 + seed}
        write(tmp_path / "lora" / str(seed), "air", "ul", seed, **extra)
        add_lgclip(tmp_path / "lora" / str(seed), 1)
    command = ["compare", str(sweep), str(tmp_path / "lora"), "--by", "prompt_tuning", "--columns", "paradigm"]
    assert main(command) == 0
    output = capsys.readouterr().out
    rows = [
        line.split("  ") for line in output.splitlines() if line.startswith(("grip", "cpl", "air  ", "clip", "lgclip"))
    ]
    names = []
    for row in rows:
        names.append([cell.strip() for cell in row if cell.strip()][:2])
    assert [" ".join(name).removesuffix(" 3").removesuffix(" -") for name in names] == [
        "grip", "cpl", "air lora=none", "air lora=9bb1a2de", "clip_text", "lgclip lora=none", "lgclip lora=9bb1a2de",
    ]  # fmt: skip
    assert "air (lora=9bb1a2de): no run of ssl" in output
    assert "air (lora=9bb1a2de): no run of trzsl" in output
    assert main([*command, "--with", "nothing"]) == 1
    assert "no row is 'nothing'" in capsys.readouterr().err


def add_lgclip(run: Path, answer: int) -> None:
    """Adds a second baseline that predicts one class for every image."""
    result = json.loads((run / "result.json").read_text())
    result["baselines"]["lgclip"] = {**result["baselines"]["clip_text"], "top1": 0.5}
    (run / "result.json").write_text(json.dumps(result))
    header, *body = (run / "predictions.csv").read_text().splitlines()
    rows = [f"{header},lgclip", *(f"{line},{answer}" for line in body)]
    (run / "predictions.csv").write_text("\n".join(rows) + "\n")


def test_reference_shares_the_rows_settings(tmp_path: Path) -> None:
    for prompt_tuning in ("grip", "air"):
        for prompt in ("text", "visual"):
            for seed in range(2):
                hits = HITS[prompt_tuning] - 3 * (prompt == "visual")
                config = {"prompt_tuning.prompt": prompt}
                write(tmp_path / f"{prompt_tuning}{prompt}{seed}", prompt_tuning, seed=seed, config=config, hits=hits)
    table = table_of(tmp_path)
    assert sorted((comparison.row.label, comparison.reference.label) for comparison in compare_rows(table, "grip")) == [
        (f"air (prompt={prompt})", f"grip (prompt={prompt})") for prompt in ("text", "visual")
    ]
    assert {comparison.reference.label for comparison in compare_rows(table, "air (prompt=text)")} == {
        "air (prompt=text)"
    }


def test_setting_of_one_method_is_named(tmp_path: Path) -> None:
    write(tmp_path / "0", "grip")
    write(tmp_path / "1", "air", config={"prompts_per_class": 50})
    assert labels(own_rows(table_of(tmp_path))) == ["grip", "air"]
    assert "rows or columns differ in prompts_per_class too" in text_of(options(tmp_path))
    assert "prompts_per_class" in text_of(options(tmp_path, by=["prompt_tuning", "prompts_per_class"])).splitlines()[1]


def test_pool_metadata_becomes_columns(tmp_path: Path) -> None:
    """Checks the sample: the splits of one seed; with several seeds, the means of each seed's splits."""
    hits = {500: 30, 0: 33, 200: 36}
    for split, right in hits.items():
        config: Mapping[str, Any] = {"paradigm.split_seed": split}
        write(tmp_path / "one" / str(split), "grip", "trzsl", hits=right, config=config)
    (row,) = own_rows(table_of(tmp_path / "one"))
    assert row.cells["trzsl",].values("top1") == {split: right / N for split, right in hits.items()}
    for split, right in hits.items():
        config = {"paradigm.split_seed": split}
        write(tmp_path / "two" / str(split), "grip", "trzsl", 1, hits=right - 3, config=config)
    (row,) = own_rows(table_of(tmp_path))
    assert row.cells["trzsl",].values("top1") == pytest.approx({0: 33 / N, 1: 30 / N})
    for shots in (2, 4):
        config = {"paradigm.shots": shots}
        write(tmp_path / "ssl" / str(shots), "grip", "ssl", config=config, hits=30 + shots)
    assert labels(own_rows(table_of(tmp_path / "ssl"))) == ["grip (shots=2)", "grip (shots=4)"]
    compare_options = options(tmp_path / "ssl", columns=["paradigm", "shots"])
    assert "ssl, 2" in text_of(compare_options).splitlines()[1], "the last part of a key stands for it"


def test_missing_values_are_reported(sweep: Path) -> None:
    (sweep / "10" / "result.json").unlink()
    write(sweep / "elsewhere", "air", config={"checkpoint": "STORE/prompts_learned/KEY"}, hits=20)
    text = text_of(options(sweep))
    assert "cpl: ul has 2 of 3 repetitions, none of prompt_tuning.seed=1" in text
    assert "air (checkpoint=KEY): no run of trzsl" in text, (
        "a run with checkpoint= does not say how the prompt was learned"
    )
    assert next(line for line in text.splitlines() if line.startswith("cpl ")).split()[1:4] == ["2", "to", "3"]
    comparisons = compare_rows(table_of(sweep), "grip")
    (pair,) = [comparison for comparison in comparisons if (comparison.row.label, *comparison.column) == ("cpl", "ul")]
    assert pair.n == 2


def test_differences_use_common_splits(tmp_path: Path) -> None:
    hits = {(0, 500): 30, (0, 0): 20, (1, 500): 34, (1, 0): 24}
    for (seed, split), right in hits.items():
        for prompt_tuning, gain in {"grip": 0, "cpl": 2 + 2 * seed}.items():
            if (prompt_tuning, seed, split) != ("cpl", 1, 0):
                config = {"paradigm.split_seed": split}
                write(
                    tmp_path / f"{prompt_tuning}{seed}{split}",
                    prompt_tuning,
                    "trzsl",
                    seed,
                    hits=right + gain,
                    config=config,
                )
    table = table_of(tmp_path)
    assert missing_notes(table) == ["cpl: trzsl has 3 of 4 repetitions"]
    (grip,) = [row for row in table.rows if row.label == "grip"]
    assert grip.cells["trzsl",].values("top1") == pytest.approx({0: 25 / N, 1: 29 / N})
    (comparison,) = compare_rows(table, "grip")
    assert (comparison.n, comparison.difference) == (2, pytest.approx(3 / N)), "of seed 1 they share one split"


def test_duplicate_runs_count_once(sweep: Path) -> None:
    before = text_of(options(sweep))
    values = {"key": str(sweep / "0")}
    write(sweep / "twice", "grip", record=values)
    write(sweep / "more", "grip", record=values, config={"prompts_per_class": 5})
    tables = [text.splitlines() for text in (before, text_of(options(sweep)))]
    rows = []
    for table in tables:
        rows.append([line for line in table if line.startswith(("grip", "cpl", "air", "clip"))])
    assert rows[0] == rows[1]


def test_invalid_table_is_reported(sweep: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no finished run"):
        text_of(options(tmp_path / "empty"))
    write_run(tmp_path / "a" / "0")
    with pytest.raises(ComparisonError, match="no run has a value of 'paradigm': choose method, dataset"):
        text_of(options(tmp_path / "a"))
    write(tmp_path / "other", result={"dataset": {
        "name": "pictures", "split": "train", "names": "own", "source": {}, "context": "", "templates": [],
        "fingerprint": "a", "folder_names": {}, "files_left_out": {}, "files_noted": {}
    }})  # fmt: skip
    with pytest.raises(ComparisonError, match="were not evaluated on the same images"):
        text_of(options(sweep, tmp_path / "other"))
    write(sweep / "twice", "grip", hits=10)
    with pytest.raises(ComparisonError, match=r"have the same config and seeds but different predictions"):
        text_of(options(sweep))
    write(tmp_path / "alone" / "0", "cpl")
    write(tmp_path / "alone" / "1", "grip", seed=1)
    assert "no test: grip shares no seed with another row" in text_of(options(tmp_path / "alone", reference="grip"))


def test_figure_has_a_color_per_method(sweep: Path, tmp_path: Path) -> None:
    text_of(options(sweep, plot=tmp_path / "learners.png"))
    with Image.open(tmp_path / "learners.png") as image:
        colors = {color for _, color in image.convert("RGB").getcolors(2**20) or []}
        assert image.width > image.height
    expected = set()
    for color in COLORS[:3]:
        expected.add(tuple(int(color[place : place + 2], 16) for place in (1, 3, 5)))
    assert expected <= colors
