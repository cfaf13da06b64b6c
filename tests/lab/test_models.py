"""The lab's recipe and its own network against transformers; the models that come with the package."""

import asyncio
import json
import shutil
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification, AutoTokenizer

import toa_exp
from toa_exp.errors import BadInput
from toa_exp.lab.card import auc, calibration, card, correlation, shown
from toa_exp.lab.critics import Critic
from toa_exp.lab.decoding import _draw, sample
from toa_exp.lab.domain import problems
from toa_exp.lab.folders import Kind, load, save
from toa_exp.lab.network import Network
from toa_exp.lab.plans import AGENTS, PLANS
from toa_exp.lab.recipe import Recipe
from toa_exp.lab.task import DOMAINS, LabTask
from toa_exp.lab.writer import Writer
from toa_exp.labels import LAB_WEIGHTS
from toa_exp.rewards.process import Process

NAMES = list(DOMAINS)
PLAIN = {
    "each_draft": "{draft}",
    "templates": {
        "direct": [{"role": "user", "content": "{prompt}"}],
        "refine": [{"role": "user", "content": "{prompt}\nDraft:\n{draft}"}],
        "aggregate": [{"role": "user", "content": "{prompt}\nDrafts:\n{drafts}"}],
    },
}


def prompt_of(name: str) -> str:
    return next(problems(DOMAINS[name](), "here", 4, test=True))


@pytest.mark.parametrize("name", NAMES)
def test_the_recipes_network_is_the_llama_of_transformers(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = PLANS[name].tokenizer()
    network = Network(PLANS[name].shape(len(tokenizer)))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        parameter.data = parameter.data.bfloat16().float()  # as it is stored
    save(Kind.LANGUAGE, network.shape, network.exported(), tokenizer, tmp_path)
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    assert len(modes) == 1  # whoever reads one file of the folder reads all
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32").eval()
    ids = torch.randint(5, len(tokenizer), (3, 40))
    with torch.inference_mode():
        expected, found = model(input_ids=ids).logits, network.logits(network(ids))
        again = load(tmp_path, "agent")
        reloaded = again.logits(again(ids))
    assert torch.allclose(found, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(found, reloaded)


def test_the_critics_process_head_is_a_token_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokenizer = PLANS["math"].tokenizer()
    critic = Critic(PLANS["math"].shape(len(tokenizer)))
    for parameter in critic.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
        parameter.data = parameter.data.bfloat16().float()
    save(Kind.TOKENS, critic.network.shape, critic.exported(Kind.TOKENS), tokenizer, tmp_path)
    model = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype="float32").eval()
    ids = torch.randint(5, len(tokenizer), (3, 40))
    with torch.inference_mode():
        assert torch.allclose(critic(ids)[1], model(input_ids=ids).logits[..., 0], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_the_task_words_requests_as_the_models_were_trained(name: str, tmp_path: Path) -> None:
    """The writer of the training texts and the task's prompts in the models' chat template agree."""
    tokenizer = PLANS[name].tokenizer()
    writer = Writer(tokenizer)
    task = LabTask(domain=name, parts=4, problems=2, seed=0, prompts=PLAIN)
    problem = next(task.problems())
    for template, drafts in (("direct", []), ("refine", ["a b."]), ("aggregate", ["a b.", "c."])):
        messages = task.render(problem, template, drafts)
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == writer.prompt(problem.prompt, drafts), template


def test_sampling_in_a_batch_is_sampling_alone_where_it_is_greedy() -> None:
    torch.manual_seed(0)
    tokenizer = PLANS["translation"].tokenizer()
    network = Network(PLANS["translation"].shape(len(tokenizer))).eval()
    torch.nn.init.normal_(network.embed_tokens.weight, std=1.0)
    writer = Writer(tokenizer)
    stream = problems(DOMAINS["translation"](), "here", (2, 6), test=True)
    requests = [writer.prompt(prompt) for prompt in islice(stream, 5)]
    generator = torch.Generator()
    together = sample(network, requests, generator, end=writer.end, temperature=0.0, most=12)
    alone = [sample(network, [r], generator, end=writer.end, temperature=0.0, most=12)[0] for r in requests]
    assert together == alone


@pytest.mark.parametrize(("top_p", "drawn"), [(1.0, {0, 1, 2, 3}), (0.95, {0, 1, 2}), (0.5, {0})])
def test_of_the_tail_of_a_distribution_nothing_is_sampled(top_p: float, drawn: set[int]) -> None:
    logits = torch.tensor([0.6, 0.2, 0.17, 0.03]).log().expand(2000, 4)
    tokens = _draw(logits, torch.Generator().manual_seed(0), 1.0, top_p)
    assert set(tokens.tolist()) == drawn


def test_the_area_under_the_curve() -> None:
    assert auc([1, 0, 0], [3.0, 1.0, 2.0]) == 1.0
    assert auc([0, 1, 0], [3.0, 1.0, 1.0]) == 0.25
    assert auc([1, 1], [0.0, 1.0]) is None


def test_a_correlation_with_what_never_changes_is_undefined() -> None:
    assert correlation([0.0, 0.5, 1.0], [1.0, 2.0, 3.0]) == pytest.approx(1.0)
    assert correlation([0.0, 0.0], [1.0, 2.0]) is None
    quality = {"auc": None, "questions": 0, "correlation": None, "calibration": []}
    made = {
        "afresh": {},
        "knowledge": {},
        "refining": {},
        "rewards": {"judge": quality},
        "signature": "lab:math",
    }
    assert "share of right parts undefined" in shown(made)


def test_calibration_goes_by_fifths() -> None:
    rated = [n / 100 for n in range(100)]
    fifths = calibration(rated, rated[::-1])
    assert [fifth["score"] for fifth in fifths] == pytest.approx([0.095, 0.295, 0.495, 0.695, 0.895])
    assert [fifth["share"] for fifth in fifths] == pytest.approx([0.895, 0.695, 0.495, 0.295, 0.095])


async def _metrics(task: LabTask, texts: dict[str, str]) -> dict[str, dict[str, object]]:
    try:
        return {p.id: dict(await task.score(p, texts[p.id])) for p in task.problems()}
    finally:
        await task.close()


def test_math_is_judged_by_all_lines_so_that_errors_which_cancel_do_not_count() -> None:
    task = LabTask(domain="math", parts=3, problems=1, seed=0, prompts=PLAIN)
    (problem,) = task.problems()
    domain = DOMAINS["math"]()
    parts = domain.parse(problem.prompt)
    right = domain.solution(parts, [part.answer(None) for part in parts])  # type: ignore[arg-type]
    assert asyncio.run(_metrics(task, {"0": right}))["0"] == {"accuracy": 1.0, "share": 1.0}
    total = str(problem.reference)
    assert task.final_answer(right) == total
    values = [int(str(part.value)) for part in parts]
    lucky = domain.solution(parts, [str(value) for value in (values[0] + 1, values[1] - 1, *values[2:])])
    assert task.final_answer(lucky) == total
    assert asyncio.run(_metrics(task, {"0": lucky}))["0"]["accuracy"] == 0.0
    assert asyncio.run(_metrics(task, {"0": "nonsense"}))["0"] == {"accuracy": 0.0, "share": 0.0}


def test_translations_come_with_the_statistics_of_bleu() -> None:
    task = LabTask(domain="translation", parts=3, problems=2, seed=0, prompts=PLAIN)
    metrics = asyncio.run(_metrics(task, {p.id: p.reference for p in task.problems()}))
    assert set(task.pools) == {"bleu", "chrf"} <= set(metrics["0"])
    assert metrics["1"]["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "poetry"}, "Allowed: instructions, math, translation"),
        ({"parts": 1}, "task.parts=1: give a number from 2 to 8"),
        ({"parts": 40}, "task.parts=40: give a number from 2 to 8"),
        ({"problems": 0}, "task.problems=0"),
        ({"seed": -1}, "task.seed=-1"),
        ({"baseline": "/nowhere"}, "go together"),
    ],
)
def test_bad_settings_of_the_task_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LabTask(**{"domain": "math", "parts": 3, "problems": 2, "seed": 0, "prompts": PLAIN, **change})


def test_all_weights_together_are_small() -> None:
    sizes = [path.stat().st_size for path in LAB_WEIGHTS.rglob("*.safetensors")]
    assert len(sizes) >= 6 * len(NAMES)
    assert sum(sizes) < 15e6


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.slow
def test_the_models_of_the_package_have_skills_of_their_own_and_the_reward_tells(name: str) -> None:
    made = card(name, LAB_WEIGHTS / name, parts=3, count=40, seed=1, temperature=0.85, top_p=0.95)
    fresh = made["afresh"]
    for agent, strong in zip(AGENTS, PLANS[name].strengths, strict=True):
        others = [fresh[other][strong] for other in AGENTS if other != agent]
        assert fresh[agent][strong] > max(others), (agent, strong)
        assert made["knowledge"][agent]["known"] > made["knowledge"][agent]["unknown"], agent
        assert made["knowledge"][agent]["unknown"] < 0.1, agent
    best = made["rewards"]["process" if name == "instructions" else "teacher"]
    assert best["questions"] >= 10
    assert best["auc"] > 0.8  # with more problems: the cards in experiments/lab
    assert "AUC within a question" in shown(made)


def judged_task() -> LabTask:
    weights = LAB_WEIGHTS / "instructions"
    judge = Process(model=str(weights / "judge"), separator="[\n,]", unit="log_odds", dtype="float64")
    settings = {"domain": "instructions", "parts": 6, "problems": 8, "seed": 0, "prompts": PLAIN}
    return LabTask(**settings, judge=judge, baseline=str(weights / "dan"))


def test_judge_and_baseline_give_win_rates() -> None:
    domain, rng = DOMAINS["instructions"](), Random(0)
    asked = {p.id: domain.parse(p.prompt) for p in judged_task().problems()}
    right = {i: domain.solution(parts, [part.answer(rng) for part in parts]) for i, parts in asked.items()}
    wrong = {i: domain.solution(parts, [part.slip(rng) for part in parts]) for i, parts in asked.items()}
    rates = []
    for texts in (right, wrong):
        metrics = asyncio.run(_metrics(judged_task(), texts))
        rates.append(sum(float(m["win_rate"]) for m in metrics.values()) / len(metrics))  # type: ignore[arg-type]
    assert rates[0] > 50.0 > rates[1] + 10.0
    assert {"judge", "baseline", "right"} <= set(judged_task().fingerprint())


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_missing_or_broken_weights_are_an_error_that_names_them(damage: str, tmp_path: Path) -> None:
    shutil.copytree(LAB_WEIGHTS / "math", tmp_path / "math")
    weights = tmp_path / "math" / "ada" / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:1000])
    from toa_exp.engines import loading

    with pytest.raises(BadInput, match="ada"):
        loading.load_model(
            "AutoModelForCausalLM", str(weights.parent), None, torch.device("cpu"), "auto", "agent 'ada'"
        )


@pytest.mark.slow
def test_the_recipe_runs_from_an_empty_folder_and_goes_on_where_it_ended(tmp_path: Path) -> None:
    plan, stages = PLANS["translation"], tmp_path / "stages"
    Recipe(plan, stages, 0, effort=0.02).build(tmp_path / "models")
    made = {path: path.stat().st_mtime_ns for path in stages.iterdir()}
    assert len(made) == 2 + 2 * len(AGENTS) + 3 + 3 + 1  # teachers, agents twice, samples, critics, manifest
    weights = (tmp_path / "models" / "judge" / "model.safetensors").read_bytes()
    (stages / "judge.safetensors").unlink()
    Recipe(plan, stages, 0, effort=0.02).build(tmp_path / "models")
    kept = {path: path.stat().st_mtime_ns for path in stages.iterdir()}
    assert {path.name for path in made if kept[path] != made[path]} == {"judge.safetensors"}
    assert (tmp_path / "models" / "judge" / "model.safetensors").read_bytes() == weights
    made_card = card(
        "translation", tmp_path / "models", parts=2, count=4, seed=0, temperature=0.85, top_p=0.95
    )
    assert set(made_card["afresh"]) == set(AGENTS)
    config = json.loads((tmp_path / "models" / "judge" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForSequenceClassification"]
    assert AutoTokenizer.from_pretrained(tmp_path / "models" / "ada").chat_template


def test_the_lab_is_sampled_in_the_same_way_everywhere() -> None:
    conf = Path(toa_exp.__file__).parent / "conf"
    own = OmegaConf.load(conf / "ensemble" / "lab.yaml").sampling
    alone = (Path(__file__).parents[2] / "experiments" / "lab" / "alone" / "ensemble").glob("*.yaml")
    assert all(OmegaConf.load(path).sampling == own for path in alone)
    card = OmegaConf.load(conf / "lab.yaml")
    assert (card.temperature, card.top_p) == (own.temperature, own.top_p)
