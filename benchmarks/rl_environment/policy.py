"""The policy that moves the documents: it samples reasonings and takes real steps of policy gradient."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.rl_environment.setting import Setting
from searchr3_embed.engine import decode, forward
from training.data.records import Record

if TYPE_CHECKING:
    from searchr3_embed import ReasoningEmbedder

# Rows in one forward pass with gradient.
_ROWS = 16
QUERY_TOKENS = 64


@dataclass(frozen=True)
class Rollouts:
    """Reasonings, a group for each record in order; embeddings of shape (records x group, d)."""

    records: list[Record]
    prompts: list[list[int]]
    generations: list[decode.Generation]
    embeddings: np.ndarray


class Policy:
    """The model in training, and what it encodes at the present step."""

    def __init__(self, embedder: ReasoningEmbedder, setting: Setting, documents: list[str]) -> None:
        self.model, self.talk, self.setting = embedder.causal_lm.eval(), embedder.conversation, setting
        self.turns = dict(zip(documents, self._turns(documents, setting.document_tokens), strict=True))
        # No weight decay, and no dropout: all that moves the documents is the gradient.
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=setting.learning_rate, weight_decay=0.0)
        # Without it the policy soon writes one thing only, and then no reward teaches or tells anything.
        self.start = copy.deepcopy(self.model).requires_grad_(False) if setting.beta > 0 else None
        self.generator = torch.Generator(self.model.device).manual_seed(setting.seed)
        self.known: dict[str, np.ndarray] = {}
        self.seconds, self.tokens, self.asked = 0.0, 0, 0

    def _turns(self, texts: Sequence[str], length: int) -> list[list[int]]:
        return self.talk.direct_turns([body[:length] for body in self.talk.text_ids(texts)])

    def encode(self, texts: Sequence[str]) -> np.ndarray:
        """Unit rows of documents; what was encoded since the last update is only looked up."""
        self.asked += sum(len(self.turns[text]) for text in texts)
        missing = [text for text in dict.fromkeys(texts) if text not in self.known]
        if missing:
            began = time.perf_counter()
            states = forward.embed(self.model, [self.turns[text] for text in missing])
            self.known.update(zip(missing, F.normalize(states, dim=-1).cpu().numpy(), strict=True))
            self.seconds += time.perf_counter() - began
            self.tokens += sum(len(self.turns[text]) for text in missing)
        return np.stack([self.known[text] for text in texts])

    def roll_out(self, records: Sequence[Record]) -> Rollouts:
        """Samples a group of reasonings for each query."""
        bodies = [body[:QUERY_TOKENS] for body in self.talk.text_ids([record.query for record in records])]
        prompts = [turn for turn in self.talk.reasoning_turns(bodies) for _ in range(self.setting.group)]
        generations = decode.think(
            self.model,
            prompts,
            embed_token_id=self.talk.embed_token_id,
            max_new_tokens=self.talk.default_max_reasoning_tokens,
            distinct=self.talk.prompts.distinct_tokens,
            temperature=self.setting.temperature,
            generator=self.generator,
        )
        states = torch.stack([generation.state for generation in generations])
        return Rollouts(list(records), prompts, generations, F.normalize(states, dim=-1).cpu().numpy())

    def learn(self, rollouts: Rollouts) -> None:
        """One step of policy gradient."""
        answers = self.encode([record.positives[0] for record in rollouts.records])
        own = np.repeat(np.arange(len(answers)), self.setting.group)
        scores = rollouts.embeddings @ answers.T
        right = scores[np.arange(len(own)), own].copy()
        scores[np.arange(len(own)), own] = -np.inf
        worth = (right - (scores.max(axis=1) if len(answers) > 1 else 0.0)).reshape(-1, self.setting.group)
        advantage = (worth - worth.mean(1, keepdims=True)) / (worth.std(1, keepdims=True) + 1e-4)
        ends = [[*generation.ids, self.talk.embed_token_id] for generation in rollouts.generations]
        tokens = sum(map(len, ends))
        self.optimizer.zero_grad()
        for start in range(0, len(ends), _ROWS):
            rows = range(start, min(start + _ROWS, len(ends)))
            kept, before = max(len(ends[i]) for i in rows), max(len(rollouts.prompts[i]) for i in rows)
            ids = torch.zeros(len(rows), before + kept, dtype=torch.long)
            mask = torch.zeros_like(ids)
            for place, i in enumerate(rows):
                line = slice(before - len(rollouts.prompts[i]), before + len(ends[i]))
                ids[place, line], mask[place, line] = torch.tensor(rollouts.prompts[i] + ends[i]), 1
            ids, mask = ids.to(self.model.device), mask.to(self.model.device)
            odds = self._log_probabilities(self.model, ids, mask, kept)
            weight = torch.tensor(advantage.reshape(-1)[rows], dtype=odds.dtype, device=odds.device)
            terms = -weight[:, None] * odds
            if self.start is not None:
                with torch.no_grad():
                    apart = self._log_probabilities(self.start, ids, mask, kept)
                # The estimator of TRL (Schulman 2020, http://joschu.net/blog/kl-approx.html).
                terms = terms + self.setting.beta * ((apart - odds).exp() - (apart - odds) - 1)
            ((terms * mask[:, -kept:]).sum() / tokens).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.known.clear()

    def _log_probabilities(self, model: Any, ids: Tensor, mask: Tensor, kept: int) -> Tensor:
        """Of the last ``kept`` tokens, shape (rows, kept)."""
        output = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),  # left padding, absolute positions
            use_cache=False,
            logits_to_keep=kept + 1,
        )
        # Tokens that inference bars stay in the denominator: a small bias, and no matter for drift.
        logits = output.logits[:, -kept - 1 : -1].float() / self.setting.temperature
        return logits.log_softmax(dim=-1).gather(2, ids[:, -kept:, None]).squeeze(2)
