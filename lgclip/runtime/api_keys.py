"""Binds the keys of the environment to hosts: a config names a server, but never decides which key is sent to it.

A config may come from someone else. One that named any variable together with any address could send every secret of
the environment anywhere, so the pairs of variable and host are the package's or the user's environment's:

    LGCLIP_KEYS="MY_KEY@llm.example.org TEAM_KEY@127.0.0.1:8000"
"""

import ipaddress
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

ENVIRONMENT = "LGCLIP_KEYS"
"""Names pairs of variable and host, as in `MY_KEY@llm.example.org`, separated by spaces or commas."""

HOSTS = {
    "OPENAI_API_KEY": "api.openai.com",
    "OPENAI_CUSTOM_HEADERS": "api.openai.com",  # these three are sent by OpenAI's client along with any key
    "OPENAI_ORG_ID": "api.openai.com",
    "OPENAI_PROJECT_ID": "api.openai.com",
    "XAI_API_KEY": "api.x.ai",
    "WANDB_API_KEY": "api.wandb.ai",
    "HF_TOKEN": "huggingface.co",
}
"""The host of each variable unless the environment adds one."""

_LOGGER_KEYS = (
    "WANDB_API_KEY", "MLFLOW_TRACKING_TOKEN", "MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD",
    "DATABRICKS_TOKEN", "COMET_API_KEY", "NEPTUNE_API_TOKEN", "LIGHTNING_API_KEY",
)  # fmt: skip
"""Variables that the clients of experiment loggers send to whichever server they are configured for."""

_PAIR = re.compile(r"([A-Za-z_]\w*)@(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::(\d{1,5}))?", re.ASCII)
_ADDRESS = re.compile(r"https?:", re.IGNORECASE)
_REDIRECTING = re.compile(
    r"LGCLIP_KEYS|LGCLIP_PUBLIC|NETRC"
    r"|\w{0,64}(?:ENDPOINT|BASE_URL|_UR[IL]|_HOST|PROXY|CA_BUNDLE|CERT_(?:FILE|DIR|PATH)|CUSTOM_HEADERS)(?:_\w{0,64})?"
    r"|\w{0,64}(?:INSECURE|DISABLE_SSL|DISABLE_TLS|NO_VERIFY)\w{0,64}",
    re.IGNORECASE,
)
"""Variables that say where requests go, or whether the server's certificate is checked."""


class KeyBindingError(ValueError):
    """Reports that a config would send a key of the environment to a host that it is not bound to."""


def check_key(setting: str, variable: str, url: str) -> None:
    """Checks that the key in a variable may be sent to a server.

    Args:
        setting: The config value that names the variable, for error messages.
        variable: Name of the environment variable.
        url: Address of the server.

    Raises:
        KeyBindingError: If the variable is not bound to the host, or the key would be sent unencrypted.
    """
    refuse_redirection()
    address = parse_address(setting, url)
    host = str(address.hostname)
    if not _is_bound(variable, address):
        place = f"[{host}]" if ":" in host else host
        raise KeyBindingError(
            f"{setting}={variable}: this variable's key is not bound to the host {host}, and a config does not decide "
            f"where a key is sent. If you trust that server, bind it in the shell: {ENVIRONMENT}={variable}@{place}"
        )
    if address.scheme.lower() != "https" and not is_loopback(host):
        raise KeyBindingError(
            f"{setting}={variable}: the key would be sent to {url} unencrypted; use https, or a server on this "
            "machine at http://127.0.0.1"
        )


def may_send(variable: str, url: str) -> bool:
    """Checks whether the value of a variable may be sent to an address."""
    try:
        check_key(variable, variable, url)
    except KeyBindingError:
        return False
    return True


def parse_address(setting: str, url: str) -> SplitResult:
    """Returns the parts of a server's address.

    Raises:
        KeyBindingError: If it is no plain http address, which two parsers might read as two different hosts.
    """
    try:
        address = urlsplit(url)
        _ = address.port  # read here, because the property is what raises for a bad number
    except ValueError:
        address = SplitResult("", "", "", "", "")
    is_plain = re.fullmatch(r"[!-\[\]-~]+", url) and "@" not in address.netloc and "#" not in url
    if not is_plain or address.scheme.lower() not in ("http", "https") or not address.hostname:
        raise KeyBindingError(f"{setting}: {url!r} is no plain http address such as https://llm.example.org/v1")
    return address


def is_loopback(host: str) -> bool:
    """Checks whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        # Not every name that ends with `localhost`: only this one is never looked up elsewhere.
        return host.rstrip(".").lower() == "localhost"


def check_addresses(setting: str, config: Any) -> None:
    """Checks the addresses in the config of an experiment logger, whose client takes its key from the environment.

    Args:
        setting: Path of the logger in the config, for error messages.
        config: The logger's config.

    Raises:
        KeyBindingError: If a logger's key is set and not bound to the host of an address.
    """
    if OmegaConf.is_config(config):
        config = OmegaConf.to_container(config, resolve=True, throw_on_missing=False)
    variables = [name for name in _LOGGER_KEYS if os.environ.get(name)]
    # MLflow reads a user and a password from here as well.
    if (Path.home() / ".mlflow" / "credentials").is_file():
        variables.append("MLFLOW_TRACKING_PASSWORD")
    for url in _addresses(config):
        for variable in dict.fromkeys(variables):
            check_key(f"{setting}: {url} with {variable}", variable, url)


def refuse_redirection(hydra: Any = None) -> None:
    """Checks that Hydra's config does not set a variable that decides where keys are sent.

    Args:
        hydra: The config's section `hydra`; None for that of the running job.

    Raises:
        KeyBindingError: If it sets one.
    """
    if hydra is None:
        if not HydraConfig.initialized():
            return
        hydra = HydraConfig.get()
    names = list(OmegaConf.select(hydra, "job.env_set", default=None) or {})
    for name in names:
        if _REDIRECTING.fullmatch(str(name)):
            raise KeyBindingError(
                f"hydra.job.env_set.{name}: this variable decides where keys are sent, which no config may; set it in "
                "the shell"
            )


def _addresses(node: Any) -> Iterator[str]:
    """Yields the http addresses at or below a node of plain values."""
    nodes = [node]
    while nodes:
        match nodes.pop():
            case Mapping() as mapping:
                nodes += mapping.values()
            case list() | tuple() as items:
                nodes += items
            case str() as text if _ADDRESS.match(text.strip()):
                yield text.strip()


def _is_bound(variable: str, address: SplitResult) -> bool:
    host = str(address.hostname).rstrip(".").lower()
    port = address.port or (443 if address.scheme.lower() == "https" else 80)
    if HOSTS.get(variable) == host:
        return True
    return any(
        name == variable and bound_host == host and bound_port in (None, port)
        for name, bound_host, bound_port in _pairs()
    )


def _pairs() -> Iterator[tuple[str, str, int | None]]:
    """Yields the variable, host and port of each pair that the environment names.

    Raises:
        KeyBindingError: If an entry is no such pair.
    """
    entries = re.split(r"[\s,]+", os.environ.get(ENVIRONMENT, "").strip())
    for number, entry in enumerate(filter(None, entries), 1):
        pair = _PAIR.fullmatch(entry)
        if not pair:
            # What was given may be a key, so it is not shown.
            raise KeyBindingError(f"{ENVIRONMENT}: entry {number} is not NAME@host, as in MY_KEY@llm.example.org")
        yield pair[1], pair[2].strip("[]").rstrip(".").lower(), int(pair[3]) if pair[3] else None
