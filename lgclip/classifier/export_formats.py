"""Writes a traced classifier in each format, and runs what was written before it replaces a file."""

import io
import json
import logging
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.export import ExportedProgram

from lgclip.classifier.export_graph import ClassifierGraph, portable_attention, trace
from lgclip.store.atomic import atomic_write

METADATA = "lgclip"
"""Name of the entry that holds the metadata in every format."""

INPUT = "pixels"
OUTPUTS = ("scores", "probs")
_OPSET = 18
"""torch's exporter writes it without a conversion."""
_ONNX_LIMIT = 2**31 - 2**24
"""Bytes of weights: a protobuf message ends at 2 GiB, and the graph itself takes some."""

_TORCH_WARNINGS = ("`isinstance\\(treespec, LeafSpec\\)` is deprecated", "The given buffer is not writable")
"""Warnings of torch 2.10 about its own code: that it copies a traced program, and that it reads one."""

Pixels = UInt8[np.ndarray, "b *s 3 h w"]
Runner = Callable[[Pixels], Float[np.ndarray, "b c"]]
"""Computes scores by a file."""


class Format(ABC):
    """Writes one format.

    Attributes:
        name: Value of `format`.
        suffix: Ending of the file's name.
        extra: Extra of lgclip whose packages are needed; empty for none.
        packages: These packages.
        runtime: Package that runs a file, to verify it; None if that is torch.
        holds_graph: Whether the file can be run, and does not only hold weights.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    extra: ClassVar[str] = ""
    packages: ClassVar[tuple[str, ...]] = ()
    runtime: ClassVar[str | None] = None
    holds_graph: ClassVar[bool] = True

    def check(self) -> None:
        """Checks that the packages are installed.

        Raises:
            ValueError: If one is missing.
        """
        for package in self.packages:
            imported(package, f"format={self.name}", self.extra)

    @abstractmethod
    def write(
        self,
        graph: ClassifierGraph,
        example: UInt8[Tensor, "b *s 3 h w"],
        metadata: Mapping[str, object],
        path: Path,
        verify: Callable[[Runner], None],
    ) -> None:
        """Writes a classifier atomically, and verifies it before it replaces a file.

        Args:
            graph: The classifier.
            example: Pixels of two images, for the trace.
            metadata: Plain values to store in the file.
            path: The file.
            verify: Compares scores by the new file with those of the classifier, and raises an error.

        Raises:
            WriteError: If the system refuses it.
            ValueError: If it cannot be written in this format.
        """


class Onnx(Format):
    """Writes ONNX.

    Args:
        int8: Whether to quantize the weights of the matrix products to 8 bits.
    """

    name = "onnx"
    suffix = ".onnx"
    extra = "export"
    packages = ("onnx", "onnxscript")
    runtime = "onnxruntime"

    def __init__(self, *, int8: bool = False) -> None:
        self._int8 = int8

    def check(self) -> None:
        super().check()
        if self._int8:
            imported("onnxruntime.quantization", "int8", self.extra)

    def write(
        self,
        graph: ClassifierGraph,
        example: UInt8[Tensor, "b *s 3 h w"],
        metadata: Mapping[str, object],
        path: Path,
        verify: Callable[[Runner], None],
    ) -> None:
        model = onnx_model(graph, example, metadata)
        with atomic_write(path) as temporary:
            if self._int8:
                _quantize(model, temporary)
            else:
                temporary.write_bytes(model.SerializeToString())
            if find_spec("onnxruntime") is not None:
                verify(onnx_runner(temporary))


class Pt2(Format):
    """Writes torch's own archive of a traced program, which needs torch but no library of the encoder."""

    name = "pt2"
    suffix = ".pt2"

    def write(
        self,
        graph: ClassifierGraph,
        example: UInt8[Tensor, "b *s 3 h w"],
        metadata: Mapping[str, object],
        path: Path,
        verify: Callable[[Runner], None],
    ) -> None:
        program = trace(graph, example)
        program.example_inputs = None  # torch would store them as a pickle
        # Not a name: torch warns about one that does not end in .pt2, as the temporary one.
        with atomic_write(path) as temporary:
            with temporary.open("wb") as file:
                torch.export.save(program, file, extra_files={f"{METADATA}.json": _json(metadata)})
            with temporary.open("rb") as file, _without_notices():
                written = torch.export.load(io.BytesIO(file.read()))
            verify(program_runner(written))


class OpenVino(Format):
    """Writes OpenVINO's pair of files: the graph with the metadata (.xml), and the weights next to it (.bin)."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    packages = ("openvino", "onnx", "onnxscript")
    runtime = "openvino"

    def write(
        self,
        graph: ClassifierGraph,
        example: UInt8[Tensor, "b *s 3 h w"],
        metadata: Mapping[str, object],
        path: Path,
        verify: Callable[[Runner], None],
    ) -> None:
        openvino = imported("openvino", f"format={self.name}", self.extra)
        # By way of ONNX: OpenVINO's own reader of traced programs lacks the operations on sizes that a resize needs.
        model = openvino.Core().read_model(onnx_model(graph, example, metadata).SerializeToString())
        model.set_rt_info(_json(metadata), [METADATA])
        weights = path.with_suffix(".bin")
        with atomic_write(path) as temporary, atomic_write(weights) as temporary_weights:
            # OpenVINO accepts no names but these two endings.
            with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
                written = Path(folder) / "model.xml"
                try:
                    openvino.serialize(model, str(written))
                    verify(openvino_runner(written))
                except RuntimeError as error:  # whatever happened, a full disk too
                    raise ValueError(f"{path} cannot be written by OpenVINO ({_first_line(error)})") from error
                written.with_suffix(".bin").replace(temporary_weights)
                written.replace(temporary)
            # The old graph would not fit the new weights: whatever interrupts what follows, there is none.
            path.unlink(missing_ok=True)


class Safetensors(Format):
    """Writes the weights of the vision tower and the head, for a forward pass of your own."""

    name = "safetensors"
    suffix = ".safetensors"
    holds_graph = False

    def write(
        self,
        graph: ClassifierGraph,
        example: UInt8[Tensor, "b *s 3 h w"],
        metadata: Mapping[str, object],
        path: Path,
        verify: Callable[[Runner], None],
    ) -> None:
        # Copies: two names of one tensor are no content of such a file.
        tensors = {name: tensor.detach().clone().contiguous() for name, tensor in graph.state_dict().items()}
        with atomic_write(path) as temporary:
            save_file(tensors, temporary, metadata={METADATA: _json(metadata)})
            graph.load_state_dict(load_file(temporary), strict=True)
            verify(graph_runner(graph))


FORMATS: dict[str, type[Format]] = {kind.name: kind for kind in (Onnx, Pt2, OpenVino, Safetensors)}


def onnx_model(graph: ClassifierGraph, example: UInt8[Tensor, "b *s 3 h w"], metadata: Mapping[str, object]) -> Any:
    """Returns a classifier as a message of ONNX, with its metadata.

    Raises:
        ValueError: If it is too large, or has an operation that ONNX lacks.
    """
    size = sum(tensor.numel() * tensor.element_size() for tensor in graph.state_dict().values())
    if size > _ONNX_LIMIT:
        raise ValueError(
            f"the weights are {size / 1e9:.1f} GB in fp32, and a file of ONNX holds less than 2.1 GB; use format=pt2"
        )
    program = trace(graph, example)
    axes = {0: "batch"}
    if graph.takes_any_size:
        axes |= {2: "height", 3: "width"}
    try:
        with _without_notices():
            converted: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: axes},  # names alone: what is dynamic is traced
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # an operation may be missing, in as many ways as there are operations
        raise ValueError(f"the classifier cannot be written as ONNX ({_first_line(error)}); use format=pt2") from error
    converted.model.metadata_props[METADATA] = _json(metadata)
    return converted.model_proto


@contextmanager
def _without_notices() -> Iterator[None]:
    """Hides what the exporters log and warn about their own steps."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in _TORCH_WARNINGS:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logging.disable(disabled)


def _quantize(model: Any, path: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with _without_notices():
        quantize_dynamic(model, path, weight_type=QuantType.QInt8, op_types_to_quantize=["MatMul", "Gemm"])


def onnx_runner(path: Path) -> Runner:
    """Returns a function that computes scores by an ONNX file, on the CPU."""
    onnxruntime = imported("onnxruntime", "verification", Onnx.extra)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([OUTPUTS[0]], {INPUT: pixels})[0]


def openvino_runner(path: Path) -> Runner:
    """Returns a function that computes scores by OpenVINO's files, on the CPU in fp32."""
    openvino = imported("openvino", "verification", OpenVino.extra)
    # Its default is bf16 or fp16 where the processor has it.
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pixels: compiled(pixels)[OUTPUTS[0]]


def program_runner(program: ExportedProgram) -> Runner:
    """Returns a function that computes scores by a traced program."""
    return graph_runner(program.module())


def graph_runner(module: torch.nn.Module) -> Runner:
    """Returns a function that computes scores by a module."""

    def run(pixels: Pixels) -> Float[np.ndarray, "b c"]:
        with portable_attention(), torch.inference_mode():
            return module(torch.from_numpy(pixels))[0].numpy()

    return run


def imported(module: str, use: str, extra: str) -> Any:
    """Returns a module of an extra.

    Raises:
        ValueError: If its package is missing.
    """
    try:
        if module == "openvino":
            return _silent_openvino()
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{use}: package {error.name} is missing: pip install 'lgclip[{extra}]'") from error


def _silent_openvino() -> Any:
    """Imports OpenVINO without the package by which it reports every import to a server of its maker's.

    OpenVINO runs without that package. Its own setting is a file in the user's home, which is not ours to write.
    """
    telemetry = "openvino_telemetry"
    if "openvino" in sys.modules or telemetry in sys.modules:
        return import_module("openvino")
    sys.modules[telemetry] = None  # pyright: ignore[reportArgumentType]: how Python notes that there is no such module
    try:
        return import_module("openvino")
    finally:
        del sys.modules[telemetry]


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _json(metadata: Mapping[str, object]) -> str:
    return json.dumps(metadata, ensure_ascii=False)
