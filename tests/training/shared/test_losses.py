"""The terms of the supervised loss against their formulas, written out in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from training.shared import losses


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


QUERIES, DOCUMENTS = unit(3, 8), unit(5, 8, seed=1)
GOLD = torch.tensor([0, 1, 2])
NOTHING = torch.zeros(3, 5, dtype=torch.bool)


def test_info_nce_is_its_formula() -> None:
    tau = 0.07
    expected = 0.0
    for row in range(3):
        odds = [math.exp(float(QUERIES[row] @ document) / tau) for document in DOCUMENTS]
        expected -= math.log(odds[row] / sum(odds)) / 3
    assert losses.info_nce(QUERIES, DOCUMENTS, GOLD, NOTHING, tau).item() == pytest.approx(expected, rel=1e-5)


def test_triplet_margin_takes_the_hardest_negative() -> None:
    margin = 0.4
    expected = 0.0
    for row in range(3):
        cosines = (DOCUMENTS @ QUERIES[row]).tolist()
        right = cosines.pop(row)
        expected += max(0.0, margin - right + max(cosines)) / 3
    assert expected > 0
    result = losses.triplet_margin(QUERIES, DOCUMENTS, GOLD, NOTHING, margin)
    assert result.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("loss", [losses.info_nce, losses.triplet_margin])
def test_other_right_answers_are_no_negatives(loss) -> None:  # type: ignore[no-untyped-def]
    excluded = NOTHING.clone()
    excluded[:, 3:] = True
    excluded[0, 0] = True  # the gold document itself always counts
    fewer = loss(QUERIES, DOCUMENTS[:3], GOLD, NOTHING[:, :3], 0.1)
    assert loss(QUERIES, DOCUMENTS, GOLD, excluded, 0.1).item() == pytest.approx(fewer.item(), rel=1e-5)


def test_a_batch_without_negatives_has_no_triplet_loss() -> None:
    queries = QUERIES[:1].clone().requires_grad_()
    result = losses.triplet_margin(queries, DOCUMENTS[:1], GOLD[:1], NOTHING[:1, :1], 0.2)
    result.backward()
    assert result.item() == 0 and torch.isfinite(queries.grad).all()


def test_language_and_divergence_are_sums_over_tokens() -> None:
    logits, reference = torch.randn(4, 6), torch.randn(4, 6)
    goals = torch.tensor([1, 0, 5, 2])
    p, q = logits.softmax(-1), reference.softmax(-1)
    assert losses.language(logits, goals).item() == pytest.approx(-p[range(4), goals].log().sum().item(), rel=1e-5)
    assert losses.divergence(logits, reference).item() == pytest.approx((p * (p / q).log()).sum().item(), rel=1e-4)
    assert losses.divergence(logits, logits.clone()).item() == pytest.approx(0, abs=1e-6)


def test_distance_is_zero_at_the_teacher_and_two_opposite_to_it() -> None:
    assert losses.distance(QUERIES, QUERIES).item() == pytest.approx(0, abs=1e-6)
    assert losses.distance(QUERIES, -QUERIES).item() == pytest.approx(2, abs=1e-6)


def test_relations_count_neighbours_not_places() -> None:
    targets = unit(6, 8, seed=2)
    turned = targets @ torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
    assert losses.relation_divergence(turned, targets, 0.1).item() == pytest.approx(0, abs=1e-5)
    mine, expected = unit(6, 8, seed=4), 0.0
    for row in range(6):
        others = [i for i in range(6) if i != row]
        p = (targets[others] @ targets[row] / 0.1).softmax(0)
        q = (mine[others] @ mine[row] / 0.1).softmax(0)
        expected += (p * (p / q).log()).sum().item() / 6
    assert losses.relation_divergence(mine, targets, 0.1).item() == pytest.approx(expected, rel=1e-4)
    assert losses.relation_divergence(mine[:1], targets[:1], 0.1).item() == 0


def test_the_memory_loss_is_a_cross_entropy() -> None:
    generator = torch.Generator().manual_seed(0)
    memory = F.normalize(torch.randn(3, 5, 8, generator=generator), dim=-1)
    closing = torch.randn(3, 8, generator=generator, requires_grad=True)
    memory[1] = 0  # never closed
    memory[2, 4] = 0  # a small corpus
    memory[0, 2] = F.normalize(memory[0, 0] + 0.01, dim=0)  # the positive in other words
    vectors = F.normalize(closing, dim=-1)
    first = -(memory[0, [0, 1, 3, 4]] @ vectors[0] / 0.1).log_softmax(0)[0]
    last = -(memory[2, :4] @ vectors[2] / 0.1).log_softmax(0)[0]
    found = losses.memory_loss(closing, memory, 0.1)
    torch.testing.assert_close(found, (first + last) / 2)
    found.backward()
    assert closing.grad is not None and closing.grad.isfinite().all() and not closing.grad[1].any()
    assert losses.memory_loss(closing, torch.zeros(3, 5, 8), 0.1) == 0
