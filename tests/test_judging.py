"""AlpacaEval's judge at a scripted endpoint: nonsense is a failed judgement, and its tokens count."""

import gc
import json
import warnings

import pytest
from fake_endpoint import Answer, completion, serving

from toa_exp.errors import BadInput, Unavailable
from toa_exp.metrics import arena_judge, of_run
from toa_exp.metrics.judging import Pair, WeightedJudge

PAIRS = [Pair(f"Question {n}?", f"baseline {n}", f"answer {n}") for n in range(4)]


@pytest.fixture(autouse=True)
def connections():
    """The package's clients, which it leaves open, end with the test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        gc.collect()


def reply(content, top, usage=(10, 1)):
    body = completion(content, usage=usage)
    if top is not None:
        tops = [{"token": token, "logprob": value, "bytes": None} for token, value in top.items()]
        body["choices"][0]["logprobs"] = {"content": [{**tops[0], "top_logprobs": tops}] if tops else []}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "judge", **body}


def judged(url, folder):
    pytest.importorskip("alpaca_eval")
    judge = WeightedJudge(
        model="j", annotator="weighted_alpaca_eval_gpt4_turbo", cache=str(folder), base_url=url, concurrency=2
    )
    return judge.judge(PAIRS)


@pytest.mark.parametrize(
    "nonsense",
    [
        reply("banana", {"banana": -0.01, "x": -5.0}),
        reply("m", None),
        reply("", {}),
    ],
    ids=["another token", "no log-probabilities", "no token"],
)
def test_nonsense_is_a_failed_judgement_whose_tokens_count(tmp_path, nonsense):
    with serving(lambda _: Answer(nonsense)) as server:
        for _ in range(2):  # failures are asked for again, from a cache that holds none
            found = judged(server.url, tmp_path)
            assert [judgement.preference for judgement in found] == [None] * 4
            assert [judgement.tokens for judgement in found] == [11.0] * 4
        assert len(server.asked) == 8


def test_whole_preferences_are_kept_and_some_may_fail(tmp_path):
    def respond(asked):
        text = asked.body["messages"][-1]["content"]
        return Answer(reply("?", {"?": -1.0} if "Question 2" in text else {"M": -0.1}))

    with serving(respond) as server:
        first = judged(server.url, tmp_path)
        again = judged(server.url, tmp_path)
        assert len(server.asked) == 5
    assert [judgement.preference for judgement in first] == [j.preference for j in again]
    assert first[2].preference is None and {first[n].preference for n in (0, 1, 3)} <= {1.0, 2.0}
    assert [judgement.tokens for judgement in again] == [11.0] * 4


@pytest.mark.parametrize("body", [{"choices": None}, {"error": "?"}, ["?"]])
def test_an_endpoint_that_is_none_is_named(tmp_path, body):
    with serving(lambda _: Answer(body)) as server, pytest.raises(Unavailable, match="no chat completion"):
        judged(server.url, tmp_path)


@pytest.mark.parametrize("read", [of_run._outputs, lambda path: arena_judge._answers(path, None)])
def test_a_baseline_with_two_answers_to_a_question_is_refused(tmp_path, read):
    path = tmp_path / "baseline.jsonl"
    row = {"id": "a", "instruction": "a", "output": "b"}
    path.write_text("".join(json.dumps({**row, "output": one}) + "\n" for one in "xy"))
    with pytest.raises(BadInput, match=r"metric\.baseline.*'a' occurs"):
        read(str(path))
