"""Requests and answers as token ids, worded as the tasks' prompt templates word them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from toa_exp.lab.critics import score
from toa_exp.lab.domain import UNLABELLED, Domain, grade
from toa_exp.lab.tokenizer import ASSISTANT, END, USER
from toa_exp.lab.training import Example

DIRECT = "{prompt}"
REFINE = "{prompt}\nDraft:\n{draft}"
AGGREGATE = "{prompt}\nDrafts:\n{drafts}"
BETWEEN = "\n\n"


class Writer:
    """Encodes with a tokenizer; the same ids as its chat template gives."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.end, self._user, self._assistant = map(self._special, (END, USER, ASSISTANT))

    def prompt(self, problem: str, drafts: Sequence[str] = ()) -> list[int]:
        """The ids of a request: direct, refine (one draft) or aggregate (several)."""
        if not drafts:
            content = DIRECT.format(prompt=problem)
        elif len(drafts) == 1:
            content = REFINE.format(prompt=problem, draft=drafts[0])
        else:
            content = AGGREGATE.format(prompt=problem, drafts=BETWEEN.join(drafts))
        return [self._user, *self.encode(content), self._assistant]

    def example(self, problem: str, drafts: Sequence[str], answer: str) -> Example:
        """A training example: the request and the answer with its end token."""
        prompt = self.prompt(problem, drafts)
        return Example([*prompt, *self.encode(answer), self.end], len(prompt))

    def dialogue(self, problem: str, answer: str) -> list[int]:
        """What a reward model reads."""
        return [*self.prompt(problem), *self.encode(answer), self.end]

    def labelled(self, domain: Domain, problem: str, answer: str) -> Example:
        """A dialogue for training reward models.

        The label of a token is the mark of its last character; that of the end token is the score. An
        answer with fewer parts than the problem is wrong at its last character, whatever stands there.
        """
        question = self.prompt(problem)
        marks = domain.marks(problem, answer)
        if marks and None in domain.values(domain.parse(problem), answer)[-1:]:
            marks[-1] = 0.0
        encoded = self.tokenizer.backend_tokenizer.encode(answer, add_special_tokens=False)
        labels = [marks[end - 1] for _, end in encoded.offsets]
        target = score(grade(domain, problem, answer)[1])
        ids = [*question, *encoded.ids, self.end]
        return Example(ids, len(question), [*[UNLABELLED] * len(question), *labels, target])

    def breaks(self) -> list[int]:
        """The tokens that end a step of an answer: newline, comma and the end."""
        return [self._special("\n"), self._special(","), self.end]

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text."""
        ids: list[int] = self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids, special ones included."""
        text: str = self.tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def _special(self, token: str) -> int:
        number = self.tokenizer.backend_tokenizer.token_to_id(token)
        if number is None:
            raise ValueError(f"the tokenizer has no {token}; the lab's own have")
        return int(number)
