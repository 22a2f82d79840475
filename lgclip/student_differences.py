"""Which students of a sweep are compared with which."""

from lgclip.seed_rows import TOP1, Difference, Figure, difference, with_holm
from lgclip.student_rows import BASIC, REAL, Students, is_mixed


def differences(students: Students) -> list[Difference]:
    """Synthetic training sets against the basic prompt, and all against real images, where the settings are alike.

    Args:
        students: Rows of a sweep.
    """
    rows = [row for row in students.rows if row.runs]
    pairs = [(a, b) for b in rows if b.name == BASIC for a in rows if a.name not in (REAL, BASIC) and not is_mixed(a)]
    pairs += [(a, b) for b in rows if b.name == REAL for a in rows if a.name != REAL]
    alike = [(a, b) for a, b in pairs if a.apart == b.apart or not a.apart or not b.apart]
    figures = [TOP1, *(Figure("top1", name) for name in students.shifted)]
    return with_holm(one for a, b in alike for figure in figures if (one := difference(a, b, figure)))
