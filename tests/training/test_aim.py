"""What the loss is made of: the terms of the bound, and how they are weighed."""

from __future__ import annotations

import pytest
import torch

from specmask.training.loss import Aim, LossTerms, draw_masks, loss_terms

LENGTH, ROWS = 16, 8
LENGTHS = torch.tensor([16, 9, 16, 1, 12, 16, 5, 16])


@pytest.fixture
def part(batches) -> tuple[torch.Tensor, ...]:
    order, revealed = draw_masks(0, 0, LENGTHS, LENGTH)
    return batches(0), order, revealed, LENGTHS


def literal(network, part, aim: Aim) -> torch.Tensor:
    """The loss row by row and rank by rank."""
    tokens, order, revealed, lengths = part
    total = torch.zeros(())
    for x, sigma, i, size in zip(tokens, order, revealed, lengths, strict=True):
        hidden = x.clone()
        hidden[sigma[i:]] = network.mask_id
        features = network.features(hidden[None], x[None], sigma[None], size[None])
        q, p = (network.logits(f)[0].log_softmax(-1) for f in features)
        for d in range(int(i), int(size)):
            symbol = x[sigma[d]]
            taught = -(p[d].detach().exp() * q[d]).sum()
            draft = -(1 - aim.distil) * q[d, symbol] + aim.distil * taught
            term = draft - aim.target_weight * p[d, symbol]
            mean = int(size - i) if aim.weighting == "row" else (int(size) + 1) / 2
            total = total + term / mean / ROWS
    return total


@pytest.mark.parametrize(
    "aim",
    [
        Aim(),
        Aim(weighting="token"),
        Aim(target_weight=0.25),
        Aim(distil=1.0),
        Aim("token", 2.0, 0.5),
    ],
    ids=str,
)
def test_loss_and_gradients_are_the_literal_ones(make_network, part, aim: Aim) -> None:
    network, again = make_network(), make_network()
    terms = loss_terms(network, *part, aim=aim)
    expected = literal(again, part, aim)
    torch.testing.assert_close(terms.total, expected, rtol=1e-5, atol=0)
    terms.total.backward()
    expected.backward()
    for (name, one), other in zip(network.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_the_terms_are_the_bound_whatever_is_minimised(make_network, part) -> None:
    def told(terms: LossTerms) -> list[float]:
        return [terms.draft_nll.item(), terms.target_nll.item()]

    plain = loss_terms(make_network(), *part)
    assert told(loss_terms(make_network(), *part, aim=Aim("token", 2.0, 0.5))) == told(plain)
    assert plain.total.item() == pytest.approx(sum(told(plain)))


def test_a_distilled_draft_teaches_the_head_nothing(make_network, part) -> None:
    """The head's gradient comes from the target's own term, however much of the draft's is taught:
    a target that could move towards its draft would be accepted by being bad."""
    gradients = []
    for distil in (0.0, 1.0):
        network = make_network()
        loss_terms(network, *part, aim=Aim(distil=distil)).total.backward()
        gradients.append(network.head.out.weight.grad)
    torch.testing.assert_close(*gradients)
