"""Tests what holds for every transductive rule: symmetries, degenerate pools, types, configs and memory."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from unlabeled_pools import TEMPERATURE, random_pool

from lgclip.methods.transduction.base import Transduction, UnlabeledPool
from lgclip.methods.transduction.em import EM
from lgclip.methods.transduction.inmap import InMaP
from lgclip.methods.transduction.moments import class_moments
from lgclip.methods.transduction.offset import DomainOffset
from lgclip.methods.transduction.stata import StatA
from lgclip.methods.transduction.tda import TDA
from lgclip.methods.transduction.transclip import TransCLIP
from lgclip.methods.transduction.zlap import ZLaP
from lgclip.runtime.instantiate import build

ROOT = Path(__file__).parents[3]
OFFLINE = [
    TransCLIP(),
    StatA(),
    StatA(soft=True),
    EM(),
    InMaP(iterations=40),
    InMaP(0, iterations=40),
    ZLaP(),
    DomainOffset(),
]
RULES = [*OFFLINE, TDA()]
BY_CONFIG = {
    "transclip": TransCLIP,
    "stata": StatA,
    "em": EM,
    "inmap": InMaP,
    "zlap": ZLaP,
    "tda": TDA,
    "offset": DomainOffset,
}
POOLS = st.tuples(st.integers(0, 9999), st.integers(2, 25), st.integers(1, 4))
few = settings(max_examples=25)


def rule_id(rule: Transduction) -> str:
    return str(rule).replace(" ", "")


def probs(rule: Transduction, pool: UnlabeledPool) -> torch.Tensor:
    logits = rule.refine(pool)
    assert logits.isfinite().all()
    assert logits.shape == pool.scores.shape
    return logits.softmax(dim=1)


@pytest.mark.slow
@few
@pytest.mark.parametrize("rule", OFFLINE, ids=rule_id)
@given(sizes=POOLS, has_prototypes=st.booleans())
def test_order_of_images_changes_nothing(rule: Transduction, sizes: tuple[int, int, int], has_prototypes: bool) -> None:
    seed, n, c = sizes
    pool = random_pool(seed, n, c, has_prototypes=has_prototypes)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    moved = pool._replace(features=pool.features[order], scores=pool.scores[order])
    torch.testing.assert_close(probs(rule, moved), probs(rule, pool)[order], atol=1e-5, rtol=0)


@few
@pytest.mark.parametrize("rule", RULES, ids=rule_id)
@given(sizes=POOLS, has_prototypes=st.booleans())
def test_order_of_classes_changes_nothing(
    rule: Transduction, sizes: tuple[int, int, int], has_prototypes: bool
) -> None:
    seed, n, c = sizes
    pool = random_pool(seed, n, c, has_prototypes=has_prototypes)
    order = torch.randperm(c, generator=torch.Generator().manual_seed(seed))
    prototypes = None if pool.prototypes is None else pool.prototypes[order]
    moved = pool._replace(scores=pool.scores[:, order], prototypes=prototypes)
    torch.testing.assert_close(probs(rule, moved), probs(rule, pool)[:, order], atol=1e-5, rtol=0)


@few
@pytest.mark.parametrize("rule", OFFLINE, ids=rule_id)
@given(sizes=POOLS, copies=st.lists(st.integers(0, 99), min_size=1, max_size=8))
def test_copies_of_an_image_get_equal_rows(rule: Transduction, sizes: tuple[int, int, int], copies: list[int]) -> None:
    seed, n, c = sizes
    pool = random_pool(seed, n, c)
    rows = torch.tensor([*range(n), *(copy % n for copy in copies)])
    result = probs(rule, pool._replace(features=pool.features[rows], scores=pool.scores[rows]))
    torch.testing.assert_close(result, result[:n][rows], atol=1e-9, rtol=0)


@pytest.mark.parametrize("has_prototypes", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_empty_pool_gives_an_empty_result(rule: Transduction, dtype: torch.dtype, has_prototypes: bool) -> None:
    prototypes = torch.ones(3, 4, dtype=dtype) if has_prototypes else None
    logits = rule.refine(UnlabeledPool(torch.ones(0, 4, dtype=dtype), torch.ones(0, 3, dtype=dtype), 1.0, prototypes))
    assert logits.shape == (0, 3)
    assert logits.dtype == dtype


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_single_class_is_certain(rule: Transduction) -> None:
    torch.testing.assert_close(probs(rule, random_pool(0, c=1)), torch.ones(12, 1, dtype=torch.float64))


@pytest.mark.parametrize("has_prototypes", [True, False])
@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_single_image_and_equal_images_work(rule: Transduction, has_prototypes: bool) -> None:
    pool = random_pool(3, n=1, has_prototypes=has_prototypes)
    probs(rule, pool)
    equal = pool._replace(features=pool.features.expand(9, -1), scores=pool.scores.expand(9, -1))
    result = probs(rule, equal)
    if not rule.is_online:
        torch.testing.assert_close(result, result[:1].expand(9, -1), atol=1e-9, rtol=0)


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_certain_scores_are_no_problem(rule: Transduction) -> None:
    """Checks scores so far apart that all probabilities but a single one are 0 as floats: some class has no image."""
    pool = random_pool(1, c=5)
    result = probs(rule, pool._replace(features=pool.features.float(), scores=pool.scores.float(), temperature=1e-5,
                                       prototypes=None))  # fmt: skip
    assert result.sum(dim=1).allclose(torch.ones(12))


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_single_precision_agrees_with_double(rule: Transduction) -> None:
    pool = random_pool(2, n=60, c=4, d=16)
    assert pool.prototypes is not None
    single = pool._replace(
        features=pool.features.float(), scores=pool.scores.float(), prototypes=pool.prototypes.float()
    )
    logits = rule.refine(single)
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits.softmax(dim=1).double(), probs(rule, pool), atol=1e-3, rtol=0)


def test_half_precision_is_computed_in_single() -> None:
    pool = random_pool(2)
    half = UnlabeledPool(pool.features.bfloat16(), pool.scores.float(), TEMPERATURE, None)
    assert StatA().refine(half).dtype == torch.float32


@pytest.mark.parametrize("rule", RULES, ids=rule_id)
def test_pool_is_not_changed(rule: Transduction) -> None:
    pool = random_pool(4)
    before = [pool.features.clone(), pool.scores.clone()]
    first = rule.refine(pool)
    assert torch.equal(before[0], pool.features)
    assert torch.equal(before[1], pool.scores)
    assert torch.equal(first, rule.refine(pool)), "nothing is random"


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_temperature_must_be_above_zero(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature=.*must be above 0"):
        StatA().refine(random_pool(0)._replace(temperature=temperature))


@pytest.mark.parametrize(
    ("rule", "values", "message"),
    [
        (TransCLIP, {"neighbors": 0}, "transduction.neighbors=0: it must be at least 1"),
        (TransCLIP, {"confident": 0}, "transduction.confident=0: it must be at least 1"),
        (TransCLIP, {"steps": 0}, "transduction.steps=0: it must be at least 1"),
        (StatA, {"alpha": 0.0}, "transduction.alpha=0.0: it must be above 0"),
        (StatA, {"iterations": -1}, "transduction.iterations=-1: it must be at least 0"),
        (EM, {"iterations": 0}, "transduction.iterations=0: it must be at least 1"),
        (InMaP, {"temperature": float("nan")}, "transduction.temperature=nan: it must be above 0"),
        (InMaP, {"sinkhorn": -1}, "transduction.sinkhorn=-1: it must be at least 0"),
        (ZLaP, {"alpha": 1.0}, "transduction.alpha=1.0: it must be at least 0 and below 1"),
        (ZLaP, {"gamma": 0.0}, "transduction.gamma=0.0: it must be above 0"),
        (TDA, {"positive_size": 0}, "transduction.positive_size=0: it must be at least 1"),
        (TDA, {"negative_probs": [0.5, 0.1]},
         "transduction.negative_probs=[0.5, 0.1]: it must be two numbers, the lower first"),
    ],
)  # fmt: skip
def test_wrong_numbers_are_refused(rule: Callable[..., Any], values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="transduction") as error:
        rule(**values)
    assert str(error.value) == message


@pytest.mark.parametrize("name", BY_CONFIG)
def test_config_builds_the_rule_with_its_defaults(name: str) -> None:
    file = ROOT / "conf" / "transduction" / f"{name}.yaml"
    config = OmegaConf.create(OmegaConf.load(file))
    assert build(config, _convert_="all") == BY_CONFIG[name]()
    assert file.read_text(encoding="utf-8").startswith("# ")


def test_every_rule_has_a_name_and_no_config_is_missing() -> None:
    assert {path.stem for path in (ROOT / "conf" / "transduction").glob("*.yaml")} == {*BY_CONFIG, "none"}
    assert len({vars(rule)["key_name"] for rule in BY_CONFIG.values()}) == len(BY_CONFIG)


def test_moments_weight_by_probability_and_copies() -> None:
    """Computes a mean, a mean square and a variance by hand."""
    features = torch.tensor([[1.0], [3.0], [5.0]], dtype=torch.float64)
    probs = torch.tensor([[1.0, 1e-300], [0.5, 0.5], [0.0, 1.0]], dtype=torch.float64)
    moments = class_moments(features, probs.log(), torch.tensor([2.0, 2.0, 1.0], dtype=torch.float64))
    # Weights of the first class 2 and 1, of the second 1 and 1.
    torch.testing.assert_close(moments.sizes, torch.tensor([3.0, 2.0], dtype=torch.float64))
    torch.testing.assert_close(moments.means[:, 0], torch.tensor([5 / 3, 4.0], dtype=torch.float64))
    torch.testing.assert_close(moments.variances(moments.means)[:, 0], torch.tensor([8 / 9, 1.0], dtype=torch.float64))
    torch.testing.assert_close(
        moments.shared_variances(moments.means), torch.tensor([[(3 * 8 / 9 + 2) / 5]], dtype=torch.float64)
    )


MEASURE = """
import resource, sys
import torch
from lgclip.methods.transduction.base import UnlabeledPool
from lgclip.methods.transduction.{module} import {name}
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
features = torch.nn.functional.normalize(torch.randn({n}, 512, generator=generator), dim=1)
prototypes = torch.nn.functional.normalize(torch.randn({c}, 512, generator=generator), dim=1)
pool = UnlabeledPool(features, features @ prototypes.T, 0.02, prototypes)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
logits = {name}({values}).refine(pool)
assert logits.isfinite().all()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "values"),
    [
        ("stata", "StatA", "iterations=1, steps=1"),
        ("transclip", "TransCLIP", "iterations=1"),
        ("em", "EM", "iterations=1"),
        ("inmap", "InMaP", "iterations=2, sinkhorn=2"),
        ("zlap", "ZLaP", ""),
        ("tda", "TDA", ""),
    ],
    ids=str,
)
def test_memory_is_bounded(module: str, name: str, values: str) -> None:
    """Checks that no tensor of shape (n, n) or (n, c, d) is made: both would take more than 1.5 GB here."""
    script = MEASURE.format(module=module, name=name, values=values, n=20_000, c=500)
    completed = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(completed.stdout) < 2**20, "in KiB"
