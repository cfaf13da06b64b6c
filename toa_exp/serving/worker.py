"""A server process of this package: python -m toa_exp.serving.worker <file>.

The file is JSON: `host`, `port`, and either `reward`, the YAML of a reward, or `agents`, the fields of
an ensemble's agents, with `engine`, the YAML of the transformers engine.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path
from typing import Any

from aiohttp import web
from omegaconf import OmegaConf

from toa_exp.build import build
from toa_exp.ensemble import agents_of
from toa_exp.errors import ToaError
from toa_exp.serving.chat import Chat, chat_app
from toa_exp.serving.scores import Withheld, scores_app
from toa_exp.serving.web import run


def main() -> None:
    """Serve until told to stop; exit status 1 or 2 with the reason on standard error."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    sys.path.append("")  # rewards of one's own are found where the command was given
    try:
        run(_app(spec), spec["host"], spec["port"])
    except ToaError as error:
        print(f"toa-exp serve: {error}", file=sys.stderr)
        sys.exit(error.exit_status)


def _app(spec: dict[str, Any]) -> web.Application:
    if "reward" in spec:
        return scores_app(build(OmegaConf.create(spec["reward"]), "reward", task=Withheld("task")))
    engine = OmegaConf.create(spec["engine"])
    return chat_app(Chat(agents_of(spec), lambda agents: build(engine, "engine", agents=agents)))


if __name__ == "__main__":
    main()
