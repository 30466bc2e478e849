"""Small random checkpoints in the layouts that the package loads."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import (
    BertConfig,
    BertLMHeadModel,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from searchr3_embed.prompt_words import Prompts

EMBED_TOKEN = "<|embed_token|>"
# Enough text for the tokenizers to learn some words and many pieces; other words fall back to letters or bytes.
CORPUS = [
    "how do i read a csv file and sum a column of numbers",
    "what are the symptoms of a common cold in adults and children",
    "the theory of evolution explains how species change over time",
    "which river flows through paris and where does it end",
    "the text is about a question, an answer, and the terms that an answer would contain",
    "You are a helpful assistant. Represent the text of the user as one vector that can be searched.",
    "Think briefly about what an answer would contain and end with the token.",
    "def area(width, height): return width * height  # square metres",
    "a glacier is a slow river of ice; it carves valleys and carries stones",
    "interest rates rise when the bank fears inflation, and savings grow faster",
    "the heart pumps blood through arteries, veins and capillaries",
    "0 1 2 3 4 5 6 7 8 9 10 100 1000 2024 3.14",
]

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
BERT_TEMPLATE = "[CLS]{% for m in messages %}{{ m.content }}{% if m.role != 'assistant' %}[SEP]{% endif %}{% endfor %}"
EXAMPLE = '''"""Not to be run: the import fails, and so would everything below."""
import a_module_that_does_not_exist

EMBEDDING = """
You are a helpful assistant. Analyse the input and produce a semantic vector.
"""

GENERATION = """
You are a helpful assistant. Enrich the input: core concepts, key terms, synonyms, related topics.
Every response ends with <|embed_token|>
"""

raise SystemExit("example.py was executed")
'''


def save_mini(folder: Path) -> Path:
    """A causal BERT with absolute positions, as searchr3-mini."""
    tokenizer = bert_tokenizer()
    _add_embed_token(tokenizer)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=128,
        is_decoder=True,
        initializer_range=0.3,
        eos_token_id=tokenizer.convert_tokens_to_ids(EMBED_TOKEN),
    )
    prompts = Prompts(
        direct_answer="the text is about " + EMBED_TOKEN,
        reasoning_answer="{text}[SEP]",
        max_reasoning_tokens=12,
        distinct_tokens=True,
    )
    return _save(folder, _likely_to_end(BertLMHeadModel(config), tokenizer), tokenizer, prompts, max_length=64)


def bert_tokenizer() -> PreTrainedTokenizerFast:
    """A small word-piece tokenizer with a chat template, without the embed token."""
    normalizer, splitter = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    words = {word for text in CORPUS for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text))}
    letters = {letter for word in words for letter in word}
    pairs = {word[i : i + 2] for word in words for i in range(len(word) - 1)}
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    # Listed, not trained: the trainers of tokenizers break ties differently in every process.
    tokens = [*special, *sorted(letters | pairs | words), *sorted(f"##{piece}" for piece in letters | pairs)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizer, splitter, decoders.WordPiece()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )
    tokenizer.chat_template = BERT_TEMPLATE
    return tokenizer


def save_qwen2(folder: Path) -> Path:
    """A rotary Qwen2 with a long system prompt."""
    model, tokenizer = qwen2()
    prompts = Prompts(
        direct_system="Represent the text of the user as one vector that can be searched.",
        direct_answer="The text is represented by " + EMBED_TOKEN,
        reasoning_system="Think briefly about what an answer would contain and end with the token.",
        max_reasoning_tokens=16,
    )
    return _save(folder, model, tokenizer, prompts, max_length=128)


def save_released(folder: Path) -> Path:
    """The layout of the released checkpoints: no modules.json, a private class name, prompts in example.py."""
    model, tokenizer = qwen2()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["HFQwen2LM"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "example.py").write_text(EXAMPLE, encoding="utf-8")
    return folder


def qwen2() -> tuple[Qwen2ForCausalLM, PreTrainedTokenizerFast]:
    """A small rotary language model that knows the embed token, and its tokenizer."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = _merges(240)
    tokens = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *dict.fromkeys(map("".join, merges))]
    backend = Tokenizer(models.BPE({token: number for number, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=4096
    )
    tokenizer.add_special_tokens({"additional_special_tokens": special[1:]})
    tokenizer.chat_template = CHATML
    _add_embed_token(tokenizer)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=64,
        max_position_embeddings=512,
        initializer_range=0.3,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = Qwen2ForCausalLM(config)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    _likely_to_end(model, tokenizer)
    return model, tokenizer


def _merges(count: int) -> list[tuple[str, str]]:
    """Byte-pair merges of the corpus, the most frequent first and ties in alphabetical order."""
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = [list(word) for text in CORPUS for word, _ in splitter.pre_tokenize_str(text)]
    merges: list[tuple[str, str]] = []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in itertools.pairwise(word))
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        for word in words:
            for place in range(len(word) - 2, -1, -1):
                if (word[place], word[place + 1]) == best and place + 1 < len(word):
                    word[place : place + 2] = ["".join(best)]
    return merges


def _add_embed_token(tokenizer: PreTrainedTokenizerFast) -> None:
    known = list(tokenizer.special_tokens_map.get("additional_special_tokens", []))
    tokenizer.add_special_tokens({"additional_special_tokens": [*known, EMBED_TOKEN]})


def _likely_to_end(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Makes the embed token likelier, so that rows of a random model end at different steps, some by themselves."""
    token = tokenizer.convert_tokens_to_ids(EMBED_TOKEN)
    head = model.get_output_embeddings()
    with torch.no_grad():
        head.weight[token] *= 2.5
    return model.eval()


def _save(
    folder: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, prompts: Prompts, max_length: int
) -> Path:
    model.save_pretrained(folder)
    tokenizer.model_max_length = max_length
    tokenizer.save_pretrained(folder)
    prompts.save(folder)
    return folder
