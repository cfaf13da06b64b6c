"""The agents: FLOPs, keys, endpoints, chat templates, and one tiny answer of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from omegaconf import DictConfig

from toa_exp.build import build
from toa_exp.core import Problem, Request
from toa_exp.cost import text_part
from toa_exp.doctor.findings import Findings
from toa_exp.draws import Draw, Message, Sample, canonical, digest, draw_key
from toa_exp.engines import loading
from toa_exp.engines.answers import Asked, Mends, complain, message_of, parsed
from toa_exp.engines.base import Engine
from toa_exp.engines.client import Client, Manner, Target
from toa_exp.engines.connection import Connection, connection_of, key_of, url_setting
from toa_exp.ensemble import Agent, model_config
from toa_exp.errors import ToaError, told_at

_TOKENS = 16  # of the tiny answer
_SECONDS = 20.0  # for an endpoint to say that it is there


def check_flops(findings: Findings, agent: Agent) -> None:
    """Whether the FLOPs of a sample are known."""
    what = f"FLOPs of agent {agent.name!r}"
    with findings.checking(what):
        tokens = agent.shape().flops(1000, 0) / 1000
        findings.ok(what, f"{tokens / 1e9:.3g} GFLOP a token, in a prompt of a thousand")


async def check_endpoints(findings: Findings, agent: Agent, engine: DictConfig) -> bool:
    """Key, and every URL of an agent with engine=openai; False where no sample can be asked for."""
    whose = f"agent {agent.name!r}"
    try:
        with told_at("engine", agent.place):
            connection = connection_of(agent, engine)
            key = key_of(connection.key_env, whose)
    except ToaError as error:
        findings.fail(whose, str(error))
        return False
    if key is not None:
        findings.ok(f"key of {whose}", f"${connection.key_env} is set (its value is not shown)")
    client = Client()
    try:
        reached = [await _reached(findings, agent, connection, key, url, client) for url in connection.urls]
        return any(reached)
    finally:
        await client.close()


async def _reached(
    findings: Findings, agent: Agent, connection: Connection, key: str | None, url: str, client: Client
) -> bool:
    what = f"endpoint {url}"
    setting = url_setting(agent)
    mends = Mends(
        setting, "engine.key_env", "has no /models", f"see that {setting} ends in /v1", f"mend {setting}"
    )
    asked = Asked(f"agent {agent.name!r}", url, connection.key_env, key, mends)
    manner = Manner.of(key, _SECONDS, connection.connect_timeout)
    try:
        answer = await client.ask(Target.of(f"{url}/models"), None, manner, asked)
        body = parsed(answer.content)
        if answer.status in (404, 405):  # not all of them have it, and the tiny answer tells more
            findings.warn(what, f"is there, but lists no models ({answer.status}); see that it ends in /v1")
            return True
        if answer.status != 200:
            complain(answer.status, answer.headers, message_of(body, answer.content, asked), asked)
    except ToaError as error:
        findings.fail(what, str(error))
        return False
    listed = body.get("data") if isinstance(body, dict) else None
    names = [one.get("id") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    if agent.model in names or not names:
        findings.ok(what, f"reachable, has {agent.model!r}" if names else "reachable")
    else:
        shown = ", ".join(map(str, names[:5])) + (", ..." if len(names) > 5 else "")
        findings.warn(
            what,
            f"does not list the model {agent.model!r} of agent {agent.name!r}; it has {shown}. Set "
            f"ensemble.agents.{agent.name}.model",
        )
    return True


def check_template(
    findings: Findings, agent: Agent, chats: Mapping[str, list[Message]], problem: Problem
) -> bool:
    """Whether a local model's chat template takes the task's messages, and the window holds them."""
    whose = f"agent {agent.name!r}"
    what = f"chat template of {whose}"
    try:
        loading.check_model(agent.model, whose)
        tokenizer = loading.load_tokenizer(agent.model, agent.revision, whose)
        sizes = {
            name: len(loading.token_ids(tokenizer, messages, whose, reply=True))
            for name, messages in chats.items()
        }
        window = text_part(model_config(agent.model, agent.revision, whose)).get("max_position_embeddings")
    except ToaError as error:
        findings.fail(what, str(error))
        return False
    shown = ", ".join(f"{name} {size}" for name, size in sizes.items())
    limit = int(agent.sampling["max_tokens"])
    if window is not None and max(sizes.values()) >= window:
        findings.fail(
            what,
            f"problem {problem.id!r} takes {shown} tokens, and {agent.model!r} reads {window} at most, so "
            f"that its samples fail (context_window). Leave the agent or the problem out (task.ids), or "
            f"choose a model with a longer window",
        )
        return False
    if window is not None and "refine" in sizes and sizes["refine"] + 2 * limit > window:
        findings.warn(
            what,
            f"problem {problem.id!r} takes {shown} tokens; with a draft and an answer of max_tokens="
            f"{limit} each a refinement is over the window of {window}, and is cut there. Lower "
            f"ensemble.sampling.max_tokens where answers are that long",
        )
    else:
        findings.ok(what, f"renders {', '.join(sizes)}; problem {problem.id!r} takes {shown} tokens")
    return True


async def check_answer(
    findings: Findings, agent: Agent, engine: DictConfig, messages: list[Message], problem: Problem
) -> Sample | None:
    """One tiny answer of an agent, through the engine that a run would use."""
    whose = f"agent {agent.name!r}"
    limit = min(_TOKENS, int(agent.sampling["max_tokens"]))
    tiny = replace(agent, sampling={**agent.sampling, "max_tokens": limit})
    with findings.checking(whose), told_at("engine", agent.place):
        made: Engine = build(engine, "engine", agents={agent.name: tiny})
        try:
            sample = await made.sample(_draw(agent.name, messages, problem))
        finally:
            await made.close()
        if sample.failure is None or sample.failure == "reasoning_cut":
            usage = sample.usage
            findings.ok(
                whose,
                f"answered {usage.completion_tokens} tokens to {usage.prompt_tokens}, in "
                f"{sample.seconds:.2f} s",
            )
            return sample if sample.failure is None else None
        if sample.failure == "context_window":
            findings.fail(
                whose,
                f"the prompt of problem {problem.id!r} is over the context window of {agent.model!r}. "
                f"Leave it out (task.ids), choose a model with a longer window, or raise the server's",
            )
        else:
            findings.warn(whose, f"is there, but has no text for problem {problem.id!r} ({sample.failure})")
    return None


def _draw(agent: str, messages: list[Message], problem: Problem) -> Draw:
    asked, prompt = digest(b"doctor"), digest(canonical(messages))
    key = draw_key(problem.id, asked, prompt, 0, 0)
    return Draw(key, problem, Request(agent), messages, asked, prompt, 0, 0)
