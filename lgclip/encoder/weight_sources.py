"""Locates a model's config and weights: in a local folder, or in a hub repository at one commit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.encoder.weight_files import PICKLES, hub_file, pickle_refused, read_config
from lgclip.runtime.hub import commit_of
from lgclip.store.keys import weights_of


@dataclass(frozen=True)
class Layout:
    """Declares the file names of a library.

    Attributes:
        config: The model's config.
        weights: Its weights in a repository, best first.
        local_weights: Its weights in a folder, in the library's search order.
    """

    config: str
    weights: tuple[str, ...]
    local_weights: tuple[str, ...]


class Source(ABC):
    """Locates one model's config and weights."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """Returns the config, as stored in a repository of the library's layout.

        Raises:
            ValueError: If there is none.
        """

    @abstractmethod
    def weights(self, allow_pickle: bool) -> Path:
        """Returns the file of the weights, downloaded if needed.

        Args:
            allow_pickle: Whether a pickle is acceptable.

        Raises:
            ValueError: If there is none, or only a pickle, which is not allowed.
        """

    def names(self) -> Mapping[str, str]:
        """Returns the model's name of each tensor that has another name in the file; none by default.

        Raises:
            ValueError: If the tensors of the file are not those of the model.
        """
        return {}

    @abstractmethod
    def repositories(self) -> list[tuple[str, str | None]]:
        """Returns the hub repositories that the weights are in, each with its revision."""

    @abstractmethod
    def stands_for(self) -> str | dict[str, str]:
        """Returns the identity of the config and the weights in a key."""


@dataclass(frozen=True)
class Folder(Source):
    """Locates a model in a local folder with a repository's layout."""

    path: Path
    layout: Layout

    def config(self) -> dict[str, Any]:
        return read_config(self.path / self.layout.config)

    def weights(self, allow_pickle: bool) -> Path:
        for name in self.layout.local_weights:
            file = self.path / name
            if file.is_file():
                # Rejected instead of skipped: the library reads the first file that it finds, so the next one
                # would be checked here and this one loaded.
                if file.suffix in PICKLES and not allow_pickle:
                    raise pickle_refused(f"model {str(self.path)!r}: {name}")
                return file
        raise ValueError(
            f"model {str(self.path)!r}: there are no weights in it; expected {self.layout.local_weights[0]}"
        )

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def stands_for(self) -> str:
        return weights_of(str(self.path))


@dataclass(frozen=True)
class Repository(Source):
    """Locates a model in a hub repository that has its own config."""

    name: str
    revision: str | None
    layout: Layout

    def config(self) -> dict[str, Any]:
        return read_config(hub_file(self.name, commit_of(self.name, self.revision), (self.layout.config,)))

    def weights(self, allow_pickle: bool) -> Path:
        return hub_file(self.name, commit_of(self.name, self.revision), self.layout.weights, allow_pickle)

    def repositories(self) -> list[tuple[str, str | None]]:
        return [(self.name, self.revision)]

    def stands_for(self) -> str:
        return weights_of(self.name, self.revision)
