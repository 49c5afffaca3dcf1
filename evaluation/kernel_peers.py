"""Other people's kernels as peers to time: imported from an installed package, called through their public functions.

Nothing of theirs is in this repository. Arguments are given by the names that inspect.signature shows, and a function
that wants one we do not know is refused. The limit: a peer whose results differ from ours is timed all the same; the
row says by how much.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import Stream
from tsgdn2.kernels.ops import delta_scan, gdn2_scan

PEERS = {
    "chunk_kda": "fla.ops.kda",
    "chunk_gated_delta_rule": "fla.ops.gated_delta_rule",
    "chunk_gdn2": "fla.ops.gdn2",
}
"""Public functions of flash-linear-attention and the modules that offer them."""


def peer(
    name: str, x: Stream, backend: str = "triton"
) -> tuple[Callable[[Mapping[str, Tensor]], Tensor], dict[str, Tensor], float]:
    """A peer as a function of its leaves, the leaves, and the relative RMS difference of its outputs from ours.

    Raises ImportError or AttributeError where it is missing, TypeError where it wants an argument we do not know.
    """
    function = getattr(importlib.import_module(PEERS[name]), name)
    leaves = arguments(name, x)
    settings = {"output_final_state": True, "scale": x.q.shape[-1] ** -0.5}
    wanted = inspect.signature(function).parameters
    unknown = [
        parameter.name
        for parameter in wanted.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY, parameter.POSITIONAL_ONLY)
        and parameter.name not in {**leaves, **settings}
    ]
    missing = [given for given in leaves if given not in wanted]
    if unknown or missing:
        raise TypeError(f"{name} wants {unknown}, which we do not know, and does not take {missing}, which we have")
    settings = {given: value for given, value in settings.items() if given in wanted}

    def call(t: Mapping[str, Tensor]) -> Tensor:
        found = function(**t, **settings)
        o = found[0] if isinstance(found, tuple) else found
        assert isinstance(o, Tensor)
        return o

    with torch.no_grad():
        o = call(leaves).float()
        expected = same_scan(name, x, backend).float()
    return call, leaves, float((o - expected).norm() / expected.norm())


def arguments(name: str, x: Stream) -> dict[str, Tensor]:
    """The tensors of a peer by its parameters' names: one beta per token and head, for GDR one decay as well."""
    if name == "chunk_gdn2":
        return {letter: getattr(x, letter) for letter in "qkvgbw"}
    leaves = {"q": x.q, "k": x.k, "v": x.v, "g": x.g, "beta": x.b[..., 0].contiguous()}
    return {**leaves, "g": x.g[..., 0].contiguous()} if name == "chunk_gated_delta_rule" else leaves


def same_scan(name: str, x: Stream, backend: str) -> Tensor:
    """Our outputs for what the peer computes (math.md 1, table of mixers)."""
    if name == "chunk_gdn2":
        return gdn2_scan(x.q, x.k, x.v, x.g, x.b, x.w, backend=backend)[0]
    beta = x.b[..., :1]
    g = x.g[..., :1].expand_as(x.g).contiguous() if name == "chunk_gated_delta_rule" else x.g
    return delta_scan(x.q, x.k, beta * x.k, beta * x.v, g, backend=backend)[0]
