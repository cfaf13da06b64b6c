"""What a chat completion and its errors mean, against a server on loopback."""

from datetime import UTC, datetime
from email.utils import format_datetime

import pytest
from fake_endpoint import Answer, Asked, completion, refusal
from remote import OK, ask, error

from toa_exp.core import Usage
from toa_exp.engines.answers import retry_after
from toa_exp.errors import BadInput, Permanent, Unavailable

NONE = Usage(0, 0)
REASONED = {"prompt_tokens": 5, "completion_tokens": 2, "completion_tokens_details": {"reasoning_tokens": 2}}
ECHO = "What are a maximum context length and a content_filter?"
LONG = '{"error": {"message": "This endpoint\'s maximum context length is 64 tokens."}}'
INVALID = {"type": "missing", "loc": ["body", "x"], "msg": "Field required", "input": {"content": ECHO}}


def test_a_text_cut_at_its_limit_and_an_empty_text_of_a_token_are_answers():
    assert ask(Answer(completion("fou", reason="length")))[0][0].text == "fou"
    assert ask(Answer(completion("", usage=(5, 1))))[0][0].usage == Usage(5, 1)
    assert ask(Answer(completion("", reasoning="hm")))[0][0].failure is None
    assert ask(Answer(completion("", reason="length")))[0][0].failure is None


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 4203 tokens",
        "'max_tokens' or 'max_completion_tokens' is too large: 2000. This model's maximum context length is "
        "4096 tokens and your request has 2104 input tokens (2000 > 4096 - 2104).",
        "Input length (11680) exceeds model's maximum context length (4096).",
        "The decoder prompt (length 100) is longer than the maximum model length of 64.",
        "The input (5000 tokens) is longer than the model's context length (4096 tokens).",
        "the request exceeds the available context size, try increasing it",
        "max_tokens must be at least 1, got 0.",
    ],
)
def test_a_prompt_over_the_window_is_a_failure_of_its_own(message):
    (sample,), _ = ask(refusal(message, type="BadRequestError"))
    assert (sample.text, sample.usage, sample.failure) == ("", Usage(0, 0), "context_window")


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 4096 tokens. However, you requested 4120 tokens "
        "(4080 in the messages, 40 in the completion).",
        "You passed 4080 input tokens and requested 40 output tokens. However, the model's context length is "
        "only 4096 tokens, resulting in a maximum input length of 4056 tokens.",
        "Requested token count exceeds the model's maximum context length of 4097 tokens. You requested a "
        "total of 4120 tokens: 4080 tokens from the input messages and 40 tokens for the completion. Please "
        "reduce the number of tokens in the input messages or the completion to fit within the limit.",
    ],
)
def test_a_prompt_that_leaves_less_room_than_max_tokens_is_asked_for_what_is_left(message):
    def respond(asked: Asked) -> Answer:
        return refusal(message) if asked.body["max_tokens"] > 16 else OK

    (sample,), asked = ask(respond)
    assert sample.text == "4" and [request.body["max_tokens"] for request in asked] == [40, 16]
    (sample,), asked = ask(refusal("maximum context length is 64 tokens, your request has 60 input tokens"))
    assert sample.failure == "context_window" and len(asked) == 2


@pytest.mark.parametrize(
    "message",
    [
        "This model's maximum context length is 64 tokens. However, you requested 40 output tokens and your "
        "prompt contains at least 25 input tokens, for a total of at least 65 tokens.",
        "max_tokens=40 cannot be greater than max_model_len=64. Please request fewer output tokens.",
    ],
)
def test_a_prompt_that_the_server_did_not_count_is_counted_by_an_answer_of_one_token(message):
    def respond(asked: Asked) -> Answer:
        if asked.body["max_tokens"] > 4:
            return refusal(message)
        return Answer(completion("four", usage=(60, asked.body["max_tokens"])))

    (sample,), asked = ask(respond)
    assert sample.usage == Usage(60, 4)
    assert [request.body["max_tokens"] for request in asked] == [40, 1, 4]
    (sample,), asked = ask(refusal(message))
    assert sample.failure == "context_window" and len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "failure", "usage"),
    [
        (refusal("too long", code="context_length_exceeded"), "context_window", Usage(0, 0)),
        (refusal("filtered", code="content_filter"), "content_filter", Usage(0, 0)),
        (Answer(completion("half an ans", reason="content_filter")), "content_filter", Usage(5, 2)),
        (Answer(completion(None, refusal="I will not")), "refusal", Usage(5, 2)),
        (Answer(completion(None, reason="length", reasoning="hm")), "reasoning_cut", Usage(5, 2)),
        (Answer(completion("", reason="length", usage=REASONED)), "reasoning_cut", Usage(5, 2)),
        (Answer({"detail": [{"msg": "The prompt is too long", "input": "hm"}]}, 422), "context_window", NONE),
        (refusal("Provider returned error", metadata={"raw": LONG}), "context_window", NONE),
        (Answer({"errors": [{"message": "maximum context length is 8"}]}, 400), "context_window", NONE),
        (Answer({"why": "maximum context length is 8"}, 400), "context_window", NONE),
    ],
)
def test_typed_failures_have_the_tokens_that_they_took(answer, failure, usage):
    (sample,), _ = ask(answer)
    assert (sample.text, sample.failure, sample.usage) == ("", failure, usage)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (Answer(b"{'choices'"), "no chat completion"),
        (Answer(b"<html>proxy</html>"), "no chat completion"),
        (Answer([1]), "no chat completion"),
        (Answer({"choices": [], "usage": {}}), "no chat completion"),
        (Answer(completion(), cut=20), "broke the connection"),
        (Answer(completion(None)), "without content"),
        (Answer(completion("", usage=(5, 0))), "without content"),
        (Answer(completion(None, reason="error")), "broke off"),
        (Answer({"error": {"message": "upstream died", "code": 502}}), "502: upstream died"),
        (refusal("boom", 500), "500: boom"),
        (Answer(b"bad gateway", 502), "502: bad gateway"),
    ],
)
def test_what_may_pass_is_unavailable(answer, message):
    failed = error(answer)
    assert isinstance(failed, Unavailable) and not isinstance(failed, Permanent)
    assert message in str(failed) and "agent 'ash' at http://127.0.0.1" in str(failed)


@pytest.mark.parametrize("usage", [None, {}, (0, 0), (5, 0), {"prompt_tokens": 5}, (5, True)])
def test_an_answer_that_does_not_state_its_tokens_is_an_error(usage):
    failed = error(Answer(completion(usage=usage)))
    assert isinstance(failed, Permanent) and "does not say how many tokens" in str(failed)


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (refusal("wrong", 401), BadInput, "environment variable MY_PROVIDER"),
        (refusal("not yours", 403), BadInput, "refuses access"),
        (refusal("no such model", 404), BadInput, "does not know model 'm'"),
        (Answer({"detail": "Not Found"}, 404), BadInput, "404: Not Found"),
        (Answer(b"", 307, {"Location": "/v2"}), BadInput, "moved to '/v2'"),
        (refusal("pay", 402), BadInput, "no credit"),
        (refusal("quota", 429, code="insufficient_quota"), BadInput, "no credit"),
        (refusal("seed is unknown"), Permanent, "400: seed is unknown"),
        (refusal("seed is unknown", body=ECHO), Permanent, "400: seed is unknown"),
        (Answer({"detail": [INVALID]}, 422), Permanent, "422: missing body x Field required"),
        (refusal(f"1 validation error:\n  {INVALID}"), Permanent, "400: 1 validation error"),
        (refusal("x" * 5000, 422), Permanent, "sampling"),
        (Answer(completion(None, reasoning="hm")), Permanent, "reasoning parser"),
        (Answer(completion(None, reason="tool_calls", tool_calls=[{"id": "1"}])), Permanent, "calls tools"),
    ],
)
def test_what_will_not_pass_says_what_to_mend(answer, kind, message):
    failed = error(answer, key_env="MY_PROVIDER")
    assert type(failed) is kind and message in str(failed) and len(str(failed)) < 800


def test_a_wait_may_be_given_in_seconds_or_as_a_date():
    now = datetime(2026, 3, 1, 12, tzinfo=UTC)
    assert retry_after("17", now) == 17 and retry_after("-3", now) == 0
    assert retry_after(format_datetime(now.replace(minute=2), usegmt=True), now) == 120
    assert retry_after("Sun, 01 Mar 2026 11:00:00 GMT", now) == 0
    assert [retry_after(value, now) for value in (None, "soon", "nan", "inf")] == [None] * 4
