"""The models that come with the package: whole, and rewards that tell right from wrong."""

import hashlib

import pytest

from toa_exp.lab.card import card
from toa_exp.lab.plans import PLANS
from toa_exp.labels import LAB_WEIGHTS

# After a new training: cd toa_exp/lab/weights && rm SHA256SUMS && sha256sum */*/* > SHA256SUMS
SUMS = LAB_WEIGHTS / "SHA256SUMS"


def test_every_file_is_the_one_that_was_measured() -> None:
    noted = {name: digest for digest, name in (line.split() for line in SUMS.read_text().splitlines())}
    paths = [path for path in LAB_WEIGHTS.rglob("*") if path.is_file() and path != SUMS]
    found = {
        path.relative_to(LAB_WEIGHTS).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in paths
    }
    assert found == noted


@pytest.mark.slow
@pytest.mark.parametrize("name", list(PLANS))
def test_the_default_rewards_tell_right_answers_from_wrong_ones(name: str) -> None:
    made = card(name, LAB_WEIGHTS / name, parts=4, count=60, seed=7, temperature=0.85, top_p=0.95)["rewards"]
    default = made["process" if PLANS[name].reward == "reward" else PLANS[name].reward]
    assert default["questions"] >= 15
    assert default["auc"] >= 0.95
