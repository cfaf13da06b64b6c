"""Fields that no YAML has yet: they are added with a plus, which is said where it is missing."""

import pytest

from toa_exp.commands import run
from toa_exp.errors import BadInput


@pytest.mark.parametrize(
    ("given", "added"),
    [
        (["reward=llm_judge", "reward.options.dtype=float32"], r"\+reward\.options\.dtype=<value>"),
        (["reward=llm_judge", "reward.options={dtype:float32}"], r"\+reward\.options[.\w]*=<value>"),
        (
            ["task=lab_math", "ensemble=lab", "ensemble.agents.ada.options.dtype=float32"],
            r"\+ensemble\.agents\.ada\.options\.dtype=<value>",
        ),
    ],
)
def test_an_override_without_its_plus_is_told_so(given, added):
    with pytest.raises(BadInput, match=f"has a plus before it: {added}"):
        run.main(given)
    with pytest.raises(BadInput, match=r"unknown field of reward: 'optoins'\. Did you mean 'options'"):
        run.main(["reward=llm_judge", "reward.optoins.dtype=float32"])
