"""Compares runtimes of a vision tower on a CPU (B18): `python benchmarks/runtimes.py`, three minutes on two cores.

ViT-B/32 with random weights, batches of 32, all cores. The tower exported to ONNX is run by ONNX Runtime (fp32) and by
OpenVINO (its default precision, bf16 on a CPU with bf16 instructions), and compared with the tower as `precision=auto`
runs it. Features are compared first. The ratio is the speedup over lgclip; from 1.3 on, another runtime for encoders
would be worth its dependency.
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


def build_lgclip_runner(tower: torch.nn.Module, precision: str) -> Callable[[Tensor], Tensor]:
    """Returns the tower as an encoder runs it."""
    cast_weights(tower, precision, CPU)

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            return normalize(forward(tower, pixels, precision, CPU).float(), dim=-1)

    return run


def build_onnx_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the exported tower in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = len(os.sched_getaffinity(0))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: _normalize(session.run(None, {"pixels": pixels.numpy()})[0])


def build_openvino_runner(path: Path) -> Callable[[Tensor], Tensor]:
    """Returns the exported tower in OpenVINO, with its default precision."""
    import openvino as ov

    compiled = ov.Core().compile_model(str(path), "CPU", {"PERFORMANCE_HINT": "THROUGHPUT"})
    return lambda pixels: _normalize(compiled(pixels.numpy())[0])


def _normalize(features: Any) -> Tensor:
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
        expected = build_lgclip_runner(exact, "fp32")(pixels[0])
        runtimes = {
            "a": ("ONNX Runtime, fp32", build_onnx_runner(path)),
            "b": ("OpenVINO, default precision", build_openvino_runner(path)),
        }
        precision = decided("auto", CPU)
        tower = build_lgclip_runner(exact, precision)
        for letter, (title, runtime) in runtimes.items():
            cosines = [cosine_similarity(expected, run(pixels[0])).min().item() for run in (tower, runtime)]
            if min(cosines) < 0.9995:
                raise SystemExit(f"{title}: features have a cosine of only {min(cosines):.5f}")
            measured, baselines = alternate(
                lambda runtime=runtime: measure_seconds(lambda: [runtime(part) for part in pixels]),
                lambda: measure_seconds(lambda: [tower(part) for part in pixels]),
                rounds=ROUNDS,
            )
            equality = f"features, minimum cosine {min(cosines):.5f}"
            reference = f"lgclip, `precision=auto`, {precision} on this CPU"
            save_row(
                Row(
                    f"B18{letter}",
                    f"{MODEL}, {BATCH * PASSES} images: {title}",
                    reference,
                    "",
                    "s",
                    measured,
                    baselines,
                    equality,
                    COMMAND,
                )
            )


if __name__ == "__main__":
    main()
