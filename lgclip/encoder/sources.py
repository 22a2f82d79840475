"""Where a model's config and weights lie: a folder here, or a repository of the hub at one commit."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lgclip.encoder.files import PICKLES, hub_file, pickle_refused, read_config
from lgclip.hub import commit_of
from lgclip.identity import weights_of


@dataclass(frozen=True)
class Layout:
    """The names that a library gives its files.

    Attributes:
        config: The model's config.
        weights: Its weights in a repository, best first.
        weights_here: Its weights in a folder, in the order in which the library looks for them.
    """

    config: str
    weights: tuple[str, ...]
    weights_here: tuple[str, ...]


class Source(ABC):
    """One model's config and weights."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """The config, as it lies in a repository of the library's layout.

        Raises:
            ValueError: If there is none.
        """

    @abstractmethod
    def weights(self, allow_pickle: bool) -> Path:
        """The file of the weights, downloaded if need be.

        Args:
            allow_pickle: Whether a pickle will do.

        Raises:
            ValueError: If there is none, or only a pickle and it may not be.
        """

    @abstractmethod
    def repositories(self) -> list[tuple[str, str | None]]:
        """Repositories of the hub that the weights are in, each with its revision."""

    @abstractmethod
    def stands_for(self) -> str | dict[str, str]:
        """What stands for the config and the weights in a key."""


@dataclass(frozen=True)
class Folder(Source):
    """A folder on this machine in a repository's layout."""

    path: Path
    layout: Layout

    def config(self) -> dict[str, Any]:
        return read_config(self.path / self.layout.config)

    def weights(self, allow_pickle: bool) -> Path:
        for name in self.layout.weights_here:
            file = self.path / name
            if file.is_file():
                if file.suffix in PICKLES and not allow_pickle:
                    raise pickle_refused(f"model {str(self.path)!r}: {name}")
                return file
        raise ValueError(
            f"model {str(self.path)!r}: there are no weights in it; expected {self.layout.weights_here[0]}"
        )

    def repositories(self) -> list[tuple[str, str | None]]:
        return []

    def stands_for(self) -> str:
        return weights_of(str(self.path))


@dataclass(frozen=True)
class Repository(Source):
    """A repository of the hub that brings its own config."""

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
