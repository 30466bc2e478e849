"""Requests and replies. What OpenAI's API has, as it has it; what it can't say, in further optional fields."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, StrictStr

Texts = Annotated[list[StrictStr], Field(min_length=1)]
Ids = Annotated[list[StrictInt], Field(min_length=1)]
NotNegative = Annotated[int, Field(ge=0, le=2**31, strict=True)]
Positive = Annotated[int, Field(ge=1, le=2**31, strict=True)]
Encoding = Literal["float", "base64"]


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class EmbeddingsRequest(_Request):
    """Texts to embed."""

    input: StrictStr | Texts | Ids | Annotated[list[Ids], Field(min_length=1)] = Field(
        description="A text, a list of texts, or token ids of one text or of several (see --token-ids)."
    )
    model: StrictStr = Field(
        description="A name that GET /v1/models lists; NAME:query and NAME:document say what it is."
    )
    dimensions: Positive | None = Field(None, description="Cuts the vectors to so many numbers, of length 1 again.")
    encoding_format: Encoding = Field("float", description="Numbers, or little-endian float32 in base64.")
    user: StrictStr | None = Field(None, description="Taken and not used.")
    input_type: Literal["query", "document"] | None = Field(
        None, description="Questions think and documents don't; without it, and without a suffix: document."
    )
    reason: StrictBool | None = Field(None, description="Whether questions think (default: yes).")
    max_reasoning_tokens: NotNegative | None = Field(None, description="Budget of a reasoning (default: the model's).")
    deadline_ms: NotNegative | None = Field(
        None, description="Past it, questions get their vectors without thinking, and the reply says so."
    )
    reasoning: StrictStr | Texts | None = Field(
        None, description="Words that are there already, one reasoning a question, in place of written ones."
    )


class ReasonRequest(_Request):
    """Questions to think about."""

    input: StrictStr | Texts = Field(description="A question or a list of questions.")
    model: StrictStr = Field(description="A name that GET /v1/models lists.")
    max_reasoning_tokens: NotNegative | None = Field(None, description="Budget of a reasoning (default: the model's).")
    include_embedding: StrictBool = Field(False, description="Whether the reply holds the vectors too.")
    encoding_format: Encoding = Field("float", description="Of the vectors: numbers, or float32 in base64.")
    stream: StrictBool = Field(False, description="Server-sent events while the words are written.")
    user: StrictStr | None = Field(None, description="Taken and not used.")


class Usage(BaseModel):
    """Tokens of a call."""

    prompt_tokens: int = Field(description="Read by the encoder.")
    reasoning_tokens: int = Field(description="Written by the thinker.")
    thinker_prompt_tokens: int = Field(description="Read by the thinker before it wrote, its template included.")
    total_tokens: int = Field(description="prompt_tokens + reasoning_tokens.")


class Embedding(BaseModel):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingsReply(BaseModel):
    """Vectors in the order of the texts."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    deadline_exceeded: bool = Field(False, description="Whether the questions were too late to think.")


class Trace(BaseModel):
    """One question, and what the model thought about it."""

    object: Literal["reasoning"]
    index: int
    text: str
    reasoning: str
    finish_reason: str
    prompt_tokens: int
    reasoning_tokens: int
    embedding: list[float] | str | None = None


class ReasonReply(BaseModel):
    """Traces in the order of the questions."""

    object: Literal["list"]
    data: list[Trace]
    model: str
    usage: Usage


class Model(BaseModel):
    """A name for the model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """The names."""

    object: Literal["list"]
    data: list[Model]


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(BaseModel):
    """As OpenAI's API has it."""

    error: ErrorDetail
