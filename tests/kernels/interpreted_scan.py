"""The Triton scan in Triton's interpreter: outputs, states and every gradient against the float64 reference.

TRITON_INTERPRET must be set before triton is first imported, so `test_triton_interpreted.py` runs this file in a
process of its own. Sizes are small because the interpreter takes about a microsecond per element of a program's work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import pytest
import torch
import triton.language as tl
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor
from triton.runtime import interpreter

from tsgdn2.kernels.ops import delta_scan, gdn2_scan

BACKEND = "triton"
UNSHRUNK = (Phase.explicit, Phase.reuse, Phase.generate)  # an example takes seconds: none is shrunk
TOKENS = ("q", "k", "v", "g", "b", "w")
# Relative RMS error |a - b| / |b|: of outputs and states, and of gradients.
TOLERANCE = {torch.float32: (2e-6, 1e-5), torch.bfloat16: (5e-3, 2e-2), torch.float16: (5e-3, 2e-2)}
# Natural log of the decay per token, from draws in [0,1): hard mixes resets into moderate decay.
DECAY = {
    "none": torch.zeros_like,
    "slow": lambda u: -1e-4 * u,
    "moderate": lambda u: -u,
    "hard": lambda u: torch.where(u < 0.1, -1e4, -u),
    "forgetting": lambda u: torch.full_like(u, -1e4),
}


class Case(NamedTuple):
    tokens: int = 65
    keys: int = 16
    values: int = 32
    batch: int = 1
    heads: int = 1
    missing: float | None = 0.3
    """Share of tokens with mask 0, the others get a fraction; None passes no mask."""
    decay: str = "moderate"
    initial: bool = True
    used: str = "o and final"
    """What the loss weighs."""
    dtype: torch.dtype = torch.float32
    half_g: bool = False
    """Whether g has the inputs' half precision too."""
    scale: float | None = None


CASES = [
    *(Case(tokens=T) for T in (1, 15, 16, 17, 63, 64, 65, 130)),
    *(Case(tokens=T, missing=None, initial=False) for T in (1, 64, 65)),
    *(Case(tokens=T, keys=K, values=V) for T, K, V in ((65, 48, 16), (65, 80, 32), (33, 16, 80), (33, 64, 64))),
    *(Case(tokens=T, missing=missing) for T, missing in ((17, 0.0), (17, 0.5), (17, 1.0), (66, 0.5), (66, 1.0))),
    *(Case(tokens=T, decay=decay) for T in (33, 70) for decay in ("none", "slow", "hard", "forgetting")),
    *(Case(used=used, initial=initial) for used in ("o", "final") for initial in (True, False)),
    Case(tokens=33, batch=2, heads=3, scale=0.7),
    Case(dtype=torch.bfloat16, half_g=True),
    Case(dtype=torch.bfloat16, tokens=130),
    Case(dtype=torch.float16, decay="slow"),
]


@pytest.fixture(autouse=True)
def bf16_is_rounded_to_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts off what bf16 does not hold; hardware rounds to nearest even, half that error."""
    cut_off = interpreter._convert_float

    def convert(x: np.ndarray, from_type: tl.dtype, to_type: tl.dtype, rounding: object) -> np.ndarray:
        if (from_type, to_type) != (tl.float32, tl.bfloat16):
            return cut_off(x, from_type, to_type, rounding)
        return torch.from_numpy(x.copy()).bfloat16().view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which a kernel forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def stream(case: Case, seed: int = 0, states: int | None = None) -> dict[str, Tensor]:
    """Random inputs of gdn2_scan by name; `states` is the number of packed sequences, where B is not."""
    r = torch.Generator().manual_seed(seed)
    B, T, H, K, V = case.batch, case.tokens, case.heads, case.keys, case.values

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=r)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=r)

    q, k = (torch.nn.functional.normalize(normal(B, T, H, K), dim=-1) for _ in range(2))
    inputs = {"q": q, "k": k, "v": normal(B, T, H, V), "g": DECAY[case.decay](uniform(B, T, H, K))}
    inputs |= {"b": uniform(B, T, H, K), "w": uniform(B, T, H, V)}
    for name in TOKENS:
        if name != "g" or case.half_g:
            inputs[name] = inputs[name].to(case.dtype)
    if case.missing is not None:
        inputs["mask"] = (0.1 + 0.9 * uniform(B, T)) * (uniform(B, T) >= case.missing)
    if case.initial:
        inputs["initial_state"] = normal(B if states is None else states, H, K, V)
    return inputs


def scan(inputs: Mapping[str, Tensor], backend: str = BACKEND, **options: object) -> tuple[Tensor, Tensor]:
    return gdn2_scan(**inputs, backend=backend, **options)


def run(
    inputs: Mapping[str, Tensor],
    backend: str = BACKEND,
    *,
    used: str = "o and final",
    mask_grad: bool = False,
    function=scan,
    **options: object,
) -> dict[str, Tensor]:
    """Outputs, final state, and the gradients dq, dk, ... of a loss with random weights on what is `used`."""
    leaves = {n: x.detach().clone().requires_grad_(n != "mask" or mask_grad) for n, x in inputs.items()}
    o, final = function(leaves, backend, **options)
    r = torch.Generator().manual_seed(9)
    weights = [torch.randn(x.shape, generator=r) for x in (o, final)]
    parts = {"o": (o.to(final.dtype) * weights[0]).sum(), "final": (final * weights[1]).sum()}
    loss = sum(parts[name] for name in used.split(" and "))
    wanted = {n: x for n, x in leaves.items() if x.requires_grad}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    gradients = [torch.zeros_like(x) if d is None else d for x, d in zip(wanted.values(), found, strict=True)]
    return {"o": o.detach(), "final": final.detach(), **dict(zip([f"d{n}" for n in wanted], gradients, strict=True))}


def truth(inputs: Mapping[str, Tensor], **options: object) -> dict[str, Tensor]:
    return run({n: x.double() for n, x in inputs.items()}, "reference", **options)


def assert_close(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], dtype=torch.float32) -> None:
    """Relative RMS within the table; a gradient that is nothing beside the largest one is measured against that."""
    assert actual.keys() == expected.keys()
    rms = {name: float(x.square().mean().sqrt()) for name, x in expected.items()}
    largest = max(value for name, value in rms.items() if name not in ("o", "final"))
    found = {}
    for name, x in expected.items():
        size = rms[name] if name in ("o", "final") or rms[name] > 1e-6 * largest else largest
        wrong = float((actual[name].double() - x).square().mean().sqrt())
        found[name] = wrong / size if size else wrong
    bars = {name: TOLERANCE[dtype][name not in ("o", "final")] for name in found}
    assert all(found[name] <= bars[name] for name in found), {n: f"{x:.1e}" for n, x in found.items()}


def assert_same(actual: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    assert actual.keys() == expected.keys()
    assert not {name for name in expected if not torch.equal(actual[name], expected[name])}


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(str(x) for x in case))
def test_the_scan_and_its_gradients_equal_the_float64_reference(case: Case) -> None:
    inputs = stream(case)
    actual = run(inputs, used=case.used, scale=case.scale)
    assert actual["o"].dtype == case.dtype
    assert actual["final"].dtype == torch.float32
    assert all(actual[f"d{name}"].dtype == inputs[name].dtype for name in TOKENS)
    assert_close(actual, truth(inputs, used=case.used, scale=case.scale), case.dtype)


@settings(max_examples=5, deadline=None, phases=UNSHRUNK)
@given(
    tokens=st.integers(1, 80),
    missing=st.floats(0, 1),
    decay=st.sampled_from(sorted(DECAY)),
    seed=st.integers(0, 1000),
)
def test_any_length_mask_and_decay_equals_the_float64_reference(
    tokens: int, missing: float, decay: str, seed: int
) -> None:
    inputs = stream(Case(tokens=tokens, missing=missing, decay=decay), seed)
    assert_close(run(inputs), truth(inputs))


def test_a_mask_that_wants_a_gradient_gets_its_own() -> None:
    for missing in (0.0, 0.5):
        inputs = stream(Case(tokens=33, missing=missing, batch=2))
        assert_close(run(inputs, mask_grad=True), truth(inputs, mask_grad=True))


def test_the_delta_scan_has_the_gradients_of_its_own_five_inputs() -> None:
    def function(x: Mapping[str, Tensor], backend: str) -> tuple[Tensor, Tensor]:
        return delta_scan(**x, scale=0.7, backend=backend)

    for case in (Case(missing=None), Case(17, 48, 16, missing=None, initial=False, decay="hard")):
        x = stream(case)
        inputs = {"q": x["q"], "k": x["k"], "e": x["b"] * x["k"], "z": x["w"] * x["v"], "g": x["g"]}
        inputs |= {name: x[name] for name in ("initial_state",) if name in x}
        assert_close(run(inputs, function=function), truth(inputs, function=function))


def test_a_gradient_does_not_depend_on_which_others_are_wanted() -> None:
    inputs = stream(Case(tokens=20))
    everything = run(inputs, used="o")
    upstream = torch.randn(everything["o"].shape, generator=torch.Generator().manual_seed(9))
    for wanted in ("q", "g", "w", "initial_state"):
        leaf = inputs[wanted].clone().requires_grad_()
        o, _ = scan({**inputs, wanted: leaf})
        (alone,) = torch.autograd.grad(o, leaf, upstream)
        assert torch.equal(alone, everything[f"d{wanted}"])


def test_a_second_derivative_is_refused_and_not_silently_wrong() -> None:
    inputs = stream(Case(tokens=17))
    inputs["q"].requires_grad_()
    o, _ = scan(inputs)
    (dq,) = torch.autograd.grad(o.square().sum(), inputs["q"], create_graph=True)
    with pytest.raises(RuntimeError, match=r"scan_backward.* no autograd formula was registered"):
        dq.sum().backward()


def unit(*parts: float, keys: int = 16) -> Tensor:
    return torch.nn.functional.pad(torch.tensor(parts), (0, keys - len(parts)))


def test_identical_keys_that_erase_all_do_not_blow_up_the_inverse() -> None:
    inputs = stream(Case(tokens=70, missing=None, decay="none"))
    inputs["k"] = inputs["k"][:, :1].expand_as(inputs["k"]).contiguous()
    inputs["b"], inputs["w"] = torch.ones_like(inputs["b"]), torch.ones_like(inputs["w"])
    assert_close(run(inputs), truth(inputs))


def test_two_keys_that_make_the_state_grow_as_fast_as_it_can_are_followed() -> None:
    """The product of the two transitions has the eigenvalue 1.25: 1.118 per token, the largest growth (math.md 2)."""
    inputs = stream(Case(missing=None, decay="none"))
    c = math.sqrt(2) - 1
    s = math.sqrt(1 - c * c)
    inputs["k"][0, 0::2, 0], inputs["k"][0, 1::2, 0] = unit(c, s), unit(s, c)
    inputs["b"][0, 0::2, 0], inputs["b"][0, 1::2, 0] = unit(1.0, 0.0), unit(0.0, 1.0)
    expected = truth(inputs)
    assert expected["final"].norm() > 300 * inputs["initial_state"].norm()
    assert_close(run(inputs), expected)


def test_gates_of_zero_and_one_on_keys_that_resemble_each_other_are_inverted_well() -> None:
    """Channel-wise gates make the entries of the inverse large; a scalar gate never does."""
    inputs = stream(Case(missing=None, decay="slow"))
    inputs["k"] = torch.nn.functional.normalize(inputs["k"] + 0.5 * unit(1.0, 1.0, 1.0, 1.0), dim=-1)
    inputs["b"] = inputs["b"].round()
    assert_close(run(inputs), truth(inputs))


def test_a_decay_of_minus_infinity_forgets_everything() -> None:
    inputs = stream(Case(tokens=40))
    inputs["g"][:, 20] = -torch.inf
    inputs["g"][:, 33, :, ::3] = -torch.inf
    assert_close(run(inputs), truth(inputs))
