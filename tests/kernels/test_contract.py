"""Every argument that does not fit raises ValueError with its name, and changes nothing."""

import pytest
import torch

from tsgdn2.kernels.native.scan import missing
from tsgdn2.kernels.ops import delta_scan, gdn2_scan, gdn2_step

B, T, H, K, V = 2, 5, 3, 4, 6


def scan_arguments():
    keys = {name: torch.rand(B, T, H, K) for name in ("q", "k", "g", "b")}
    return keys | {name: torch.rand(B, T, H, V) for name in ("v", "w")}


def step_arguments():
    keys = {name: torch.rand(B, H, K) for name in ("q", "k", "g", "b")}
    values = {name: torch.rand(B, H, V) for name in ("v", "w")}
    return {"pool": torch.rand(7, H, K, V), "slots": torch.tensor([5, 2])} | keys | values


WRONG_SCAN = [
    ("q", torch.rand(B, T, H), "4 axes"),
    ("q", [1.0], "list"),
    ("q", torch.ones(B, T, H, K, dtype=torch.int64), "torch.int64"),
    ("q", torch.rand(B, T, H, 0), "at least one element"),
    ("k", torch.rand(B, T, H, K + 1), r"\(2, 5, 3, 4\); got \(2, 5, 3, 5\)"),
    ("k", None, "NoneType"),
    ("k", torch.rand(B, T, H, K).double(), "torch.float64"),
    ("k", torch.rand(B, T, H, K, device="meta"), "meta"),
    ("v", torch.rand(B, T, H), "got"),
    ("v", torch.rand(B, T, H, 0), "got"),
    ("v", torch.rand(B, T + 1, H, V), "got"),
    ("g", torch.rand(B, T, H, 1), "got"),
    ("g", torch.rand(B, T, H, K).half(), "torch.float16"),
    ("b", torch.rand(B, T, H, V), "got"),
    ("w", torch.rand(B, T, H, K), "got"),
    ("mask", torch.rand(B, T, 1), r"\(2, 5\); got \(2, 5, 1\)"),
    ("mask", torch.ones(B, T, dtype=torch.int64), "torch.bool"),
    ("scale", float("nan"), "finite"),
    ("scale", "1", "finite"),
    ("scale", True, "finite"),
    ("initial_state", torch.rand(B, H, V, K), r"\(2, 3, 4, 6\)"),
    ("initial_state", torch.rand(B, H, K, V).double(), "torch.float32"),
    ("cu_seqlens", torch.tensor([0, T]), "B = 1; got B = 2"),
    ("backend", "triton", "backend 'triton' cannot run here: it needs tensors on a GPU, these are on cpu"),
    ("backend", "fused", "one of auto, reference, chunked, triton, native; got 'fused'"),
    ("backend", "fast", "got 'fast'"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), WRONG_SCAN)
def test_the_scan_names_the_argument_that_does_not_fit(name, wrong, said):
    with pytest.raises(ValueError, match=said) as error:
        gdn2_scan(**scan_arguments() | {name: wrong})
    assert str(error.value).startswith(name)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ([0, 5], "list"),
        (torch.tensor([0]), "N >= 1"),
        (torch.tensor([[0, 5]]), "N >= 1"),
        (torch.tensor([0.0, 5.0]), "torch.float32"),
        (torch.tensor([1, 5]), "start at 0"),
        (torch.tensor([0, 3, 2, 5]), r"got \[0, 3, 2, 5\]"),
        (torch.tensor([0, 3]), "end at T = 5"),
    ],
)
def test_offsets_must_rise_from_zero_to_the_last_token(wrong, said):
    arguments = {name: x[:1] for name, x in scan_arguments().items()}
    with pytest.raises(ValueError, match=said) as error:
        gdn2_scan(**arguments, cu_seqlens=wrong)
    assert str(error.value).startswith("cu_seqlens")


@pytest.mark.parametrize("name", ["k", "e", "z", "g"])
def test_the_delta_scan_names_its_own_arguments(name):
    x = scan_arguments()
    arguments = {"q": x["q"], "k": x["k"], "e": x["b"], "z": x["v"], "g": x["g"]}
    with pytest.raises(ValueError, match="must have shape") as error:
        delta_scan(**arguments | {name: torch.rand(B, T + 1, H, K)})
    assert str(error.value).startswith(name)


WRONG_STEP = [
    ("pool", torch.rand(7, H, K), "4 axes"),
    ("pool", torch.rand(7, H, K, V).double(), "torch.float32"),
    ("pool", torch.rand(7, H, V, K), "got"),
    ("slots", torch.tensor([1, 1]), "unique"),
    ("slots", torch.tensor([0, 7]), r"\[0, 7\)"),
    ("slots", torch.tensor([-1, 0]), r"\[0, 7\)"),
    ("slots", torch.tensor([0.0, 1.0]), "torch.int64"),
    ("slots", torch.tensor([0, 1, 2]), "got"),
    ("q", torch.rand(B, T, H, K), "3 axes"),
    ("w", torch.rand(B, H, K), "got"),
    ("mask", torch.rand(B, 1), "got"),
    ("scale", float("inf"), "finite"),
    ("backend", "chunked", "auto, reference"),
    ("backend", "chunked", "auto, reference, triton, native; got 'chunked'"),
]


@pytest.mark.parametrize(("name", "wrong", "said"), WRONG_STEP)
def test_the_step_names_the_argument_that_does_not_fit_and_changes_nothing(name, wrong, said):
    arguments = step_arguments() | {name: wrong}
    before = arguments["pool"].clone()
    with pytest.raises(ValueError, match=said) as error:
        gdn2_step(**arguments)
    assert str(error.value).startswith(name)
    assert torch.equal(arguments["pool"], before)


def test_a_bool_mask_and_float32_decays_beside_half_precision_are_taken():
    half = {name: x.bfloat16() for name, x in scan_arguments().items()}
    half["g"] = -half["g"].float()
    o, state = gdn2_scan(**half, mask=torch.ones(B, T, dtype=torch.bool))
    assert o.dtype == torch.bfloat16
    assert state.dtype == torch.float32


def test_auto_equals_one_of_the_named_paths():
    for length in (3, 40):
        keys = {name: torch.rand(1, length, 2, 3) for name in ("q", "k", "b")}
        values = {name: torch.rand(1, length, 2, 4) for name in ("v", "w")}
        arguments = keys | values | {"g": -torch.rand(1, length, 2, 3)}
        auto = gdn2_scan(**arguments)[0]
        in_torch = "reference" if length < 16 else "chunked"
        named = gdn2_scan(**arguments, backend="native" if missing() is None else in_torch)[0]
        assert torch.equal(auto, named)
