"""The package's configurations side by side: weights, what a document's state holds, and what a token costs.

`python -m tsgdn2.pipelines.pretrain.sizes` prints the table that pipelines/README.md shows; a test holds the two equal.
Nothing is allocated: models are made on torch's meta device.

    parameters      weights of the blocks, as the paper counts: without the embedding, the head and the final norm
    state           floats that a layer remembers of any past; bytes of one document in float32, all layers, with
                    convolutions and the rings of attention
    operations      of training a token, forward and backward, in windows of the configuration's length (cost.py)
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from tsgdn2.language.cost import footprint
from tsgdn2.pipelines.pretrain.recipes import names, recipe

COLUMNS: Final = ("configuration", "memory of the layers", "parameters", "with the vocabulary", "state, floats a layer",
                  "state, bytes a document", "training, GFLOP a token")  # fmt: skip


def sizes(configurations: Iterable[str] | None = None) -> list[dict[str, str]]:
    """One line per configuration, by default all of the package's, the largest first."""
    found = []
    for name in names() if configurations is None else configurations:
        job = recipe(name, Path())
        model = job.model
        cost = footprint(model, context=job.training.length)
        kinds = [f"{model.layer_mixers.count(kind)} {kind}" for kind in dict.fromkeys(model.layer_mixers)]
        floats = sorted(set(cost.state_floats))
        cells = (name, " + ".join(kinds), f"{cost.parameters:,}", f"{cost.parameters + cost.vocabulary_parameters:,}",
                 " / ".join(f"{each:,}" for each in floats), f"{cost.state_bytes:,}",
                 f"{cost.operations / 1e9:.3g}")  # fmt: skip
        found.append((cost.parameters, dict(zip(COLUMNS, cells, strict=True))))
    return [line for _, line in sorted(found, key=lambda pair: -pair[0])]


def markdown() -> str:
    """The table in Markdown, with a line end."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|---|---|" + "---:|" * (len(COLUMNS) - 2)]
    return "\n".join([*lines, *("| " + " | ".join(line.values()) + " |" for line in sizes())]) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
