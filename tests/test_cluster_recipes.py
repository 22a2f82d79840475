"""Tests the recipes of examples/cluster as far as that is possible without a cluster."""

import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_dir

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "examples" / "cluster"


def commands(path: Path) -> list[list[str]]:
    """Returns the arguments of every call of an entry script in a file; variables of the shell get a value."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    if path.suffix == ".md":
        # Tables and sentences have commands without arguments.
        text = "\n".join(re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL))
    if path.name == "kuberay.yaml":
        text = yaml.safe_load(text)["spec"]["entrypoint"]
    calls = []
    for line in text.splitlines():
        match = re.search(r"(generate|evaluate)\.py (.*)$", line)
        if match and not line.startswith("#"):
            arguments = re.sub(r"\$\{?(\w+)\}?", r"\1_value", match.group(2)).rstrip("' ")
            calls.append([match.group(1), *shlex.split(arguments)])
    return calls


@pytest.mark.parametrize("name", ["slurm.sh", "kuberay.yaml", "skypilot.yaml", "README.md"])
def test_overrides_compose(name: str) -> None:
    """A value that is misspelled, or that is gone, is an error of Hydra's."""
    calls = commands(RECIPES / name)
    assert calls
    for script, *overrides in calls:
        # The model is a variable in some of them.
        known = [override.replace("DIFFUSER_value", "sd_turbo") for override in overrides]
        with initialize_config_dir(str(ROOT / "conf"), version_base=None):
            cfg = compose(script, known)
        if script == "generate":
            assert cfg.executor._target_.endswith("RayExecutor")
            assert cfg.precision == "bf16", "the driver may have no GPU"


def test_ray_accepts_the_configuration_of_ray_up() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load((RECIPES / "ray_up.yaml").read_text(encoding="utf-8"))
    validate_config(prepare_config(config))
    config["available_nodes"] = config.pop("available_node_types")
    with pytest.raises(Exception, match="available_node"):
        validate_config(prepare_config(config))


def test_slurm_script_is_shell() -> None:
    subprocess.run(["bash", "-n", str(RECIPES / "slurm.sh")], check=True)


def test_versions_are_those_that_are_tested() -> None:
    """A cluster with another version of Ray than the driver is refused."""
    job: Any = yaml.safe_load((RECIPES / "kuberay.yaml").read_text(encoding="utf-8"))
    image = (RECIPES / "Dockerfile").read_text(encoding="utf-8")
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split() if "==" in line)
    assert job["spec"]["rayClusterSpec"]["rayVersion"] == pinned["ray"]
    assert f"rayproject/ray:{pinned['ray']}-py311" in image
    assert version("ray")


# Fields of the kinds of ray.io/v1 that the recipe uses, and their types in the API of KubeRay's operator.
_POD = {"spec": {"serviceAccountName": str, "nodeSelector": dict, "containers": list}}
_GROUP = {"rayStartParams": dict, "template": _POD}
_WORKERS = {**_GROUP, "groupName": str, "replicas": int, "minReplicas": int, "maxReplicas": int}
_CLUSTER = {"rayVersion": str, "enableInTreeAutoscaling": bool, "headGroupSpec": _GROUP, "workerGroupSpecs": [_WORKERS]}
_JOB = {
    "entrypoint": str, "shutdownAfterJobFinishes": bool, "ttlSecondsAfterFinished": int, "backoffLimit": int,
    "rayClusterSpec": _CLUSTER,
}  # fmt: skip


def unknown_fields(value: Any, fields: Any, place: str = "spec") -> list[str]:
    """Returns the places of a recipe whose name or type is not that of the API."""
    if isinstance(fields, type):
        return [] if type(value) is fields else [place]
    if isinstance(fields, list):
        items = value if isinstance(value, list) else [None]
        return [name for i, item in enumerate(items) for name in unknown_fields(item, fields[0], f"{place}[{i}]")]
    if not isinstance(value, dict):
        return [place]
    faults = [f"{place}.{name}" for name in value if name not in fields]
    for name in value.keys() & fields.keys():
        faults += unknown_fields(value[name], fields[name], f"{place}.{name}")
    return faults


def test_kuberay_job_has_the_fields_of_its_api() -> None:
    job: Any = yaml.safe_load((RECIPES / "kuberay.yaml").read_text(encoding="utf-8"))
    assert (job.pop("apiVersion"), job.pop("kind")) == ("ray.io/v1", "RayJob")
    assert job.keys() == {"metadata", "spec"}
    assert re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"])
    assert unknown_fields(job["spec"], _JOB) == []
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        # A number would be refused there.
        assert all(isinstance(value, str) for value in group["rayStartParams"].values())
        assert group["template"]["spec"]["containers"]
        # The operator sets restartPolicy for its autoscaler.
        assert "restartPolicy" not in group["template"]["spec"]
    # With autoscaling the operator creates no service account that the head names: the recipe says so.
    text = (RECIPES / "kuberay.yaml").read_text(encoding="utf-8")
    assert f"kubectl create serviceaccount {cluster['headGroupSpec']['template']['spec']['serviceAccountName']}" in text
    cluster["workerGroupSpecs"][0]["minReplica"] = cluster["workerGroupSpecs"][0].pop("minReplicas")
    cluster["enableInTreeAutoscaling"] = "true"
    assert sorted(unknown_fields(job["spec"], _JOB)) == [
        "spec.rayClusterSpec.enableInTreeAutoscaling", "spec.rayClusterSpec.workerGroupSpecs[0].minReplica"
    ]  # fmt: skip


def test_kuberay_job_has_a_driver_without_a_gpu_and_workers_with_one() -> None:
    cluster = yaml.safe_load((RECIPES / "kuberay.yaml").read_text(encoding="utf-8"))["spec"]["rayClusterSpec"]
    head = cluster["headGroupSpec"]
    assert head["rayStartParams"]["num-gpus"] == "0"
    for group in cluster["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        (container,) = group["template"]["spec"]["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
