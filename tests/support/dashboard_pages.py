"""Builds data of the dashboard's page, as runs give it and with extreme values."""

import base64
import io
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import BrowserContext
from playwright.sync_api import Page as Tab

from lgclip.evaluation.metrics import holm, metrics, over_seeds, paired
from lgclip.reporting.dashboard.schema import (
    ClassRow,
    Comparison,
    Confusion,
    FeatureMap,
    Learning,
    Page,
    PromptImages,
    ReliabilityBin,
    RunData,
    SeedGroup,
    Stage,
)

Open = Callable[..., Tab]
"""Opens data in a browser: `opened(data, width=360, scheme="dark")`; the fixture is in browser_fixtures."""

SHAPES = ["circle", "triangle", "square", "star", "heart", "cross", "ring", "arrow", "moon", "drop", "leaf", "spiral"]
COLORS = ["red", "green", "blue", "yellow", "violet", "orange", "white", "black", "pink", "teal", "grey", "brown"]
COLORS += ["gold", "lime", "navy", "plum", "sand"]
MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")

MALICIOUS_TEXTS: tuple[str, ...] = (
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    "\"'`><svg/onload=window.pwned=1>",
    "{{script}} ${window.pwned=1} {a|b} {b}%s",
    "\u202eעברית שמאלה\u2028\u2029 العربية",  # noqa: RUF001
    "👩🏽\u200d🔬🏳️\u200d🌈 e\u0301 \ufeff",
    "",
    "__proto__",
    "constructor",
    "x" * 500,
    "]]><!--<script>",
    "javascript:window.pwned=1",
)
"""Names and prompts that would break a page which reads text as markup."""


def class_names(count: int) -> list[str]:
    return [f"{color} {shape}" for shape, color in product(SHAPES, COLORS)][:count]


def picture(seed: int) -> str:
    """Returns a small image as a data URI."""
    rng = np.random.default_rng(seed)
    tuning_data, ink = (tuple(rng.integers(low, low + 90, 3).tolist()) for low in (150, 10))
    image = Image.new("RGB", (64, 64), tuning_data)
    x, y, size = rng.integers(8, 30, 3).tolist()
    ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=ink)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=50)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def run_of(number: int, axes: dict[str, Any], names: list[str], strength: float, per_class: int = 20) -> RunData:
    """Returns a finished run whose accuracy is about `strength`."""
    rng = np.random.default_rng(number)
    c = len(names)
    label = np.repeat(np.arange(c), per_class)
    hard = np.random.default_rng(0).normal(0, 1.0, label.size) + np.random.default_rng(1).normal(0, 0.8, c)[label]
    wrong = rng.normal(0, 0.35, label.size) + hard > strength
    baselines = rng.normal(0, 0.35, label.size) + hard > strength + 0.1
    main_metrics, rival = (metrics(label, np.where(miss, 1, 0), c) for miss in (wrong, baselines))
    right = np.bincount(label[~wrong], minlength=c)
    share = right / per_class
    classes = [
        ClassRow(n=per_class, right=int(r), taken_for=(k + 1) % c if r < per_class else None, times=per_class - int(r))
        for k, r in enumerate(right)
    ]
    test = paired(label, np.where(wrong, -1, label), np.where(baselines, -1, label))
    settings = {"dataset": "shapes", "encoder.precision": "float32", "seed": 0, "llm.model": "tiny", **axes}
    return RunData(
        id=number, name=", ".join(f"{key}={value}" for key, value in axes.items()) or "shapes, lgclip",
        folder=f"multirun/grid/{number}", status="finished", error=None, sweep="multirun/grid", job=number, axes=axes,
        dataset="shapes", split="held out", method="lgclip", n=int(label.size), metrics=dict(main_metrics),
        baselines={"clip_text": dict(rival)}, paired={"clip_text": test},
        detectable={"difference": 0.012, "power": 0.8, "discordant": 0.04}, confidence=confidence(float(share.mean())),
        learning=None,
        correlations={measure: {"spearman": 0.1 * k, "p": 0.5 / (k + 1)} for k, measure in enumerate(MEASURES)},
        class_list=0, classes=classes,
        diagnostics={m: (0.5 + 0.4 * share + rng.normal(0, 0.05, c)).round(4).tolist() for m in MEASURES},
        confusions=[], matrix=[(k, (k + 1) % c, per_class - int(r)) for k, r in enumerate(right) if r < per_class],
        reliability=reliability(~wrong), feature_map=feature_map(c, number),
        gallery=[[] for _ in names], stages=stages(number), cost=cost(), config=settings,
        provenance=[("Commit", "19e1043"), ("Encoder", "tiny, sha256 4f2a91"), ("torch", "2.15.0")],
        right=base64.b64encode(np.packbits(~wrong, bitorder="little").tobytes()).decode(),
        evaluation_key="shapes-held-out",
    )  # fmt: skip


def confidence(top1: float) -> dict[str, Any]:
    coverage = np.linspace(0.05, 1, 20)
    rejection = [{"coverage": float(c), "top1": float(1 - (1 - top1) * c**2)} for c in coverage]
    figures = {"ece": 0.021, "nll": 0.11, "brier": 0.05, "aurc": 0.004, "temperature": 0.0123}
    return {**figures, "fitted_on": "synthetic images", "rejection": rejection}


def reliability(correct: Any) -> list[ReliabilityBin]:
    """Returns bins of confidences that grow with the accuracy."""
    parts = np.array_split(np.sort(correct), 5)
    bins = []
    for index, part in enumerate(parts):
        bins.append(ReliabilityBin(n=len(part), confidence=0.1 + 0.2 * index, accuracy=float(part.mean())))
    return bins


def feature_map(classes: int, seed: int) -> FeatureMap:
    """Returns a map with a prototype, a synthetic and two real images of each class."""
    rng = np.random.default_rng(seed)
    kinds = ["real", "real", "synthetic", "prototype"]
    count = classes * len(kinds)
    return FeatureMap(
        explained=[0.3, 0.2], kind=kinds * classes, class_index=np.repeat(np.arange(classes), len(kinds)).tolist(),
        x=rng.normal(0, 0.3, count).round(3).tolist(), y=rng.normal(0, 0.2, count).round(3).tolist(),
        correct=[True, False, None, None] * classes,
    )  # fmt: skip


def rounds(number: int, count: int = 3) -> Learning:
    """Returns rounds of prompt tuning with increasing accuracy."""
    accuracy: list[float | None] = [round(0.6 + 0.05 * index + 0.002 * number, 4) for index in range(count + 1)]
    figures: dict[str, list[float | None]] = {
        "precision": [None, *(0.9 - 0.01 * index for index in range(count))],
        "coverage": [None, *((index + 1) / count for index in range(count))],
        "accuracy": accuracy, "loss": [None, *(1.5 / (index + 1) for index in range(count))],
    }  # fmt: skip
    by_type = {"lgclip": {"seen": 0.8, "unseen": 0.6 + number / 100, "harmonic": 0.7}}
    return Learning(unit="round", first=0, curves=figures, by_type=by_type)


def stages(number: int) -> list[Stage]:
    is_computed = number % 4 == 0
    rows = (
        ("prompts", "sentence", 2.1),
        ("images", "image", 14.2),
        ("features", "image", 6.3),
        ("evaluation", "image", 0.2),
    )
    return [
        Stage(
            stage=name, unit=unit, computed=300 * is_computed, reused=300 * (not is_computed),
            seconds=seconds if is_computed else 0.02,
            device="cpu", devices=1, peak_memory=700_000_000, peak_from="samples",
            tokens=5400 if name == "prompts" and is_computed else None,
        )
        for name, unit, seconds in rows
    ]  # fmt: skip


def cost() -> dict[str, Any]:
    before = {name: {"seconds": s, "count": 300, "device": "cpu"} for name, s in (("prompts", 2.0), ("images", 14.0))}
    amortized = {"saved": {"seconds": 0.0, "flops": 0}, "pays_back": False, "images": None}
    each = {"saved": {"seconds": 0.0021, "flops": 6.1e6}, "pays_back": True, "images": 8420}
    towers = {"image": {"parameters": 1_240_000, "flops": 41_000_000}, "text": {"parameters": 830_000, "flops": 6.1e6}}
    once = {"seconds": {"prompts": 2.0, "images": 14.0, "encoding": 1.6, "all": 17.6}}
    payback = {"views": 1, "once": once, "text_tower_per_image": each, "text_features_kept": amortized}
    return {"computed_before": before, "towers": towers, "payback": payback}


def page_of(runs: list[RunData], names: list[str], *, title: str = "shapes: a sweep", thumbs: int = 40) -> Page:
    """Builds the page of some runs with their axes, comparisons with the first run and seed groups."""
    finished = [run for run in runs if run["metrics"]]
    first = finished[0]
    rest = finished[1:]
    tests = [paired(*outcomes(first, run)) for run in rest]
    corrected = holm([test["p"] for test in tests])
    comparisons = [
        Comparison(run=run["id"], difference=t["difference"], ci95=t["ci95"], p=t["p"], p_holm=p, reason=None)
        for run, t, p in zip(rest, tests, corrected, strict=True)
    ]
    keys = list(dict.fromkeys(key for run in runs for key in run["axes"]))
    values: dict[str, list[Any]] = {key: [] for key in keys}
    for run, key in product(runs, keys):
        if key in run["axes"] and run["axes"][key] not in values[key]:
            values[key].append(run["axes"][key])
    numeric = {key: all(isinstance(value, int) for value in column) for key, column in values.items()}
    return Page(
        title=title, created="2026-01-02T03:04:05+00:00", version="0.1.0",
        axes=[{"key": k, "values": sorted(v) if numeric[k] else v, "numeric": numeric[k]} for k, v in values.items()],
        runs=runs, reference=0, comparisons=comparisons, groups=groups(finished), class_lists=[names],
        computed_before=61.5, thumbs={str(n): picture(n) for n in range(thumbs)}, notes=[],
    )  # fmt: skip


def outcomes(reference: RunData, run: RunData) -> tuple[Any, Any, Any]:
    """Returns labels of one class and the predictions of two runs, 1 where correct."""
    return np.ones(run["n"], np.int64), bits_of(run).astype(np.int64), bits_of(reference).astype(np.int64)


def bits_of(run: RunData) -> Any:
    """Returns whether each image is classified correctly."""
    packed = np.frombuffer(base64.b64decode(run["right"] or ""), np.uint8)
    return np.unpackbits(packed, count=run["n"], bitorder="little").astype(bool)


def done(data: Page) -> list[RunData]:
    """Returns the finished runs."""
    return [run for run in data["runs"] if run["metrics"]]


def top1(run: RunData) -> float:
    """Returns the accuracy of a finished run."""
    assert run["metrics"]
    return run["metrics"]["top1"]


def groups(runs: list[RunData]) -> list[SeedGroup]:
    runs_by_axes: dict[str, list[RunData]] = {}
    for run in runs:
        runs_by_axes.setdefault(str({k: v for k, v in run["axes"].items() if k != "seed"}), []).append(run)
    summaries = []
    for members in runs_by_axes.values():
        summaries.append((members, over_seeds([top1(run) for run in members])))
    return [
        SeedGroup(axes={k: v for k, v in members[0]["axes"].items() if k != "seed"},
                  runs=[run["id"] for run in members], mean=figures["mean"], ci95=figures["ci95"], std=figures["std"])
        for members, figures in summaries
    ]  # fmt: skip


def illustrated(run: RunData, prompts: list[str], pairs: int = 4) -> RunData:
    """Adds a gallery and confused pairs with images to a run."""
    c = len(run["classes"])
    gallery = []
    for k in range(c):
        gallery.append(
            [
                PromptImages(
                    prompt=prompts[(k + j) % len(prompts)], images=[str((3 * k + j + i) % 40) for i in range(3)]
                )
                for j in (0, 1)
            ]
        )
    confusions = [
        Confusion(true=k, predicted=(k + 1) % c, count=9 - k,
                  images=["1", "2", "3"], of_true=["4", "5"], of_predicted=["6"])
        for k in range(min(pairs, c))
    ]  # fmt: skip
    return {**run, "gallery": gallery, "confusions": confusions}


def failed_run(number: int, axes: dict[str, Any], error: str) -> RunData:
    """Returns a failed job."""
    overrides = ", ".join(f"{key}={value}" for key, value in axes.items())
    return RunData(
        id=number, name=overrides, folder=f"multirun/grid/{number}", status="failed", error=error,
        sweep="multirun/grid",
        job=number, axes=axes, dataset="", split="", method="", n=0, metrics=None, baselines={}, paired={},
        detectable=None, confidence=None, learning=None, correlations={}, class_list=0, classes=[], diagnostics={},
        confusions=[], matrix=[], reliability=[], feature_map=None,
        gallery=[], stages=[], cost={}, config=axes, provenance=[], right=None, evaluation_key=None,
    )  # fmt: skip


def sweep_page(seeds: int = 3, classes: int = 30) -> Page:
    """Builds the page of a sweep over prompts per class, scales and seeds, with one failed job."""
    names = class_names(classes)
    prompts = ["a photo of one on a table", "seen from above, in the rain", "a sketch of it"]
    cells = list(product((1, 2, 5, 10, 20), ("single", "multi", "ten"), range(seeds)))
    runs: list[RunData] = []
    for number, (count, scales, seed) in enumerate(cells):
        strength = 0.7 + 0.3 * float(np.log2(count)) ** 0.7 + {"single": 0.0, "multi": 0.5, "ten": 0.4}[scales]
        axes = {"prompts_per_class": count, "scales": scales, "seed": seed}
        runs.append(illustrated(run_of(number, axes, names, strength), prompts))
    error = "ValueError: prompts_per_class=50: the pool holds 20 prompts of a class; write more with prompt_pool=50"
    page = page_of([*runs, failed_run(len(runs), {"prompts_per_class": 50, "scales": "ten", "seed": 0}, error)], names)
    return {**page, "notes": ["1 of 46 jobs failed: its error stands below the table of runs."]}


def single_page() -> Page:
    """Builds the page of one run without images, confidences or costs."""
    run = run_of(0, {}, class_names(5), 1.5)
    bare: Any = {
        "baselines": {},
        "paired": {},
        "detectable": None,
        "confidence": None,
        "diagnostics": {},
        "gallery": [],
    }
    bare |= {"correlations": {}, "stages": [], "cost": {}, "matrix": [], "reliability": [], "feature_map": None}
    full_run: Any = {**run, **bare}
    return page_of([full_run], class_names(5), thumbs=0)


def build_malicious_page() -> Page:
    """Builds a page in which every text is malicious markup, reversed or too long."""
    names = list(MALICIOUS_TEXTS)
    bad = MALICIOUS_TEXTS[0]
    runs: list[Any] = []
    for number, text in enumerate(MALICIOUS_TEXTS[:6]):
        axes = {MALICIOUS_TEXTS[1]: text, "prompts_per_class": number % 3 + 1, "nested": {bad: [text, None, number]}}
        run = illustrated(run_of(number, axes, names, 1.0 + 0.2 * number), names, pairs=len(names))
        extra: Any = {
            "name": text,
            "folder": bad,
            "method": text,
            "dataset": MALICIOUS_TEXTS[1],
            "split": text,
            "baselines": {bad: run["baselines"]["clip_text"]},
            "paired": {bad: run["paired"]["clip_text"]},
            "config": {bad: bad, MALICIOUS_TEXTS[9]: text, "__proto__": 1},
            "provenance": [(bad, text)],
            "stages": [
                {**stage, "stage": bad + stage["stage"], "unit": MALICIOUS_TEXTS[1], "device": text}
                for stage in run["stages"]
            ],
            "confidence": {**confidence(0.8), "fitted_on": bad},
            "learning": rounds(number),
            "diagnostics": {MALICIOUS_TEXTS[1]: run["diagnostics"]["gap"], "alignment": [None] * len(names)},
        }
        runs.append({**run, **extra})
    lost = failed_run(
        len(runs), {MALICIOUS_TEXTS[1]: MALICIOUS_TEXTS[10]}, MALICIOUS_TEXTS[0] + "\n" + MALICIOUS_TEXTS[9]
    )
    page = page_of([*runs, lost], names, title=MALICIOUS_TEXTS[0])
    return {**page, "notes": list(MALICIOUS_TEXTS), "version": MALICIOUS_TEXTS[1]}


def watched(context: BrowserContext, wrong: list[str], requests: list[str]) -> Tab:
    """Opens a page that records its errors and requests."""
    page = context.new_page()
    page.on("console", lambda message: wrong.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("dialog", lambda dialog: wrong.append(dialog.message))
    page.on("request", lambda request: requests.append(request.url))
    return page
