"""The chat client against a real local server: order, failures, budgets, resuming, and the key that nobody sees."""

from __future__ import annotations

import email.utils
import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from searchr3_embed.adapt import chat_client
from searchr3_embed.adapt.chat_client import Endpoint, LLMError
from tests.training.prepare.chat_server import ChatServer, Reply, chat_server
from training.prepare import chat_command

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in chat_client.KEY_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def endpoint(server: ChatServer, **changes: Any) -> Endpoint:
    return Endpoint(**{"base_url": server.base_url, "model": "m", "first_wait": 0.01, "timeout": 5.0} | changes)


def talk(*texts: str) -> list[chat_client.Messages]:
    return [[{"role": "user", "content": text}] for text in texts]


def upper(text: str) -> str:
    if "?" in text:
        raise ValueError("unreadable")
    return text.upper()


def ask(server: ChatServer, texts: list[str], store: Path, **changes: Any) -> chat_client.Answers[str]:
    return chat_client.ask(talk(*texts), upper, endpoint(server, **changes), store, progress=False)


def lines(store: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in store.read_text().splitlines()]


def echo(text: str, seen: int) -> Reply:
    return Reply(f"to {text}")


def first_fails(reply: Reply) -> Callable[[str, int], Reply]:
    return lambda text, seen: Reply(f"to {text}") if seen else reply


def test_answers_come_in_the_order_of_the_requests_and_equal_ones_are_asked_once(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(20)]
    with chat_server(lambda text, seen: Reply(f"to {text}", seconds=0.05 if text < "t15" else 0)) as server:
        answers = ask(server, [*texts, "t3", "t0"], tmp_path / "a", options={"temperature": 0.5, "top_p": None})
    assert answers.values == [f"TO {text.upper()}" for text in [*texts, "t3", "t0"]]
    assert (answers.asked, answers.reused, answers.requests, answers.tokens) == (20, 0, 20, 200)
    assert sorted(server.seen.items()) == sorted((text, 1) for text in texts)
    assert {"model": "m", "messages": talk("t3")[0], "temperature": 0.5} in server.bodies
    assert server.authorizations == [None] * 20


def test_concurrency_is_used_and_never_exceeded(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply(seconds=0.05)) as server:
        ask(server, [f"t{i}" for i in range(24)], tmp_path / "a", concurrency=6)
    assert server.most_in_flight == 6


@pytest.mark.parametrize(
    "failure",
    [
        *(Reply(status=status, raw=b"{}") for status in (408, 429, 500, 502, 503, 504, 529)),
        Reply(seconds=30),
        Reply(raw=b'{"choices": [{"mess'),
        Reply(raw=b"[" * 100_000),
        Reply(raw=b'{"choices": []}'),
        Reply(raw=b'{"choices": [{"message": {"content": "\\ud800"}}]}'),
        Reply(headers={"Content-Encoding": "gzip"}),
        Reply("why?"),
        Reply(""),
        Reply(None),
        Reply("<think>on and on"),
        Reply("cut", finish_reason="length"),
    ],
    ids=lambda reply: str(reply.status if reply.status != 200 else reply.raw and reply.raw[:20] or reply.content),
)
def test_what_may_pass_is_tried_again(tmp_path: Path, failure: Reply) -> None:
    with chat_server(first_fails(failure)) as server:
        answers = ask(server, ["a"], tmp_path / "a", timeout=0.3)
    assert answers.values == ["TO A"]
    assert (answers.requests, server.seen["a"]) == (2, 2)


def test_a_server_that_hangs_up_is_asked_again(tmp_path: Path) -> None:
    def answer(text: str, seen: int) -> Reply:
        if not seen:
            raise ConnectionAbortedError  # closes the connection without a word
        return Reply("back")

    with chat_server(answer) as server:
        assert ask(server, ["a"], tmp_path / "a").values == ["BACK"]


def test_thinking_aloud_is_not_part_of_the_answer(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply("<think>is it this?\n</think>\n\nyes ")) as server:
        assert ask(server, ["a"], tmp_path / "a").values == ["YES"]


@pytest.mark.parametrize("wait", ["1", "date"])
def test_retry_after_is_honoured_by_all_requests(tmp_path: Path, wait: str) -> None:
    def answer(text: str, seen: int) -> Reply:
        if text == "busy" and not seen:
            # A date has whole seconds: two of them are one at least.
            value = email.utils.formatdate(time.time() + 2, usegmt=True) if wait == "date" else wait
            return Reply(status=429, headers={"Retry-After": value})
        return Reply(seconds=0.1)

    with chat_server(answer) as server:
        answers = ask(server, ["busy", *(f"t{i}" for i in range(8))], tmp_path / "a", concurrency=2)
    assert answers.asked == 9
    # One request was in flight beside the refused one and may have begun before it was; the others waited.
    assert server.times[2] - server.times[0] > 0.95
    assert server.most_in_flight == 2


def test_a_wait_of_hours_ends_the_run(tmp_path: Path) -> None:
    limit = Reply(status=429, headers={"Retry-After": "7200"}, raw=b'{"error": {"message": "daily quota"}}')
    with chat_server(lambda text, seen: limit) as server, pytest.raises(LLMError, match="7200 seconds: .*daily quota"):
        ask(server, ["a"], tmp_path / "a")


def test_waits_grow(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply(status=503) if seen < 4 else Reply()) as server:
        ask(server, ["a"], tmp_path / "a", first_wait=0.08, attempts=5)
    gaps = [after - before for before, after in zip(server.times, server.times[1:], strict=False)]
    assert [gap >= 0.5 * 0.08 * 2**i for i, gap in enumerate(gaps)] == [True] * 4
    assert gaps[0] < 0.3


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (400, b'{"error": {"message": "no such field", "code": 7}}', "400 Bad Request: no such field"),
        (401, b'{"error": {"message": "wrong key"}}', "wrong key. No key was sent: set SEARCHR3_LLM_API_KEY"),
        (403, b'{"detail": "not for you"}', "not for you"),
        (404, b'{"error": "model m not found"}', "model m not found"),
        (404, b"<html>nothing\nhere</html>", "<html>nothing here</html>"),
        (301, b"", r"301 Moved Permanently: \(no message\)"),
        (422, b'{"object": "error", "message": "bad"}', "422 .*: bad"),
    ],
)
def test_a_refusal_ends_the_run_at_once(tmp_path: Path, status: int, body: bytes, message: str) -> None:
    with chat_server(lambda text, seen: Reply(status=status, raw=body)) as server:
        with pytest.raises(LLMError, match=message):
            ask(server, [f"t{i}" for i in range(9)], tmp_path / "a", concurrency=1)
        assert len(server.bodies) == 1


def test_one_refused_request_among_good_ones_is_dropped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    def answer(text: str, seen: int) -> Reply:
        return Reply(status=400, raw=b'{"message": "content filter"}') if text == "b" else Reply()

    with chat_server(answer) as server:
        for _ in range(2):
            answers = ask(server, ["a", "b", "c"], tmp_path / "a", concurrency=1)
            assert answers.values == ["OK", None, "OK"]
            assert dict(answers.dropped) == {"refused by the server": 1}
    assert len(server.bodies) == 3
    assert "content filter" in caplog.text


def test_an_answer_that_stays_unreadable_is_dropped_for_good(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply("why?") if text == "b" else Reply()) as server:
        for _ in range(2):
            answers = ask(server, ["a", "b"], tmp_path / "a", attempts=3)
            assert answers.values == ["OK", None]
            assert answers.summary().count("1 dropped (unreadable)") == 1
    assert server.seen == {"a": 1, "b": 3}


def test_a_failed_request_is_asked_again_by_the_next_run_only(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply(status=500) if text == "b" and seen < 3 else Reply()) as server:
        answers = ask(server, ["a", "b"], tmp_path / "a", attempts=3)
        assert (answers.values, answers.failed, answers.requests) == (["OK", None], 1, 4)
        answers = ask(server, ["a", "b"], tmp_path / "a", attempts=3)
    assert (answers.values, answers.failed, answers.reused, answers.requests) == (["OK", "OK"], 0, 1, 5)


def test_a_server_that_is_gone_ends_the_run(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply(status=500, raw=b'{"error": "out of memory"}')) as server:
        with pytest.raises(LLMError, match="5 requests in a row failed 2 times each, .*out of memory.*goes on"):
            ask(server, [f"t{i}" for i in range(50)], tmp_path / "a", attempts=2, concurrency=1)
        assert len(server.bodies) == 10
    with pytest.raises(LLMError, match="ConnectError"):
        ask(server, [f"t{i}" for i in range(50)], tmp_path / "a", attempts=2)


def test_the_budget_of_requests_is_exact_over_all_runs(tmp_path: Path) -> None:
    texts = [f"t{i}" for i in range(10)]
    with chat_server(lambda text, seen: Reply(status=500) if text == "t0" and not seen else Reply()) as server:
        answers = ask(server, texts, tmp_path / "a", max_requests=6, concurrency=3)
        assert answers.requests == len(server.bodies) == 6
        assert answers.asked + answers.left == 10 and answers.left in (4, 5)
        assert sum(value is not None for value in answers.values) == answers.asked
        assert f"{answers.left} left" in answers.summary()
        assert ask(server, texts, tmp_path / "a", max_requests=6).left == answers.left
        assert len(server.bodies) == 6
        assert ask(server, texts, tmp_path / "a", max_requests=60).values == ["OK"] * 10
    assert set(server.answered.values()) == {1}


def test_the_budget_of_tokens_is_exceeded_by_what_is_in_flight_only(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply(tokens=100, seconds=0.02)) as server:
        answers = ask(server, [f"t{i}" for i in range(20)], tmp_path / "a", max_tokens_total=450, concurrency=2)
    assert 450 <= answers.tokens <= 650
    assert answers.asked == answers.tokens // 100 and answers.left == 20 - answers.asked


def test_tokens_are_estimated_where_the_server_reports_none(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply("x" * 400, tokens=None)) as server:
        assert ask(server, ["y" * 400], tmp_path / "a").tokens == 200


def test_half_a_line_at_the_end_of_the_store_costs_one_answer(tmp_path: Path) -> None:
    store, texts = tmp_path / "deep" / "a.jsonl", ["a", "b", "c"]
    with chat_server(echo) as server:
        ask(server, texts, store, concurrency=1)
        store.write_bytes(store.read_bytes()[:-20])
        answers = ask(server, texts, store)
        assert (answers.values, answers.reused, answers.asked) == (["TO A", "TO B", "TO C"], 2, 1)
    assert [line["content"] for line in lines(store)] == ["to a", "to b", "to c"]
    assert server.answered == {"a": 1, "b": 1, "c": 2}


def test_a_file_that_is_no_store_is_refused_and_left_alone(tmp_path: Path) -> None:
    store = tmp_path / "records.jsonl"
    store.write_text('{"query": "q", "positives": ["p"]}\n{"torn')
    with chat_server(echo) as server, pytest.raises(ValueError, match=r"records.jsonl:1 is not an answer"):
        ask(server, ["a"], store)
    assert store.read_text().endswith('{"torn') and not server.bodies


def test_an_answer_that_a_new_reader_refuses_is_asked_again(tmp_path: Path) -> None:
    with chat_server(lambda text, seen: Reply("now" if seen else "then")) as server:
        chat_client.ask(talk("a"), str, endpoint(server), tmp_path / "a", progress=False)

        def only_now(text: str) -> str:
            if text != "now":
                raise ValueError("old")
            return text

        for asked in (1, 0):
            answers = chat_client.ask(talk("a"), only_now, endpoint(server), tmp_path / "a", progress=False)
            assert (answers.values, answers.asked) == (["now"], asked)


def test_two_processes_never_share_a_store(tmp_path: Path) -> None:
    import filelock

    with chat_server(echo) as server, filelock.FileLock(f"{tmp_path / 'a'}.lock"):
        with pytest.raises(LLMError, match="in use by another process"):
            ask(server, ["a"], tmp_path / "a")


def test_killed_and_started_again_it_asks_for_the_rest_only(tmp_path: Path) -> None:
    """SIGKILL in the middle of a run, over the command line; what was in flight is all that may be asked twice."""
    queries = [f"question number {i}" for i in range(40)]
    rows = [{"query": query, "positives": [f"answer {query}"], "negatives": [], "source": "s"} for query in queries]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out, concurrency = tmp_path / "out.jsonl", 4
    with chat_server(lambda text, seen: Reply(f"words about {text}", seconds=0.02)) as server:
        command = [
            sys.executable,
            "-m",
            "training.prepare.reasoning_targets",
            "llm",
            "--data",
            str(tmp_path / "in.jsonl"),
        ]
        command += [
            "--out",
            str(out),
            "--base-url",
            server.base_url,
            "--model",
            "m",
            "--concurrency",
            str(concurrency),
        ]
        environment = os.environ | {"SEARCHR3_LLM_API_KEY": KEY}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while server.answered.total() < 12 and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        stdout, stderr = process.communicate()
        assert process.returncode == -signal.SIGKILL, stderr.decode()
        before = server.answered.total()
        assert 12 <= before < 40 and not out.exists()
        held = [line["key"] for line in lines(tmp_path / "out.jsonl.answers.jsonl")]
        assert before - len(held) <= concurrency
        finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert finished.returncode == 0, finished.stderr
    assert f"{len(held)} answered earlier" in finished.stdout
    assert server.answered.total() == 40 + before - len(held)
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    written = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["query"] for row in written] == queries
    assert [row["reasoning"] for row in written] == [f"words about {query}" for query in queries]
    seen = finished.stdout + finished.stderr + stdout.decode() + stderr.decode()
    assert KEY not in seen + "".join(path.read_text() for path in tmp_path.iterdir())


@pytest.mark.parametrize("status", [200, 401, 400, 500, None])
def test_the_key_is_sent_and_reaches_no_log_error_or_file(
    tmp_path: Path, status: int | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Even from a server that says it back in its message, in a header and in the model's answer."""
    monkeypatch.setenv("SEARCHR3_LLM_API_KEY", KEY + "\n")
    caplog.set_level(logging.DEBUG)
    loud = f"Incorrect API key provided: {KEY}"

    def answer(text: str, seen: int) -> Reply:
        if status is None:
            return Reply(raw=b"", headers={"Content-Length": "0", f"X-{KEY}\x01": "1"})
        return Reply(loud, status, None if status == 200 else json.dumps({"error": {"message": loud}}).encode())

    errors = ""
    with chat_server(answer) as server:
        settings = endpoint(server, attempts=2)
        try:
            answers = chat_client.ask(talk("a", "b"), str, settings, tmp_path / "a")
            errors += repr(answers) + answers.summary()
        except LLMError as error:
            errors += f"{error!r} {error.__cause__!r} {error.__context__!r}"
        errors += repr(settings) + chat_command.plan(talk("c"), settings, tmp_path / "a")
    assert set(server.authorizations) == {f"Bearer {KEY}"}
    files = "".join(path.read_text() for path in tmp_path.iterdir())
    captured = capsys.readouterr()
    if status in (200, 401):
        assert "provided: [key]" in errors
    for text in (errors, files, caplog.text, captured.out, captured.err):
        assert KEY not in text


def test_the_key_of_openai_is_the_second_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert chat_client.api_key() is None
    monkeypatch.setenv("OPENAI_API_KEY", "second")
    assert chat_client.api_key() == "second"
    monkeypatch.setenv("SEARCHR3_LLM_API_KEY", "first")
    assert chat_client.api_key() == "first"


@pytest.mark.parametrize("key", ["two words-secret", "schlüssel-secret", "line\nfeed-secret"])
def test_a_key_that_fits_into_no_header_is_refused_unseen(monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    monkeypatch.setenv("SEARCHR3_LLM_API_KEY", key)
    with pytest.raises(LLMError, match="SEARCHR3_LLM_API_KEY holds a blank") as error:
        chat_client.api_key()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_url": "localhost:8000"}, "http://localhost:8000/v1"),
        ({"base_url": "ftp://host/v1"}, "http or https"),
        ({"base_url": "http://user:hidden@host/v1"}, "without user"),
        ({"base_url": "http://host/v1?key=hidden"}, "SEARCHR3_LLM_API_KEY"),
        ({"concurrency": 0}, "concurrency must be at least 1, got 0"),
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"max_requests": -1}, "max_requests must be at least 0, got -1"),
        ({"timeout": 0}, "timeout must be above 0 seconds, got 0"),
        ({"timeout": float("nan")}, "timeout must be above 0 seconds, got nan"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Endpoint(**{"base_url": "http://host/v1", "model": "m"} | changes)
    assert "hidden" not in str(error.value)


def test_the_plan_counts_what_is_not_held_and_sends_nothing(tmp_path: Path) -> None:
    with chat_server(echo) as server:
        ask(server, ["a"], tmp_path / "a", options={"max_tokens": 50})
        settings = endpoint(server, options={"max_tokens": 50})
        plan = chat_command.plan(talk("a", "b" * 400, "b" * 400, "c" * 400), settings, tmp_path / "a")
        assert len(server.bodies) == 1
    assert "4 conversations, 3 distinct, 1 of them answered already: 2 requests to m at http://127" in plan
    assert "about 200 prompt tokens" in plan and "at most 100 tokens of answers" in plan
    assert f"[user]\n{'b' * 400}" in plan and plan.endswith("Nothing was sent.")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_only_the_owner_reads_the_answers(tmp_path: Path) -> None:
    with chat_server(echo) as server:
        ask(server, ["a text of mine"], tmp_path / "a")
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
