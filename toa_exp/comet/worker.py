"""Scores translations by a COMET model: JSON lines in, JSON lines out.

Run by the Python of an environment that has unbabel-comet and nothing of toa_exp:
`python -I worker.py <spec>`, where the spec is JSON with checkpoint, hparams, encoder, device and dtype.
It says {"ready": ...} or {"fatal": <why>}, and then answers each {"id", "rows"} with {"id", "scores",
"tokens", "full"} or {"id", "error", "message"}. It ends with its standard input, at once.
"""

from __future__ import annotations

import json
import os
import pickle
import queue
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_SHOWN = 400  # characters of an error
Spec = Mapping[str, Any]


def main() -> None:
    """Serve until the input ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    requests: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=[requests], daemon=True).start()
    warnings.filterwarnings("ignore")
    spec = json.loads(sys.argv[1])
    try:
        model = _Model(spec)
    except Exception as error:  # whatever it is, the parent must know
        _say(answers, {"fatal": _reason(error)})
        raise
    _say(answers, {"ready": type(model.comet).__name__})
    while True:
        request = json.loads(requests.get())
        _say(answers, {"id": request["id"], **_answer(model, request["rows"])})


def _listen(requests: queue.Queue[str]) -> None:
    """Pass requests on; the end of the input is that of whoever asked, and of this process."""
    for line in sys.stdin:
        requests.put(line)
    os._exit(0)


def _say(answers: TextIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


def _answer(model: _Model, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    import torch

    try:
        return model.score(rows)
    except torch.OutOfMemoryError as error:
        full = _reason(error)
    except Exception as error:  # a batch that cannot be scored is an answer too
        return {"error": "other", "message": _reason(error)}
    torch.cuda.empty_cache()  # only now, since the error held what the step had in memory
    return {"error": "memory", "message": full}


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:_SHOWN]}"


class _Model:
    """A checkpoint, loaded."""

    def __init__(self, spec: Spec) -> None:
        import torch

        self.comet = _load(spec).to(device=spec["device"], dtype=getattr(torch, spec["dtype"])).eval()
        self._device = torch.device(spec["device"])
        # A regression model reads each text alone, the unified ones all of them in one sequence.
        positions = self.comet.encoder.max_positions
        self._window = positions if "unified" in spec["kind"] or "xcomet" in spec["kind"] else positions - 2

    def score(self, rows: Sequence[Mapping[str, str]]) -> dict[str, Any]:
        """Of each row the score, the tokens that were read, and whether these fill the window."""
        import torch
        from pytorch_lightning.utilities import move_data_to_device

        batch = self.comet.prepare_for_inference(list(rows))
        lengths = [mask.sum(dim=1).tolist() for mask in _masks(batch)]
        with torch.inference_mode():
            scores = self.comet.predict_step(move_data_to_device(batch, self._device))["scores"]
        return {
            "scores": scores.double().tolist(),
            "tokens": [sum(each) for each in zip(*lengths, strict=True)],
            "full": [max(each) >= self._window for each in zip(*lengths, strict=True)],
        }


def _masks(batch: Any) -> list[Any]:
    """The attention masks of all that is read: a dictionary of several inputs, or one each."""
    if isinstance(batch, Mapping):
        return [value for name, value in batch.items() if name.endswith("attention_mask")]
    return [one["attention_mask"] for one in batch]


def _load(spec: Spec) -> Any:
    """The model, as comet.load_from_checkpoint makes it, but for three things.

    Its encoder's configuration and tokenizer come from a folder, nothing in the checkpoint is
    executed, and a weight that the checkpoint lacks is an error: comet would leave it random.
    """
    import torch
    from comet.models import str2model

    found: set[str] = set()
    kind: Any = str2model[spec["kind"]]

    class Checked(kind):  # type: ignore[misc]
        def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            found.update(checkpoint["state_dict"])

    Checked.__name__ = kind.__name__
    try:
        model = Checked.load_from_checkpoint(
            spec["checkpoint"],
            map_location=torch.device("cpu"),
            strict=False,
            weights_only=True,
            load_pretrained_weights=False,
            local_files_only=True,
            pretrained_model=spec["encoder"],
        )
    except pickle.UnpicklingError as error:
        unsafe = torch.serialization.get_unsafe_globals_in_checkpoint(spec["checkpoint"])
        raise ValueError(
            f"the checkpoint would run code on loading ({', '.join(unsafe)}); where it is trusted, save its "
            f"state_dict and hyper_parameters anew"
        ) from error
    missing = [name for name, _ in model.named_parameters() if name not in found]
    if missing:
        raise ValueError(f"the checkpoint has no {', '.join(missing[:3])} ({len(missing)} are missing)")
    return model


if __name__ == "__main__":
    main()
