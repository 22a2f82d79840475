"""Tests which values of the environment count as secrets: 40 that do, by value or name, and 40 that do not."""

import json
import os
import re
import string
import traceback
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest
from factories import run_command
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from lgclip.experiment import Experiment
from lgclip.runtime.environment_secrets import looks_random, secret_values
from lgclip.runtime.secrets import (
    KeyInConfigError,
    guard_environment,
    hidden,
    refuse_on_command_line,
    refuse_secrets,
)

SECRETS = {
    "PGPASSWORD": "tr0ub4dor&3", "DB_PASS": "supersecret", "MYSQL_PWD": "hunter2!x",
    "GITHUB_PAT": "ghp_16C7e42F292c6912E7710c838347Ae178B4a",
    "SSHPASS": "Pa55word", "REDIS_PASSWORD": "83920174", "ADMIN_PASSPHRASE": "correct horse battery staple",
    "SLACK": "https://hooks.slack.com/services/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",
    "DISCORD_WEBHOOK": "https://discord.com/api/webhooks/104857/Zk3_vR8pQm2xLw7Tn5Ys9Bc4Hd6Jf1Ga",
    "SENTRY_DSN": "https://5f2e8c91b7d04a36@o0.ingest.sentry.io/45",
    "DATABASE_URL": "postgres://app:n3verT3ll@db/lgclip",
    "MONGO": "mongodb+srv://u:Zq81kfLm@cluster0.example.net/x", "AMQP": "amqp://guest:w4bbitw4bbit@mq:5672/",
    "STRIPE": "sk_live_51HxYzAbCdEfGhIjKl", "TWILIO": "7c2f9a40d1e85b36f0a4c8d2e6b19735",
    "SENDGRID": "SG.aZ8xQ2mLpR7vTnKw3YsB9c.x1Hd6JfGa4",
    "AZURE_STORAGE": "DefaultEndpointsProtocol=https;AccountName=a;AccountKey=Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA==",
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
    "AWS_SESSION_TOKEN": "FwoGZXIvYXdzEBYaDHqa0AP1",
    "GOOGLE_CREDENTIALS": '{"type": "service_account", "private_key": "MIIEvQIBADANBgkqhkiG9w0"}',
    "JWT": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3In0.c2ln", "NPM": "npm_4Kd8sLq2Xz7Vb9Nw3Rt6Yp1Mf5Hc0Jg",
    "DOCKER_AUTH_CONFIG": '{"auths": {"r.io": {"auth": "dXNlcjpwYXNzd29yZDEyMw=="}}}',
    "VAULT": "s.Kx8vQ2mZpR7nTw4LbY9c",
    "SIGNED": "https://bucket.example.org/x.zip?X-Amz-Signature=9b1deb4d3b7d4bad",
    "HEROKU": "3f2a9c1e-5b7d-4e8f-9a0b-1c2d3e4f5a6b",
    "PLAIN": "Xk9$mQ2!vL7p", "HASHED": "$2b$12$KIXQ4uS9zqXk1vVbGm", "LICENSE": "kJ8sD2fLq0ZxPw7RtYb3",
    "SALT": "n4Cl-Zw9x",
    "OPENAI": "sk-proj-4Tq9ZwLm2Xv7Rk8sB1n5", "ANTHROPIC": "sk-ant-api03-Zq8kLm2Xv7Rk8sB1n5",
    "WANDB_API_KEY": "ca9a4fca9a4fca9a4fca9a4f",
    "KAGGLE_KEY": "0f1e2d3c4b5a69788796a5b4", "SMTP_PASSWD": "m4il-m3!", "FTP_PW": "up&down9",
    "MY_COOKIE": "sid=Zq81kfLm2Xv7Rk",
    "TELEGRAM": "5843719206:AAH9xQ2mLpR7vTnKw3YsB9cZk8",
    "PRIVATE": "-----BEGIN RSA PRIVATE KEY-----\nMIIEpAIBAAKCAQEA7v2\n-----END",
    "PROXY": "http://me:CanaryProxy4Tq9@127.0.0.1:9", "PIP_INDEX_URL": "https://bot:p4ckag3s@pypi.example.org/simple",
    "CONN_STR": "Server=db;User=sa;Password=Str0ng!Pass;",
}  # fmt: skip

ORDINARY = {
    "PATH": "/opt/3f2a9c1e5b7d4e8f/bin:/usr/bin", "HOME": "/home/me", "SHELL": "/bin/bash",
    "EDITOR": "an ordinary editor",
    "DATA": "/data/image sets", "MODE": "true", "FLAG": "1", "EMPTY": "", "CI": "true", "BACKEND": "transformers",
    "DEBUG_TOKEN": "shapes", "SORT_KEY": "name", "PGPASSWORD": "postgres", "AUTH": "basic",
    "SSH_KEY": "/home/me/.ssh/key",
    "MODEL": "openai/clip-vit-base-patch32", "LLM": "Qwen/Qwen3-4B-Instruct-2507",
    "VIT": "hf-hub:timm/ViT-SO400M-14-SigLIP2-384",
    "STARTED": "2026-11-29T14:20:26.123456", "DATED": "outputs/2026-11-29/14-20-26", "COMPASS": "north",
    "JOB": "lgclip-eurosat-run-17",
    "PROMPT": "a photo of a {}.", "SERVER": "http://localhost:8000/v1",
    "HUB": "https://huggingface.co/datasets/timm/resisc45",
    "MODEL_COMMIT": "0123456789abcdef0123456789abcdef01234567", "RUN_ID": "7c2f9a40d1e85b36",
    "HOSTNAME": "3f2a9c1e5b7d",
    "BUCKET": "s3://my-images/sets/eurosat", "GPU": "NVIDIA H200", "COUNT": "1200", "RATE": "0.00012345678901",
    "VERSION": "3.11.9-rc1",
    "BASH_FUNC_which%%": "() {  eval $declare | /usr/bin/which \"$@\"\n}",
    "CUDA_VISIBLE_DEVICES": "GPU-3f2a9c1e-5b7d-4e8f-9a0b",
    "NAMES": "annual crop,herbaceous vegetation", "WHEN": "20261129T142026Z", "CLASSES": "SeaLake",
    "ADDRESS": "10.0.12.34:29500",
    "LGCLIP_KEYS": "MY_KEY@127.0.0.1", "WANDB_RUN_ID": "a1b2c3d4", "XDG_SESSION_ID": "c2",
    "LONG_WORDS": "counterrevolutionaries",
    "JAVA_OPTS": "-XX:+UseG1GC -Xmx4096m", "PRECISION": "bf16-mixed",
    "URL": "https://pypi.org/simple/lgclip-0.1.0.tar.gz",
}  # fmt: skip


@pytest.fixture
def empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes every variable but what a process needs."""
    for name in set(os.environ) - {"PATH", "HOME", "LGCLIP_HOME", "TMPDIR", "PYTEST_CURRENT_TEST"}:
        monkeypatch.delenv(name)


def test_there_are_forty() -> None:
    assert len(SECRETS) >= 40
    assert len(ORDINARY) >= 40


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", SECRETS)
def test_secret_is_hidden_and_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = SECRETS[name]
    monkeypatch.setenv(name, value)
    # The part that opens something, where the value has others.
    core = {
        "SENTRY_DSN": "5f2e8c91b7d04a36", "DATABASE_URL": "n3verT3ll", "MONGO": "Zq81kfLm", "AMQP": "w4bbitw4bbit",
        "PROXY": "CanaryProxy4Tq9", "PIP_INDEX_URL": "p4ckag3s", "SIGNED": "9b1deb4d3b7d4bad",
        "CONN_STR": "Str0ng!Pass",
        "AZURE_STORAGE": "Zm9vYmFyYmF6cXV4MTIzNDU2Nzg5MA==", "SLACK": "8fK2mQx9Lp4RvT7wYz1NcJ6h",
        "GOOGLE_CREDENTIALS": "MIIEvQIBADANBgkqhkiG9w0", "DOCKER_AUTH_CONFIG": "dXNlcjpwYXNzd29yZDEyMw==",
        "PRIVATE": "MIIEpAIBAAKCAQEA7v2", "DISCORD_WEBHOOK": "Zk3_vR8pQm2xLw7Tn5Ys9Bc4Hd6Jf1Ga",
    }.get(name, value)  # fmt: skip
    for text in (value, core, json.dumps(value), quote(value), f"{value!r}", f"it says {core}, twice: {core}"):
        assert core not in hidden(text)
    for argument in (
        f"llm.system='say {core}'",
        f"llm.system=${{oc.env:{name}}}",
        f"hydra.run.dir=/x-${{oc.env:{name}}}",
    ):
        with pytest.raises(KeyInConfigError) as raised:
            refuse_on_command_line([argument])
        assert core not in "".join(traceback.format_exception(raised.value))
    for content in (
        {"llm": {"system": f"say {core}"}}, {"a": [{"b": f"${{oc.env:{name}}}"}]}, {"a": f"${{oc.env:{name},none}}"},
        {"hydra": {"run": {"dir": f"/x-${{oc.env:{name}}}"}}}, {"a": f"${{oc.create:{{b: ${{oc.env:{name}}}}}}}"},
    ):  # fmt: skip
        with pytest.raises(KeyInConfigError) as raised:
            refuse_secrets(OmegaConf.create(content))
        assert core not in "".join(traceback.format_exception(raised.value))


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("name", ORDINARY)
def test_ordinary_value_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = ORDINARY[name]
    monkeypatch.setenv(name, value)
    assert hidden(f"it says {value}!") == f"it says {value}!"
    refuse_secrets(OmegaConf.create({"llm": {"system": value}, "paths": {"store": value}, "prompts_per_class": 10}))
    refuse_on_command_line([f"paths.store={value}"])


@pytest.mark.usefixtures("empty")
def test_empty_environment_has_no_secret() -> None:
    assert secret_values() == {}


def test_configs_of_the_package_hold_no_secret() -> None:
    """Checks that no value of the package's own configs looks random, so that none is redacted."""
    conf = Path(__file__).parents[2] / "conf"
    words = {word for path in conf.rglob("*.yaml") for word in path.read_text(encoding="utf-8").split()}
    assert len(words) > 1000
    random = {word for word in words if looks_random(word.strip("'\",;:()[]{}"))}
    assert not {word for word in random if not word.startswith("http") and not re.fullmatch("[0-9a-f]{40}", word)}


@pytest.mark.parametrize(
    ("letters", "length", "least"),
    [
        (string.ascii_letters + string.digits, 16, 0.95), (string.ascii_letters + string.digits + "-_", 24, 0.95),
        (string.ascii_letters + string.digits + "+/", 40, 0.98), ("0123456789abcdef", 16, 0.98),
        ("0123456789abcdef", 32, 1.0), (string.ascii_lowercase, 20, 0.95),
        (string.ascii_lowercase + string.digits, 20, 0.9),
        (string.ascii_letters + string.digits + "!$%^&*#", 16, 0.93),
    ],
)  # fmt: skip
def test_generated_values_look_random(letters: str, length: int, least: float) -> None:
    rng = np.random.default_rng(0)
    values = ["".join(rng.choice(list(letters), length)) for _ in range(500)]
    assert np.mean([looks_random(value) for value in values]) >= least


def test_model_names_do_not_look_random() -> None:
    import timm
    from open_clip import list_models

    names = [*timm.list_models(), *list_models()]
    assert len(names) > 1000
    assert np.mean([looks_random(name) for name in names]) < 0.02


@pytest.mark.usefixtures("empty")
def test_user_can_declare_a_value_public(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUILD_TAG", "kJ8sD2fLq0ZxPw7RtYb3")
    assert hidden("kJ8sD2fLq0ZxPw7RtYb3") == "***"
    monkeypatch.setenv("LGCLIP_PUBLIC", "OTHER, BUILD_TAG")
    assert hidden("kJ8sD2fLq0ZxPw7RtYb3") == "kJ8sD2fLq0ZxPw7RtYb3"


DISGUISED = {
    "parts": {"a": "${oc.${b}:VAULT}", "b": "env"},
    "escaped": {"a": "\\${oc.env:VAULT}"},
    "escaped parts": {"a": "\\${oc.${b}:VAULT}", "b": "env"},
    "dynamic name": {"a": "${oc.env:${b}}", "b": "VAULT"},
    "decoded": {"a": "${oc.decode:'${b}{oc.env:VAULT}'}", "b": "$"},
    "created": {"a": "${oc.create:{x: [1, '${oc.env:VAULT}']}}"},
}


@pytest.mark.usefixtures("empty")
@pytest.mark.parametrize("case", DISGUISED)
def test_disguised_interpolation_gives_no_secret(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT", SECRETS["VAULT"])
    guard_environment()
    config = OmegaConf.create(DISGUISED[case])
    texts = []
    try:
        for _ in range(3):  # as `instantiate`, which resolves what an interpolation yields once more
            OmegaConf.resolve(config)
            texts.append(OmegaConf.to_yaml(config, resolve=True))
    except OmegaConfBaseException as error:
        texts.append("".join(traceback.format_exception(error)))
    assert SECRETS["VAULT"] not in "".join(texts)


@pytest.mark.usefixtures("empty")
def test_ordinary_variables_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    guard_environment()
    config = OmegaConf.create({"a": "${oc.env:HOME}", "b": "${oc.env:NOWHERE,2}", "c": "${oc.env:NOWHERE,null}"})
    assert (config.a, config.b, config.c) == (os.environ["HOME"], "2", None)
    with pytest.raises(OmegaConfBaseException, match="'NOWHERE' not found"):
        OmegaConf.create({"a": "${oc.env:NOWHERE}"}).a  # noqa: B018
    monkeypatch.setenv("STORAGE", SECRETS["DATABASE_URL"])
    sweeper = OmegaConf.create({"hydra": {"sweeper": {"storage": "${oc.env:STORAGE}"}}})
    refuse_secrets(sweeper)
    assert sweeper.hydra.sweeper.storage == SECRETS["DATABASE_URL"]
    with pytest.raises(KeyInConfigError):
        refuse_secrets(
            OmegaConf.create({"hydra": {"sweeper": {"storage": "mysql://evil.example.org/${oc.env:STORAGE}"}}})
        )


@pytest.mark.usefixtures("empty")
def test_experiment_refuses_secrets_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VAULT", SECRETS["VAULT"])
    with pytest.raises(KeyInConfigError):
        Experiment.from_config(OmegaConf.create({"llm": {"system": SECRETS["VAULT"]}}))


@pytest.mark.parametrize("typed", ["hydra.run.dir=/x-${oc.env:REAL_TOKEN}", "hydra.run.dir=/x-${oc.env:VAULT}"])
def test_run_folder_shows_no_secret(
    typed: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("REAL_TOKEN", "VAULT"):
        monkeypatch.setenv(name, SECRETS["VAULT"])
    with pytest.raises(SystemExit) as ended:
        run_command("evaluate", typed)
    captured = capfd.readouterr()
    assert SECRETS["VAULT"] not in f"{ended.value.code}{captured.out}{captured.err}"
    assert "asks for the environment variable" in f"{ended.value.code}{captured.err}"
