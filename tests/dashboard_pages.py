"""Data of the page that compares runs, as runs give it and as nobody would wish it."""

import base64
import io
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from playwright.sync_api import Page as Tab

from lgclip.dashboard.shape import ClassRow, Comparison, Confusion, Drawn, Learning, Page, RunData, SeedGroup, Stage
from lgclip.statistics import holm, metrics, over_seeds, paired

Open = Callable[..., Tab]
"""Opens data in a browser: `opened(data, width=360, scheme="dark")`; the fixture is in browser_fixtures."""

SHAPES = ["circle", "triangle", "square", "star", "heart", "cross", "ring", "arrow", "moon", "drop", "leaf", "spiral"]
COLOURS = ["red", "green", "blue", "yellow", "violet", "orange", "white", "black", "pink", "teal", "grey", "brown"]
COLOURS += ["gold", "lime", "navy", "plum", "sand"]
MEASURES = ("alignment", "spread", "margin", "effective_images", "claimed", "gap")

HOSTILE: tuple[str, ...] = (
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
    return [f"{colour} {shape}" for shape, colour in product(SHAPES, COLOURS)][:count]


def picture(seed: int) -> str:
    """A small picture as a data URI."""
    rng = np.random.default_rng(seed)
    ground, ink = (tuple(rng.integers(low, low + 90, 3).tolist()) for low in (150, 10))
    image = Image.new("RGB", (64, 64), ground)
    x, y, size = rng.integers(8, 30, 3).tolist()
    ImageDraw.Draw(image).ellipse((x, y, x + size, y + size), fill=ink)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=50)
    return "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()


def run_of(number: int, axes: dict[str, Any], names: list[str], strength: float, per_class: int = 20) -> RunData:
    """A finished run whose images are right about as often as `strength` says."""
    rng, c = np.random.default_rng(number), len(names)
    label = np.repeat(np.arange(c), per_class)
    hard = np.random.default_rng(0).normal(0, 1.0, label.size) + np.random.default_rng(1).normal(0, 0.8, c)[label]
    wrong = rng.normal(0, 0.35, label.size) + hard > strength
    beside = rng.normal(0, 0.35, label.size) + hard > strength + 0.1
    told, rival = (metrics(label, np.where(miss, 1, 0), c) for miss in (wrong, beside))
    right = np.bincount(label[~wrong], minlength=c)
    share = right / per_class
    classes = [
        ClassRow(n=per_class, right=int(r), taken_for=(k + 1) % c if r < per_class else None, times=per_class - int(r))
        for k, r in enumerate(right)
    ]
    test = paired(label, np.where(wrong, -1, label), np.where(beside, -1, label))
    settings = {"dataset": "shapes", "encoder.precision": "float32", "seed": 0, "llm.model": "tiny", **axes}
    return RunData(
        id=number, name=", ".join(f"{key}={value}" for key, value in axes.items()) or "shapes, lgclip",
        folder=f"multirun/grid/{number}", status="finished", error=None, sweep="multirun/grid", job=number, axes=axes,
        dataset="shapes", split="held out", method="lgclip", n=int(label.size), metrics=dict(told),
        beside={"clip_text": dict(rival)}, paired={"clip_text": test},
        detectable={"difference": 0.012, "power": 0.8, "discordant": 0.04}, confidence=confidence(float(share.mean())),
        learning=None,
        correlations={measure: {"spearman": 0.1 * k, "p": 0.5 / (k + 1)} for k, measure in enumerate(MEASURES)},
        class_list=0, classes=classes,
        diagnostics={m: (0.5 + 0.4 * share + rng.normal(0, 0.05, c)).round(4).tolist() for m in MEASURES},
        confusions=[], gallery=[[] for _ in names], stages=stages(number), cost=cost(), config=settings,
        provenance=[("Commit", "19e1043"), ("Encoder", "tiny, sha256 4f2a91"), ("torch", "2.15.0")],
        right=base64.b64encode(np.packbits(~wrong, bitorder="little").tobytes()).decode(), judged="shapes-held-out",
    )  # fmt: skip


def confidence(top1: float) -> dict[str, Any]:
    coverage = np.linspace(0.05, 1, 20)
    rejection = [{"coverage": float(c), "top1": float(1 - (1 - top1) * c**2)} for c in coverage]
    figures = {"ece": 0.021, "nll": 0.11, "brier": 0.05, "aurc": 0.004, "temperature": 0.0123}
    return {**figures, "fitted_on": "synthetic images", "rejection": rejection}


def rounds(number: int, count: int = 3) -> Learning:
    """What a learner says of its rounds, better with each."""
    accuracy: list[float | None] = [round(0.6 + 0.05 * at + 0.002 * number, 4) for at in range(count + 1)]
    figures: dict[str, list[float | None]] = {
        "precision": [None, *(0.9 - 0.01 * at for at in range(count))],
        "coverage": [None, *((at + 1) / count for at in range(count))],
        "accuracy": accuracy, "loss": [None, *(1.5 / (at + 1) for at in range(count))],
    }  # fmt: skip
    by_kind = {"lgclip": {"seen": 0.8, "unseen": 0.6 + number / 100, "harmonic": 0.7}}
    return Learning(unit="round", first=0, figures=figures, by_kind=by_kind)


def stages(number: int) -> list[Stage]:
    made = number % 4 == 0
    rows = (
        ("prompts", "sentence", 2.1),
        ("images", "image", 14.2),
        ("features", "image", 6.3),
        ("judging", "image", 0.2),
    )
    return [
        Stage(
            stage=name, unit=unit, made=300 * made, reused=300 * (not made), seconds=seconds if made else 0.02,
            device="cpu", devices=1, peak_memory=700_000_000, peak_from="samples",
            tokens=5400 if name == "prompts" and made else None,
        )
        for name, unit, seconds in rows
    ]  # fmt: skip


def cost() -> dict[str, Any]:
    before = {name: {"seconds": s, "count": 300, "device": "cpu"} for name, s in (("prompts", 2.0), ("images", 14.0))}
    kept = {"saved": {"seconds": 0.0, "flops": 0}, "pays_back": False, "images": None}
    each = {"saved": {"seconds": 0.0021, "flops": 6.1e6}, "pays_back": True, "images": 8420}
    towers = {"image": {"parameters": 1_240_000, "flops": 41_000_000}, "text": {"parameters": 830_000, "flops": 6.1e6}}
    once = {"seconds": {"prompts": 2.0, "images": 14.0, "encoding": 1.6, "all": 17.6}}
    payback = {"views": 1, "once": once, "text_tower_per_image": each, "text_features_kept": kept}
    return {"made_before": before, "towers": towers, "payback": payback}


def page_of(runs: list[RunData], names: list[str], *, title: str = "shapes: a sweep", thumbs: int = 40) -> Page:
    """The page of some runs; their axes, comparisons with the first one and seed groups are worked out here."""
    finished = [run for run in runs if run["metrics"]]
    first, others = finished[0], finished[1:]
    tests = [paired(*outcomes(first, run)) for run in others]
    corrected = holm([test["p"] for test in tests])
    comparisons = [
        Comparison(run=run["id"], difference=t["difference"], ci95=t["ci95"], p=t["p"], p_holm=p, reason=None)
        for run, t, p in zip(others, tests, corrected, strict=True)
    ]
    keys = list(dict.fromkeys(key for run in runs for key in run["axes"]))
    values: dict[str, list[Any]] = {key: [] for key in keys}
    for run, key in product(runs, keys):
        if key in run["axes"] and run["axes"][key] not in values[key]:
            values[key].append(run["axes"][key])
    numeric = {key: all(isinstance(value, int) for value in column) for key, column in values.items()}
    return Page(
        title=title, made="2026-01-02T03:04:05+00:00", version="0.1.0",
        axes=[{"key": k, "values": sorted(v) if numeric[k] else v, "numeric": numeric[k]} for k, v in values.items()],
        runs=runs, reference=0, comparisons=comparisons, groups=groups(finished), class_lists=[names],
        made_before=61.5, thumbs={str(n): picture(n) for n in range(thumbs)}, notes=[],
    )  # fmt: skip


def outcomes(reference: RunData, run: RunData) -> tuple[Any, Any, Any]:
    """Labels of one class, and what both runs say: 1 where they are right."""
    return np.ones(run["n"], np.int64), bits_of(run).astype(np.int64), bits_of(reference).astype(np.int64)


def bits_of(run: RunData) -> Any:
    """Whether each image is judged right."""
    packed = np.frombuffer(base64.b64decode(run["right"] or ""), np.uint8)
    return np.unpackbits(packed, count=run["n"], bitorder="little").astype(bool)


def done(data: Page) -> list[RunData]:
    """The runs that finished."""
    return [run for run in data["runs"] if run["metrics"]]


def top1(run: RunData) -> float:
    """Share of images that a finished run judges right."""
    assert run["metrics"]
    return run["metrics"]["top1"]


def groups(runs: list[RunData]) -> list[SeedGroup]:
    found: dict[str, list[RunData]] = {}
    for run in runs:
        found.setdefault(str({k: v for k, v in run["axes"].items() if k != "seed"}), []).append(run)
    told = [(own, over_seeds([top1(run) for run in own])) for own in found.values()]
    return [
        SeedGroup(axes={k: v for k, v in own[0]["axes"].items() if k != "seed"}, runs=[run["id"] for run in own],
                  mean=figures["mean"], ci95=figures["ci95"], std=figures["std"])
        for own, figures in told
    ]  # fmt: skip


def illustrated(run: RunData, prompts: list[str], pairs: int = 4) -> RunData:
    """The run with a gallery and with pairs of classes, each with pictures."""
    c = len(run["classes"])
    gallery = [
        [
            Drawn(prompt=prompts[(k + j) % len(prompts)], images=[str((3 * k + j + i) % 40) for i in range(3)])
            for j in (0, 1)
        ]
        for k in range(c)
    ]
    confusions = [
        Confusion(true=k, predicted=(k + 1) % c, count=9 - k,
                  images=["1", "2", "3"], of_true=["4", "5"], of_predicted=["6"])
        for k in range(min(pairs, c))
    ]  # fmt: skip
    return {**run, "gallery": gallery, "confusions": confusions}


def failed_run(number: int, axes: dict[str, Any], error: str) -> RunData:
    """A job that failed."""
    told = ", ".join(f"{key}={value}" for key, value in axes.items())
    return RunData(
        id=number, name=told, folder=f"multirun/grid/{number}", status="failed", error=error, sweep="multirun/grid",
        job=number, axes=axes, dataset="", split="", method="", n=0, metrics=None, beside={}, paired={},
        detectable=None, confidence=None, learning=None, correlations={}, class_list=0, classes=[], diagnostics={},
        confusions=[], gallery=[], stages=[], cost={}, config=axes, provenance=[], right=None, judged=None,
    )  # fmt: skip


def sweep_page(seeds: int = 3, classes: int = 30) -> Page:
    """A sweep of prompts per class, scales and seeds, with a job that failed."""
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
    """One run without images, confidences or costs."""
    run = run_of(0, {}, class_names(5), 1.5)
    bare: Any = {"beside": {}, "paired": {}, "detectable": None, "confidence": None, "diagnostics": {}, "gallery": []}
    bare |= {"correlations": {}, "stages": [], "cost": {}}
    whole: Any = {**run, **bare}
    return page_of([whole], class_names(5), thumbs=0)


def hostile_page() -> Page:
    """Every text of a page is one that would run, turn round, or burst it."""
    names, bad = list(HOSTILE), HOSTILE[0]
    runs: list[Any] = []
    for number, text in enumerate(HOSTILE[:6]):
        axes = {HOSTILE[1]: text, "prompts_per_class": number % 3 + 1, "nested": {bad: [text, None, number]}}
        run = illustrated(run_of(number, axes, names, 1.0 + 0.2 * number), names, pairs=len(names))
        more: Any = {
            "name": text, "folder": bad, "method": text, "dataset": HOSTILE[1], "split": text,
            "beside": {bad: run["beside"]["clip_text"]}, "paired": {bad: run["paired"]["clip_text"]},
            "config": {bad: bad, HOSTILE[9]: text, "__proto__": 1}, "provenance": [(bad, text)],
            "stages": [
                {**one, "stage": bad + one["stage"], "unit": HOSTILE[1], "device": text} for one in run["stages"]
            ],
            "confidence": {**confidence(0.8), "fitted_on": bad}, "learning": rounds(number),
            "diagnostics": {HOSTILE[1]: run["diagnostics"]["gap"], "alignment": [None] * len(names)},
        }  # fmt: skip
        runs.append({**run, **more})
    lost = failed_run(len(runs), {HOSTILE[1]: HOSTILE[10]}, HOSTILE[0] + "\n" + HOSTILE[9])
    page = page_of([*runs, lost], names, title=HOSTILE[0])
    return {**page, "notes": list(HOSTILE), "version": HOSTILE[1]}
