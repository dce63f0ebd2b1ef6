"""MetaPaths: the mixture is the weighted sum, hard mode computes one path, and the noise is what it says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from supernet.candidate import Candidate
from supernet.metapath import MetaPath, Noise

Randomized = Callable[..., nn.Module]

CANDIDATES = tuple(
    Candidate.model_validate(value)
    for value in (
        {"type": "mb4d", "mlp_ratio": 2, "layer_scale": 0.5},
        {"type": "mb3d", "heads": 2, "key_channels": 4, "value_channels": 4, "mlp_ratio": 2, "layer_scale": 0.5},
        {"type": "test_shift", "hidden_ratio": 0.5},
        "identity",
    )
)


@pytest.fixture
def metapath(randomized: Randomized) -> MetaPath:
    path = randomized(MetaPath(CANDIDATES, width_channels=16, grid=(3, 5)))
    assert isinstance(path, MetaPath)
    with torch.no_grad():
        path.alpha.copy_(torch.tensor([0.5, -0.3, 0.2, 0.1]))
    return path.eval()


@pytest.fixture
def x_BCHW() -> Tensor:
    return torch.randn(2, 16, 3, 5, generator=torch.Generator().manual_seed(1))


def calls_of(metapath: MetaPath) -> dict[str, int]:
    """How often each candidate's module is called from now on."""
    calls = dict.fromkeys(metapath.names, 0)

    def count(name: str) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[name] += 1

        return hook

    for name, module in metapath.candidates.items():
        module.register_forward_pre_hook(count(name))
    return calls


def drawn(metapath: MetaPath, noise: Noise, count: int, *, temperature: float = 1.0, seed: int = 0) -> Tensor:
    """Probabilities of many draws: count, K."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        draws = [
            metapath.probabilities(noise=noise, temperature=temperature, generator=generator) for _ in range(count)
        ]
    return torch.stack(draws)


@pytest.mark.parametrize("width", [16, 8])
def test_the_soft_mixture_is_the_sum_of_all_candidates_weighted_by_their_probabilities(
    metapath: MetaPath, x_BCHW: Tensor, width: int
) -> None:
    x = x_BCHW[:, :width]
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    expected = sum(p * metapath.candidate(index, x, width=width) for index, p in enumerate(probabilities))
    torch.testing.assert_close(metapath.soft(x, probabilities, width=width), expected)


def test_identity_in_the_mixture_is_the_input_itself(metapath: MetaPath, x_BCHW: Tensor) -> None:
    assert torch.equal(metapath.soft(x_BCHW, torch.tensor([0.0, 0.0, 0.0, 1.0]), width=16), x_BCHW)


def test_a_token_candidate_on_a_map_is_run_on_its_tokens_row_by_row(metapath: MetaPath, x_BCHW: Tensor) -> None:
    tokens = metapath.run(1, x_BCHW.flatten(2).transpose(1, 2), width=16)
    folded = tokens.reshape(2, 3, 5, 16).permute(0, 3, 1, 2)
    torch.testing.assert_close(metapath.candidate(1, x_BCHW, width=16), folded)


@pytest.mark.parametrize("chosen", range(4))
def test_hard_mode_computes_the_chosen_path_alone(metapath: MetaPath, x_BCHW: Tensor, chosen: int) -> None:
    calls = calls_of(metapath)
    probabilities = metapath.probabilities(noise="none", temperature=1.0, generator=None)
    y = metapath.hard(x_BCHW.requires_grad_(), probabilities, chosen=chosen, width=16)
    y.sum().backward()  # type: ignore[no-untyped-call]
    # identity needs no module at all
    assert calls == {name: int(index == chosen and name != "identity") for index, name in enumerate(metapath.names)}
    touched = {name.split(".")[1] for name, p in metapath.named_parameters() if p.grad is not None and name != "alpha"}
    assert touched == ({metapath.names[chosen]} - {"identity"})


@pytest.mark.parametrize("chosen", range(4))
def test_the_value_of_the_hard_path_is_exactly_the_candidates(metapath: MetaPath, x_BCHW: Tensor, chosen: int) -> None:
    probabilities = metapath.probabilities(noise="none", temperature=1.0, generator=None)
    y = metapath.hard(x_BCHW, probabilities, chosen=chosen, width=16)
    assert torch.equal(y, metapath.candidate(chosen, x_BCHW, width=16))


def test_the_straight_through_gradient_is_that_of_the_chosen_probability(metapath: MetaPath, x_BCHW: Tensor) -> None:
    direction = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(2))
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4], requires_grad=True)
    (metapath.hard(x_BCHW, probabilities, chosen=0, width=16) * direction).sum().backward()  # type: ignore[no-untyped-call]
    branch = metapath.candidate(0, x_BCHW, width=16) - x_BCHW
    expected = torch.tensor([float((branch * direction).sum().detach()), 0.0, 0.0, 0.0])
    assert probabilities.grad is not None
    torch.testing.assert_close(probabilities.grad, expected, rtol=1e-4, atol=1e-4)


def test_the_alphas_gradients_of_all_hard_paths_add_up_to_the_soft_mixtures(metapath: MetaPath, x_BCHW: Tensor) -> None:
    direction = torch.randn(x_BCHW.shape, generator=torch.Generator().manual_seed(2))

    def gradient(*, chosen: int | None) -> Tensor:
        p = metapath.probabilities(noise="none", temperature=0.7, generator=None)
        if chosen is None:
            total = (metapath.soft(x_BCHW, p, width=16) * direction).sum()
        else:
            total = (metapath.hard(x_BCHW, p, chosen=chosen, width=16) * direction).sum()
        (found,) = torch.autograd.grad(total, [metapath.alpha])
        return found

    hard = torch.stack([gradient(chosen=index) for index in range(4)]).sum(dim=0)
    torch.testing.assert_close(hard, gradient(chosen=None), rtol=1e-4, atol=1e-4)


def test_the_weights_gradient_of_the_hard_path_is_not_scaled_by_its_probability(
    metapath: MetaPath, x_BCHW: Tensor
) -> None:
    weight = dict(metapath.named_parameters())["candidates.mb4d.full.mlp.fc1.weight"]
    p = metapath.probabilities(noise="none", temperature=1.0, generator=None)
    (hard,) = torch.autograd.grad(metapath.hard(x_BCHW, p, chosen=0, width=16).square().sum(), [weight])
    (alone,) = torch.autograd.grad(metapath.candidate(0, x_BCHW, width=16).square().sum(), [weight])
    torch.testing.assert_close(hard, alone)


def test_without_gradients_for_the_alphas_the_hard_path_is_the_candidate_alone(
    metapath: MetaPath, x_BCHW: Tensor
) -> None:
    p = metapath.probabilities(noise="none", temperature=1.0, generator=None).detach()
    metapath.hard(x_BCHW, p, chosen=0, width=16).sum().backward()  # type: ignore[no-untyped-call]
    assert metapath.alpha.grad is None


def test_probabilities_are_the_softmax_of_the_alphas_over_the_temperature(metapath: MetaPath) -> None:
    for temperature in (0.25, 1.0, 4.0):
        p = metapath.probabilities(noise="none", temperature=temperature, generator=None)
        torch.testing.assert_close(p, (metapath.alpha / temperature).softmax(dim=0))


@pytest.mark.parametrize("noise", ["uniform", "gumbel"])
def test_noise_is_added_to_the_alphas_before_the_temperature(metapath: MetaPath, noise: Noise) -> None:
    at_one, at_half = (drawn(metapath, noise, 5, temperature=t).log() for t in (1.0, 0.5))
    torch.testing.assert_close(at_one.diff(dim=1) / 0.5, at_half.diff(dim=1), rtol=1e-3, atol=1e-4)
    assert not torch.equal(drawn(metapath, noise, 5), drawn(metapath, noise, 5, seed=1))


def noise_differences(metapath: MetaPath, noise: Noise) -> Tensor:
    """The noise of the first candidate minus that of the second, in 4,000 draws."""
    log_p = drawn(metapath, noise, 4000).double().log()
    alpha = metapath.alpha.detach().double()
    return (log_p[:, 0] - log_p[:, 1]) - (alpha[0] - alpha[1])


def test_uniform_noise_is_the_papers_between_zero_and_one(metapath: MetaPath) -> None:
    difference = noise_differences(metapath, "uniform")  # of two uniform numbers: a triangle on -1..1
    assert 0.9 < float(difference.max()) < 1.0
    assert -1.0 < float(difference.min()) < -0.9
    assert float(difference.var()) == pytest.approx(1 / 6, rel=0.08)
    assert abs(float(difference.mean())) < 0.03


def test_gumbel_noise_has_gumbels_distribution(metapath: MetaPath) -> None:
    difference = noise_differences(metapath, "gumbel")  # of two Gumbel numbers: logistic
    assert float(difference.var()) == pytest.approx(math.pi**2 / 3, rel=0.1)
    for at in (-2.0, -1.0, 0.0, 1.0, 2.0):
        share = float((difference < at).double().mean())
        assert share == pytest.approx(1 / (1 + math.exp(-at)), abs=0.03)


def test_with_gumbel_noise_a_candidate_wins_with_its_probability(metapath: MetaPath) -> None:
    wins = torch.bincount(drawn(metapath, "gumbel", 4000).argmax(dim=1), minlength=4) / 4000
    expected = metapath.alpha.detach().softmax(dim=0)
    assert float((wins - expected).abs().max()) < 0.03


def test_extreme_uniform_draws_give_no_infinite_noise(metapath: MetaPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for value in (0.0, 1.0 - 2**-24):
        monkeypatch.setattr(torch, "rand", lambda shape, value=value, **_: torch.full(tuple(shape), value))
        p = metapath.probabilities(noise="gumbel", temperature=1.0, generator=torch.Generator())
        assert bool(p.isfinite().all())


def test_a_users_own_block_is_a_candidate_and_elastic(metapath: MetaPath, x_BCHW: Tensor) -> None:
    narrow = metapath.candidate(2, x_BCHW[:, :8], width=8)
    assert narrow.shape == (2, 8, 3, 5)
    module: Any = metapath.candidates["test_shift"]
    assert module.state_at(8)["fc1.weight"].shape == (4, 8, 1, 1)
    metapath.hard(x_BCHW[:, :8], torch.full((4,), 0.25), chosen=2, width=8).sum().backward()  # type: ignore[no-untyped-call]
    gradient = module.full.fc1.weight.grad
    assert bool(gradient[:4, :8].any())
    assert not bool(gradient[4:].any())
    assert not bool(gradient[:, 8:].any())


def test_fresh_alphas_prefer_nothing() -> None:
    path = MetaPath(CANDIDATES, width_channels=8, grid=(2, 2))
    torch.testing.assert_close(
        path.probabilities(noise="none", temperature=1.0, generator=None), torch.full((4,), 0.25)
    )
