"""Tests the folder of a Hugging Face Space, and the options of the command."""

import ast
import re
import urllib.request
from pathlib import Path

import pytest
import yaml
from studio_pages import needs_gradio, started, studio

from lgclip.cli.main import main
from lgclip.cli.studio.server import StudioOptions, check_options
from lgclip.cli.studio.space import space_command


@needs_gradio
def test_space_has_all_files(tmp_path: Path) -> None:
    folder = tmp_path / "space"
    (line,) = space_command(folder, None, ["prompts_per_class=3", "llm.context='a \"b\"'"])
    assert str(folder / "app.py") in line
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "app.py", "requirements.txt"]
    header = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---")[1])
    assert header["sdk"] == "gradio"
    assert header["app_file"] == "app.py"
    assert re.fullmatch(r"\d+\.\d+\.\d+", header["sdk_version"])
    assert (folder / "requirements.txt").read_text().startswith("lgclip[studio]>=")
    tree = ast.parse((folder / "app.py").read_text(encoding="utf-8"))
    (overrides,) = [node.value for node in tree.body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(overrides) == ["prompts_per_class=3", "llm.context='a \"b\"'"]


@needs_gradio
def test_space_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    list(space_command(tmp_path / "space", None))
    list(space_command(tmp_path / "space", None))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(ValueError, match="holds other files and no Space"):
        list(space_command(tmp_path / "other", None))
    with pytest.raises(ValueError, match="it is a file"):
        list(space_command(tmp_path / "other" / "file", None))


def test_keys_are_not_published(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="api_key"):
        list(space_command(tmp_path / "space", None, ["llm.api_key=sk-abcdefghijklmnopqrstuvwxyz0123456789"]))
    assert not (tmp_path / "space").exists()


@needs_gradio
@pytest.mark.slow
@pytest.mark.multiprocess
def test_app_of_the_space_starts_and_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    list(space_command(tmp_path / "space", None))
    with started(str(tmp_path / "space" / "app.py")) as (_, address):
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=30) as response:
            assert response.status == 200
            assert "lgclip studio" in response.read().decode()
    assert not [path for path in temporary.iterdir() if path.name.startswith("lgclip-studio-")]


@needs_gradio
@pytest.mark.slow
@pytest.mark.multiprocess
def test_end_removes_all_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))
    with started(*studio()) as (process, _):
        assert [path for path in temporary.iterdir() if path.name.startswith("lgclip-studio-")]
    assert process.returncode == 0
    assert not [path for path in temporary.iterdir() if path.name.startswith("lgclip-studio-")]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (StudioOptions(port=0), "--port 0: a port is 1 to 65535"),
        (StudioOptions(upload_mb=0), "--max-upload 0: the limit is above 0"),
    ],
)
def test_wrong_options_are_errors(options: StudioOptions, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_options(options)


def test_missing_gradio_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("lgclip.cli.studio.server.find_spec", lambda package: None)
    assert main(["studio", "--no-browser"]) == 1
    assert capsys.readouterr().err == "error: the page needs Gradio: install lgclip[studio]\n"


def test_only_one_classifier_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["studio", "a.zip", "b.zip", "--no-browser"]) == 1
    assert "b.zip: one classifier, then KEY=VALUE" in capsys.readouterr().err
