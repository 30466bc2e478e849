"""A client for OpenAI-compatible chat endpoints: many requests at once, none asked twice, never beyond a budget.

``ask`` asks any server that the openai client can reach and keeps every answer in a JSONL file, one line the moment it
arrives. The same call after a kill reads that file and asks only for what is missing. What the *server* did wrong
(429, 5xx, a hang, a broken body) is tried again with growing waits, and again by the next run; what the *model* did
wrong (an answer that cannot be read) is tried again, then dropped for good. A refusal that would meet every request
(401, 404, ...) ends the run at once with the server's own words.

The key is read from the environment only, and is cut out of every text that leaves this module.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import email.utils
import json
import logging
import os
import random
import re
import sys
import time
import urllib.parse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

import filelock
from tqdm import tqdm

from searchr3_embed.adapt.chat_store import is_final, mend, read_store, request_key
from searchr3_embed.files import check_unicode, first_line, shorten

if TYPE_CHECKING:
    import openai  # takes a second, and most commands ask nothing

KEY_VARIABLES = ("SEARCHR3_LLM_API_KEY", "OPENAI_API_KEY")
# Rough, for plans and for servers that report no usage; English text has about four characters a token.
CHARACTERS_PER_TOKEN = 4
# So many requests in a row that failed with all their attempts: the server is gone, not one request unlucky.
GIVE_UP_AFTER = 5
_SINGLE_REQUEST_REFUSED = {400, 413, 422}  # too long, or its content filtered
_WORTH_A_RETRY = {408, 425, 429}  # and everything from 500 on

T = TypeVar("T")
Messages = list[dict[str, str]]
logger = logging.getLogger(__name__)


class LLMError(RuntimeError):
    """The run cannot go on; the message is for the user and never holds the key."""


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """Where and how to ask.

    Attributes:
        base_url: Everything before ``/chat/completions``.
        model: Name of the model, as the server knows it.
        options: Further fields of the request body, such as ``temperature``; those that are None are left out.
        concurrency: Most requests in flight.
        timeout: Seconds for one attempt, from the first byte sent to the last received.
        attempts: Most times one request is sent.
        first_wait: Seconds before the second attempt; doubled for each further one, with jitter.
        longest_wait: Bound of that doubling.
        longest_retry_after: A server that asks for a longer wait (a daily quota) ends the run instead.
        max_requests: Budget of attempts; None for no bound.
        max_tokens_total: Budget of tokens, prompts and answers together; requests in flight may exceed it.
    """

    base_url: str
    model: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    concurrency: int = 8
    timeout: float = 120.0
    attempts: int = 6
    first_wait: float = 1.0
    longest_wait: float = 60.0
    longest_retry_after: float = 600.0
    max_requests: int | None = None
    max_tokens_total: int | None = None

    def __post_init__(self) -> None:
        """Refuses what no request could be sent with.

        Raises:
            ValueError: A value is out of range; the message names it and what is accepted.
        """
        try:
            url = urllib.parse.urlsplit(self.base_url)
        except ValueError:  # a broken IPv6 address
            url = urllib.parse.urlsplit("")
        # Not shown: an address with a user or a query may hold a secret, and the client logs every address.
        if url.scheme not in ("http", "https") or not url.hostname or "@" in url.netloc or url.query:
            raise ValueError(
                "base_url must look like http://localhost:8000/v1: http or https, without user, password or query "
                f"(a key belongs in the environment variable {KEY_VARIABLES[0]})"
            )
        for name, least in (("concurrency", 1), ("attempts", 1), ("max_requests", 0), ("max_tokens_total", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be above 0 seconds, got {self.timeout}")

    def body(self, messages: Messages) -> dict[str, Any]:
        """The request body for a conversation."""
        options = {name: value for name, value in self.options.items() if value is not None}
        return {"model": self.model, "messages": messages, **options}


@dataclasses.dataclass
class Answers(Generic[T]):
    """What became of the requests.

    Attributes:
        values: One per conversation, in order; None where there is no answer.
        reused: Distinct requests answered by an earlier run.
        asked: Distinct requests answered by this run.
        dropped: Reason -> distinct requests whose answer could not be read, or that the server refused.
        failed: Distinct requests that met only server errors; the next run asks them again.
        left: Distinct requests that the budget left unasked.
        requests: Attempts of all runs on this file.
        tokens: Tokens of all runs on this file.
    """

    values: list[T | None]
    reused: int = 0
    asked: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    failed: int = 0
    left: int = 0
    requests: int = 0
    tokens: int = 0

    def summary(self) -> str:
        """One line for people."""
        parts = [f"{self.asked} answered now", f"{self.reused} answered earlier"]
        parts += [f"{count} dropped ({reason})" for reason, count in self.dropped.most_common()]
        parts += [f"{self.failed} failed, asked again by the next run"] * bool(self.failed)
        parts += [f"{self.left} left, for the budget is spent: run again with a larger one"] * bool(self.left)
        return f"{', '.join(parts)}; {self.requests} requests and {self.tokens} tokens over all runs"


def _for_the_owner(path: str, flags: int) -> int:
    """Opens a file that only its owner can read, if it is new: the answers tell what the questions were."""
    return os.open(path, flags, 0o600)


def api_key() -> str | None:
    """The key of the endpoint from the environment; None where there is none, as for most local servers.

    Raises:
        LLMError: It cannot stand in a header; the message names the variable, not the value.
    """
    for name in KEY_VARIABLES:
        if key := os.environ.get(name, "").strip():
            if not re.fullmatch(r"[!-~]+", key):
                raise LLMError(f"{name} holds a blank or a character outside ASCII; no key does")
            return key
    return None


def ask(
    conversations: Sequence[Messages],
    parse: Callable[[str], T],
    endpoint: Endpoint,
    store: Path,
    *,
    progress: bool = True,
) -> Answers[T]:
    """Answers every conversation, asking only for what ``store`` does not hold.

    Args:
        conversations: Chat messages; equal ones are asked once.
        parse: Turns the model's text into a value, or raises ValueError with the reason.
        endpoint: Where and how to ask.
        store: JSONL file of answers; made, or added to.
        progress: Show a progress bar on stderr.

    Raises:
        LLMError: The server refuses, cannot be reached, or another process uses ``store``.
        ValueError: ``store`` is not a file of answers.
    """
    bodies = {request_key(body): body for body in map(endpoint.body, conversations)}
    store.parent.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(f"{store}.lock", blocking=False):
            run = _Run(endpoint, bodies, parse, store)
            asyncio.run(run.work(progress))
    except filelock.Timeout:
        raise LLMError(f"{store} is in use by another process; two would pay for every answer twice") from None
    answers = run.answers
    answers.values = [run.values.get(request_key(endpoint.body(messages))) for messages in conversations]
    return answers


class _ServerError(Exception):
    """The server's fault, worth another attempt."""

    def __init__(self, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class _Refused(Exception):
    """The server will not answer this one request."""


class _BudgetSpent(Exception):
    """No further attempt is allowed."""


class _Run(Generic[T]):
    """The state of one call of ``ask``."""

    def __init__(
        self, endpoint: Endpoint, bodies: Mapping[str, dict[str, Any]], parse: Callable[[str], T], store: Path
    ) -> None:
        self.endpoint, self.parse, self.store = endpoint, parse, store
        self.values: dict[str, T] = {}
        self.answers: Answers[T] = Answers([])
        self._key = api_key()
        if self._key:
            # Their traces show the headers of responses, and a server may say the key back in one.
            for name in ("httpcore", "httpcore2", "openai"):
                logging.getLogger(name).setLevel(logging.INFO)
        self._failed_in_a_row = 0
        self._quiet_until = 0.0  # a server that is told to be too busy by one request is so for all
        finished = set()
        for line in read_store(store):
            self.answers.requests += line["requests"]
            self.answers.tokens += line["tokens"]
            if line["key"] in bodies and line["key"] not in finished and is_final(line):
                try:
                    self._settle(line)
                except ValueError:  # written for another reader of answers
                    continue
                finished.add(line["key"])
        self.answers.reused, self.answers.asked = self.answers.asked, 0
        self._todo = collections.deque((key, body) for key, body in bodies.items() if key not in finished)

    def _settle(self, line: Mapping[str, Any]) -> None:
        """Counts a request that is over, and keeps its value."""
        if line["dropped"]:
            self.answers.dropped[line["dropped"]] += 1
        else:
            self.values[line["key"]] = self._read(line["content"])
            self.answers.asked += 1

    def _read(self, content: str) -> T:
        """The value in a model's answer; what a thinking model thought aloud before it is left out."""
        content = re.sub(r"\A\s*<think>.*?</think>", "", content, flags=re.DOTALL)
        if not content.strip() or content.lstrip().startswith("<think>"):
            raise ValueError("empty answer")
        return self.parse(content.strip())

    async def work(self, progress: bool) -> None:
        if not self._todo:
            return
        mend(self.store)
        workers = min(self.endpoint.concurrency, len(self._todo))
        with (
            open(self.store, "ab", opener=_for_the_owner) as self._file,
            tqdm(total=len(self._todo), desc="Asking", unit="request", disable=not progress, file=sys.stderr) as bar,
        ):
            async with self._connect() as self._client:
                try:
                    async with asyncio.TaskGroup() as group:
                        for _ in range(workers):
                            group.create_task(self._work_off(bar))
                except BaseExceptionGroup as errors:  # the first of them says why; the others were cancelled by it
                    raise errors.exceptions[0] from None

    def _connect(self) -> openai.AsyncOpenAI:
        import openai

        # Retries are ours: each attempt counts against the budget. No timeout: the whole attempt has one deadline, the
        # client's own lets a slow trickle go on.
        return openai.AsyncOpenAI(
            base_url=self.endpoint.base_url, api_key=self._key or "none", max_retries=0, timeout=None
        )

    async def _work_off(self, bar: tqdm) -> None:
        while self._todo:
            key, body = self._todo.popleft()
            line: dict[str, Any] = {"key": key, "content": None, "dropped": None, "requests": 0, "tokens": 0}
            try:
                await self._answer(body, line)
            except _BudgetSpent:
                self.answers.left += 1
                continue
            finally:
                # Also when the run is cancelled: what was spent counts against the budget of the next run.
                if line["requests"]:
                    self._file.write(json.dumps(line).encode() + b"\n")
                    self._file.flush()
            if is_final(line):
                self._settle(line)
            bar.update()
            bar.set_postfix_str(f"{self.answers.tokens} tokens", refresh=False)

    async def _answer(self, body: dict[str, Any], line: dict[str, Any]) -> None:
        """All attempts of one request; what comes of them is put into its line of the store."""
        failure: _ServerError | None = None
        unreadable = ""
        for attempt in range(self.endpoint.attempts):
            if failure:
                await self._back_off(attempt, failure)
            await self._until_welcome()
            self._check_budget()
            self.answers.requests += 1
            line["requests"] += 1
            failure = None
            try:
                content, tokens, cut = await self._post(body)
                self._failed_in_a_row = 0
                self.answers.tokens += tokens
                line["tokens"] += tokens
                if cut:
                    raise ValueError("cut off at the token limit")
                self._read(content)
                line["content"] = content
                return
            except _Refused:
                line["dropped"] = "refused by the server"
                return
            except _ServerError as error:
                failure = error
                logger.debug("Attempt %d of %d: %s", attempt + 1, self.endpoint.attempts, error)
            except ValueError as error:
                unreadable = str(error)
                logger.debug("Attempt %d of %d: %s", attempt + 1, self.endpoint.attempts, error)
        if failure is None:
            line["dropped"] = unreadable
            return
        self.answers.failed += 1
        self._failed_in_a_row += 1
        logger.warning("A request failed %d times, the last time with: %s", line["requests"], failure)
        if self._failed_in_a_row >= GIVE_UP_AFTER:
            raise LLMError(
                f"{GIVE_UP_AFTER} requests in a row failed {self.endpoint.attempts} times each, the last with: "
                f"{failure}. {self._go_on()}"
            )

    async def _back_off(self, attempt: int, failure: _ServerError) -> None:
        """Exponential waits; the jitter keeps the workers from coming back all at once."""
        wait = min(self.endpoint.longest_wait, self.endpoint.first_wait * 2 ** (attempt - 1))
        await asyncio.sleep(max(failure.retry_after, wait * random.uniform(0.5, 1)))

    async def _until_welcome(self) -> None:
        while (wait := self._quiet_until - time.monotonic()) > 0:
            await asyncio.sleep(wait + random.uniform(0, self.endpoint.first_wait / 10))

    def _check_budget(self) -> None:
        for spent, most in (
            (self.answers.requests, self.endpoint.max_requests),
            (self.answers.tokens, self.endpoint.max_tokens_total),
        ):
            if most is not None and spent >= most:
                raise _BudgetSpent

    async def _post(self, body: dict[str, Any]) -> tuple[str, int, bool]:
        """One attempt: the model's text, the tokens it took, and whether the limit of tokens cut it off."""
        import openai

        options = {name: value for name, value in body.items() if name not in ("model", "messages")}
        try:
            async with asyncio.timeout(self.endpoint.timeout):
                completion: Any = await self._client.chat.completions.create(
                    model=body["model"],
                    messages=cast(Any, body["messages"]),
                    extra_body=options,
                    extra_headers={} if self._key else cast(Any, {"Authorization": openai.Omit()}),
                )
            choice = completion.choices[0]
            content = check_unicode(choice.message.content or "")
            spent = completion.usage and completion.usage.total_tokens
            tokens = int(spent or (characters(body) + len(content)) // CHARACTERS_PER_TOKEN)
        except TimeoutError:
            raise _ServerError(f"no answer within {self.endpoint.timeout:g} seconds") from None
        except openai.APIStatusError as error:
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            raise _ServerError(self._redact(first_line(error.__cause__ or error))) from None
        # What the client does not check: a body that is no JSON, or JSON of another shape.
        except (openai.OpenAIError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise _ServerError(f"the body is not a chat completion ({type(error).__name__})") from None
        # A short key is the placeholder that local servers ask for ("EMPTY"), and may be a word of the answer.
        content = self._redact(content) if len(self._key or "") >= 12 else content
        return content, tokens, choice.finish_reason == "length"

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        """What a status that is no success means: for this attempt, for this request, or for the whole run."""
        status, reason = error.status_code, error.response.reason_phrase
        message = self._redact(f"{status} {reason}: {_server_message(error.body)}")
        if status >= 500 or status in _WORTH_A_RETRY:
            wait = _retry_after(error.response.headers.get("retry-after", ""))
            if wait > self.endpoint.longest_retry_after:
                return LLMError(f"the server asks to wait {wait:.0f} seconds: {message}. {self._go_on()}")
            self._quiet_until = max(self._quiet_until, time.monotonic() + wait)
            return _ServerError(message, wait)
        # Before the first answer, all requests are likely to be wrong in the same way.
        if status in _SINGLE_REQUEST_REFUSED and self.values:
            logger.warning("A request was refused and is dropped: %s", message)
            return _Refused()
        hint = f" Is the key in {' or '.join(KEY_VARIABLES)} the right one?" if status in (401, 403) else ""
        if status in (401, 403) and not self._key:
            hint = f" No key was sent: set {KEY_VARIABLES[0]}."
        return LLMError(f"{self.endpoint.base_url} refused: {message}.{hint}")

    def _go_on(self) -> str:
        return f"The answers so far are in {self.store}; the same command goes on from there."

    def _redact(self, text: str) -> str:
        return text.replace(self._key, "[key]") if self._key else text


def _server_message(body: Any) -> str:
    """What a server says about an error, wherever it says it, on one line."""
    for name in ("error", "message", "detail"):
        if isinstance(body, dict) and body.get(name):
            body = body[name]
    text = body if isinstance(body, str) else "" if body is None else json.dumps(body)
    return shorten(text, 500) or "(no message)"


def _retry_after(value: str) -> float:
    """Seconds in a Retry-After header, which holds a number or a date; 0 when it holds neither."""
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return 0.0


def characters(body: Mapping[str, Any]) -> int:
    """Of all messages of a request."""
    return sum(len(message["content"]) for message in body["messages"])
