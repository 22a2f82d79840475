"""The shape of the house: imports go one way, files stay short, and nothing is pickled."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ("generate", "train", "evaluate")
FILES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in [*sorted((ROOT / "lgclip").rglob("*.py")), *(ROOT / f"{name}.py" for name in SCRIPTS)]
}
# Each may import those before it. Only the entry scripts and YAML bring the stages together.
ORDER = [
    "lgclip", "lgclip.usage", "lgclip.stopping", "lgclip.whole", "lgclip.credentials", "lgclip.shown", "lgclip.errors",
    "lgclip.allowed", "lgclip.jobs", "lgclip.ledger", "lgclip.costs", "lgclip.summary", "lgclip.sweeps",
    "lgclip.hub", "lgclip.identity", "lgclip.limits", "lgclip.batch", "lgclip.texts", "lgclip.memory", "lgclip.shares",
    "lgclip.store", "lgclip.shard_index", "lgclip.tar_store", "lgclip.image_store", "lgclip.caption_store",
    "lgclip.feature_store",
    "lgclip.checkpoint", "lgclip.stages", "lgclip.training", "lgclip.steps", "lgclip.agreement",
    "lgclip.tiny", "lgclip.tiny.world", "lgclip.tiny.styles", "lgclip.tiny.captions", "lgclip.tiny.corpus",
    "lgclip.tiny.vocabulary", "lgclip.tiny.recipe", "lgclip.tiny.autoencoder", "lgclip.tiny.denoiser",
    "lgclip.tiny.encoder", "lgclip.tiny.language", "lgclip.tiny.install", "lgclip.tiny.captioner",
    "lgclip.datasets", "lgclip.datasets.base", "lgclip.datasets.selected", "lgclip.datasets.files",
    "lgclip.datasets.small",
    "lgclip.datasets.folder", "lgclip.datasets.reading", "lgclip.datasets.archive", "lgclip.datasets.download",
    "lgclip.datasets.tree", "lgclip.datasets.cub", "lgclip.datasets.eurosat", "lgclip.datasets.flowers102",
    "lgclip.datasets.food101", "lgclip.datasets.pets", "lgclip.datasets.dtd", "lgclip.datasets.fgvc_aircraft",
    "lgclip.datasets.cifar10", "lgclip.datasets.imagenette",
    "lgclip.datasets.imagenet_classes", "lgclip.datasets.imagenet", "lgclip.datasets.imagenet_variants",
    "lgclip.datasets.resisc45", "lgclip.datasets.parquet", "lgclip.datasets.shards", "lgclip.datasets.hub",
    "lgclip.prompts", "lgclip.prompts.base", "lgclip.prompts.wording", "lgclip.prompts.replies",
    "lgclip.prompts.verdicts", "lgclip.prompts.length", "lgclip.prompts.template", "lgclip.prompts.published",
    "lgclip.prompts.chat", "lgclip.prompts.sampling", "lgclip.prompts.local", "lgclip.prompts.endpoint",
    "lgclip.prompts.server", "lgclip.prompts.caption_lines", "lgclip.prompts.eyes", "lgclip.prompts.captioner",
    "lgclip.writing",
    "lgclip.diffuser", "lgclip.diffuser.faults", "lgclip.diffuser.base", "lgclip.drawing",
    "lgclip.diffuser.embeddings", "lgclip.diffuser.adapter", "lgclip.diffuser.sampler", "lgclip.diffuser.brush",
    "lgclip.diffuser.pipeline", "lgclip.diffuser.layout", "lgclip.diffuser.folder",
    "lgclip.damage", "lgclip.data", "lgclip.captions", "lgclip.captioning", "lgclip.generation",
    "lgclip.augmentation", "lgclip.mixture", "lgclip.encoder", "lgclip.encoder.files", "lgclip.encoder.backbone",
    "lgclip.encoder.base", "lgclip.encoder.measure", "lgclip.encoder.precision", "lgclip.encoder.sources",
    "lgclip.encoder.catalogue", "lgclip.encoder.open_clip", "lgclip.encoder.timm", "lgclip.logits",
    "lgclip.encoder.student", "lgclip.student_spec", "lgclip.lesson",
    "lgclip.soft_prompts", "lgclip.prompt_files", "lgclip.encoder.prompted",
    "lgclip.scales", "lgclip.encoding", "lgclip.features",
    "lgclip.prototypes", "lgclip.rules", "lgclip.selection", "lgclip.calibration",
    "lgclip.paradigms", "lgclip.pseudolabels", "lgclip.auxiliary",
    "lgclip.prompt_spec", "lgclip.pool", "lgclip.guessing", "lgclip.prompt_batches",
    "lgclip.methods", "lgclip.methods.base", "lgclip.methods.zero_shot", "lgclip.methods.student", "lgclip.learning",
    "lgclip.lora_spec", "lgclip.tuning_pool", "lgclip.adaptation", "lgclip.methods.diffuser_lora", "lgclip.adapting",
    "lgclip.methods.prompt_learner", "lgclip.prompt_rounds", "lgclip.prompt_learning", "lgclip.taught",
    "lgclip.workshop",
    "lgclip.tiny.ceilings",
    "lgclip.confidence", "lgclip.diagnostics",
    "lgclip.statistics", "lgclip.membership", "lgclip.robustness", "lgclip.judging",
    "lgclip.runs", "lgclip.comparison", "lgclip.comparison_table",
    "lgclip.seed_rows", "lgclip.row_table", "lgclip.row_figure",
    "lgclip.student_rows", "lgclip.student_differences", "lgclip.students_figure", "lgclip.students_table",
    "lgclip.learner_cells", "lgclip.learner_rows", "lgclip.learners_figure", "lgclip.learners_table",
    "lgclip.report", "lgclip.result_table",
    "lgclip.contact_sheet", "lgclip.artifacts", "lgclip.wandb_tables", "lgclip.tracking", "lgclip.publishing",
    "lgclip.workspace",
    "lgclip.reopen", "lgclip.inventory", "lgclip.drawn_inspection", "lgclip.inspection",
    "lgclip.packing", "lgclip.verification", "lgclip.retention",
    "lgclip.transport", "lgclip.export", "lgclip.exposure", "lgclip.audit",
    "lgclip.dashboard", "lgclip.dashboard.shape", "lgclip.dashboard.rows", "lgclip.dashboard.thumbnails",
    "lgclip.dashboard.collect", "lgclip.dashboard.page", "lgclip.caption_exchange", "lgclip.doctor", "lgclip.cli",
    *SCRIPTS,
]  # fmt: skip
LIGHT = {"hydra", "omegaconf", "lgclip", "lgclip.allowed", "lgclip.errors", "lgclip.sweeps"}


def nodes(tree: ast.AST, *, run: bool = True) -> Iterator[ast.AST]:
    """Every node; without what `if TYPE_CHECKING` guards if only what runs counts."""
    for node in ast.iter_child_nodes(tree):
        if run and isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        yield node
        yield from nodes(node, run=run)


def imports(tree: ast.AST) -> set[str]:
    """The modules that a tree imports when it runs, at the top or inside a function."""
    found = set()
    for node in nodes(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            found |= {node.module or ""}
            found |= {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
    return found


def parsed(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


def test_every_module_has_its_place_in_the_order() -> None:
    assert set(ORDER) == FILES.keys()
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("name", FILES)
def test_imports_go_one_way(name: str) -> None:
    own = {module for module in imports(parsed(name)) if module in FILES}
    assert not {module for module in own if ORDER.index(module) >= ORDER.index(name)}


@pytest.mark.parametrize("name", [name for name in FILES if name.startswith("lgclip.methods")])
def test_a_method_knows_no_other_stage(name: str) -> None:
    others = {
        f"lgclip.{part}" for part in ("data", "datasets", "prompts", "diffuser", "store", "generation", "encoder")
    }
    assert not imports(parsed(name)) & others


def test_no_stage_knows_a_method() -> None:
    knowing = {name for name in FILES if any(i.startswith("lgclip.methods") for i in imports(parsed(name)))}
    assert {name for name in knowing if not name.startswith("lgclip.methods")} <= {
        "lgclip.confidence", "lgclip.report", "lgclip.contact_sheet", "lgclip.learning", "lgclip.judging",
        "lgclip.publishing", "lgclip.adapting", "lgclip.prompt_rounds", "lgclip.taught",
    }  # fmt: skip


@pytest.mark.parametrize("name", SCRIPTS)
def test_an_entry_script_imports_nothing_heavy_at_its_top(name: str) -> None:
    top = ast.Module([node for node in parsed(name).body if not isinstance(node, ast.FunctionDef)], [])
    assert imports(top) <= LIGHT
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_short_and_its_name_says_something(name: str) -> None:
    assert len(FILES[name].read_text(encoding="utf-8").splitlines()) <= 300
    assert not {"utils", "util", "common", "helpers", "misc"} & set(name.split("."))


def test_a_test_file_is_short_too() -> None:
    lengths = {
        path.name: len(path.read_text(encoding="utf-8").splitlines()) for path in Path(__file__).parent.glob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > 300} == {}


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_pickled_and_nothing_is_asked_for_by_trial(name: str) -> None:
    tree = parsed(name)
    called = {ast.unparse(node.func) for node in nodes(tree, run=False) if isinstance(node, ast.Call)}
    assert not called & {"hasattr", "torch.load", "torch.save", "eval", "exec"}
    assert not imports(tree) & {"pickle", "cPickle", "dill", "joblib", "cloudpickle"}
    allowed = [node for node in nodes(tree) if isinstance(node, ast.keyword) and node.arg == "allow_pickle"]
    assert all(ast.unparse(keyword.value) == "False" for keyword in allowed)


def test_help_and_config_load_nothing_heavy() -> None:
    """What the user waits for is Hydra alone: the modules are read, not a clock."""
    look = (
        "import runpy, sys\n"
        "calls = 'evaluate.py --help|evaluate.py --cfg job|train.py method=tiny_encoder --help|generate.py --cfg job'\n"
        "for call in calls.split('|'):\n"
        "    sys.argv = call.split()\n"
        "    try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "    except SystemExit as end: assert not end.code, call\n"
        "print('loaded:', *sorted({name.partition('.')[0] for name in sys.modules}))\n"
    )
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    *shown, loaded = done.stdout.splitlines()
    assert "prompts_per_class: 10" in shown, "of Hydra's own, beside other words"
    assert "scales: multi, official_code, paper, single, ten" in shown
    assert "  scales          multi, official_code, paper, *single, ten" in shown
    heavy = {"torch", "lightning", "numpy", "PIL", "diffusers", "transformers", "open_clip", "wandb", "scipy"}
    assert "hydra" in loaded.split()
    assert not heavy & set(loaded.split())
