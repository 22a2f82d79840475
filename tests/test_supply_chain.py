"""Tests that the lowest versions of the dependencies have no known weakness, and that the audit covers them."""

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]

SAFE = {
    "pillow": "12.1.1",  # CVE-2025-48379, CVE-2026-25990
    "requests": "2.32.4",  # CVE-2024-47081
    "urllib3": "2.6.3",  # CVE-2025-66418, CVE-2025-66471, CVE-2026-21441
    "filelock": "3.20.3",  # CVE-2025-68146, CVE-2026-22701
    "jinja2": "3.1.6",  # CVE-2025-27516
    "pyarrow": "23.0.1",  # CVE-2026-25087
    "onnx": "1.21",  # CVE-2026-27489, CVE-2026-28500, CVE-2026-34445
    "torch": "2.10",  # CVE-2025-32434, CVE-2026-24747
    "lightning": "2.6.6",
    "hydra-core": "1.3.8",
    "tqdm": "4.66.3",  # CVE-2024-34062
    "pymdown-extensions": "10.16.1",  # CVE-2025-68142
    "pytest": "9.0.3",  # CVE-2025-71176
}
"""The first versions without the weaknesses that were known when this was written."""


def requirements() -> dict[str, Requirement]:
    """Returns every direct dependency by its name, those of the extras among them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    parsed = [Requirement(text) for text in texts]
    return {requirement.name.lower(): requirement for requirement in parsed}


@pytest.mark.parametrize("name", SAFE)
def test_lowest_version_has_no_known_weakness(name: str) -> None:
    (lowest,) = [Version(part.version) for part in requirements()[name].specifier if part.operator == ">="]
    assert lowest >= Version(SAFE[name])


def test_every_dependency_has_a_lowest_version() -> None:
    without = [name for name, requirement in requirements().items() if ">=" not in str(requirement.specifier)]
    assert without == ["lgclip"], "the extra dev names the other extras"


def test_audit_covers_the_lowest_versions() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    audit = re.search(r"^audit:.*?\n\n", makefile, re.DOTALL | re.MULTILINE)
    assert audit
    assert "--resolution lowest-direct" in audit[0]
    assert audit[0].count("pip-audit") == 2
    assert re.search(r"^sbom:.*cyclonedx-py environment.*dist/sbom\.cdx\.json", makefile, re.DOTALL | re.MULTILINE)
    assert "dist/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()
