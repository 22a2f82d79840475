"""Tests that keys come from the environment and are stored nowhere: canaries are planted and searched."""

import base64
import json
import os
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from chat_server import NAMES, ChatServer, Handler, error_reply, good_reply, good_sentences, send
from factories import Sandbox, make_image_folder, read_tree, run_command
from huggingface_hub import constants
from omegaconf import OmegaConf

from lgclip.cli.main import main
from lgclip.reporting.sweep_summary import summarize
from lgclip.runtime.hub import HubError, commit_of
from lgclip.runtime.secrets import KeyInConfigError, hidden, refuse_on_command_line, refuse_secrets

pytest_plugins = ("run_fixtures", "chat_fixtures")

ROOT = Path(__file__).parents[2]
CANARIES = {
    "OPENAI_API_KEY": "cAnArY-openai-4Tq9ZwLm2Xv7Rk8s",
    "HF_TOKEN": "hf_CaNaRyHuggingFace4Tq9ZwLm2Xv7",
    "WANDB_API_KEY": "ca9a4fca9a4fca9a4fca9a4fca9a4fca9a4f0123",
    "SOME_PASSWORD": "CanaryPassword4Tq9ZwLm",
    "AWS_SECRET_ACCESS_KEY": "CanaryAws/4Tq9ZwLm+2Xv7Rk8s",
    "ALL_PROXY_OF_NOBODY": "http://me:CanaryProxy4Tq9@127.0.0.1:9",
}
TYPED = "Typed4Tq9ZwLmCanary"


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Sets secrets in the environment."""
    for name, value in CANARIES.items():
        monkeypatch.setenv(name, value)
    return CANARIES


def leaks(content: bytes) -> list[str]:
    """Returns the canaries in some bytes, plain or in base64."""
    values = [*CANARIES.values(), "CanaryProxy4Tq9", TYPED]
    spelt = {value: (value.encode(), base64.b64encode(value.encode()).rstrip(b"=")[:-1]) for value in values}
    return [value for value, ways in spelt.items() if any(spelling in content for spelling in ways)]


def assert_no_leak(folder: Path, *outputs: str) -> None:
    """Checks that no canary is in any file name or content below a folder, nor in the output."""
    leaked = {str(path): leaks(str(path).encode()) for path in folder.rglob("*")}
    leaked |= {name: leaks(content) for name, content in read_tree(folder).items()}
    leaked |= {f"output {number}": leaks(text.encode()) for number, text in enumerate(outputs)}
    assert {place: values for place, values in leaked.items() if values} == {}


REFUSED = [
    f"+llm.api_key={TYPED}", f"++llm.apiKey='{TYPED}'", f"+llm.token={TYPED}", f"+logger.password={TYPED}",
    "+llm.password=12345678", f"llm.api_key_env={TYPED}", f"+llm.extra.headers.Authorization={TYPED}",
    f"+llm.extra={{headers:{{X-Api-Key:{TYPED}}}}}", f"+llm.extra={{a:[{{secret:'{TYPED}'}}]}}",
    f"+llm.extra={{a:{{api_key:{TYPED},}}", f"llm.base_url=http://user:{TYPED}@host/v1",
    f"llm.base_url=https://{TYPED}@host/v1", f"llm.base_url=https://host/v1?token={TYPED}",
    f"+dataset.url=https://host/x.zip?a=1&X-Amz-Signature={TYPED}", f"+dataset.url=s3://key:{TYPED}@host/x",
    f"+hydra.job.env_set.HF_TOKEN={TYPED}", f"hydra.run.dir=sftp://me:{TYPED}@host/x",
    f"llm.system=Bearer {TYPED}", f"llm.system=sk-proj-{TYPED}", "llm.system=use hf_abcdefghijklmnopqrstuvwxyz123456",
    "llm.system='AKIAIOSFODNN7EXAMPLE'", "+llm.note='-----BEGIN RSA PRIVATE KEY-----'", f"+key={TYPED},other",
    "llm.system=${oc.env:HF_TOKEN}", "llm.system='be ${oc.env:MY_API_KEY,no}'", f"~llm.token={TYPED}",
]  # fmt: skip
TAKEN = [
    "llm.api_key_env=OPENAI_API_KEY", "llm.api_key_env=null", "llm.max_tokens=12", "+llm.extra.eos_token='</s>'",
    "+llm.extra={stop_token:'<end>',top_k:20}", "llm.base_url=http://localhost:8000/v1", "seed=0,1,2", "-m",
    "llm.templates=['a key: {}','a token of {}']", "+llm.extra.token=151645", "paths.store=/data/keys/store",
    "llm.system=Here is the key: be brief", "dataset.root=/data/task-based-1234567890-abcdefgh", "+llm.api_key=null",
    "hydra.sweeper.storage=${oc.env:STORAGE}", "llm.system='${oc.env:USER}'", "encoder.model=hf-hub:OWNER/sk-learn",
    "encoder.revision=0123456789abcdef0123456789abcdef01234567", "diffuser.negative_prompt='password, secret: none'",
]  # fmt: skip


@pytest.mark.parametrize("argument", REFUSED)
def test_key_on_the_command_line_is_rejected(argument: str) -> None:
    with pytest.raises(KeyInConfigError, match="looks like a key or a password") as raised:
        refuse_on_command_line([argument])
    assert TYPED not in "".join(traceback.format_exception(raised.value))
    assert "environment" in str(raised.value)


@pytest.mark.parametrize("argument", TAKEN)
def test_non_secret_values_are_accepted(argument: str) -> None:
    refuse_on_command_line([argument])


@pytest.mark.parametrize("name", CANARIES)
def test_secret_values_are_recognized(name: str, canaries: dict[str, str]) -> None:
    value = canaries[name] if "://" not in canaries[name] else "CanaryProxy4Tq9"
    for argument in (f"llm.system=say {value}", f"+a=[1,{{b:{value}}}]", value):
        with pytest.raises(KeyInConfigError):
            refuse_on_command_line([argument])
    assert leaks(hidden(f"it says {value}!").encode()) == []


def test_short_or_unnamed_values_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PGPASSWORD", "postgres"), ("SSH_KEY", "/home/me/.ssh/key"), ("EDITOR", "an ordinary editor")):
        monkeypatch.setenv(name, value)
        refuse_on_command_line([f"dataset.root={value}"])
        assert hidden(value) == value


@pytest.mark.parametrize(
    "content",
    [
        {"llm": {"api_key": TYPED}}, {"llm": {"extra": {"headers": [{"authorization": TYPED}]}}},
        {"a": [f"https://x/?token={TYPED}"]}, {"hydra": {"job": {"env_set": {"MY_TOKEN": TYPED}}}},
        {"hydra": {"overrides": {"task": ["a=1", f"llm.api_key={TYPED}"]}}}, {"llm": {"system": "${oc.env:HF_TOKEN}"}},
        {"llm": {"system": "${a}"}, "a": "${oc.env:${b}}", "b": "HF_TOKEN"}, {"a": "${hydra:x}", "token": TYPED},
    ],
)  # fmt: skip
def test_key_in_a_config_is_rejected(content: dict[str, Any], canaries: dict[str, str]) -> None:
    with pytest.raises(KeyInConfigError) as raised:
        refuse_secrets(OmegaConf.create(content))
    assert leaks(str(raised.value).encode()) == []


def test_env_resolver_is_allowed(canaries: dict[str, str]) -> None:
    refuse_secrets(OmegaConf.create({"hydra": {"sweeper": {"storage": "${oc.env:SOME_PASSWORD}", "n": "${x.y}"}}}))
    refuse_secrets(OmegaConf.create({"a": "???", "b": None, "c": "${nowhere}", "d": "${oc.create:${b}}", "token": ""}))


@pytest.mark.parametrize("verb", ["evaluate", "generate", "train"])
@pytest.mark.parametrize(
    "typed",
    [
        [f"llm.api_key={TYPED}"], [f"+llm.api_key={TYPED}"], [f"llm.base_url=http://u:{TYPED}@h/v1", "llm=server"],
        [f"+dataset.url=https://h/?token={TYPED}"], ["-m", f"+llm.api_key={TYPED},b"], [f"+llm.extra={{key:{TYPED}"],
        [f"+hydra.job.env_set.TOKEN={TYPED}"],
    ],
)  # fmt: skip
def test_run_with_a_typed_key_writes_nothing(
    verb: str, typed: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(verb, *typed)
    sys.stderr.write(f"{ended.value.code}")
    captured = capfd.readouterr()
    assert "looks like a key or a password" in captured.err
    assert list(tmp_path.iterdir()) == []
    assert_no_leak(tmp_path, captured.out, captured.err)


@pytest.mark.slow
@pytest.mark.parametrize(("verb", "extra"), [("evaluate", []), ("evaluate", ["-m"]), ("generate", []), ("train", [])])
@pytest.mark.parametrize(
    "content", [f"llm: {{api_key: {TYPED}}}", "llm: {system: '${oc.env:HF_TOKEN}'}", f"note: http://a:{TYPED}@h"]
)
def test_run_with_a_key_in_a_file_writes_nothing(
    verb: str,
    extra: list[str],
    content: str,
    canaries: dict[str, str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    experiment_path = tmp_path / "own" / "experiment" / "mine.yaml"
    experiment_path.parent.mkdir(parents=True)
    experiment_path.write_text(f"# @package _global_\n{content}\n")
    with pytest.raises(SystemExit) as ended:
        run_command(verb, "--config-dir", str(tmp_path / "own"), "experiment=mine", *extra)
    captured = capfd.readouterr()
    assert "looks like a key or a password" in f"{ended.value.code}{captured.err}"
    assert [path.name for path in tmp_path.iterdir()] == ["own"]
    experiment_path.unlink()
    assert_no_leak(tmp_path, captured.out, captured.err, str(ended.value.code))


def echo_server(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
    """Serves replies that echo the key: in an error, a header, a prompt; otherwise it works normally."""
    key = handler.headers["authorization"].removeprefix("Bearer ")
    if body["model"] == "bad":
        error_reply(401, f"bad key {key}\x1b[2J", headers={"X-Echo": key})(handler, name)
    elif turn == 1:
        error_reply(503, f"busy, {handler.headers['authorization']}", headers={"X-Echo": key, "Retry-After": "0.01"})(
            handler, name
        )
    elif turn == 2:
        content = json.dumps({"prompts": [f"a {name} with {key} on it {i}" for i in range(4)]})
        send(
            handler, 200, {**good_reply(name), "choices": [{"message": {"content": content}, "finish_reason": "stop"}]}
        )
    else:
        send(handler, 200, good_reply(name), {"X-Echo": key})


@pytest.mark.multiprocess
def test_sweep_stores_no_environment_key(
    serve: Callable[..., ChatServer], fresh_sandbox: Sandbox, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = serve(echo_server)
    synthetic_images = make_image_folder(tmp_path / "pictures", NAMES, 2)
    sweep = tmp_path / "sweep"
    overrides = [o for o in fresh_sandbox.evaluate_overrides() if not o.startswith(("dataset", "llm", "logger"))]
    command = [
        sys.executable, str(ROOT / "evaluate.py"), "-m", *overrides, "dataset=folder",
        f"dataset.root={synthetic_images}", "llm=server", f"llm.base_url={model.url}", "llm.model=good-model,bad",
        "+llm.backoff_s=0.01", "llm.deadline_s=30", "logger=wandb", "scales=single", "prompts_per_class=2",
        f"hydra.sweep.dir={sweep}", "hydra.verbose=true",
    ]  # fmt: skip
    env = {name: value for name, value in os.environ.items() if not name.startswith("HYDRA")}
    env |= {**CANARIES, "OMP_NUM_THREADS": "1", "OPENAI_LOG": "debug", "WANDB_SILENT": "false", "HF_HUB_OFFLINE": "1"}
    env["LGCLIP_KEYS"] = "OPENAI_API_KEY@127.0.0.1"
    env |= {f"WANDB_{kind}_DIR": str(tmp_path / "wandb's own" / kind) for kind in ("CONFIG", "DATA", "CACHE")}
    completed = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False)
    assert model.keys == {f"Bearer {CANARIES['OPENAI_API_KEY']}"}, completed.stderr[-2000:]
    assert (sweep / "0" / "result.json").is_file(), completed.stderr[-2000:]
    assert "HTTP 401: bad key ***" in json.loads((sweep / "1" / "failed.json").read_text())["error"]
    assert list(sweep.rglob("*.wandb"))
    assert list(sweep.rglob("debug*.log"))
    assert list((sweep / "0").rglob("evaluate.log")), "what the libraries say at their loudest is kept"
    stored = [json.loads(path.read_text())["prompts"] for path in fresh_sandbox.store.glob("prompts/*.json")]
    assert sorted(prompts[0] for prompts in stored if prompts) == sorted(good_sentences(name)[0] for name in NAMES)
    summarize(sweep)
    assert main(["report", str(sweep), "-o", str(tmp_path / "report.html")]) == 0
    assert main(["audit", str(sweep / "0")]) == 0
    captured = capsys.readouterr()
    assert_no_leak(tmp_path, completed.stdout, completed.stderr, captured.out, captured.err)
    assert "\x1b[2J" not in completed.stdout + completed.stderr


class _Echo(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""

    def do_GET(self) -> None:
        status, keys = self.server.answer  # pyright: ignore[reportAttributeAccessIssue]
        keys.add(self.headers["authorization"])
        body = json.dumps({"error": f"you sent {self.headers['authorization']}"}).encode()
        self.send_response(status)
        self.send_header("X-Error-Message", f"you sent {self.headers['authorization']}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, canaries: dict[str, str]) -> Iterator[Callable[[int], set[str | None]]]:
    """Serves a hub that echoes the key with a status; yields the received keys."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    commit_of.cache_clear()

    def answering(status: int) -> set[str | None]:
        server.answer = status, set()  # pyright: ignore[reportAttributeAccessIssue]
        return server.answer[1]  # pyright: ignore[reportAttributeAccessIssue]

    yield answering
    server.shutdown()
    server.server_close()
    commit_of.cache_clear()


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 500])
def test_echoed_hub_key_is_not_printed(status: int, hub: Callable[[int], set[str | None]]) -> None:
    keys = hub(status)
    with pytest.raises(HubError, match=r"model 'owner/name': ") as raised:
        commit_of("owner/name")
    assert keys == {f"Bearer {CANARIES['HF_TOKEN']}"}
    assert leaks("".join(traceback.format_exception(raised.value)).encode()) == []
