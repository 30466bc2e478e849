"""Token ids and counts: what the encoder reads of a text, and texts out of the ids that some clients send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

from searchr3_embed.server.errors import ApiError
from searchr3_embed.server.queues import Kind
from searchr3_embed.server.settings import TokenIds

if TYPE_CHECKING:
    from searchr3_embed.embedder import ReasoningEmbedder

_OPENAI = "cl100k_base"
_NO_VOCABULARY = (
    "--token-ids openai needs the vocabulary of cl100k_base, which tiktoken downloads once: let it, or set "
    "TIKTOKEN_CACHE_DIR to a folder that has it ({})."
)


class Counter:
    """Counts the tokens that an encoder reads.

    Args:
        embedder: Whose tokenizer is copied: to change the settings of a shared one is not safe between threads.
    """

    def __init__(self, embedder: ReasoningEmbedder) -> None:
        prompts = embedder.prompts
        document = next((prompts[name] for name in ("document", "passage", "corpus") if name in prompts), "")
        self.prompts: dict[Kind, str] = {"query": prompts.get("query") or "", "document": document or ""}
        self.most = int(embedder.max_seq_length or 0)
        self._talk = embedder.conversation if embedder.question_side is None else None
        backend = getattr(embedder.tokenizer, "backend_tokenizer", None)
        self._tokenizer: Tokenizer | None = None
        if self._talk is None and isinstance(backend, Tokenizer):
            self._tokenizer = Tokenizer.from_str(backend.to_str())
            self._tokenizer.no_padding()
            self._tokenizer.no_truncation()

    def count(self, texts: Sequence[str], kind: Kind) -> list[int]:
        """Tokens of each text with its prompt and what is put around it, uncut.

        An encoder without a fast tokenizer counts as nothing.
        """
        whole = [self.prompts[kind] + text for text in texts]
        if self._talk is not None:
            return [len(ids) + self._talk.direct_overhead for ids in self._talk.text_ids(whole)]
        if self._tokenizer is None:
            return [0] * len(texts)
        return [len(encoding.ids) for encoding in self._tokenizer.encode_batch_fast(whole)]


class Decoder:
    """Texts out of token ids.

    Args:
        mode: Whose ids they are.
        embedder: For its tokenizer.

    Raises:
        ValueError: The vocabulary of ``openai`` can't be had.
    """

    def __init__(self, mode: TokenIds, embedder: ReasoningEmbedder) -> None:
        self.mode = mode
        self._decode: Any = None
        if mode == "openai":
            import tiktoken

            try:
                encoding = tiktoken.get_encoding(_OPENAI)
            except Exception as error:  # requests' own kinds, among others
                raise ValueError(_NO_VOCABULARY.format(type(error).__name__)) from error
            self.vocabulary, self._decode = encoding.n_vocab, encoding.decode
        elif mode == "model":
            tokenizer = Tokenizer.from_str(embedder.tokenizer.backend_tokenizer.to_str())
            self.vocabulary, self._decode = tokenizer.get_vocab_size(), tokenizer.decode

    def texts(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts that lists of ids stand for.

        Raises:
            ApiError: Token ids are refused here, or one of them stands for nothing.
        """
        if self.mode == "refuse":
            raise ApiError(
                400,
                "This server takes texts, not token ids, since ids of another tokenizer would be read as other words: "
                "send texts (langchain-openai: check_embedding_ctx_length=False), or start it with --token-ids openai "
                "or model.",
                "token_ids_refused",
                "input",
            )
        found = []
        for ids in rows:
            bad = [number for number in ids if not 0 <= number < self.vocabulary]
            try:
                found.append("" if bad else self._decode(list(ids)))
            except Exception:  # an id that the vocabulary leaves out
                bad = list(ids)
            if bad:
                raise ApiError(
                    400,
                    f"Token ids must stand for tokens of this server's vocabulary ({self.vocabulary:,} of them, "
                    f"--token-ids {self.mode}), got {bad[0]}.",
                    "invalid_token_id",
                    "input",
                )
        return found
