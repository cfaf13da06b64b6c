"""The LLM judge, against a scripted endpoint and on a tiny language model."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import hydra
import pytest
from fake_endpoint import Answer, Asked, completion, refusal, serving
from helpers import SMALL, cli
from tiny_models import causal_model

from toa_exp import labels
from toa_exp.app import CONF
from toa_exp.build import build
from toa_exp.core import Problem
from toa_exp.draws import Score
from toa_exp.errors import BadInput, Permanent, Unavailable

PROBLEM = Problem("p", "What is 1 + 1?")


def judge(*overrides: str, choice: str = "llm_judge", **changes: object):
    labels.register()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        config = hydra.compose("config", [f"reward={choice}", *overrides])
    for name, value in {"model": "critic", "architecture": SMALL, **changes}.items():
        config.reward[name] = value
    return build(config.reward, "reward", task=None)


def scores(make: Callable[[], object], texts: Sequence[str]) -> list[Score | BaseException]:
    async def run() -> list[Score | BaseException]:
        reward = make()
        try:
            runs = (reward.score(PROBLEM, text) for text in texts)
            return await asyncio.gather(*runs, return_exceptions=True)
        finally:
            await reward.close()

    return asyncio.run(run())


def at(url: str, **changes: object) -> Callable[[], object]:
    return lambda: judge(f"reward.engine.base_url={url}", **changes)


def test_the_last_stated_score_is_read_and_the_judge_is_shown_problem_and_answer():
    replies = {
        "two": "A score of 3 seemed fair. It is right.\nScore: 9",
        "three": "Wrong.\n**Score:** 2.5/10",
    }

    def respond(asked: Asked) -> Answer:
        content = asked.body["messages"][0]["content"]
        assert PROBLEM.prompt in content
        [text] = [text for text in replies if f"\n{text}\n" in content]
        return Answer(completion(replies[text], usage=(50, 7)))

    with serving(respond) as endpoint:
        good, bad = scores(at(endpoint.url), ["two", "three"])
    assert [(s.reward, s.tokens) for s in (good, bad)] == [(9.0, 57), (2.5, 57)]
    assert all(asked.body["temperature"] == 0.0 and "logprobs" not in asked.body for asked in endpoint.asked)


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score (1-10): 8", 8.0),
        ("Score: 8\nTo score 10 it would need a proof.", 8.0),
        ("Score: 8. To score 10 it would need a proof.", 8.0),
        ("- **Score**: 7/10", 7.0),
        ("Score: 3\nNo: it is better.\n__Score:__ **6.5**", 6.5),
    ],
)
def test_a_score_is_what_a_line_says(reply: str, score: float):
    with serving(lambda _: Answer(completion(reply))) as endpoint:
        [found] = scores(at(endpoint.url), ["two"])
    assert found.reward == score


@pytest.mark.parametrize(
    "reply",
    [
        "Score: 1-10",
        "Score: 1 to 10",
        "On a scale to score 10",
        "",
        "It is fine.",
        "Score: eleven",
        "Score: 11",
        "Score: -1",
        "\0 Score",
    ],
)
def test_a_reply_without_a_score_is_asked_for_again_and_then_no_score(reply: str):
    with serving(lambda _: Answer(completion(reply))) as endpoint:
        [error] = scores(at(endpoint.url, attempts=2), ["two"])
    assert isinstance(error, Permanent) and "in 2 attempts" in str(error)
    seeds = [asked.body["seed"] for asked in endpoint.asked]
    assert len(seeds) == len(set(seeds)) == 2


def test_what_failed_attempts_took_is_counted():
    replies = iter(["Well.", "Hm.", "Score: 4"])
    with serving(lambda _: Answer(completion(next(replies), usage=(10, 3)))) as endpoint:
        [found] = scores(at(endpoint.url), ["two"])
    assert (found.reward, found.tokens) == (4.0, 39)


def test_faults_of_the_endpoint_are_its_own():
    with serving(lambda _: refusal("down", 500)) as endpoint:
        [error] = scores(at(endpoint.url), ["two"])
    assert isinstance(error, Unavailable) and not isinstance(error, Permanent)
    long = refusal("This model's maximum context length is 10 tokens", code="context_length_exceeded")
    with serving(lambda _: long) as endpoint:
        [error] = scores(at(endpoint.url), ["x" * 100_000])
    assert isinstance(error, Permanent) and "context_window" in str(error)


def with_logprobs(*places: dict[str, float]) -> dict:
    """A completion whose tokens are the likeliest of each place; values are probabilities."""
    tokens = [max(place, key=place.__getitem__) for place in places]
    body = completion("".join(tokens))
    body["choices"][0]["logprobs"] = {
        "content": [
            {
                "token": token,
                "logprob": math.log(place[token]),
                "top_logprobs": [{"token": t, "logprob": math.log(p)} for t, p in place.items()],
            }
            for token, place in zip(tokens, places, strict=True)
        ]
    }
    return body


def test_the_expected_score_is_over_the_probabilities_of_the_digits():
    body = with_logprobs(
        {"\n": 0.9, "5": 0.1}, {"4": 0.5, " 4": 0.1, "5": 0.2, "1": 0.1, "9": 0.05, "no": 0.05}
    )
    with serving(lambda _: Answer(body)) as endpoint:
        [found] = scores(at(endpoint.url, choice="llm_judge_expected"), ["two"])
    assert found.reward == pytest.approx((4 * 0.6 + 5 * 0.2 + 1 * 0.1) / 0.9)
    assert endpoint.asked[0].body["logprobs"] is True and endpoint.asked[0].body["top_logprobs"] == 20


def test_an_expected_score_needs_a_judge_that_gives_one():
    rare = with_logprobs({"4": 0.3, "a": 0.25, "b": 0.2})
    for body, message in [
        (completion("4"), "no log-probabilities"),
        (with_logprobs({"Fine": 0.9, "4": 0.1}), "no score on the scale"),
        (rare, "no score on the scale"),
    ]:
        with serving(lambda _, body=body: Answer(body)) as endpoint:
            [error] = scores(at(endpoint.url, choice="llm_judge_expected"), ["two"])
        assert isinstance(error, Permanent) and message in str(error)


def test_an_engine_of_this_process_may_judge(tmp_path: Path):
    model = str(causal_model(tmp_path))

    def make(**changes: object):
        return judge(
            "engine@reward.engine=transformers",
            "reward.engine.device=cpu",
            model=model,
            architecture=None,
            messages=[{"role": "user", "content": "{prompt} {draft}"}],
            sampling={"temperature": 1.0, "top_p": 1.0, "max_tokens": 20},
            attempts=1,
            **changes,
        )

    [error] = scores(make, ["two"])
    assert isinstance(error, Permanent) and "no score on the scale" in str(error)
    # Anything that a random model writes is a number on this scale.
    [found] = scores(lambda: make(pattern=r"(?s)^.*?()(?:.|$)", scale=[0, 1]), ["two"])
    assert isinstance(found, Permanent)
    assert make().shape.head > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attempts": 0}, "attempts"),
        ({"scale": [5, 1]}, r"\[low, high\]"),
        ({"pattern": "("}, "no regular expression"),
        ({"pattern": "Score"}, "has no group"),
        ({"messages": [{"role": "user", "content": "{prompt}"}]}, r"\{draft\}"),
        ({"expected": True, "scale": [1, 10]}, "digits"),
        ({"sampling": {"temperature": -1.0, "top_p": 1.0, "max_tokens": 5}}, "temperature"),
    ],
)
def test_bad_settings_are_named(changes: dict[str, object], message: str):
    with pytest.raises(BadInput, match=message):
        judge("reward.engine.base_url=http://localhost:1/v1", **changes)


def test_log_probabilities_take_an_endpoint(tmp_path: Path):
    with pytest.raises(BadInput, match="log-probabilities of an endpoint"):
        judge(
            "engine@reward.engine=transformers",
            choice="llm_judge_expected",
            model=str(causal_model(tmp_path)),
            architecture=None,
        )


def test_the_number_format_of_a_judge_counts(tmp_path):
    model = str(causal_model(tmp_path))

    def fingerprint(*overrides: str, **changes: object) -> object:
        return judge("engine@reward.engine=transformers", *overrides, model=model, **changes).fingerprint()

    exact = fingerprint("reward.engine.dtype=float64")
    assert exact != fingerprint() and exact == fingerprint(options={"dtype": "float64"})


def test_where_the_judge_is_does_not_count_and_what_it_is_asked_does():
    here = judge("reward.engine.base_url=http://localhost:1/v1").fingerprint()
    assert judge("reward.engine.base_url=http://localhost:2/v1").fingerprint() == here
    asked = [{"role": "user", "content": "{prompt} {draft}"}]
    other = judge("reward.engine.base_url=http://localhost:1/v1", messages=asked)
    assert other.fingerprint() != here


def test_a_run_parks_what_its_judge_cannot_judge_and_goes_on(tmp_path: Path, questions: Path):
    nonsense = True

    def respond(asked: Asked) -> Answer:
        content = asked.body["messages"][0]["content"]
        return Answer(completion("Hm." if nonsense and "3 + 3" in content else "Score: 7"))

    with serving(respond) as endpoint:
        command = [
            "run", "task=jsonl", f"task.path={questions}", "task.limit=5", "ensemble=simulated",
            "reward=llm_judge", "reward.model=critic", "reward.architecture={model_type: llama, "
            "hidden_size: 8, intermediate_size: 16, num_hidden_layers: 1, num_attention_heads: 1, "
            "vocab_size: 32}", f"reward.engine.base_url={endpoint.url}", "method=parallel",
            "budget.samples=[4]", "tracking.mode=disabled",
        ]  # fmt: skip
        first = cli(*command, cwd=tmp_path)
        assert first.returncode == 1 and "|n:4|failed:1|" in first.stdout
        assert "1 of 5 problems have no answer" in first.stderr and "q3" in first.stderr
        before = len(endpoint.asked)
        nonsense = False
        again = cli(*command, cwd=tmp_path)
        assert again.returncode == 0 and "|n:5|failed:0|" in again.stdout, again.stderr
    assert len(endpoint.asked) - before == 4  # the four answers of the parked problem, and nothing else
