"""A server process with faults: python server.py <port> <record> <fault> <first> <last>.

Answers chat completions and scores as functions of the request alone. Of those that can have the
fault, the requests from `first` to `last` (counted from 0, both included) have it instead. What is
answered well is written to the file `record`, one line each.
"""

import asyncio
import hashlib
import json
import re
import sys
from itertools import count
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from fake_endpoint import Answer, Asked, Endpoint, completion, refusal

FAULTS = {
    "none": Answer({}),
    "429": refusal("slow down", 429, {"Retry-After": "0.02"}),
    "500": refusal("boom", 500),
    "hang": Answer({}, delay=3600.0),
    "truncated": Answer(b'{"choices": [{"message": {"role": "assis'),
    "cut": Answer(completion(), cut=30),
    "empty": Answer({"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 0}}),
    "nan": Answer(b'{"score": NaN}'),
    "window": refusal("This model's maximum context length is 64 tokens. However, your prompt is longer"),
}
FAULTS["narrow"] = FAULTS["window"]  # of half of the prompts that have drafts in them


CHAT = "/v1/chat/completions"
ONLY = {"nan": "/score", "empty": CHAT, "window": CHAT, "narrow": CHAT}


def answer(asked: Asked) -> Answer:
    """What the request alone decides."""
    if asked.path == "/score":
        return Answer({"score": chance(asked.body["prompt"], asked.body["response"])})
    seed, model = asked.body["seed"], asked.body["model"]
    return Answer(completion(f"Answer: {int(10 * chance(seed, model, *asked.body['messages']))}"))


def chance(*parts: object) -> float:
    return int(hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8], 16) / 2**32


def fits(asked: Asked) -> bool:
    """Whether a narrow window holds a prompt, which the prompt alone decides."""
    messages = asked.body["messages"]
    drafts = any(re.search(r"Answer: \d", message["content"]) for message in messages)
    return not drafts or chance(*messages) < 0.5


def identity(asked: Asked) -> str:
    """What tells draws and scores apart."""
    if asked.path == "/score":
        return json.dumps(["score", asked.body["prompt"], asked.body["response"]])
    return json.dumps(["draw", asked.body["model"], asked.body["seed"]])


async def main() -> None:
    port, record, fault, first, last = sys.argv[1:]
    numbers = count()
    with open(record, "a") as file:

        def respond(asked: Asked) -> Answer:
            other = ONLY.get(fault, asked.path) != asked.path
            other = other or (fault == "narrow" and fits(asked))
            if not other and int(first) <= next(numbers) <= int(last):
                return FAULTS[fault]
            file.write(identity(asked) + "\n")
            file.flush()
            made = answer(asked)
            made.delay = 0.005
            return made

        server = await asyncio.start_server(Endpoint(respond).serve, "127.0.0.1", int(port))
        print("serving", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
