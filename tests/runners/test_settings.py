"""What the machines of a cluster are told of the environment."""

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from toa_exp.runners.settings import Settings

KEYS = {"HF_TOKEN": "hf", "PGSERVICE": "study", "PGPASSWORD": "secret", "MY_KEY": "sk"}
DEFAULTS = {"https_proxy": "http://proxy:1", "HF_HUB_OFFLINE": "1", "HF_HOME": "/", "SSL_CERT_DIR": "/"}
NOT = {"UNRELATED": "here", "TOA_EXP_FOLDER": "here", "VLLM_HOST_IP": "10.0.0.1"}


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Settings:
    for name, value in {**KEYS, **DEFAULTS, **NOT, "SSL_CERT_FILE": "/is/not/there"}.items():
        monkeypatch.setenv(name, value)
    config = OmegaConf.create({"engine": {"key_env": "MY_KEY"}, "store": {"url": "postgresql://"}})
    return Settings.of(SimpleNamespace(config=config, store="postgresql://", overrides=[]))


def test_keys_are_those_of_the_run_and_the_rest_what_a_machine_does_not_say_itself(settings, monkeypatch):
    for name in (*KEYS, *DEFAULTS, *NOT, "SSL_CERT_FILE"):
        monkeypatch.delenv(name)
    own = {"HF_TOKEN": "its own", "HTTPS_PROXY": "http://its.own:1", "HF_HOME": "/its/own"}
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    settings.enter()
    assert {name: os.environ[name] for name in KEYS} == KEYS
    assert os.environ["HF_HUB_OFFLINE"] == "1" and os.environ["SSL_CERT_DIR"] == "/"
    assert os.environ["HF_HOME"] == "/its/own" and os.environ["HTTPS_PROXY"] == "http://its.own:1"
    assert not {*NOT, "SSL_CERT_FILE", "https_proxy"} & os.environ.keys()
