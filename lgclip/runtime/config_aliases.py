"""Lets a second encoder be chosen by the names of the first: `encoder2=dinov2_b14`."""

from hydra.core.config_store import ConfigStore

from lgclip.runtime.scripts import script_place

SECOND_ENCODER = "encoder2"
"""Config group of the second encoder."""


def register_second_encoders() -> None:
    """Registers each choice of `encoder` as a choice of `encoder2`; call it before a config is composed."""
    store = ConfigStore.instance()
    for path in sorted((script_place("conf") / "encoder").glob("*.yaml")):
        node = {"defaults": [{"/encoder@_here_": path.stem}]}
        store.store(group=SECOND_ENCODER, name=path.stem, node=node, provider="lgclip")
