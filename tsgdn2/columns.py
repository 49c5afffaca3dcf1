"""What is known of one step beside its values: columns of numbers, in one layout for rings, windows and logs.

    [known reals | known categories, one-hot | past reals, 0 where missing | 1 where a past real was given]

Known columns come whole or not at all; a past covariate may come later than its step's values, or never.
"""

from __future__ import annotations

import numpy as np

from tsgdn2.scale import Floats


def merged(old: Floats, new: Floats, past: int) -> Floats:
    """Columns [.., S] of a step that is heard of again: known ones are replaced, past ones only where given."""
    if not past:
        return new
    given = new[..., -past:] > 0
    out = new.copy()
    for block in (slice(-2 * past, -past), slice(-past, None)):
        out[..., block] = np.where(given, new[..., block], old[..., block])
    return out
