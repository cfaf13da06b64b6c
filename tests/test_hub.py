"""The hub: asked once for a model, with one log line for each try, and told of where it is out of reach."""

import io
import logging
import subprocess
import sys

import huggingface_hub
import pytest
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from toa_exp import hub
from toa_exp.engines import loading, sizes
from toa_exp.ensemble import Agent, model_config
from toa_exp.errors import BadInput


@pytest.fixture
def asked(monkeypatch):
    """A hub that is out of reach, and what it was asked for: model, revision, and whether of its cache."""
    found = []

    def download(model, name, *, revision=None, local_files_only=False):
        assert name == "config.json"
        found.append((model, revision, local_files_only))
        if model == "no id":
            raise HFValidationError("no id")
        logging.getLogger("huggingface_hub.utils._http").warning("Retrying in 8s [Retry 5/5].")
        raise LocalEntryNotFoundError("look on your own") from ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(hub, "_failed_at", None)
    for forget in (hub._asked.cache_clear, hub._AWAY.clear):
        forget()
    yield found
    for forget in (hub._asked.cache_clear, hub._AWAY.clear):
        forget()


def test_it_is_asked_once_whoever_wants_to_know(asked):
    agent = Agent("ash", "org/model", "main", {})
    for ask in (
        agent.shape,
        lambda: sizes.weights_of("org/model", "main", "agent 'ash'"),
        lambda: sizes.size_of("org/model", "main", "agent 'ash'"),
        lambda: loading.load_tokenizer("org/model", "main", "agent 'ash'"),
    ):
        with pytest.raises(
            BadInput, match=r"agent 'ash': 'org/model' is neither .*service not known"
        ) as error:
            ask()
        assert all(mend in str(error.value) for mend in ("a folder", "`architecture`", "HF_HUB_OFFLINE=1"))
    assert asked == [("org/model", "main", False)]


def test_once_out_of_reach_only_its_cache_is_looked_at(asked):
    for revision in (None, "v2"):
        with pytest.raises(BadInput, match="cannot be reached"):
            model_config("org/model", revision, "reward")
    assert asked == [("org/model", None, False), ("org/model", "v2", True)]


def test_a_failure_is_forgotten_after_a_while(asked, monkeypatch):
    monkeypatch.setattr(hub, "_KEPT", 0.0)
    for model in ("org/model", "org/model", "org/other"):
        with pytest.raises(BadInput, match="cannot be reached"):
            model_config(model, None, "reward")
    assert asked == [("org/model", None, False), ("org/model", None, False), ("org/other", None, False)]


def test_a_name_that_it_refuses_says_nothing_of_the_connection(asked):
    with pytest.raises(BadInput, match=r"reward: 'no id' .*\(HFValidationError\). Check name and") as error:
        model_config("no id", None, "reward")
    assert "HF_HUB_OFFLINE" not in str(error.value)
    with pytest.raises(BadInput):
        model_config("org/model", None, "reward")
    assert not asked[1][2]


def test_without_a_connection_by_choice_that_is_what_is_told(asked, monkeypatch):
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    with pytest.raises(BadInput, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        model_config("org/model", None, "reward")


def test_its_warnings_are_logged_once(asked, caplog):
    logger, printed = logging.getLogger("huggingface_hub"), io.StringIO()
    logger.addHandler(logging.StreamHandler(printed))  # as it does where it is first used
    with pytest.raises(BadInput):
        model_config("org/model", None, "reward")
    assert [record.message for record in caplog.records] == ["Retrying in 8s [Retry 5/5]."]
    assert not printed.getvalue()


def test_it_adds_no_handler_of_its_own_later():
    """It imports most of itself when it is first used."""
    first_use = (
        "import logging\nfrom toa_exp import hub\nhub.library().hf_hub_download\n"
        "print(logging.getLogger('huggingface_hub').handlers)"
    )
    result = subprocess.run([sys.executable, "-c", first_use], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
