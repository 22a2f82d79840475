"""Reads the limit that the environment sets to a CPU's instructions; needs no torch."""

import os


def within_onednn_limit() -> bool:
    """Returns whether `ONEDNN_MAX_CPU_ISA` allows oneDNN, which multiplies for torch, a CPU's bf16 instructions."""
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    return limit in ("ALL", "DEFAULT") or any(name in limit for name in ("BF16", "FP16", "AMX"))
