"""The chat protocol: texts in, token ids out. Nothing else in the package writes a turn.

A *direct* turn is the user's text followed by a fixed answer that ends with the embed token. A *reasoning* turn is the
user's text followed by the beginning of an answer; the model writes the rest and closes it with the embed token.
In both, the template's own tokens are computed once and the user's text is tokenised apart from them, with every
control token in it read as plain text, so that no text can forge a turn or the embed token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal, get_args

from tokenizers import AddedToken, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from searchr3_embed.files import check_unicode, first_line, shorten
from searchr3_embed.prompt_words import TEXT_SLOT, Prompts

logger = logging.getLogger(__name__)

OnTruncate = Literal["warn", "error", "ignore"]

# Takes the place of the user's text while a template is rendered: no template changes it, and no prompt contains it.
_SENTINEL = "\u27e6searchr3-user-text\u27e7"
# A budget that leaves room for fewer tokens of the question is refused: there would be nothing to reason about.
_LEAST_TEXT_TOKENS = 16


def check_texts(texts: Sequence[Any]) -> list[str]:
    """Returns the texts as a list, or says which one is not a text.

    Raises:
        TypeError: An item is not a string.
        ValueError: An item holds a lone surrogate, which no tokenizer can encode.
    """
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(
                f"Item {position} is {shorten(repr(text), 80)} of type {type(text).__name__}; each text to embed must "
                "be a str."
            )
        check_unicode(text, f"Item {position}")
    return list(texts)


class Conversation:
    """Turns texts into the token ids of a direct or a reasoning turn.

    Args:
        tokenizer: The checkpoint's tokenizer; it must be a fast one, with a chat template.
        prompts: The words of the two turns.
        max_length: Longest direct turn in tokens, template included; longer texts are cut at the end.
        position_limit: Number of positions the model has; bounds prompt plus reasoning.
        on_truncate: What happens when a text is cut: a logged warning, a ValueError, or nothing.

    Raises:
        ValueError: The tokenizer lacks a chat template or does not know the embed token as one special token, or the
            template drops or changes the user's text.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts,
        *,
        max_length: int,
        position_limit: int,
        on_truncate: OnTruncate = "warn",
    ) -> None:
        self.prompts = prompts
        self.embed_token = prompts.embed_token
        self.embed_token_id = find_embed_token(tokenizer, prompts.embed_token)
        self.default_max_reasoning_tokens = prompts.max_reasoning_tokens
        self.position_limit = position_limit
        self.on_truncate = on_truncate
        # Two private copies, each with its flags set once: changing the flags of a shared tokenizer from call to call
        # is not safe between threads.
        self._template_tokenizer = _bare_copy(tokenizer)
        self._text_tokenizer = _plain_text_copy(self._template_tokenizer)
        direct = _render(tokenizer, prompts.direct_system) + prompts.direct_answer
        reasoning = _render(tokenizer, prompts.reasoning_system)
        reasoning += prompts.reasoning_answer.replace(TEXT_SLOT, _SENTINEL)
        self._direct_pieces = self._pieces(direct)
        self._reasoning_pieces = self._pieces(reasoning)
        if len(self._direct_pieces) != 2:
            raise ValueError(f"direct_answer must not repeat the user's text, got {prompts.direct_answer!r}.")
        self.max_length = max_length

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A copied or pickled tokenizer forgets that control tokens in a text are plain characters.
        self.__dict__.update(state)
        self._text_tokenizer.encode_special_tokens = True

    @property
    def on_truncate(self) -> OnTruncate:
        """What happens when a text is cut: ``"warn"``, ``"error"`` or ``"ignore"``."""
        return self._on_truncate

    @on_truncate.setter
    def on_truncate(self, value: OnTruncate) -> None:
        if value not in get_args(OnTruncate):
            raise ValueError(f"on_truncate must be one of {list(get_args(OnTruncate))}, got {value!r}.")
        self._on_truncate = value

    @property
    def max_length(self) -> int:
        """Longest direct turn in tokens, template included."""
        return self._max_length

    @max_length.setter
    def max_length(self, value: int) -> None:
        least = self.direct_overhead + 1
        if type(value) is not int or not least <= value <= self.position_limit:
            raise ValueError(
                f"max_seq_length must be an integer from {least} (the template and one token of text) to "
                f"{self.position_limit} (the model's positions), got {value!r}."
            )
        self._max_length = value

    @property
    def direct_affixes(self) -> tuple[list[int], list[int]]:
        """Token ids before and after the user's text in a direct turn."""
        return list(self._direct_pieces[0]), list(self._direct_pieces[1])

    @property
    def direct_overhead(self) -> int:
        """Number of template tokens in a direct turn."""
        return sum(map(len, self._direct_pieces))

    @property
    def vocabulary(self) -> int:
        """Number of token ids that the tokenizer knows."""
        return self._template_tokenizer.get_vocab_size()

    @property
    def most_reasoning_tokens(self) -> int:
        """Largest budget that leaves room for a short question within the model's positions."""
        copies = len(self._reasoning_pieces) - 1
        template = sum(map(len, self._reasoning_pieces))
        return max(0, self.position_limit - template - copies * _LEAST_TEXT_TOKENS - 1)

    def direct_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of the direct turn, one list per text; each ends with the embed token.

        Raises:
            TypeError: A text is not a string.
            ValueError: A text holds a lone surrogate, or is too long while ``on_truncate="error"``.
        """
        return self.direct_turns(self._cut(self.text_ids(texts), self.max_length - self.direct_overhead))

    def reasoning_ids(self, texts: Sequence[str], max_reasoning_tokens: int | None = None) -> list[list[int]]:
        """Token ids of the reasoning turn up to where the model continues, one list per text.

        Args:
            texts: The questions.
            max_reasoning_tokens: Number of tokens for which to leave room; None takes the checkpoint's default.

        Raises:
            TypeError: A text is not a string, or the budget is not an integer.
            ValueError: The budget is negative or larger than the model's positions allow, a text holds a lone
                surrogate, or a text is too long while ``on_truncate="error"``.
        """
        budget = self.check_budget(max_reasoning_tokens)
        template = sum(map(len, self._reasoning_pieces))
        # One position is kept for the embed token itself.
        room = (self.position_limit - template - budget - 1) // (len(self._reasoning_pieces) - 1)
        room = min(room, self.max_length - self.direct_overhead)
        return self.reasoning_turns(self._cut(self.text_ids(texts), room))

    def direct_turns(self, bodies: Sequence[Sequence[int]]) -> list[list[int]]:
        """Wraps the token ids of bare texts in the direct turn."""
        return [_interleave(self._direct_pieces, body) for body in bodies]

    def reasoning_turns(self, bodies: Sequence[Sequence[int]]) -> list[list[int]]:
        """Wraps the token ids of bare texts in the reasoning turn, up to where the model continues."""
        return [_interleave(self._reasoning_pieces, body) for body in bodies]

    def check_budget(self, max_reasoning_tokens: int | None) -> int:
        """Returns the budget of reasoning tokens, the default for None, or raises for a bad one."""
        if max_reasoning_tokens is None:
            return min(self.default_max_reasoning_tokens, self.most_reasoning_tokens)
        accepted = f"an integer from 0 to {self.most_reasoning_tokens} for this model"
        if isinstance(max_reasoning_tokens, bool) or not isinstance(max_reasoning_tokens, int):
            raise TypeError(f"max_reasoning_tokens must be {accepted}, got {max_reasoning_tokens!r}.")
        if not 0 <= max_reasoning_tokens <= self.most_reasoning_tokens:
            raise ValueError(f"max_reasoning_tokens must be {accepted}, got {max_reasoning_tokens!r}.")
        return max_reasoning_tokens

    def text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of bare texts, control tokens in them read as plain text.

        Raises:
            TypeError: A text is not a string.
            ValueError: A text holds a lone surrogate.
        """
        encodings = self._text_tokenizer.encode_batch_fast(check_texts(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated token ids, special tokens left out and outer white space removed."""
        # By the copy in which all added tokens are special: a checkpoint that was saved again reads the same.
        return self._text_tokenizer.decode(list(ids), skip_special_tokens=True).strip()

    def direct_turn_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
        """A tokenizer that wraps each text in the direct turn by itself, so that stock libraries embed as we do.

        It is a generic fast tokenizer: the classes of model families rebuild their own post-processor when they are
        loaded, and the direct turn would be lost.
        """
        prefix, suffix = self.direct_affixes
        # The setting below reaches only what is registered as special, and the likes of <tool_call> often are not.
        backend = _all_special_copy(self._template_tokenizer)
        affixes = [("direct-turn-prefix", prefix), ("direct-turn-suffix", suffix)]
        specials = [
            {"id": name, "ids": ids, "tokens": [backend.id_to_token(i) for i in ids]} for name, ids in affixes if ids
        ]
        single = [name for name, ids in (affixes[0], ("$A", [0]), affixes[1]) if ids]
        backend.post_processor = TemplateProcessing(single=single, special_tokens=specials)
        wrapped = PreTrainedTokenizerFast(
            tokenizer_object=backend,
            **tokenizer.special_tokens_map,
            model_max_length=self.max_length,
            padding_side="right",
            truncation_side="right",
            clean_up_tokenization_spaces=False,
            # Kept in the saved configuration: control tokens in a text stay plain text in stock libraries too.
            split_special_tokens=True,
        )
        wrapped.chat_template = tokenizer.chat_template
        return wrapped

    def _pieces(self, rendered: str) -> list[list[int]]:
        """Token ids around the user's text, which is put back between consecutive pieces."""
        encode = self._template_tokenizer.encode
        return [encode(piece, add_special_tokens=False).ids for piece in rendered.split(_SENTINEL)]

    def _cut(self, bodies: list[list[int]], room: int) -> list[list[int]]:
        """Cuts texts at their end, and says so."""
        report_truncation([len(body) for body in bodies], room, self.on_truncate)
        return [body[:room] for body in bodies]


def report_truncation(
    lengths: Sequence[int],
    most: int,
    on_truncate: OnTruncate,
    what: str = "texts",
    remedy: str = "Split long texts into passages",
) -> None:
    """Says which texts are longer than what is read of them.

    Args:
        lengths: Tokens of each text.
        most: Tokens that are read.
        on_truncate: A logged warning, a ValueError, or nothing.
        what: What the texts are called in the message.
        remedy: What to do instead.

    Raises:
        ValueError: A text is too long while ``on_truncate`` is ``"error"``.
    """
    cut = [position for position, length in enumerate(lengths) if length > most]
    if on_truncate == "ignore" or not cut:
        return
    message = (
        f"{len(cut)} of {len(lengths)} {what} have more than {most} tokens (item {cut[0]} has {lengths[cut[0]]}); "
        f"what lies beyond is not read. {remedy}"
    )
    if on_truncate == "error":
        raise ValueError(message + ', or pass on_truncate="ignore" to accept the cut.')
    logger.warning(message + ', or pass on_truncate="ignore" to silence this.')


def _interleave(pieces: Sequence[Sequence[int]], body: Sequence[int]) -> list[int]:
    """The template's pieces with the text between them."""
    turn = list(pieces[0])
    for piece in pieces[1:]:
        turn += body
        turn += piece
    return turn


def find_embed_token(tokenizer: PreTrainedTokenizerBase, embed_token: str) -> int:
    """The id of the embed token.

    Raises:
        ValueError: The tokenizer does not know it as one token.
    """
    token_id = tokenizer.get_vocab().get(embed_token)
    if token_id is None:
        raise ValueError(
            f"The tokenizer does not know the embed token {embed_token!r}: this language model was not trained to "
            "embed. Train it first (python -m training.sft), or name the token that it was trained with in its "
            "prompts."
        )
    return int(token_id)


def _render(tokenizer: PreTrainedTokenizerBase, system: str | None) -> str:
    """The chat template up to where the answer begins, the sentinel in place of the user's text."""
    if not tokenizer.chat_template:
        raise ValueError(
            "The tokenizer has no chat template (chat_template.jinja), so the turns cannot be written; add the "
            "template of the base model."
        )
    messages = [{"role": "user", "content": _SENTINEL}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    try:
        rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    except Exception as error:  # jinja2 raises kinds of its own, and templates what they like
        raise ValueError(
            f"The chat template (chat_template.jinja) can't be rendered ({first_line(error)})."
        ) from error
    if not isinstance(rendered, str) or rendered.count(_SENTINEL) != 1:
        raise ValueError(
            "The chat template (chat_template.jinja) must hold the user's text exactly once; this one drops it or "
            "repeats it."
        )
    return rendered


def _bare_copy(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The fast tokenizer underneath, without padding and truncation, parsing special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(backend, Tokenizer):
        raise ValueError(f"A fast tokenizer (tokenizer.json) is needed, got {type(tokenizer).__name__}.")
    copy = Tokenizer.from_str(backend.to_str())
    copy.no_padding()
    copy.no_truncation()
    copy.encode_special_tokens = False
    return copy


def _plain_text_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy that reads every added token in a text as plain characters."""
    copy = _all_special_copy(tokenizer)
    copy.encode_special_tokens = True
    return copy


def _all_special_copy(tokenizer: Tokenizer) -> Tokenizer:
    """A copy in which every added token is registered as special."""
    copy = Tokenizer.from_str(tokenizer.to_str())
    # Only tokens registered as special can be switched off, so register them all.
    added = [
        AddedToken(token.content, special=True, normalized=token.normalized)
        for token in copy.get_added_tokens_decoder().values()
    ]
    copy.add_special_tokens(added)
    return copy
