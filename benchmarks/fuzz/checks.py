"""What must hold of a block of texts."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from benchmarks.fidelity import stock_vectors
from benchmarks.fuzz.nasty_texts import is_broken
from benchmarks.fuzz.subjects import ONE_AT_A_TIME, Subject
from benchmarks.fuzz.ties import gap_of_first_difference
from searchr3_embed.conversation import Conversation
from searchr3_embed.files import shorten
from searchr3_embed.kinds import encoder_with_thinker

MOST_DIFFERENCE = 1e-4
MOST_GAP = 1e-4
# Of the thinking rows, how many may be ties.
MOST_TIES = 0.0005
# So many failures are kept in full; all are counted.
_KEPT = 50


@dataclasses.dataclass
class Findings:
    """What was found so far.

    Attributes:
        counts: Texts, refusals, thinking rows, ties and failures, by name.
        largest: Differences by name.
        failures: What is wrong, each with its text.
    """

    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    largest: dict[str, float] = dataclasses.field(default_factory=dict)
    failures: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def failed(self, what: str, text: str, detail: str = "") -> None:
        """Notes that something is wrong."""
        self.counts["failures"] += 1
        if len(self.failures) < _KEPT:
            self.failures.append({"what": what, "text": shorten(ascii(text), 300), "detail": shorten(detail, 500)})

    def difference(self, name: str, value: float) -> None:
        """Notes how far apart two vectors are."""
        self.largest[name] = max(self.largest.get(name, 0.0), value)

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file."""
        return {"counts": dict(self.counts), "largest": self.largest, "failures": self.failures}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Findings:
        """As :meth:`as_dict` gave it."""
        return cls(Counter(values["counts"]), dict(values["largest"]), list(values["failures"]))


class PlainTokenizer:
    """A conversation's tokenizer that has never heard of any control token.

    Args:
        talk: The conversation.
    """

    def __init__(self, talk: Conversation) -> None:
        settings = json.loads(talk._template_tokenizer.to_str())
        unknown = settings["model"].get("unk_token")
        self.control = {
            token["id"]: token["content"] for token in settings["added_tokens"] if token["content"] != unknown
        }
        self.backend = Tokenizer.from_str(json.dumps(settings | {"added_tokens": [], "post_processor": None}))

    def ids(self, text: str) -> list[int]:
        """Token ids of a bare text."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def control_ids(self, ids: Sequence[int]) -> list[int]:
        """Those that are control tokens, in order."""
        return [token for token in ids if token in self.control]


def check_block(subject: Subject, texts: Sequence[str], thinking: int, findings: Findings) -> None:
    """Puts texts through a subject in every way.

    Args:
        subject: What is tried.
        texts: Any.
        thinking: How many of them think, from the first on; a checkpoint thinks much longer than it reads.
        findings: Where to note what is found.
    """
    findings.counts["texts"] += len(texts)
    for text in texts:
        if is_broken(text):
            check_refused(subject, text, findings)
    good = [text for text in texts if not is_broken(text)]
    if not good:
        return
    thoughtful, quick = good[:thinking], good[thinking:]
    check_tokens(subject, good, findings)
    check_documents(subject, good, findings)
    subject.think(False)
    check_quick_queries(subject, quick, findings)
    subject.think(True)
    check_thinking(subject, thoughtful, findings)
    if subject.embedder.question_side is not None and thoughtful:
        ours = _vectors("encode_document", subject.embedder.encode_document, thoughtful, findings)
        stock = _vectors(
            "stock", lambda batch: stock_vectors(subject.embedder, batch, "document"), thoughtful, findings
        )
        compare("encoder against the stock class", thoughtful, ours, stock, findings)


def check_refused(subject: Subject, text: str, findings: Findings) -> None:
    """A lone surrogate is refused by a ValueError that says so, whichever way it comes, also among good texts."""
    for name, way in subject.ways().items():
        for batch in ([text], ["good", text]):
            if len(batch) > 1 and name in ONE_AT_A_TIME:
                continue
            try:
                way(batch)
            except ValueError as error:
                if "surrogate" not in str(error) or isinstance(error, UnicodeError):
                    findings.failed(f"{name}: a lone surrogate is not named", text, repr(error))
            except Exception as error:
                findings.failed(f"{name}: a lone surrogate", text, repr(error))
            else:
                findings.failed(f"{name}: a lone surrogate was accepted", text)
    findings.counts["refused"] += 1


def check_tokens(subject: Subject, texts: Sequence[str], findings: Findings) -> None:
    """No text brings a control token into a turn, and an encoder reads what the stock class reads."""
    embedder, talk = subject.embedder, subject.embedder.conversation
    plain = PlainTokenizer(talk)
    turns: dict[str, Callable[[Sequence[str]], list[list[int]]]] = {"reasoning": talk.reasoning_ids}
    if embedder.question_side is None:
        turns["direct"] = talk.direct_ids
    own = {name: plain.control_ids(turn(["a"])[0]) for name, turn in turns.items()}
    for text in texts:
        body = talk.text_ids([text])[0]
        if smuggled := plain.control_ids(body):
            findings.failed("a control token got in", text, str([plain.control[token] for token in smuggled]))
        if body != plain.ids(text):
            findings.failed("token ids are not those of plain text", text)
        for name, turn in turns.items():
            if plain.control_ids(turn([text])[0]) != own[name]:
                findings.failed(f"the {name} turn holds other control tokens than its template", text)
    first: Any = embedder[0]
    for start in range(0, len(texts), 32):
        part = list(texts[start : start + 32])
        stock = first.tokenizer(part, truncation=True, max_length=embedder.max_seq_length)["input_ids"]
        if embedder.question_side is None:
            ours = talk.direct_ids(part)
        else:
            ours = encoder_with_thinker.token_ids(embedder, part, "", None)
        for text, mine, theirs in zip(part, ours, stock, strict=True):
            if mine != list(theirs):
                findings.failed("the stock class reads other tokens", text)


def check_documents(subject: Subject, texts: list[str], findings: Findings) -> None:
    """Documents: in a batch, one by one, and through both integrations."""
    batch = _vectors("encode_document", subject.embedder.encode_document, texts, findings)
    single = _vectors("langchain embed_documents", subject.langchain.embed_documents, texts, findings, at_once=1)
    others = _vectors("llama_index documents", subject.llama_index.get_text_embedding_batch, texts, findings)
    compare("documents, batch against single", texts, batch, single, findings)
    compare("documents, core against LlamaIndex", texts, batch, others, findings)


def check_quick_queries(subject: Subject, texts: list[str], findings: Findings) -> None:
    """Queries that do not think."""
    ways = subject.ways()
    batch = _vectors("encode_query", ways["encode_query(reason=False)"], texts, findings)
    single = _vectors("llama_index query", ways["llama_index get_query_embedding"], texts, findings)
    compare("queries, batch against single", texts, batch, single, findings)


def check_thinking(subject: Subject, texts: list[str], findings: Findings) -> None:
    """Queries that think: in a batch, one by one, and through both integrations; differing choices must be ties."""
    embedder, ways = subject.embedder, subject.ways()
    findings.counts["thinking"] += len(texts)
    traces: list[Any] = _call("reason", lambda batch: embedder.reason(batch, batch_size=64), texts, findings)
    batch = [None if trace is None else trace.embedding for trace in traces]
    query = _vectors("encode_query", lambda part: embedder.encode_query(part, batch_size=64), texts, findings)
    single = _vectors("langchain query", ways["langchain embed_query"], texts, findings)
    others = _vectors("llama_index query", ways["llama_index get_query_embedding"], texts, findings)
    compare("reason against encode_query", texts, batch, query, findings)
    compare("thinking, LangChain against LlamaIndex", texts, single, others, findings)
    name = "thinking, batch against single"
    for text, trace, vector in zip(texts, traces, single, strict=True):
        if trace is None or vector is None:
            continue
        distance = float(np.abs(trace.embedding - vector).max())
        # The single call is made again where something differs, for its words.
        gap = gap_of_first_difference(embedder, trace, embedder.reason(text)) if distance > MOST_DIFFERENCE else None
        if gap is None:
            compare(name, [text], [trace.embedding], [vector], findings)
        elif gap <= MOST_GAP:
            findings.counts["ties"] += 1
            findings.difference("gap of a tie", gap)
        else:
            findings.failed(f"{name}: another token was chosen, which was no tie", text, f"{gap:.3g}")


def compare(name: str, texts: Sequence[str], one: Sequence[Any], other: Sequence[Any], findings: Findings) -> None:
    """Two vectors of each text differ by 1e-4 at most; None stands for one that could not be had."""
    for text, a, b in zip(texts, one, other, strict=True):
        if a is None or b is None:
            continue
        distance = float(np.abs(np.asarray(a) - np.asarray(b)).max())
        findings.difference(name, distance)
        if not distance <= MOST_DIFFERENCE:
            findings.failed(name, text, f"the vectors differ by {distance:.3g}")


def _vectors(
    name: str, way: Callable[[list[str]], Any], texts: Sequence[str], findings: Findings, at_once: int | None = None
) -> list[Any]:
    """The vectors of texts, checked to be finite."""
    vectors = _call(name, way, texts, findings, at_once)
    for text, vector in zip(texts, vectors, strict=True):
        if vector is not None and not np.isfinite(vector).all():
            findings.failed(f"{name}: the vector is not finite", text)
    return vectors


def _call(
    name: str, way: Callable[[list[str]], Any], texts: Sequence[str], findings: Findings, at_once: int | None = None
) -> list[Any]:
    """One result for each text. Where a batch fails, its texts are tried one by one; None for those that fail."""
    size, results = at_once or len(texts), []
    for start in range(0, len(texts), max(size, 1)):
        part = list(texts[start : start + size])
        try:
            results += list(way(part))
            continue
        except Exception as error:
            if len(part) == 1:
                findings.failed(f"{name}: a call failed", part[0], repr(error))
                results.append(None)
                continue
            alone = [_call(name, way, [text], findings)[0] for text in part]
            if all(result is not None for result in alone):
                findings.failed(f"{name}: a batch failed, each of its texts alone did not", part[0], repr(error))
            results += alone
    return results
