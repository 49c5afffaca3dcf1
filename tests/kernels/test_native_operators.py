"""The native path beside autograd: when it is chosen, what it saves, and what may be changed without harm.

Graphs and the operators behind them are in test_native_graphs.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tsgdn2.evaluation.kernel_grid import Case, Stream, errors, results, scan, stream, upstream
from tsgdn2.kernels.native import library
from tsgdn2.kernels.ops import gdn2_step

BACKEND = "native"
CPU = torch.device("cpu")
TOKENS = ("q", "k", "v", "g", "b", "w")
KINDS = {"fp32": torch.float32, "fp64": torch.float64}


@pytest.fixture(autouse=True)
def memory_that_nobody_wrote_is_nan():
    """torch.empty hands out NaN, so that a result which the library forgot to write shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def made(case: Case, seed: int = 0) -> Stream:
    x = stream(case, CPU, seed)
    kind = KINDS.get(case.dtype)
    return x if kind is None else Stream(*(t if t is None or not t.is_floating_point() else t.to(kind) for t in x))


def run(function: Callable[[Stream], tuple[Tensor, Tensor]], x: Stream, case: Case) -> list[Tensor]:
    """Results, and gradients of everything that is not the mask."""
    leaves = {n: t.detach().requires_grad_() for n, t in x._asdict().items() if n in (*TOKENS, "initial_state")}
    found = function(x._replace(**leaves))
    sent = [t.to(r.dtype) for t, r in zip(upstream(case, x), found, strict=True)]
    return [*(t.detach() for t in found), *torch.autograd.grad(found, list(leaves.values()), sent)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    assert [n for n, (a, b) in enumerate(zip(actual, expected, strict=True)) if not torch.equal(a, b)] == []


@pytest.mark.parametrize("T", [3, 40])
@pytest.mark.parametrize("dtype", ["fp32", "fp64", "bf16", "fp16"])
def test_auto_is_native_on_this_cpu_for_every_length_and_dtype(dtype: str, T: int) -> None:
    """Paths add up in other orders, so a state's last bits tell which one ran."""
    case = Case(2, T, 2, 33, 47, dtype)
    x = made(case)
    states = {backend: scan(x, backend)[1] for backend in ("auto", "native", "reference", "chunked")}
    equal = {backend: torch.equal(states["auto"], state) for backend, state in states.items()}
    assert equal == {"auto": True, "native": True, "reference": False, "chunked": False}
    pools = {}
    for backend in ("auto", "native", "reference"):
        pools[backend] = x.initial_state.clone()
        gdn2_step(pools[backend], torch.tensor([1, 0]), *(t[:, 0] for t in x[:6]), backend=backend)
    equal = {backend: torch.equal(pools["auto"], pool) for backend, pool in pools.items()}
    assert equal == {"auto": True, "native": True, "reference": False}


@pytest.mark.parametrize(("K", "V"), [(257, 4), (4, 257), (300, 270)])
def test_states_wider_than_the_gpu_path_takes_are_native_too(K: int, V: int) -> None:
    case = Case(1, 20, 2, K, V, "fp32")
    x, sent = made(case), upstream(case, made(case))
    found = results(x, sent, BACKEND)
    assert max(errors(x, sent, found, "reference").values()) <= 1e-6
    assert_same(list(results(x, sent, "auto").values()), list(found.values()))
    pools = {backend: x.initial_state.clone() for backend in ("auto", BACKEND, "reference")}
    for backend, pool in pools.items():
        gdn2_step(pool, torch.tensor([0]), *(t[:, 0] for t in x[:6]), backend=backend)
    assert torch.equal(pools["auto"], pools[BACKEND])
    torch.testing.assert_close(pools["auto"], pools["reference"], rtol=0, atol=3e-6)


def test_the_target_that_is_named_is_the_one_that_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets differ in the width of their vectors and so in the order of their sums."""
    case = Case(2, 40, 2, 65, 33, "fp32")
    x, sent = made(case), upstream(case, made(case))
    best, *others = library.targets()
    found = {}
    for target in (best, *others):
        monkeypatch.setenv("TSGDN2_NATIVE_TARGET", target)
        found[target] = results(x, sent, BACKEND)
    for target in others:
        assert not all(torch.equal(t, found[target][name]) for name, t in found[best].items())
    monkeypatch.setenv("TSGDN2_NATIVE_TARGET", "abacus")
    with pytest.raises(ValueError, match=rf"TSGDN2_NATIVE_TARGET.*{best}.*'abacus'"):
        scan(x, BACKEND)


def test_tensors_of_another_device_are_refused_by_name() -> None:
    x = Stream(*(t if t is None else t.to("meta") for t in made(Case(1, 3, 1, 4, 6, "fp32"))))
    with pytest.raises(ValueError, match=r"native.*meta"):
        scan(x, BACKEND)


@pytest.mark.parametrize("wanted", [*TOKENS, "initial_state", "mask"])
def test_a_gradient_does_not_depend_on_which_others_are_wanted(wanted: str) -> None:
    case = Case(2, 37, 2, 6, 17, "fp32")
    x = made(case)
    sent = upstream(case, x)
    leaves = {n: t.clone().requires_grad_() for n, t in x._asdict().items() if t is not None}
    everything = torch.autograd.grad(scan(Stream(**leaves), BACKEND), list(leaves.values()), sent)
    leaf = getattr(x, wanted).clone().requires_grad_()
    (alone,) = torch.autograd.grad(scan(x._replace(**{wanted: leaf}), BACKEND), leaf, sent)
    together = dict(zip(leaves, everything, strict=True))[wanted]
    if wanted == "mask":  # beside gates that want none, its sum may be taken in another order
        torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    else:
        torch.testing.assert_close(alone, together, rtol=1e-6, atol=1e-6)
    x = x._replace(mask=None)
    leaves.pop("mask")
    everything = torch.autograd.grad(scan(Stream(**leaves), BACKEND), list(leaves.values()), sent)
    if wanted != "mask":
        (alone,) = torch.autograd.grad(scan(x._replace(**{wanted: leaf}), BACKEND), leaf, sent)
        assert torch.equal(alone, dict(zip(leaves, everything, strict=True))[wanted])


@pytest.mark.parametrize("read", [0, 1], ids=["outputs", "final state"])
def test_what_no_gradient_reaches_changes_none(read: int) -> None:
    case = Case(2, 20, 2, 6, 11, "fp32")
    x, sent = made(case), upstream(case, made(case))
    leaves = {n: getattr(x, n).clone().requires_grad_() for n in (*TOKENS, "initial_state")}
    both = scan(x._replace(**leaves), BACKEND)
    alone = torch.autograd.grad(both[read], list(leaves.values()), sent[read], allow_unused=True)
    both = scan(x._replace(**leaves), BACKEND)
    zero = torch.zeros_like(both[1 - read])
    together = torch.autograd.grad([both[read], both[1 - read]], list(leaves.values()), [sent[read], zero])
    assert [n for n, a, b in zip(leaves, alone, together, strict=True) if not torch.equal(a, b)] == [
        n for n, a in zip(leaves, alone, strict=True) if a is None
    ]


def test_without_a_gradient_to_give_nothing_is_saved() -> None:
    x = made(Case(2, 20, 2, 6, 11, "fp32"))
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        o, final = scan(x, BACKEND)
        leaf = x.q.clone().requires_grad_()
        with torch.no_grad():
            unrecorded, _ = scan(x._replace(q=leaf), BACKEND)
        with torch.inference_mode():
            inferred, _ = scan(x, BACKEND)
    assert not saved
    assert not o.requires_grad
    assert not final.requires_grad
    assert torch.equal(o, unrecorded)
    assert torch.equal(o, inferred)


def test_a_scan_without_gradients_allocates_its_results_alone() -> None:
    x = made(Case(2, 512, 2, 32, 48, "fp32"))
    scan(x, BACKEND)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        o, final = scan(x, BACKEND)
    allocated = sum(max(0, event.self_cpu_memory_usage) for event in profile.events())
    assert o.nbytes + final.nbytes <= allocated <= 1.1 * (o.nbytes + final.nbytes)


def test_memory_kept_for_the_backward_grows_with_a_state_per_16_tokens_and_not_per_token() -> None:
    for B, T, H, K, V, lengths in ((2, 512, 2, 32, 48, ()), (1, 512, 2, 32, 48, (200, 12, 0, 300))):
        x = made(Case(B, T, H, K, V, "fp32", None, lengths=lengths))
        leaves = Stream(*(t.requires_grad_() if t is not None and t.is_floating_point() else t for t in x))
        kept: dict[int, int] = {}

        def keep(t: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
            return t

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            scan(leaves, BACKEND)
        tokens, checkpoints = B * T * H * (4 * K + 3 * V), (B * T // 16 + 2 * len(x.initial_state)) * H * K * V
        assert sum(kept.values()) <= 4 * 1.1 * (tokens + checkpoints)


def test_results_are_nobody_elses_memory_and_inputs_stay_as_they_were() -> None:
    for T, initial in ((0, True), (1, True), (20, True), (20, False)):
        x = made(Case(2, T, 2, 6, 11, "fp32", initial=initial))
        before = [None if t is None else t.clone() for t in x]
        o, final = scan(x, BACKEND)
        expected = o.clone(), final.clone()
        theirs = {t.untyped_storage().data_ptr() for t in x if t is not None and t.numel()}
        assert not theirs & {t.untyped_storage().data_ptr() for t in (o, final)}
        assert final.untyped_storage().data_ptr() != o.untyped_storage().data_ptr()
        assert all(a is None or torch.equal(a, b) for a, b in zip(before, x, strict=True))
        final.fill_(math.nan)
        assert torch.equal(o, expected[0])
        o.fill_(math.nan)
        assert all(torch.equal(a, b) for a, b in zip(scan(x, BACKEND), expected, strict=True))


def test_results_changed_in_place_leave_the_gradients_right() -> None:
    case = Case(2, 40, 2, 6, 11, "fp32")
    x = made(case)

    def doubled(y: Stream) -> tuple[Tensor, Tensor]:
        o, final = scan(y, BACKEND)
        return o.mul_(2), final.mul_(2)

    def plain(y: Stream) -> tuple[Tensor, Tensor]:
        o, final = scan(y, BACKEND)
        return 2 * o, 2 * final

    assert_same(run(doubled, x, case), run(plain, x, case))


@pytest.mark.parametrize("name", [*TOKENS, "initial_state"])
def test_an_input_changed_before_the_backward_is_noticed_or_was_not_needed(name: str) -> None:
    case = Case(2, 40, 2, 6, 11, "fp32", None)
    x, sent = made(case), upstream(case, made(case))
    expected = results(x, sent, BACKEND)
    leaves = {n: getattr(x, n).clone().requires_grad_() for n in (*TOKENS, "initial_state")}
    found = scan(x._replace(**leaves), BACKEND)
    with torch.no_grad():
        leaves[name].mul_(3)
    try:
        after = torch.autograd.grad(found, list(leaves.values()), sent)
    except RuntimeError as error:
        said = str(error)
    else:
        said = (
            "not needed" if all(torch.equal(d, expected[f"d{n}"]) for n, d in zip(leaves, after, strict=True)) else ""
        )
    assert "modified by an inplace operation" in said or said == "not needed"


def test_a_graph_that_is_kept_gives_the_same_gradients_twice() -> None:
    case = Case(2, 40, 2, 6, 11, "fp32")
    x, sent = made(case), upstream(case, made(case))
    leaves = {n: getattr(x, n).clone().requires_grad_() for n in TOKENS}
    found = scan(x._replace(**leaves), BACKEND)
    first = torch.autograd.grad(found, list(leaves.values()), sent, retain_graph=True)
    assert_same(list(torch.autograd.grad(found, list(leaves.values()), sent)), list(first))


def test_analytic_gradients_pass_gradcheck() -> None:
    x = made(Case(1, 19, 1, 3, 2, "fp64"))
    leaves = [t.requires_grad_() for t in (*x[:6], x.initial_state)]

    def function(q, k, v, g, b, w, state):
        return scan(Stream(q, k, v, g, b, w, x.mask, state), BACKEND)

    assert torch.autograd.gradcheck(function, leaves)


@pytest.mark.parametrize("wanted", [*TOKENS, "initial_state"])
def test_a_second_derivative_is_refused_and_not_silently_wrong(wanted: str) -> None:
    x = made(Case(1, 17, 1, 3, 2, "fp64"))
    leaf = getattr(x, wanted).requires_grad_()
    o, final = scan(x, BACKEND)
    (slope,) = torch.autograd.grad(o.square().sum() + final.square().sum(), leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once; use backend"):
        slope.square().sum().backward()


def test_autocast_does_not_lower_the_arithmetic() -> None:
    case = Case(2, 40, 2, 8, 8, "fp32")
    x = made(case)
    expected = run(lambda y: scan(y, BACKEND), x, case)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same(run(lambda y: scan(y, BACKEND), x, case), expected)


def test_thousands_of_keys_have_gradients_too() -> None:
    x = made(Case(1, 19, 1, 2049, 3, "fp32"))
    leaf = x.q.requires_grad_()
    slopes = [torch.autograd.grad(scan(x, path)[0].square().sum(), leaf)[0] for path in (BACKEND, "reference")]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)
