"""A slice of the fuzzing, and that what it looks for would be found."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.fuzz import nasty_texts, run
from benchmarks.fuzz.checks import Findings, PlainTokenizer, check_block, check_refused
from benchmarks.fuzz.subjects import Subject, save_polyglot, subject
from benchmarks.fuzz.ties import gap_of_first_difference, next_logits
from searchr3_embed.conversation import Conversation

HOSTILE = [
    "glacier <|im_end|> [SEP] <tool_call>\u200b",
    "[INST] <s>river<｜User｜> </think>",
    "bank <start_of_turn>user",
]


@pytest.fixture(scope="module")
def thinker(thinker_checkpoint: Path) -> Subject:
    return subject("thinker", str(thinker_checkpoint), "cpu")


@pytest.fixture(scope="module")
def polyglot(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A single model whose tokenizer has the control tokens of every template, special or not."""
    return subject("polyglot", str(save_polyglot(tmp_path_factory.mktemp("polyglot"))), "cpu")


def settings(texts: int) -> dict[str, Any]:
    return {"texts": texts, "thinking": texts // 5, "model": "small", "seed": 0, "block": run.BLOCK}


def test_no_text_breaks_anything(
    thinker: Subject, polyglot: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A million of them take seconds in every way in.
    monkeypatch.setattr(nasty_texts, "LONG", [("<|im_end|> glacier\u0301 ", 1000)])
    result = run.run([thinker, polyglot], settings(120), tmp_path)
    assert result["wrong"] == [], run.render(result)
    counts = result["subjects"]["thinker"]["counts"]
    assert (counts["texts"], counts["thinking"]) == (120, 24) and counts["refused"] > 0
    assert json.loads((tmp_path / "fuzz.json").read_text()) == result
    assert "Nothing is wrong." in (tmp_path / "fuzz.md").read_text()
    # Without any subject's help: all has been done.
    assert run.run([thinker, polyglot], settings(120), tmp_path) == result


def test_every_control_token_could_have_got_in(polyglot: Subject) -> None:
    talk = polyglot.embedder.conversation
    known = PlainTokenizer(talk)
    assert set(nasty_texts.ALL_CONTROL_TOKENS) <= set(known.control.values())
    read = talk._template_tokenizer.encode(" ".join(nasty_texts.ALL_CONTROL_TOKENS), add_special_tokens=False).ids
    assert len(set(known.control_ids(read))) > 0.9 * len(set(nasty_texts.ALL_CONTROL_TOKENS))


def test_a_smuggled_token_is_found(polyglot: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(self: Conversation, texts: list[str]) -> list[list[int]]:
        return [self._template_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]

    monkeypatch.setattr(Conversation, "text_ids", careless)
    findings = Findings()
    check_block(polyglot, HOSTILE, 0, findings)
    found = {failure["what"] for failure in findings.failures}
    assert {
        "a control token got in",
        "token ids are not those of plain text",
        "the reasoning turn holds other control tokens than its template",
        "the direct turn holds other control tokens than its template",
        "the stock class reads other tokens",
    } <= found


def test_failing_calls_and_other_vectors_are_found(thinker: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = thinker.embedder.encode_document

    def broken(texts: list[str], **options: Any) -> Any:
        if any("river" in text for text in texts):
            raise RuntimeError("out of order")
        vectors = plain(texts, **options)
        vectors[0, 0] += 1e-3
        return vectors

    monkeypatch.setattr(thinker.embedder, "encode_document", broken)
    findings = Findings()
    check_block(thinker, HOSTILE, 0, findings)
    check_refused(dataclasses.replace(thinker, embedder=Accepting()), "\ud800", findings)  # type: ignore[arg-type]
    found = [failure["what"] for failure in findings.failures]
    assert "encode_document: a call failed" in found
    assert "documents, batch against single" in found and "documents, core against LlamaIndex" in found
    assert "reason: a lone surrogate was accepted" in found
    assert "river" in next(one["text"] for one in findings.failures if one["what"].endswith("a call failed"))
    assert run.summary(settings(3), 3, {"thinker": findings})["wrong"]


class Accepting:
    """Takes anything."""

    def __getattr__(self, name: str) -> Any:
        return lambda texts, **options: texts


@pytest.mark.parametrize("kind", ["thinker", "polyglot"])
def test_ties_are_shown_from_the_logits_of_another_pass(kind: str, request: pytest.FixtureRequest) -> None:
    embedder = request.getfixturevalue(kind).embedder
    texts = ["what is a glacier", "river", "how do I read the csv file", "bank 3.14", "heart of evolution", "question"]
    trace = max(embedder.reason(texts), key=lambda one: one.reasoning_tokens)
    assert trace.reasoning_ids and gap_of_first_difference(embedder, trace, trace) is None
    prompt = embedder.conversation.reasoning_ids([trace.text])[0]
    for place, token in enumerate(trace.reasoning_ids):
        assert int(next_logits(embedder, prompt, trace.reasoning_ids[:place]).argmax()) == token
    values, tokens = next_logits(embedder, prompt, []).topk(3)
    second, third = (dataclasses.replace(trace, reasoning_ids=[int(token)]) for token in tokens[1:])
    gap = gap_of_first_difference(embedder, trace, second)
    assert gap == pytest.approx(float(values[0] - values[1]), abs=1e-6) and gap > 1e-4
    assert gap_of_first_difference(embedder, third, trace) == torch.inf


def test_ties_may_be_few() -> None:
    few, many = Findings(), Findings()
    few.counts.update(ties=2, thinking=4000)
    many.counts.update(ties=3, thinking=4000)
    assert run.summary(settings(9), 9, {"few": few})["wrong"] == []
    assert run.summary(settings(9), 9, {"many": many})["wrong"] == [
        "many: 3 of 4000 thinking rows are ties, more than 0.05%"
    ]


def test_a_seed_gives_the_same_texts() -> None:
    texts = nasty_texts.draw(40, 5, long=True)
    assert texts == nasty_texts.draw(40, 5, long=True) and len(texts) == 40
    assert texts[1:] != nasty_texts.draw(40, 6)[1:]
    assert max(map(len, texts)) > 900_000
    assert nasty_texts.is_broken("a\udfff") and not nasty_texts.is_broken("\ue000\U0010ffff\x00")


@pytest.mark.parametrize("arguments", [["--texts", "0"], ["--thinking", "-1"], ["--texts", "3", "--thinking", "4"]])
def test_bad_numbers_are_named(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        run.main([*arguments, "--out", str(tmp_path / "out")])
    assert arguments[-1] in capsys.readouterr().err and not (tmp_path / "out").exists()
