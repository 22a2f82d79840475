"""Tests result.json as typed values: a lossless round trip, its JSON Schema, and errors for incomplete files."""

import json
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
from factories import FirstRun
from run_factories import (
    LABEL,
    NAMES,
    PREDICTION,
    build_result,
    membership_record,
    metrics_record,
    prompt_tuning_record,
    shifted_set,
    student_record,
)

from lgclip.reporting.result_schema import ResultError, create_result, from_json, json_schema, json_text, to_json
from lgclip.reporting.run_folder import Run, RunError
from lgclip.runtime.versions import RESULT_SCHEMA

pytest_plugins = ("run_fixtures",)

DOCS = Path(__file__).parents[2] / "docs"


def values(**changes: Any) -> dict[str, Any]:
    return {**build_result(NAMES, LABEL, PREDICTION, {}, "pictures"), **changes}


def test_result_file_round_trips_exactly(first_run: FirstRun) -> None:
    text = (first_run.folder / "result.json").read_text(encoding="utf-8")
    assert json_text(to_json(from_json(json.loads(text)))) == text


@pytest.mark.parametrize(
    "extra",
    [
        {},
        {"student": student_record(history={"loss": [2, 0.5], "accuracy": [None, 1]})},
        {"student": student_record(), "membership": membership_record(0.6, 1, 0.5)},
        {"prompt_tuning": prompt_tuning_record(rounds=[{"round": 0, "accuracy": 0.5}], auxiliary={"image": 0.5})},
        {"prompt_tuning": prompt_tuning_record(by_type={"air": {"seen": 1, "unseen": 0.5, "harmonic": 0.75}})},
        {"ood": {"sketch": shifted_set(0.9, 0.8, baselines={"clip_text": (1, 0.5)})}},
        {"sweep": {"dir": "multirun", "job": 1, "overrides": ["seed=1"]}, "diagnostics": {"margin": None}},
        {"encoder": None, "scales": None, "diagnostics": None, "git_commit": None},
    ],
)  # fmt: skip
def test_result_fields_round_trip(extra: dict[str, Any]) -> None:
    assert to_json(from_json(values(**extra))) == values(**extra)


def test_fields_are_typed_and_frozen() -> None:
    result = from_json(values(ood={"sketch": shifted_set(0.9, 0.8, baselines={})}))
    assert result.metrics_of("clip_text").top1 == 0.5
    assert result.metrics_of("lgclip") == result.metrics
    assert result.ood["sketch"].shift.in_distribution.top1 == 0.9
    with pytest.raises(KeyError):
        result.metrics_of("fusion")
    with pytest.raises(FrozenInstanceError):
        result.n = 1  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1], r"result\.json is damaged: it has no field 'schema'; run it again with rerun=true"),
        ({"n": 1}, r"result\.json is damaged: it has no field 'schema'"),
        ({"schema": 2}, rf"result\.json is of version 2, this package reads {RESULT_SCHEMA}: run it again"),
        ({"schema": RESULT_SCHEMA}, r"result\.json: the field 'run_key' is missing; run it again with rerun=true"),
        (values(metrics={"top1": 0.5}), r"result\.json: the field 'metrics\.top1_ci95' is missing; run it again"),
        (values(n="many"), r"result\.json: the field 'n' is 'many': Input should be a valid integer.*; run it again"),
    ],
)
def test_invalid_file_names_field_and_fix(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "result.json").write_text(json.dumps(content))
    with pytest.raises(RunError, match=message) as error:
        Run.read(tmp_path)
    assert str(error.value).startswith(str(tmp_path)), "the file is named"
    with pytest.raises(ResultError, match=message):
        from_json(content)


@pytest.mark.parametrize(
    ("extra", "field"),
    [
        ({"speed": 1.0}, "speed"),
        ({"metrics": {**metrics_record(0.5), "f1": 0.5}}, r"metrics\.f1"),
        (
            {"skipped": [{"index": 0, "id": "i", "file": "x", "class": 0, "name": "n", "reason": "y", "size": 3}]},
            r"skipped\.0\.size",
        ),
    ],
)
def test_undeclared_field_is_rejected(extra: dict[str, Any], field: str) -> None:
    assert create_result(values()) == from_json(values())
    with pytest.raises(ResultError, match=f"result_schema.py describes no field {field}: add it"):
        create_result(values(**extra))


def without_descriptions(schema: Any) -> Any:
    """Returns a schema without the dataclasses' docstrings, which pydantic includes from version 2.13."""
    if isinstance(schema, dict):
        return {key: without_descriptions(value) for key, value in schema.items() if key != "description"}
    return [without_descriptions(value) for value in schema] if isinstance(schema, list) else schema


def test_documented_schema_is_current() -> None:
    """Checks docs/result.schema.json, the output of `python -m lgclip.reporting.result_schema`."""
    written = json.loads((DOCS / "result.schema.json").read_text(encoding="utf-8"))
    schema = json_schema()
    assert without_descriptions(written) == without_descriptions(schema)
    if "description" in schema:
        assert written == schema
