"""Rollouts of stage 2: the policy writes reasonings, and each gets its embedding and its reward.

A rollout is one pass: our engine writes the reasoning and returns the state at the token that closes it, so nothing is
computed twice. (128 rollouts of searchr3-mini, one CPU thread: 2.7 s; the states once more by a forward pass over what
was written: 2.4 s on top, equal to 1e-6. Log-probabilities: 0.04 s of the 2.7.)

The environment lives on the first process. It gets the embeddings of all processes, encodes documents with its own
copy of the weights, and sends back scores.
"""

from __future__ import annotations

import dataclasses
import time
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from transformers import PreTrainedModel
from trl.models.utils import unwrap_model_for_generation

from searchr3_embed.adapt.same_text import document_key
from searchr3_embed.conversation import Conversation
from searchr3_embed.engine import decode, forward
from searchr3_embed.engine.forward import Thinker
from training.data.beir import BeirData
from training.data.lines import DataError
from training.data.records import Record
from training.rl.config import RLArguments
from training.rl.corpus.environment import Encode, Environment, EnvironmentSettings
from training.rl.reward import RewardSettings, is_finished, rewards
from training.shared import dev_scores
from training.shared.embedder_trainer import without_wrapper

ENVIRONMENT_FOLDER = "environment"


@dataclasses.dataclass(frozen=True)
class Task:
    """Queries and the corpus that holds their answers.

    Attributes:
        documents: The corpus, all different.
        positives: Query -> numbers of the documents that answer it.
    """

    documents: list[str]
    positives: dict[str, list[int]]

    @classmethod
    def of(cls, records: Iterable[Record], more: Iterable[str] = ()) -> Task:
        """The queries of records, ranked in the documents of the same records and in more.

        Records of one query are one query with the positives of all.

        Raises:
            DataError: A query has no positives.
        """
        numbers: dict[str, int] = {}
        documents: list[str] = []
        positives: dict[str, list[int]] = {}

        def number(text: str) -> int:
            place = numbers.setdefault(document_key(text), len(documents))
            if place == len(documents):
                documents.append(text)
            return place

        for record in records:
            if not record.positives:
                raise DataError(f"query {record.query!r} of source {record.source!r} has no positives")
            mine = positives.setdefault(record.query, [])
            mine += [place for place in dict.fromkeys(map(number, record.positives)) if place not in mine]
            for text in record.negatives:
                number(text)
        for text in more:
            number(text)
        return cls(documents, positives)


@dataclasses.dataclass
class Rollouts:
    """Called by the trainer whenever it needs rollouts (TRL's ``rollout_func``).

    Attributes:
        conversation: The words around the texts.
        task: Queries and corpus.
        settings: Of the environment.
        reward: Of the reward.
        query_length: Most tokens of a query.
        document_length: Most tokens of a document.
        batch_size: Rollouts written at once.
        negatives: Documents that each rollout is to be told from, see ``memory``; 0 for none.
        folder: Where the environment's vectors lie, memory-mapped; None keeps them in memory.
        environment: The corpus under the policy, on the first process; built before the first step unless given.
        seconds: What the rollouts since it was last cleared took.
        judged: What to log of them.
        memory: For the rollouts of this process, the environment's vectors of a positive and of the ``negatives`` best
            other documents, float32 of shape (rollouts, 1 + negatives, dimension); rows of 0 stand for none.
    """

    conversation: Conversation
    task: Task
    settings: EnvironmentSettings
    reward: RewardSettings
    query_length: int
    document_length: int
    batch_size: int
    negatives: int = 0
    folder: Path | None = None
    environment: Environment | None = None
    seconds: defaultdict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    judged: dict[str, float] = dataclasses.field(default_factory=dict)
    memory: Tensor | None = None

    @classmethod
    def of(cls, args: RLArguments, conversation: Conversation, task: Task, folder: Path | None) -> Rollouts:
        """As settings say; ``folder`` as above."""
        return cls(
            conversation,
            task,
            args.environment_settings,
            args.reward_settings,
            query_length=args.query_length,
            document_length=args.document_length,
            batch_size=args.rollout_batch_size,
            negatives=args.memory_negatives if args.memory_weight > 0 else 0,
            folder=folder,
        )

    def restore(self, folder: Path) -> None:
        """Loads the environment of a checkpoint.

        Raises:
            ValueError: It belongs to another corpus or to other settings.
        """
        self.environment = Environment.load(folder / ENVIRONMENT_FOLDER, self.task.documents, self.settings)

    def __call__(self, queries: Sequence[str], trainer: Any) -> dict[str, list[Any]]:
        """Writes one reasoning for each query (equal queries stand together) and scores it.

        Returns:
            What TRL asks for, and ``score``, which reaches the reward function.
        """
        accelerator = trainer.accelerator
        wrapped = unwrap_model_for_generation(trainer.model_wrapped, accelerator)
        with torch.no_grad(), wrapped as outer, accelerator.autocast():
            model = without_wrapper(outer)
            outer.eval()
            began = time.perf_counter()
            prompts = self.prompts(queries)
            # Drawn from the trainer's random state, which checkpoints keep, so that a resumed run samples the same.
            seed = int(torch.randint(2**62, ()))
            write = self._write_with_vllm if trainer.use_vllm else self._write
            written = write(model, prompts, trainer, seed)
            embeddings = self.embeddings(model, queries, written)
            self.seconds["generating"] += time.perf_counter() - began
            mine = _Batch(
                [self.task.positives[query] for query in queries],
                embeddings.cpu().numpy(),
                [generation.finished for generation in written],
                [len(generation.ids) for generation in written],
            )
            everyone = gather_object([mine])
            answer: list[Any] = [None]
            if accelerator.is_main_process:
                answer = [self._judge(model, _Batch.joined(everyone), trainer.state.global_step, trainer)]
            broadcast_object_list(answer)
            outer.train()
        scores, memory = answer[0]
        first = sum(len(batch.finished) for batch in everyone[: accelerator.process_index])
        mine_only = slice(first, first + len(written))
        self.memory = torch.from_numpy(memory[mine_only]) if self.negatives else None
        return {
            "prompt_ids": prompts,
            "completion_ids": [generation.chosen for generation in written],
            "logprobs": [generation.log_probabilities for generation in written],
            "score": scores[mine_only].tolist(),
        }

    def prompts(self, queries: Sequence[str]) -> list[list[int]]:
        """The reasoning turns of queries, up to where the model goes on."""
        distinct = list(dict.fromkeys(queries))
        bodies = [body[: self.query_length] for body in self.conversation.text_ids(distinct)]
        turns = dict(zip(distinct, self.conversation.reasoning_turns(bodies), strict=True))
        return [turns[query] for query in queries]

    def embeddings(self, model: Any, queries: Sequence[str], written: Sequence[decode.Generation]) -> Tensor:
        """Unit vectors of what the reasonings lead to, float32 of shape (rollouts, dimension)."""
        return F.normalize(torch.stack([generation.state for generation in written]).float(), dim=-1)

    def thinker(self, model: PreTrainedModel) -> PreTrainedModel | Thinker:
        """What the engine's loop takes for the policy."""
        return model

    def encoder(self, model: PreTrainedModel) -> Encode:
        """The direct embedding of documents with the weights that the model has when it is called."""

        def encode(texts: Sequence[str]) -> np.ndarray:
            bodies = [body[: self.document_length] for body in self.conversation.text_ids(texts)]
            states = forward.embed(model, self.conversation.direct_turns(bodies))
            return F.normalize(states, dim=-1).cpu().numpy()

        return encode

    def _write(
        self, model: PreTrainedModel, prompts: list[list[int]], trainer: Any, seed: int
    ) -> list[decode.Generation]:
        return decode.think(
            self.thinker(model),
            prompts,
            embed_token_id=self.conversation.embed_token_id,
            # The embed token is one of the tokens that the policy chooses.
            max_new_tokens=trainer.max_completion_length - 1,
            stop_token_ids=decode.stop_token_ids(model),
            batch_size=min(len(prompts), self.batch_size),
            distinct=self.conversation.prompts.distinct_tokens,
            temperature=trainer.temperature,
            generator=torch.Generator(model.device).manual_seed(seed),
            log_probabilities=True,
        )

    def _write_with_vllm(
        self, model: PreTrainedModel, prompts: list[list[int]], trainer: Any, seed: int
    ) -> list[decode.Generation]:
        """Not tested: no machine of ours has vLLM. The states take a forward pass over what it wrote."""
        token = self.conversation.embed_token_id
        chosen, odds = trainer._generate_single_turn(prompts, None, {}, trainer.num_generations)
        finished = [is_finished(ids, token) for ids in chosen]
        ids = [row[:-1] if row[-1:] and row[-1] in trainer.eos_token_ids else row for row in chosen]
        turns = [[*prompt, *row, token] for prompt, row in zip(prompts, ids, strict=True)]
        states = forward.embed(model, turns, batch_size=self.batch_size)
        return [decode.Generation(*row) for row in zip(ids, finished, states, chosen, odds, strict=True)]

    def _judge(
        self, model: PreTrainedModel, batch: _Batch, step: int, trainer: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        encode = self.encoder(model)
        began = time.perf_counter()
        if self.environment is None:
            self.environment = Environment.build(self.task.documents, encode, self.settings, folder=self.folder)
        built = time.perf_counter()
        done = [row for row, good in enumerate(batch.finished) if good]
        positives = [batch.positives[row] for row in done]
        outcome = self.environment.step(batch.embeddings[done], positives, encode, step, self.negatives)
        scores = rewards(outcome, batch.finished, batch.lengths, self.reward)
        self.seconds["building"] += built - began
        self.seconds["refreshing"] += time.perf_counter() - built
        groups = np.array(batch.finished).reshape(-1, trainer.num_generations)
        self.judged = {
            "format_rate": float(np.mean(batch.finished)),
            "failed_groups": float(np.mean(~groups.any(axis=1))),
            "reasoning_tokens": float(np.mean(batch.lengths)),
            "refreshed": float(outcome.refreshed),
            "share_refreshed": outcome.share_refreshed,
            "staleness": outcome.staleness,
            "seconds_encoding": outcome.seconds_encoding,
            "seconds_search": outcome.seconds_search,
            "seconds_graph": outcome.seconds_graph,
        }
        if done:
            self.judged["best_rank"] = float(np.mean([ranks.min() for ranks in outcome.ranks]))
            self.judged["similarity"] = float(np.mean([values.max() for values in outcome.similarities]))
        if not self.negatives:
            return scores, None
        memory = np.zeros((len(batch.finished), 1 + self.negatives, batch.embeddings.shape[1]), dtype=np.float32)
        for row, mine, others in zip(done, positives, outcome.negatives, strict=True):
            # Another positive at every step; the choice needs no random state.
            rows = np.array([mine[step % len(mine)], *others[others >= 0]])
            memory[row, : len(rows)] = self.environment.corrected(rows)
        return scores, memory


@dataclasses.dataclass(frozen=True)
class _Batch:
    """What the environment needs to know of the rollouts of one process, or of all."""

    positives: list[list[int]]
    embeddings: np.ndarray
    finished: list[bool]
    lengths: list[int]

    @classmethod
    def joined(cls, batches: Sequence[_Batch]) -> _Batch:
        return cls(
            [rows for batch in batches for rows in batch.positives],
            np.concatenate([batch.embeddings for batch in batches]),
            [good for batch in batches for good in batch.finished],
            [length for batch in batches for length in batch.lengths],
        )


def exact_rewards(settings: RewardSettings) -> dev_scores.Judge:
    """The reward in the corpus of a dev set, which is small enough to be encoded whole."""

    def judge(data: BeirData, queries: Tensor, documents: Tensor, written: Sequence[decode.Generation]) -> np.ndarray:
        names = {name: place for place, name in enumerate(data.documents)}
        positives = [[names[name] for name, score in data.qrels[query].items() if score > 0] for query in data.queries]
        unread = iter(documents.cpu().numpy())

        def encode(texts: Sequence[str]) -> np.ndarray:
            return np.stack([next(unread) for _ in texts])

        fixed = EnvironmentSettings(neighbours=0, refresh="none")
        environment = Environment.build(list(data.documents.values()), encode, fixed, progress=False)
        outcome = environment.step(queries.cpu().numpy(), positives, encode, 0)
        return rewards(outcome, [g.finished for g in written], [len(g.ids) for g in written], settings)

    return judge
