"""The causal base: what an encoder is before training, when it only looks back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel, Qwen2Config

from searchr3_embed import ReasoningEmbedder
from tests import tiny
from training.models import causal_bert


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small random bidirectional encoder with the tokenizer of the small checkpoint, embed token left out."""
    folder = tmp_path_factory.mktemp("encoder")
    tokenizer = tiny.bert_tokenizer()
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("base")
    assert causal_bert.main(["--encoder", str(encoder), "--max-length", "64", "--out", str(out)]) == 0
    return out


def test_weights_of_the_encoder_arrive_unchanged(encoder: Path) -> None:
    model, tokenizer = causal_bert.make_causal(str(encoder))
    original = BertModel.from_pretrained(encoder)
    for name, weight in original.named_parameters():
        if "pooler" not in name:
            mine = dict(model.bert.named_parameters())[name]
            assert torch.equal(mine[: len(weight)], weight), name
    ids = torch.tensor([[5, 6, 7, 8]])
    changed = torch.tensor([[5, 6, 7, 9]])
    with torch.no_grad():
        states, others = model.bert(ids).last_hidden_state, model.bert(changed).last_hidden_state
    torch.testing.assert_close(states[:, :3], others[:, :3])  # causal: no token sees the next one
    assert tokenizer.convert_tokens_to_ids("<|embed_token|>") == len(tokenizer) - 1


def test_the_embedding_is_the_mean_of_the_states_that_look_back(encoder: Path, base: Path) -> None:
    embedder = ReasoningEmbedder(str(base), device="cpu")
    text = "tide moon ship water"
    turn = embedder.conversation.direct_ids([text])[0]
    assert embedder.max_seq_length == 64 and turn[-1] == embedder.conversation.embed_token_id
    stock = BertModel.from_pretrained(encoder, is_decoder=True)
    stock.resize_token_embeddings(len(embedder.tokenizer), mean_resizing=False)
    rows = stock.get_input_embeddings().weight.data
    rows[turn[-1]] = rows[turn[0]]  # the embed token begins as the token that begins every text
    with torch.no_grad():
        states = stock.eval()(torch.tensor([turn])).last_hidden_state[0]
        mixed = states[-1] + causal_bert.MEAN_SHARE * states.mean(0)
        expected = torch.nn.functional.layer_norm(mixed, mixed.shape)
    expected = (expected / expected.norm()).numpy()
    assert float(embedder.encode(text) @ expected) > 0.9999


def test_the_base_reads_a_question_twice_and_writes_something(base: Path) -> None:
    embedder = ReasoningEmbedder(str(base), device="cpu")
    trace = embedder.reason("tide moon")
    direct = embedder.conversation.direct_ids(["tide moon"])[0]
    assert trace.prompt_tokens == 2 * len(direct) - 3 and np.isfinite(trace.embedding).all()


def test_bad_input_is_named(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert causal_bert.main(["--encoder", str(encoder), "--max-length", "4096", "--out", str(tmp_path)]) == 2
    assert "from 8 to 128" in capsys.readouterr().err
    Qwen2Config().save_pretrained(tmp_path / "qwen")
    assert causal_bert.main(["--encoder", str(tmp_path / "qwen"), "--out", str(tmp_path / "x")]) == 2
    assert "type 'qwen2'" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert causal_bert.main(["--encoder", str(tmp_path / "nothing"), "--out", str(tmp_path / "x")]) == 2
    assert "nothing" in capsys.readouterr().err
