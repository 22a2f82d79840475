"""Tests that a config does not decide which key of the environment is sent to which host."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import ChatServer, Handler, generation_stage, good_reply, reply_always, run_stage, send, server_llm
from factories import run_command
from omegaconf import OmegaConf

from lgclip.prompts.openai_client import ServerError
from lgclip.prompts.server_llm import ServerLLM
from lgclip.runtime.api_keys import KeyBindingError, check_key, is_loopback, parse_address, refuse_redirection
from lgclip.runtime.instantiate import build

pytest_plugins = ("chat_fixtures",)
CANARY = "CanaryAws/4Tq9ZwLm+2Xv7Rk8s"


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "XAI_API_KEY", "HF_TOKEN"):
        monkeypatch.setenv(name, CANARY)
    monkeypatch.delenv("LGCLIP_KEYS", raising=False)


@pytest.mark.parametrize("variable", ["AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "PATH"])
def test_config_cannot_send_a_variable_to_a_host(variable: str, serve: Callable[..., ChatServer]) -> None:
    model = serve(reply_always(good_reply))
    message = rf"llm\.api_key_env={variable}: .*not bound to the host 127\.0\.0\.1.*LGCLIP_KEYS={variable}@127\.0\.0\.1"
    with pytest.raises(ValueError, match=message) as raised:
        server_llm(model, api_key_env=variable).load(torch.device("cpu"))
    assert CANARY not in str(raised.value)
    assert model.keys == set()


@pytest.mark.parametrize(
    ("variable", "url", "pairs"),
    [
        ("OPENAI_API_KEY", "https://api.openai.com/v1", ""),
        ("OPENAI_API_KEY", "https://API.OpenAI.com:8443/v1", ""),
        ("XAI_API_KEY", "https://api.x.ai/v1", ""),
        ("MY_KEY", "https://llm.example.org/v1", "MY_KEY@llm.example.org"),
        ("MY_KEY", "https://llm.example.org:444/v1", "OTHER@x.org, MY_KEY@llm.example.org:444"),
        ("MY_KEY", "http://127.0.0.1:8000/v1", "MY_KEY@127.0.0.1"),
        ("MY_KEY", "http://localhost:8000/v1", "MY_KEY@localhost:8000"),
        ("MY_KEY", "http://[::1]:8000/v1", "MY_KEY@[::1]"),
    ],
)
def test_bound_keys_are_sent(variable: str, url: str, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", pairs)
    check_key("llm.api_key_env", variable, url)


@pytest.mark.parametrize(
    ("variable", "url", "pairs"),
    [
        ("OPENAI_API_KEY", "https://api.openai.com.evil.org/v1", ""),
        ("OPENAI_API_KEY", "https://evil.org/api.openai.com", ""),
        ("OPENAI_API_KEY", "https://api.openai.com@evil.org/v1", ""),
        ("OPENAI_API_KEY", "https://evil.org\\@api.openai.com/v1", ""),
        ("OPENAI_API_KEY", "https://evil.org#@api.openai.com/v1", ""),
        ("OPENAI_API_KEY", "https://api.openai.com\u3002evil.org/v1", ""),
        ("OPENAI_API_KEY", "http://api.openai.com/v1", ""),
        ("OPENAI_API_KEY", "https://api.x.ai/v1", ""),
        ("openai_api_key", "https://api.openai.com/v1", ""),
        ("MY_KEY", "https://llm.example.org:444/v1", "MY_KEY@llm.example.org:445"),
        ("MY_KEY", "https://sub.llm.example.org/v1", "MY_KEY@llm.example.org"),
        ("MY_KEY", "http://llm.example.org/v1", "MY_KEY@llm.example.org"),
        ("MY_KEY", "http://localhost.evil.org/v1", "MY_KEY@localhost.evil.org"),
        ("MY_KEY", "http://0.0.0.0/v1", "MY_KEY@0.0.0.0"),
        ("MY_KEY", "ftp://llm.example.org/v1", "MY_KEY@llm.example.org"),
        ("MY_KEY", "https://llm.example.org:x/v1", "MY_KEY@llm.example.org"),
    ],
)
def test_unbound_keys_are_not_sent(variable: str, url: str, pairs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", pairs)
    with pytest.raises(KeyBindingError):
        check_key("llm.api_key_env", variable, url)


def test_invalid_binding_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", f"A_KEY@x.org {CANARY}")
    with pytest.raises(KeyBindingError, match="LGCLIP_KEYS: entry 2 is not NAME@host") as raised:
        check_key("llm.api_key_env", "B_KEY", "https://y.org/v1")
    assert CANARY not in str(raised.value)


def test_loopback_is_this_machine_alone() -> None:
    assert all(is_loopback(host) for host in ("127.0.0.1", "127.1.2.3", "::1", "localhost", "LOCALHOST."))
    assert not any(is_loopback(host) for host in ("0.0.0.0", "10.0.0.1", "127.0.0.1.evil.org", "localhost.evil.org"))
    with pytest.raises(KeyBindingError):
        parse_address("llm.base_url", "http://a b/v1")


@pytest.mark.parametrize(
    "name",
    ["LGCLIP_KEYS", "HF_ENDPOINT", "WANDB_BASE_URL", "OPENAI_BASE_URL", "HTTPS_PROXY", "https_proxy", "SSL_CERT_FILE",
     "REQUESTS_CA_BUNDLE", "MLFLOW_TRACKING_URI", "MLFLOW_TRACKING_INSECURE_TLS", "DATABRICKS_HOST", "AWS_ENDPOINT_URL",
     "AWS_ENDPOINT_URL_S3", "OPENAI_CUSTOM_HEADERS", "NETRC"],
)  # fmt: skip
def test_config_cannot_redirect_clients(name: str) -> None:
    with pytest.raises(KeyBindingError, match=rf"hydra\.job\.env_set\.{name}: .*set it in the shell"):
        refuse_redirection(OmegaConf.create({"job": {"env_set": {name: "http://127.0.0.1:9"}}}))


def test_config_may_set_other_variables() -> None:
    refuse_redirection(OmegaConf.create({"job": {"env_set": {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "0"}}}))
    refuse_redirection(OmegaConf.create({}))


@pytest.mark.parametrize("more", [[], ["~hydra.callbacks.secrets"]])
def test_run_does_not_redirect_clients(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks that a config which removes the callback that looks for keys changes nothing."""
    with pytest.raises(SystemExit) as ended:
        run_command(
            "evaluate", f"hydra.run.dir={tmp_path}/run", "+hydra.job.env_set.HF_ENDPOINT=http://127.0.0.1:9", *more
        )
    assert "HF_ENDPOINT: this variable decides where keys are sent" in f"{ended.value.code}{capsys.readouterr().err}"


def test_binding_in_a_config_counts_for_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run_command(
            "evaluate", f"hydra.run.dir={tmp_path}/run", "~hydra.callbacks.secrets", "dataset=shapes", "llm=server",
            "llm.model=m", "llm.base_url=http://127.0.0.1:9/v1", "llm.api_key_env=AWS_SECRET_ACCESS_KEY",
            "+hydra.job.env_set.LGCLIP_KEYS=AWS_SECRET_ACCESS_KEY@127.0.0.1",
        )  # fmt: skip
    assert "LGCLIP_KEYS: this variable decides" in f"{ended.value.code}{capsys.readouterr().err}"


LOGGERS: dict[str, tuple[str, dict[str, Any]]] = {
    "MLFLOW_TRACKING_TOKEN": (
        "lightning.pytorch.loggers.MLFlowLogger", {"tracking_uri": "http://evil.example.org:5000"},
    ),
    "MLFLOW_TRACKING_PASSWORD": (
        "lightning.pytorch.loggers.MLFlowLogger", {"tracking_uri": "HTTPS://evil.example.org"},
    ),
    "WANDB_API_KEY": (
        "lightning.pytorch.loggers.WandbLogger", {"settings": {"base_url": "https://evil.example.org"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("variable", LOGGERS)
@pytest.mark.parametrize("place", ["logger", "trainer"])
def test_logger_keys_are_bound_to_hosts(variable: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    target, settings = LOGGERS[variable]
    monkeypatch.setenv(variable, CANARY)
    logger = {"_target_": target, **settings}
    config = {"logger": logger}
    if place == "trainer":
        config = {"trainer": {"_target_": "lightning.Trainer", "logger": [logger]}}
    with pytest.raises(KeyBindingError, match=rf"{variable}.*not bound to the host evil\.example\.org"):
        build(OmegaConf.create(config)[place])


def test_redirect_to_another_host_is_not_followed(
    serve: Callable[..., ChatServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", "OPENAI_API_KEY@127.0.0.1")
    other = serve(reply_always(good_reply))

    def redirect(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        send(handler, 307, {}, {"Location": f"{other.url}/chat/completions"})

    model = serve(redirect)
    with pytest.raises(ServerError, match=r"redirects to 127\.0\.0\.1, to which nothing is sent"):
        run_stage(generation_stage(tmp_path, server_llm(model, api_key_env="OPENAI_API_KEY")))
    assert other.keys == set()
    assert all(not requests for requests in other.requests.values()), "not even the prompt"


def test_redirect_within_a_host_is_followed(
    serve: Callable[..., ChatServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", "OPENAI_API_KEY@127.0.0.1")

    def redirect(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        if handler.path.startswith("/v1"):
            send(handler, 308, {}, {"Location": "/v2/chat/completions"})
        else:
            send(handler, 200, good_reply(name))

    run_stage(generation_stage(tmp_path, server_llm(serve(redirect), api_key_env="OPENAI_API_KEY")))


def test_other_headers_of_the_environment_are_not_sent(
    serve: Callable[..., ChatServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", f"X-Gateway: {CANARY}\nAuthorization: Bearer {CANARY}")
    monkeypatch.setenv("OPENAI_ORG_ID", CANARY)
    monkeypatch.setenv("OPENAI_PROJECT_ID", CANARY)
    monkeypatch.setenv("OPENAI_ADMIN_KEY", CANARY)
    received: list[str] = []

    def answer(model: ChatServer, handler: Handler, body: dict[str, Any], name: str, turn: int) -> None:
        received.append(str(handler.headers))
        send(handler, 200, good_reply(name))

    model = serve(answer)
    run_stage(generation_stage(tmp_path / "a", server_llm(model, api_key_env=None)))
    assert model.keys == {"Bearer none"}
    assert CANARY not in "".join(received)
    assert "OPENAI_CUSTOM_HEADERS is not sent to" in caplog.text
    monkeypatch.setenv("LGCLIP_KEYS", "OPENAI_ORG_ID@127.0.0.1")
    run_stage(generation_stage(tmp_path / "b", server_llm(model, api_key_env=None)))
    assert re.search(rf"openai-organization: {re.escape(CANARY)}", "".join(received), re.IGNORECASE)


def test_key_for_this_machine_goes_through_no_proxy(
    serve: Callable[..., ChatServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LGCLIP_KEYS", "OPENAI_API_KEY@127.0.0.1")
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    model = serve(reply_always(good_reply))
    run_stage(generation_stage(tmp_path, server_llm(model, api_key_env="OPENAI_API_KEY")))
    assert model.keys == {f"Bearer {CANARY}"}


def test_address_that_parsers_read_differently_is_refused() -> None:
    with pytest.raises(ValueError, match=r"llm\.base_url"):
        ServerLLM("m", base_url="https://evil.org\\@api.openai.com/v1")
