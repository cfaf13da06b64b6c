"""Translations with their references: sacrebleu's numbers, and what is refused."""

import gzip
import json
from pathlib import Path

import pytest

from toa_exp.errors import BadInput
from toa_exp.metrics.translation import pair_in_name
from toa_exp.scoring.files import read
from toa_exp.scoring.segments import Segments
from toa_exp.scoring.translation import score_systems

ROWS = [
    {
        "id": n,
        "src": f"Das ist Satz {n}.",
        "refs": {"A": f"This is sentence {n}.", "B": f"That is sentence {n}."},
        "hyps": {"good": f"This is sentence {n}.", "poor": f"Sentence {n} it is"},
    }
    for n in range(8)
]


def score(rows, system="good", reference="A", pair="de-en", path="x.jsonl"):
    return score_systems(rows, Path(path), system=system, reference=reference, pair=pair)


def changed(**change):
    """Rows whose third is changed."""
    return [*ROWS[:2], {**ROWS[2], **change}, *ROWS[3:]]


def test_values_interval_count_and_signature():
    measures = score(ROWS).measures
    assert measures["bleu"].value == pytest.approx(100.0)
    assert measures["bleu"].n == 8 and measures["bleu"].failed == 0
    assert measures["bleu"].signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp")
    poor = score(ROWS, system="poor").measures["chrf"]
    assert poor.interval[0] <= poor.value <= poor.interval[1] < 100


def test_several_references_are_used_together():
    both = score(ROWS, system="poor", reference=None).measures
    assert both["bleu"].signature.startswith("nrefs:2")
    assert both["bleu"].value >= score(ROWS, system="poor").measures["bleu"].value


def reference_scores(shared):
    return json.loads((shared / "data/wmt/expected_bleu_chrf.json").read_text())["rows"]


def test_scores_are_those_of_sacrebleu_over_the_reference_data(shared):
    rows = reference_scores(shared)
    compare(
        shared,
        [
            next(row for row in rows if row["testset"] == "wmt23" and row["pair"] == "de-en"),
            next(row for row in rows if row["refs"] == ["A", "B"]),
        ],
    )


@pytest.mark.slow
def test_scores_are_those_of_sacrebleu_for_many_systems(shared):
    compare(shared, reference_scores(shared)[::3])


def compare(shared, expected):
    assert expected
    files = {}
    for row in expected:
        path = shared / f"data/wmt/{row['testset']}.{row['pair']}.jsonl.gz"
        rows = files.setdefault(path, read(path, "outputs"))
        measures = score_systems(rows, path, system=row["system"], reference=row["refs"], pair=None).measures
        assert measures["bleu"].n == row["n"]
        assert measures["bleu"].value == pytest.approx(row["bleu"], abs=1e-5)
        assert measures["chrf"].value == pytest.approx(row["chrf2"], abs=1e-5)
        assert measures["bleu"].signature == row["bleu_signature"]
        assert measures["chrf"].signature == row["chrf2_signature"]


@pytest.mark.parametrize("pair, tokenizer", [("en-zh", "zh"), ("en-ja", "ja-mecab"), ("en-ko", "ko-mecab")])
def test_the_target_language_decides_the_tokenizer(pair, tokenizer):
    if tokenizer == "ja-mecab":
        pytest.importorskip("MeCab")
    if tokenizer == "ko-mecab":
        pytest.importorskip("mecab_ko")
    text = {"en-zh": "今天天气很好", "en-ja": "今日は天気がいいです", "en-ko": "오늘은 날씨가 좋습니다"}[pair]
    rows = [
        {"id": n, "src": f"Fine weather {n}", "refs": {"A": f"{text} {n}"}, "hyps": {"s": f"{text} {n}"}}
        for n in range(4)
    ]
    measure = score(rows, system="s", pair=pair).measures["bleu"]
    assert f"tok:{tokenizer}" in measure.signature
    assert measure.value == pytest.approx(100.0)


@pytest.mark.parametrize(
    "name, pair",
    [
        ("wmt22.de-en.jsonl.gz", "de-en"),
        ("wmt23_en-cs.jsonl", "en-cs"),
        ("mine.jsonl", None),
        ("a.zh_en.json", "zh-en"),
        ("sys_out.jsonl", None),
        ("sys_out.cs-uk.my_new.jsonl", "cs-uk"),
    ],
)
def test_the_pair_is_read_off_the_name(name, pair):
    assert pair_in_name(Path("de-fr") / name) == pair


def test_without_a_pair_chinese_references_are_tokenized_as_chinese(caplog):
    rows = [
        {"id": n, "src": "It rains.", "refs": {"A": "下雨了。"}, "hyps": {"s": "下雨了。"}} for n in range(3)
    ]
    assert "tok:zh" in score(rows, system="s", pair=None).measures["bleu"].signature
    assert "task.pair" in caplog.text


@pytest.mark.parametrize(
    "rows, said",
    [
        (changed(id=1), "more than once"),
        (changed(id=None), "has no 'id'"),
        (changed(hyps={"poor": "x"}), "no output of 'good'"),
        (changed(hyps={"good": 3}), "give a text"),
        (changed(refs={"B": "x"}), "no reference 'A'"),
        (changed(refs=None), "no object"),
        ([{**row, "lang": "de" if row["id"] % 2 else "cs"} for row in ROWS], "several languages"),
        ([*ROWS, *({**r, "id": r["id"] + 8, "src": "这是第几句话。"} for r in ROWS)], "several languages"),
        (
            [*ROWS, *({**r, "id": r["id"] + 8, "refs": {"A": "这是第几句话。"}} for r in ROWS)],
            "several languages",
        ),
    ],
)
def test_bad_rows_are_refused(rows, said):
    with pytest.raises(BadInput, match=said):
        score(rows)


def test_unknown_names_are_refused_with_those_there_are():
    with pytest.raises(BadInput, match="good"):
        score(ROWS, system="god")
    with pytest.raises(BadInput, match="A, B"):
        score(ROWS, reference="C")
    with pytest.raises(BadInput, match="system=<one of good, poor>"):
        score(ROWS, system=None)
    with pytest.raises(BadInput, match="the file's name says"):
        score(ROWS, path="wmt22.zh-en.jsonl")


def test_empty_hypotheses_and_absent_segments_are_counted(caplog):
    rows = changed(hyps={"good": " "})
    measure = score(rows).measures["bleu"]
    assert (measure.n, measure.failed) == (8, 1) and measure.value < 100
    assert score(changed(hyps={"good": None})).measures["bleu"].failed == 1
    measure = score(ROWS[:3] + ROWS[5:]).measures["bleu"]
    assert (measure.n, measure.failed) == (6, 2)
    assert "counted as failed" in caplog.text


def test_an_empty_hypothesis_of_an_empty_segment_is_right():
    rows = changed(src="", refs={"A": ""}, hyps={"good": ""})
    assert score(rows).measures["bleu"].failed == 0


def test_extreme_texts_go_through():
    hostile = ["x" * 100_000, "\0\0", "\u202eאבג", "\\frac{" * 5000, "\ud800", "a\u2028b\x85c\r\n"]
    rows = [{**ROWS[n], "hyps": {"good": text}} for n, text in enumerate(hostile)]
    assert score(rows).measures["bleu"].n == len(hostile)


def test_a_gzipped_file_is_read_line_by_line(tmp_path):
    path = tmp_path / "no-ending"
    odd = {"text": "a\u2028b\x85c"}
    path.write_bytes(
        gzip.compress((json.dumps(odd, ensure_ascii=False) + "\n\n" + '{"text": "a\0b"}\n').encode())
    )
    assert read(path, "outputs") == [odd, {"text": "a\0b"}]


def test_a_table_may_hold_long_answers(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("id,output\n1," + "x" * 200_000)
    assert read(path, "outputs") == [{"id": "1", "output": "x" * 200_000}]


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "empty"),
        (b'{"a": 1}\n{"a"', "line 2"),
        (b"\xff{}", "UTF-8"),
        (gzip.compress(b"n,c\n")[:10] + b"\xff" * 40, "cannot be read"),
        (b"n,c\n1\n", "line 2"),
        (b"n,c,c\n1,2,3\n", "occurs twice"),
        (b"[1]", "no JSON object"),
        (b"n,c\n", "no rows"),
    ],
)
def test_broken_files_are_refused(tmp_path, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(BadInput, match=said):
        read(path, "outputs")
    with pytest.raises(BadInput, match="no such file"):
        read(tmp_path / "none", "outputs")


def test_kana_are_japanese(caplog):
    pytest.importorskip("MeCab")
    rows = [
        {"id": n, "src": "It rains.", "refs": {"A": "雨が降っている。"}, "hyps": {"s": "雨が降る。"}}
        for n in range(3)
    ]
    assert "tok:ja" in score(rows, system="s", pair=None).measures["bleu"].signature


CZECH = "Prezident řekl, že se na to podívá a že je to v pořádku."
GERMAN = "Der Kanzler hat gesagt, dass er das nicht von dem Minister gehört hat und auch nicht will."
ENGLISH = "The minister said that it was not in the report of the bank and that they have it."


@pytest.mark.parametrize("field, other", [("src", CZECH), ("refs", {"A": GERMAN})])
def test_languages_of_one_script_are_told_apart(field, other):
    rows = [
        {"id": n, "src": GERMAN, "refs": {"A": ENGLISH}, "hyps": {"good": ENGLISH}, field: other}
        if n % 2
        else {"id": n, "src": GERMAN, "refs": {"A": ENGLISH}, "hyps": {"good": ENGLISH}}
        for n in range(10)
    ]
    with pytest.raises(BadInput, match="several languages"):
        score(rows)
    assert score(rows[::2]).measures["bleu"].n == 5


def test_a_near_copy_of_a_reference_is_no_second_one(caplog):
    rows = [{**row, "refs": {"copy": row["refs"]["A"], **row["refs"]}} for row in ROWS]
    assert score(rows, reference=None).measures["bleu"].signature.startswith("nrefs:2")
    assert "'copy' is nearly the same as 'A'" in caplog.text
    assert score(rows, reference="all").measures["bleu"].signature.startswith("nrefs:3")


def numbered(*numbers, make=int):
    return [{**ROWS[0], "id": make(n)} for n in numbers]


@pytest.mark.parametrize(
    "rows, options, kept, absent",
    [
        (numbered(0, 1, 3), {}, 3, 1),
        (numbered(1, 2, 3), {}, 3, 0),
        (numbered(0, 1, 3, make=str), {}, 3, 1),
        (numbered(3, 7, 100), {"ids": {"3", "7"}}, 2, 0),
        (numbered(*range(100)), {"testset": "wmt23", "pair": "de-en"}, 100, 449),
        (numbered(*range(549)), {"testset": "wmt23", "pair": "de-en"}, 549, 0),
        (numbered(*range(100)), {"testset": "wmt23", "pair": "de-en", "limit": 10}, 10, 0),
        (numbered(*range(100)), {"testset": "wmt23", "pair": "de-en", "limit": 200}, 100, 100),
    ],
)
def test_absent_segments_are_those_of_the_test_set(rows, options, kept, absent):
    source = Segments(None, options.pop("testset", None), options.pop("pair", None))
    chosen = source.chosen(rows, options.get("limit"), options.get("ids"))
    assert (len(chosen[0]), chosen[1]) == (kept, absent)


def test_rows_are_held_against_the_tasks_own_file(tmp_path):
    path = tmp_path / "set.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"s{n}", "src": "x", "refs": {"A": "x"}}) + "\n" for n in range(5))
    )
    source = Segments(str(path), "wmt23", "de-en")
    assert source.chosen(numbered(1, 2, make="s{}".format), None, None)[1] == 3
    assert source.chosen(numbered(3, 1, make="s{}".format), 2, None) == (numbered(1, make="s{}".format), 1)
    with pytest.raises(BadInput, match="none of the 5"):
        source.chosen(numbered(1, 9, make="s{}".format), None, None)
    with pytest.raises(BadInput, match="549 segments"):
        Segments(None, "wmt23", "de-en").chosen(numbered(*range(550)), None, None)
