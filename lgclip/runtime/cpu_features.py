"""Detects the number formats that this processor computes in; needs no torch, for `lgclip doctor`."""

import os
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_BF16 = {"amx_bf16", "avx512_bf16"}


def has_bf16_units() -> bool:
    """Returns whether this CPU multiplies matrices in bf16, several times as fast as in fp32: AMX or AVX512-BF16.

    Others emulate it, many times slower than fp32. oneDNN, which multiplies for torch, can be told to use less of a CPU
    than it has (`ONEDNN_MAX_CPU_ISA`); without these instructions it emulates too. False where the system does not
    tell, which is everywhere but on Linux.
    """
    limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
    if limit not in ("ALL", "DEFAULT") and not any(name in limit for name in ("BF16", "FP16", "AMX")):
        return False
    # What the processor says, never a measurement: a key must not depend on how busy the machine is.
    try:
        flags = _CPU_INFO.read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not _BF16.isdisjoint(flags)
