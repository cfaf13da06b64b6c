"""How published process reward models want their steps laid out, and where they are read.

Steps are what stands between matches of the regular expression `separator`, blank ones left out; layout
pieces keeps these.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from toa_exp.draws import Message
from toa_exp.engines import loading
from toa_exp.errors import BadInput, choose
from toa_exp.rewards.steps import StepChat, StepEncoder, check_fast, compiled, token_places

Encoder = Callable[[str, str], StepChat]
"""From a prompt and an answer to tokens and the places to read."""

_CHANGED = "reward: its chat template changes {what}, so that steps cannot be found in it; mend the template"


@dataclass(frozen=True, slots=True)
class Layout:
    """What a model reads.

    `kind` chat: a chat with the answer as it is, read at the last token of every step. marked: a chat
    whose answer is the steps, each with `mark` behind it, joined by `join`, read at the marks. text: the
    same behind `opening`, without a chat template. pieces: the same, but every step and mark has tokens
    of its own. turns: every step is a message of the user (the problem stands before the first), answered
    with `mark`, and read where that is predicted. `system` opens a chat; {prompt} in `opening` is the
    problem's prompt.
    """

    kind: str = "chat"
    system: str | None = None
    opening: str = "{prompt}\n"
    mark: str | None = None
    join: str = ""

    def __post_init__(self) -> None:
        kinds = ["chat", *_ENCODERS]
        if self.kind not in kinds:
            raise choose("reward.layout", self.kind, kinds)
        if (self.kind == "chat") != (self.mark is None):
            raise BadInput(
                f"reward.layout={self.kind} with reward.mark={self.mark!r}: all layouts but chat read steps "
                f"at a mark"
            )
        if self.kind == "chat" and self.system is not None:
            raise BadInput("reward.system: layout chat takes none; choose reward.layout=marked or turns")

    @property
    def chat(self) -> bool:
        """Whether the model has a chat template."""
        return self.kind not in ("text", "pieces")

    def fingerprint(self) -> dict[str, Any]:
        """What decides the tokens; the layout that rewards had before there were others adds nothing."""
        return {} if self.kind == "chat" else {"layout": asdict(self)}

    def encoder(self, tokenizer: Any, separator: str) -> Encoder:
        """The encoder for a tokenizer; raises BadInput where it cannot be used so."""
        if self.kind == "chat":
            return StepEncoder(tokenizer, separator)
        check_fast(tokenizer)
        return _ENCODERS[self.kind](tokenizer, compiled(separator), self)


class _Laid:
    """An encoder of steps with marks."""

    def __init__(self, tokenizer: Any, separator: re.Pattern[str], layout: Layout) -> None:
        self._tokenizer = tokenizer
        self._separator = separator
        self._layout = layout
        self._mark = str(layout.mark)
        self._system: list[Message] = []
        if layout.system is not None:
            self._system = [{"role": "system", "content": layout.system}]

    def _steps(self, text: str) -> list[str]:
        return [step for step in self._separator.split(text) if step and not step.isspace()]

    def _joined(self, opening: str, text: str) -> tuple[str, list[int]]:
        """The steps with their marks behind an opening, and where the marks end."""
        whole, ends = opening, list[int]()
        for step in self._steps(text):
            whole += (self._layout.join if ends else "") + step + self._mark
            ends.append(len(whole))
        return whole, ends

    def _opening(self, prompt: str) -> str:
        return self._layout.opening.replace("{prompt}", prompt)

    def _render(self, messages: list[Message], *, reply: bool = False) -> str:
        return loading.render(self._tokenizer, [*self._system, *messages], "reward", reply=reply)

    def _tokens(self, whole: str, start: int, ends: list[int], *, special: bool = False) -> StepChat:
        encoded = self._tokenizer(whole, add_special_tokens=special, return_offsets_mapping=True)
        offsets = encoded["offset_mapping"]
        first = next((n for n, (_, end) in enumerate(offsets) if end > start), len(offsets))
        return StepChat(encoded["input_ids"], first, token_places(offsets, ends))


class _Marked(_Laid):
    """A chat, such as Qwen2.5-Math-PRM reads."""

    def __call__(self, prompt: str, text: str) -> StepChat:
        asked = [{"role": "user", "content": prompt}]
        opening = self._render(asked, reply=True)
        answered, ends = self._joined(opening, text)
        whole = self._render([*asked, {"role": "assistant", "content": answered[len(opening) :]}])
        if not whole.startswith(answered):
            raise BadInput(_CHANGED.format(what="answers"))
        return self._tokens(whole, len(opening), ends)


class _Text(_Laid):
    """Plain text, such as Math-Shepherd reads."""

    def __call__(self, prompt: str, text: str) -> StepChat:
        opening = self._opening(prompt)
        whole, ends = self._joined(opening, text)
        return self._tokens(whole, len(opening), ends, special=True)


class _Pieces(_Laid):
    """Steps in tokens of their own, such as Skywork-o1-Open-PRM reads; they begin with the BOS token.

    A blank line has a mark and a value too, as in the authors' code (SkyworkAI/skywork-o1-prm-inference,
    model_utils/io_utils.py); only an answer that is blank as a whole has no step.
    """

    def __call__(self, prompt: str, text: str) -> StepChat:
        ids = self._ids((self._tokenizer.bos_token or "") + self._opening(prompt))
        start, ends = len(ids), []
        mark = self._ids(self._mark)
        if not mark:
            raise BadInput(f"reward.mark={self._mark!r}: the tokenizer makes no token of it")
        for step in self._steps(text):
            ids += [*self._ids(step), *mark]
            ends.append(len(ids) - 1)
        return StepChat(ids, start, ends)

    def _steps(self, text: str) -> list[str]:
        return self._separator.split(text) if text.strip() else []

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids


class _Turns(_Laid):
    """A conversation, a step a turn, such as RLHFlow's models read; read before each mark."""

    def __call__(self, prompt: str, text: str) -> StepChat:
        steps = self._steps(text)
        if not steps:
            return self._tokens(self._render([{"role": "user", "content": prompt}]), 0, [])
        steps[0] = f"{prompt} {steps[0]}"
        messages: list[Message] = []
        for step in steps:
            messages.append({"role": "user", "content": step})
            messages.append({"role": "assistant", "content": self._mark})
        whole = self._render(messages)
        # What stands between a step and its mark is found once: to render every turn is quadratic.
        opened = self._render([{"role": "user", "content": "step"}], reply=True)
        between = opened.rpartition("step")[2]
        ends = [match.start() + len(between) for match in re.finditer(re.escape(between + self._mark), whole)]
        if len(ends) != len(steps):  # an answer has it too
            ends = self._one_by_one(messages, whole)
        return self._tokens(whole, 0, ends)

    def _one_by_one(self, messages: list[Message], whole: str) -> list[int]:
        ends = []
        for count in range(1, len(messages), 2):
            opening = self._render(messages[:count], reply=True)
            if not whole.startswith(opening + self._mark):
                raise BadInput(_CHANGED.format(what="what came before"))
            ends.append(len(opening))
        return ends


_ENCODERS: dict[str, type[_Marked] | type[_Text] | type[_Pieces] | type[_Turns]] = {
    "marked": _Marked,
    "text": _Text,
    "pieces": _Pieces,
    "turns": _Turns,
}
