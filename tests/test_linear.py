"""Products in every form: as near to the plain one as their bits allow, and each token for itself."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import linear

from ringfence.model.linear import FEW, Int4, Int8, Plain

FORMS = {"int8": Int8.of, "int4": Int4.of}


def made(rows, columns, seed=0):
    torch.manual_seed(seed)
    return torch.randn(rows, columns).bfloat16()


@pytest.mark.parametrize("count", [1, FEW, FEW + 1, 40])
@pytest.mark.parametrize(("form", "error"), [("int8", 0.02), ("int4", 0.12)])
def test_product_is_as_near_as_its_bits_allow(form, error, count):
    weight, x, bias = made(96, 128), made(count, 128, 1), made(96, 1, 2)[:, 0]
    exact = linear(x, weight, bias).float()
    said = FORMS[form](weight, bias)(x).float()
    assert said.shape == exact.shape
    assert (said - exact).norm() / exact.norm() < error


@pytest.mark.parametrize("count", [0, 1, 2, 40])
@pytest.mark.parametrize("columns", [128, 21])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("there", [True, False])
def test_plain_product_is_the_plain_product(count, columns, biased, dtype, error, there, monkeypatch):
    if not there:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    weight, x = made(96, columns).to(dtype), made(count, columns, 1).to(dtype)
    bias = made(96, 1, 2)[:, 0].to(dtype) if biased else None
    said = Plain.of(weight, bias)(x)
    exact = x.double() @ weight.double().T + (bias.double() if biased else 0)
    assert said.is_contiguous()
    assert (said.dtype, said.shape) == (dtype, exact.shape)
    assert torch.allclose(said.double(), exact, atol=error)


@given(st.integers(FEW + 1, 60), st.integers(FEW + 1, 60), st.sampled_from(sorted(FORMS)))
def test_what_a_token_gives_does_not_depend_on_the_tokens_beside_it(one, other, form):
    product, x = FORMS[form](made(64, 96)), made(60, 96, 1)
    shared = min(one, other)
    assert torch.equal(product(x[:one])[:shared], product(x[:other])[:shared])


def test_weights_that_came_from_groups_of_sixteen_steps_stay_what_they_are():
    torch.manual_seed(0)
    steps = torch.randint(0, 16, (32, 4, 32))
    steps[..., 0], steps[..., 1] = 0, 15
    weight = (steps * torch.rand(32, 4, 1).bfloat16() + torch.randn(32, 4, 1).bfloat16()).view(32, 128)
    x = made(2, 128, 1)
    exact = x.float() @ weight.float().T
    assert (Int4.of(weight)(x).float() - exact).norm() / exact.norm() < 0.005


@pytest.mark.parametrize("shape", [(30, 64), (32, 40), (1, 1)])
def test_shape_that_four_bits_do_not_fit_has_eight(shape):
    assert isinstance(Int4.of(made(*shape)), Int8)


@pytest.mark.parametrize("columns", [8, 24, 40, 100])
def test_width_that_the_kernel_would_read_beyond_is_computed_all_the_same(columns):
    weight, x = made(24, columns), made(1, columns).bfloat16()
    exact = x.float() @ weight.float().T
    assert (Int8.of(weight)(x).float() - exact).abs().max() < 0.05 * exact.abs().max()


def test_row_of_zeros_gives_zeros():
    for form in FORMS.values():
        for count in (1, 9):
            assert not form(torch.zeros(32, 64).bfloat16())(made(count, 64)).any()
            assert not form(made(32, 64))(torch.zeros(count, 64).bfloat16()).any()
