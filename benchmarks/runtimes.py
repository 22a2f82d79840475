"""Other runtimes for a vision tower on a CPU: `python benchmarks/runtimes.py`, in three minutes on two cores (B18).

ViT-B/32 with random weights, batches of 32, all cores: the tower as `precision=auto` runs it, beside the same tower
exported to ONNX and run by ONNX Runtime (fp32) and by OpenVINO (its own choice of precision, bf16 where the CPU
multiplies in it). Features are compared first. A runtime of its own (`encoder.runtime`) is worth its dependency from
a factor of 1.3 on: the ratio is how many times faster it is than ours.
"""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from comparison import Row, alternate, measure_seconds, save_row
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from lgclip.encoder.precision import cast_weights, decided, forward

COMMAND = "python benchmarks/runtimes.py"
MODEL, BATCH, PASSES, ROUNDS = "ViT-B-32", 32, 4, 3
CPU = torch.device("cpu")


def ours(tower: torch.nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """The tower, as an encoder runs it."""
    cast_weights(tower, precision, CPU)

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return normalize(forward(tower, pixels, precision, CPU).float(), dim=-1)

    return run


def onnx_runtime(path: Path) -> Callable[[Tensor], Tensor]:
    """The exported tower by ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: _unit(session.run(None, {"pixels": pixels.numpy()})[0])


def openvino(path: Path) -> Callable[[Tensor], Tensor]:
    """The exported tower by OpenVINO, with its own choice of precision."""
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    return lambda pixels: _unit(compiled(pixels.numpy())[0])


def _unit(features: Any) -> Tensor:
    return normalize(torch.from_numpy(np.array(features, dtype=np.float32)), dim=-1)


def main() -> None:
    """Measures and saves the rows."""
    torch.manual_seed(0)
    pixels = [torch.randn(BATCH, 3, 224, 224) for _ in range(PASSES)]
    model: Any = open_clip.create_model(MODEL, pretrained=None)
    exact = model.visual.eval()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode(False):
        path = Path(name) / "tower.onnx"
        torch.onnx.export(exact, (pixels[0],), str(path), input_names=["pixels"], dynamo=True, verbose=False)
        expected = ours(exact, "fp32")(pixels[0])
        runtimes = {
            "a": ("ONNX Runtime, fp32", onnx_runtime(path)),
            "b": ("OpenVINO, its own precision", openvino(path)),
        }
        precision = decided("auto", CPU)
        tower = ours(exact, precision)
        for letter, (title, runtime) in runtimes.items():
            cosines = [cosine_similarity(expected, run(pixels[0])).min().item() for run in (tower, runtime)]
            if min(cosines) < 0.9995:
                raise SystemExit(f"{title}: cosine of features {min(cosines):.5f}")
            other, mine = alternate(
                lambda runtime=runtime: measure_seconds(lambda: [runtime(part) for part in pixels]),
                lambda: measure_seconds(lambda: [tower(part) for part in pixels]),
                rounds=ROUNDS,
            )
            equal = f"features, cosine at least {min(cosines):.5f}"
            against = f"ours, `precision=auto`, which is {precision} here"
            save_row(
                Row(
                    f"B18{letter}",
                    f"{MODEL}, {BATCH * PASSES} images: {title}",
                    against,
                    "",
                    "s",
                    other,
                    mine,
                    equal,
                    COMMAND,
                )
            )


if __name__ == "__main__":
    main()
