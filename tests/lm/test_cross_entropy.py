import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pipeline.lm import cross_entropy as ce

N_VOCAB, D_MODEL = 11, 6


class Head:
    """A linear head that remembers how many rows it was given at once."""

    def __init__(self, dtype=torch.float32):
        torch.manual_seed(1)
        self.linear = nn.Linear(D_MODEL, N_VOCAB).to(dtype).requires_grad_(False)
        self.n_rows: list[int] = []

    def logits(self, hidden, /):
        self.n_rows.append(len(hidden))
        return self.linear(hidden)


@pytest.fixture
def batch():
    torch.manual_seed(0)
    return torch.randn(3, 9, D_MODEL), torch.randint(N_VOCAB, (3, 9), dtype=torch.int32)


def plain_mean(head, hidden, tokens):
    logits = head.linear(hidden).double()[:, :-1]
    return F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten().long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("slice_rows", [1, 5, 24, 1000])
def test_the_sum_is_wide_and_does_not_depend_on_the_slices(batch, monkeypatch, slice_rows, dtype):
    monkeypatch.setattr(ce, "CPU_ROWS", slice_rows)
    head, hidden, tokens = Head(dtype), batch[0].to(dtype), batch[1]
    total = ce.cross_entropy_sum(head, hidden, tokens)
    assert total / 24 == pytest.approx(plain_mean(head, hidden, tokens).item(), rel=1e-6)
    assert max(head.n_rows) <= slice_rows
    assert sum(head.n_rows) == 24


@pytest.mark.parametrize("slice_rows", [1, 7, 1000])
def test_the_gradient_is_that_of_the_whole_loss(batch, monkeypatch, slice_rows):
    monkeypatch.setattr(ce, "CPU_ROWS", slice_rows)
    hidden, tokens = batch
    head, scale = Head(), torch.ones(D_MODEL, requires_grad=True)
    loss = ce.backward_cross_entropy(head, hidden * scale, tokens)
    assert scale.grad is not None
    expected_scale = torch.ones(D_MODEL, requires_grad=True)
    expected = plain_mean(head, hidden * expected_scale, tokens)
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    torch.testing.assert_close(scale.grad, expected_scale.grad, rtol=1e-5, atol=1e-7)
    assert max(head.n_rows) <= slice_rows
