"""The README's own method, and every name that it and the pages in docs/ give, as a reader would use them."""

import re
import shlex
from pathlib import Path

import pytest
from helpers import cli, lines
from omegaconf import OmegaConf

from toa_exp.cli import group_choices
from toa_exp.ensemble import agents_of

README = Path(__file__).parents[1] / "README.md"
pytestmark = pytest.mark.skipif(not README.is_file(), reason="not in a checkout")


def blocks(language):
    pages = [README, *sorted(README.parent.glob("docs/*.md"))]
    text = "\n".join(page.read_text() for page in pages)
    return re.findall(rf"```{language}\n(.*?)```", text, re.S)


def test_every_link_leads_somewhere():
    pages = [README, README.parent / "CONTRIBUTING.md", *README.parent.glob("docs/*.md")]
    for page in pages:
        for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)\)", page.read_text()):
            there = page.parent / target if target else page
            assert there.exists(), f"{page.name}: {target}"
            if anchor:
                headings = re.findall(r"^#+ (.*)$", there.read_text(), re.M)
                anchors = {heading.lower().replace(" ", "-") for heading in headings}
                assert anchor in anchors, f"{page.name}: {anchor}"


def commands():
    text = "\n".join(blocks("sh")).replace("\\\n", " ")
    return [shlex.split(line, comments=True) for line in text.splitlines() if line.startswith("toa-exp")]


def test_adding_a_method_is_one_file_and_one_yaml(tmp_path):
    (source,) = [block for block in blocks("python") if "def patient" in block]
    (config,) = [block for block in blocks("yaml") if "patient" in block]
    assert len(source.splitlines()) < 60
    (tmp_path / "patient.py").write_text(source)
    path = tmp_path / "mine" / "method" / "patient.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(config)
    (run,) = [command for command in commands() if "method=patient,toa" in command]
    run = [argument.replace("problems=50", "problems=5") for argument in run]
    result = cli(*run[1:], "budget.samples=[4,8]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    for method in ("patient", "toa"):
        (path,) = tmp_path.glob(f"results/mine/*/*/{method}/seed=0/trajectories.jsonl")
        counts = [(line["budget"], len(line["samples"])) for line in lines(path.read_text())]
        assert counts == [(4, 4), (8, 8)] * 5
    (figures,) = [command for command in commands() if "results/mine" in command]
    assert cli(*figures[1:], cwd=tmp_path).returncode == 0


def test_the_ensemble_of_endpoints_composes_and_takes_an_agent_of_another_engine(tmp_path):
    (config,) = [block for block in blocks("yaml") if "base_url" in block]
    path = tmp_path / "mine" / "ensemble" / "remote.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(config)
    runs = [command for command in commands() if "ensemble=remote" in command and command[1] == "run"]
    assert len(runs) == 2
    for command in runs:
        result = cli(*command[1:], "--cfg", "job", cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        composed = OmegaConf.create(result.stdout)
        assert composed.engine._target_.endswith("OpenAI")
        assert set(agents_of(OmegaConf.to_container(composed.ensemble))) >= {"qwen", "llama", "mistral"}
    assert composed.ensemble.agents.small.engine == "here"
    assert composed.engines.here._target_.endswith("Transformers")


def test_the_table_of_groups_is_complete():
    table = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", README.read_text(), re.M))
    choices = group_choices()
    for group, named in table.items():
        assert set(re.findall(r"`(\w+)`", named)) == set(choices[group])


def test_every_command_and_group_of_the_readme_exists():
    known = {"run", "figures", "store", "compare", "lab", "overoptimisation", "serve", "doctor"}
    known |= {"score", "evaluate"}
    for command in commands():
        assert command[1] in known or command[1].startswith("-")
        for argument in command[2:]:
            group, _, choice = argument.partition("=")
            choice = choice.partition(".")[0]  # a task's language pair
            if group in group_choices() and group not in ("experiment",):
                own = {"patient", "pair", "remote", "served", "node"}
                assert set(choice.split(",")) - own <= set(group_choices()[group]), argument
