"""CometKiwi, and COMET where there is a reference, as rewards: the quality of a translation, by sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Unpack

from toa_exp.comet.scorer import DTYPES, Fields, Scorer, Settings
from toa_exp.core import Problem
from toa_exp.cost import Architecture
from toa_exp.cost import architecture as architecture_of
from toa_exp.draws import Score
from toa_exp.engines.gpus import Ground
from toa_exp.engines.seats import Model
from toa_exp.errors import BadInput
from toa_exp.rewards.base import Range
from toa_exp.tasks.base import references_of


class Comet:
    """What a COMET model says of the text as a translation of the problem's prompt, higher is better.

    A model that reads a reference is given that of the problem, or the first of several. The fields
    are those of `comet.scorer.Settings`; `range` says where most scores lie, and `architecture` replaces
    the fields of the encoder's config.json that FLOPs are counted from. They count the encoder alone, whose
    attention is taken to be over all that is read; a model that reads source, translation and reference one
    by one takes up to 3 % less. Raises BadInput as `comet.scorer.Scorer` does.
    """

    def __init__(
        self,
        *,
        range: list[float] | None = None,
        architecture: Mapping[str, Any] | None = None,
        task: object = None,
        **settings: Unpack[Fields],
    ) -> None:
        self._settings = Settings(**settings)
        self._scorer = Scorer(self._settings, "reward")
        self.architecture = architecture or self._scorer.checkpoint.config()
        self.shape: Architecture | None = architecture_of(self.architecture, output_head=False)
        self.range = Range.of(range)
        self._seat = "reward"

    def join(self, ground: Ground, seat: str = "reward") -> None:
        """Be placed together with the agents, under the name `seat`, where no device is named."""
        if self._settings.devices == "auto":
            self._seat = seat
            self._scorer.join(ground, seat)
            ground.add(self._models)

    def fingerprint(self) -> Mapping[str, Any]:
        """The model, unbabel-comet's version, and the number format."""
        return {"reward": "comet", **self._scorer.fingerprint()}

    async def score(self, problem: Problem, text: str) -> Score:
        """The score of one text; its tokens are all that the encoder read, padding left out.

        Raises BadInput for a problem without the reference that the model needs, Permanent for a score that
        is not finite, and Unavailable where the worker fails.
        """
        reference = None
        if self._scorer.checkpoint.takes_reference:
            reference = next(iter(references_of(problem)), None)
            if reference is None and self._scorer.checkpoint.needs_reference:
                raise BadInput(
                    f"reward.model={self._settings.model} reads a reference, and problem {problem.id!r} has "
                    f"none; take reward=cometkiwi, which needs none"
                )
        sentence = await self._scorer.score((problem.prompt, text, reference))
        return Score(sentence.score, sentence.tokens, sentence.seconds)

    async def close(self) -> None:
        """End the workers."""
        await self._scorer.close()

    def _models(self) -> list[Model]:
        assert self.shape is not None
        return [Model(self._seat, self.shape.active * DTYPES[self._settings.dtype], sleeps=False)]
