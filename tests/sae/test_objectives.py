"""Loss and gradient of every architecture, against the papers' formulas in float64."""

from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.config.architectures import (
    BatchTopKConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    ReluAprilConfig,
    ReluConfig,
    TiedConfig,
    TopKConfig,
)
from pipeline.sae.architecture import architecture_of, measure
from pipeline.sae.sae import SAE
from pipeline.sae.stack import Stack, member_of, stacked, to_state

D_IN, D_SAE, ROWS = 5, 12, 7
ARCHS = [
    ReluConfig(l1=0.3),
    ReluAprilConfig(l1=0.3),
    TiedConfig(l1=0.3),
    GatedConfig(l1=0.3),
    TopKConfig(k=3),
    BatchTopKConfig(k=3),
    MatryoshkaConfig(k=3, prefixes=3),
    JumpReluConfig(coefficient=0.2, bandwidth=0.4, threshold=0.3),
]
every_arch = pytest.mark.parametrize("arch", ARCHS, ids=lambda arch: arch.kind)


def make_stack(arch, *, members: int = 1, seed: int = 0, dtype=torch.float64) -> Stack:
    """SAEs with every parameter away from where it starts."""
    kind = architecture_of(arch, d_in=D_IN, d_sae=D_SAE)
    saes = [SAE(arch, d_in=D_IN, d_sae=D_SAE, seed=seed + m).to(dtype) for m in range(members)]
    params = stacked(saes, kind)
    generator = torch.Generator().manual_seed(seed + 1)
    for name, p in params.items():
        if name in kind.trained:
            p.add_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(dtype))
    return Stack(params, kind)


def make_rows(*, n: int = ROWS, seed: int = 0, dtype=torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed + 100)
    return torch.randn(n, D_IN, generator=generator, dtype=torch.float64).to(dtype)


def learn(stack: Stack, x: torch.Tensor, **how):
    coefficient = torch.full((stack.n_members,), stack.arch.coefficient, dtype=x.dtype)
    return stack.learn(x, coefficient=coefficient, **how)


def numbers(tensors, m: int = 0) -> dict[str, np.ndarray]:
    return {name: p[m].detach().numpy().copy() for name, p in tensors.items()}


def assert_slopes(loss, params, grads, names) -> None:
    """Gradients are finite differences of `loss(params)`."""
    for name in names:
        for i in np.ndindex(*params[name].shape):
            ahead, behind = deepcopy(params), deepcopy(params)
            ahead[name][i] += 1e-6
            behind[name][i] -= 1e-6
            slope = (loss(ahead) - loss(behind)) / 2e-6
            assert grads[name][0][i].item() == pytest.approx(slope, rel=1e-5, abs=1e-7), (name, i)


def relu(x):
    return np.maximum(x, 0)


def latents_by_the_formula(p, x, arch) -> np.ndarray:
    pre = (x - p["b_dec"]) @ p["E"].T + p["b_enc"]
    match arch.kind:
        case "gated":
            return relu(np.exp(p["r_mag"]) * pre + p["b_mag"]) * (pre + p["b_gate"] > 0)
        case "topk":
            kept = np.argsort(-pre, axis=1)[:, : arch.k]
            return np.array([[relu(v) if i in k else 0 for i, v in enumerate(row)]
                             for row, k in zip(pre, kept, strict=True)])  # fmt: skip
        case "batchtopk" | "matryoshka":
            smallest = np.sort(pre.ravel())[-arch.k * len(x)]
            return relu(pre) * (pre >= smallest)
        case "jumprelu":
            return pre * (pre > np.exp(p["log_threshold"]))
        case _:
            return relu(pre)


def loss_by_the_formula(p, x, arch, *, frozen=None) -> float:
    """Row means of everything that is minimised; what the paper freezes comes from `frozen`."""
    frozen = frozen or p
    if arch.kind == "tied":
        p = p | {"E": p["W_dec"]}
    z = latents_by_the_formula(p, x, arch)
    n = len(x)
    error = ((z @ p["W_dec"] + p["b_dec"] - x) ** 2).sum() / n
    match arch.kind:
        case "relu" | "tied":
            return error + arch.l1 * np.abs(z).sum() / n
        case "relu-april":
            return error + arch.l1 * (z * np.linalg.norm(p["W_dec"], axis=1)).sum() / n
        case "gated":
            gate = relu((x - p["b_dec"]) @ p["E"].T + p["b_gate"])
            through = gate @ frozen["W_dec"] + frozen["b_dec"]
            return error + arch.l1 * gate.sum() / n + ((through - x) ** 2).sum() / n
        case "matryoshka":
            ends = [D_SAE // 4, D_SAE // 2, D_SAE]
            nested = [z[:, :end] @ p["W_dec"][:end] + p["b_dec"] for end in ends]
            return sum(((x_hat - x) ** 2).sum() for x_hat in nested) / n / len(ends)
        case "jumprelu":
            return error + arch.coefficient * D_IN * (z > 0).sum() / n
        case _:
            return error


@pytest.mark.parametrize("seed", range(3))
@every_arch
def test_the_loss_is_the_formula(arch, seed):
    stack, x = make_stack(arch, seed=seed), make_rows(seed=seed)
    expected = loss_by_the_formula(numbers(stack.params), x.numpy(), arch)
    parts = learn(stack, x)
    assert parts.total.item() == pytest.approx(expected, rel=1e-12)
    z = latents_by_the_formula(numbers(stack.params), x.numpy(), arch)
    np.testing.assert_array_equal(parts.counts[0], (z > 0).sum(0))
    assert parts.l1.item() == pytest.approx(z.sum() / ROWS)


@every_arch
def test_an_sae_of_these_parameters_encodes_and_decodes_by_the_formula(arch):
    stack, x = make_stack(arch), make_rows()
    p = numbers(stack.params)
    z = latents_by_the_formula(p, x.numpy(), arch)
    if "threshold" in p:
        stack.params["threshold"].fill_(z[z > 0].min() - 1e-9)
    sae = SAE(arch, d_in=D_IN, d_sae=D_SAE).double()
    sae.load_state_dict(to_state(member_of(stack.params, 0)))
    contexts = torch.stack([x + 1, x])
    np.testing.assert_allclose(sae.encode(contexts)[1].detach(), z, rtol=1e-10)
    x_hat = z @ p["W_dec"] + p["b_dec"]
    np.testing.assert_allclose(sae(contexts)[1].detach(), x_hat, rtol=1e-10)


def test_measures_are_their_definitions():
    stack, x = make_stack(ReluConfig(l1=0.3)), make_rows()
    parts = replace(learn(stack, x), aux=torch.ones(1, dtype=torch.float64))
    p, rows = numbers(stack.params), x.numpy()
    z = latents_by_the_formula(p, rows, ReluConfig())
    left = ((z @ p["W_dec"] + p["b_dec"] - rows) ** 2).sum()
    spread = ((rows - rows.mean(0)) ** 2).sum()
    assert {name: value.item() for name, value in measure(x, parts).items()} == pytest.approx(
        {
            "loss": left / ROWS + 0.3 * z.sum() / ROWS + 1,
            "recon": left / ROWS,
            "sparsity": 0.3 * z.sum() / ROWS,
            "aux": 1.0,
            "l0": (z > 0).sum() / ROWS,
            "l1": z.sum() / ROWS,
            "explained_variance": 1 - left / spread,
        }
    )


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_of_a_batch_of_equal_rows_all_is_finite_but_the_share_of_its_variance(value, rounding):
    x = torch.full((4, D_IN), value, dtype=torch.float64)
    x[::2] *= 1 + rounding
    measured = measure(x, learn(make_stack(ReluConfig()), x))
    assert not measured.pop("explained_variance").isfinite()
    assert all(figure.isfinite() for figure in measured.values())


@every_arch
def test_gradients_are_the_formulas_finite_differences(arch):
    stack, x = make_stack(arch), make_rows()
    learn(stack, x)
    frozen = numbers(stack.params)

    def loss(p) -> float:
        return loss_by_the_formula(p, x.numpy(), arch, frozen=frozen)

    # No output moves with a threshold but by jumps: see the next test.
    smooth = [name for name in stack.arch.trained if name != "log_threshold"]
    assert_slopes(loss, frozen, stack.grads, smooth)


def test_a_threshold_feels_its_neighbourhood_as_the_estimator_says():
    """Rajamanoharan et al. 2024, equations 11 and 12, pair by pair."""
    arch = ARCHS[-1]
    assert isinstance(arch, JumpReluConfig) and arch.coefficient is not None
    stack, rows = make_stack(arch), make_rows(n=50)
    learn(stack, rows)
    p, x = numbers(stack.params), rows.numpy()
    pre = (x - p["b_dec"]) @ p["E"].T + p["b_enc"]
    theta = np.exp(p["log_threshold"])
    z = latents_by_the_formula(p, x, arch)
    error = z @ p["W_dec"] + p["b_dec"] - x
    d_l0 = arch.coefficient * D_IN
    expected = np.zeros(D_SAE)
    for b in range(len(x)):
        for i in range(D_SAE):
            if abs(pre[b, i] - theta[i]) < arch.bandwidth / 2:
                d_z = 2 / len(x) * error[b] @ p["W_dec"][i]
                expected[i] -= theta[i] / arch.bandwidth * d_z + d_l0 / len(x) / arch.bandwidth
    assert (expected != 0).sum() > 3
    np.testing.assert_allclose(stack.grads["log_threshold"][0], expected * theta, rtol=1e-10)


@pytest.mark.parametrize(
    "arch",
    [
        TopKConfig(k=3),
        BatchTopKConfig(k=2, k_aux=3),
        GatedConfig(l1=0.3, k_aux=3),
        JumpReluConfig(coefficient=0.2, bandwidth=0.4, threshold=0.3, k_aux=3),
    ],
    ids=lambda a: a.kind,
)
def test_dead_latents_learn_what_the_living_leave_over(arch):
    stack, x = make_stack(arch), make_rows()
    dead = torch.zeros(1, D_SAE, dtype=torch.bool)
    dead[0, [1, 4, 5, 9]] = True
    p = numbers(stack.params)
    left = x.numpy() - latents_by_the_formula(p, x.numpy(), arch) @ p["W_dec"] - p["b_dec"]

    def aux_loss(p) -> float:
        pre = (x.numpy() - p["b_dec"]) @ p["E"].T + p["b_enc"]
        total = 0.0
        for row, e in zip(pre, left, strict=True):
            best = sorted([1, 4, 5, 9], key=lambda i: -row[i])[:3]
            total += ((e - sum(relu(row[i]) * p["W_dec"][i] for i in best)) ** 2).sum()
        return total / ROWS / 8

    plain = learn(stack, x)
    without = {name: g.clone() for name, g in stack.grads.items()}
    parts = learn(stack, x, dead=dead)
    assert (parts.aux - plain.aux).item() == pytest.approx(aux_loss(p), rel=1e-12)
    assert plain.aux.item() == 0 or arch.kind == "gated"  # the gate's own error
    assert parts.recon.item() == plain.recon.item()
    assert parts.total.item() == pytest.approx(
        (plain.total - plain.aux + parts.aux).item(), rel=1e-12
    )
    added = {name: stack.grads[name] - before for name, before in without.items()}
    assert_slopes(aux_loss, p, added, stack.arch.trained)


def require_kernels(stack: Stack) -> None:
    if stack.kernels is None:
        pytest.skip("torch has no MKL here, so that training stays dense")


@every_arch
@pytest.mark.parametrize("members", [1, 3])
def test_the_sparse_path_gives_the_dense_ones_numbers(arch, members):
    x = make_rows(n=200, dtype=torch.float32)
    stack = make_stack(arch, members=members, dtype=torch.float32)
    require_kernels(stack)
    dead = torch.zeros(members, D_SAE, dtype=torch.bool)
    dead[0, ::3] = True
    dense = learn(stack, x, dead=dead)
    grads = {name: stack.grads[name].clone() for name in stack.arch.trained}
    if "threshold" in stack.params:
        stack.params["threshold"].zero_()
    sparse = learn(stack, x, dead=dead, sparse=True)
    torch.testing.assert_close(vars(sparse), vars(dense), rtol=2e-5, atol=2e-5)
    now = {name: stack.grads[name] for name in stack.arch.trained}
    torch.testing.assert_close(now, grads, rtol=2e-5, atol=2e-5)


@every_arch
@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_each_member_of_a_stack_learns_as_it_would_alone(arch, sparse):
    x = make_rows(n=40, dtype=torch.float32)
    stack = make_stack(arch, members=3, dtype=torch.float32)
    if sparse:
        require_kernels(stack)
    coefficient = torch.tensor([0.1, 0.5, 2.0])
    alone = [stack.subset([m]) for m in range(3)]
    together = stack.learn(x, coefficient=coefficient, sparse=sparse)
    for m, one in enumerate(alone):
        parts = one.learn(x, coefficient=coefficient[m : m + 1], sparse=sparse)
        torch.testing.assert_close(parts.total[0], together.total[m])
        for name in stack.arch.trained:
            torch.testing.assert_close(
                one.grads[name][0], stack.grads[name][m], atol=1e-6, rtol=1e-4
            )


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "sparse"])
def test_latents_that_are_all_silent_leave_the_bias_alone_to_learn(sparse):
    stack = make_stack(ReluConfig(), dtype=torch.float32)
    if sparse:
        require_kernels(stack)
    stack.params["b_enc"].fill_(-1e4)
    parts = learn(stack, make_rows(dtype=torch.float32), sparse=sparse)
    assert parts.l1.item() == 0 and not parts.counts.any()
    assert not stack.grads["E"].any() and not stack.grads["W_dec"].any()
    assert stack.grads["b_dec"].all()


def test_projected_gradients_are_at_right_angles_to_their_rows():
    stack = make_stack(ReluConfig())
    stack.renormalise()
    learn(stack, make_rows())
    before = stack.grads["W_dec"].clone()
    stack.project()
    along = (stack.grads["W_dec"] * stack.params["W_dec"]).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along))
    taken = before - stack.grads["W_dec"]
    cosine = torch.nn.functional.cosine_similarity(taken, stack.params["W_dec"], dim=-1).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))


def test_clipping_shrinks_each_member_to_the_norm_and_no_further():
    stack = make_stack(ReluConfig(), members=2)
    learn(stack, make_rows())
    names = stack.arch.trained
    for name in names:
        stack.grads[name][1] *= 1e-6
    before = {name: stack.grads[name].clone() for name in names}

    def norms(grads) -> torch.Tensor:
        return torch.cat([grads[name].flatten(1) for name in names], 1).norm(dim=1)

    long, short = norms(before)
    assert long > 0.5 > short
    stack.clip(0.5)
    torch.testing.assert_close(norms(stack.grads), torch.stack([torch.full_like(long, 0.5), short]))
    for name in names:
        assert torch.equal(stack.grads[name][1], before[name][1])
        torch.testing.assert_close(stack.grads[name][0], before[name][0] * (0.5 / long))


def test_renormalising_keeps_directions_and_brings_rows_to_unit_norm():
    stack = make_stack(TopKConfig(k=3), members=2)
    before = torch.nn.functional.normalize(stack.params["W_dec"], dim=-1)
    stack.params["W_dec"].mul_(torch.linspace(0.1, 9, D_SAE, dtype=torch.float64)[:, None])
    stack.params["W_dec"][:, 3] = 0
    stack.renormalise()
    before[:, 3] = 0
    torch.testing.assert_close(stack.params["W_dec"], before)
    free = make_stack(ReluAprilConfig())
    kept = free.params["W_dec"].clone()
    free.renormalise()
    assert torch.equal(free.params["W_dec"], kept)
