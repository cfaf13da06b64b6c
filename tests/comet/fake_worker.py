"""Stands for toa_exp/comet/worker.py: a score is the length of the translation / 100, unless told otherwise.

A translation may order a fault: `die`, `hang`, `garbage`, `short`, `late`, `words`, `nan`, `memory`, `fail`.
"""

import json
import os
import signal
import sys
import time

spec = json.loads(sys.argv[1])
if spec["checkpoint"].endswith("fatal.ckpt"):
    print(json.dumps({"fatal": "ValueError: the checkpoint has no weight"}), flush=True)
    sys.exit(1)
if spec["checkpoint"].endswith("mute.ckpt"):
    sys.exit("cannot open shared object file")
if spec["checkpoint"].endswith("slow.ckpt"):
    time.sleep(3600)
print(json.dumps({"ready": "Fake"}), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    texts = [row["mt"] for row in request["rows"]]
    if "die" in texts:
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in texts:
        time.sleep(3600)
    if "garbage" in texts:
        print("Some weights were not initialised", flush=True)
        continue
    answer = {
        "id": request["id"],
        "scores": [float("nan") if text == "nan" else len(text) / 100 for text in texts],
        "tokens": [len(row["src"]) + len(row["mt"]) + len(row.get("ref", "")) for row in request["rows"]],
        "full": [len(text) > 50 for text in texts],
    }
    if "short" in texts:
        answer["scores"].pop()
    if "late" in texts:
        answer["id"] -= 1
    if "words" in texts:
        answer["scores"] = [str(score) for score in answer["scores"]]
    if "memory" in texts:
        answer = {"id": request["id"], "error": "memory", "message": "CUDA out of memory"}
    if "fail" in texts:
        answer = {"id": request["id"], "error": "other", "message": "KeyError: 'ref'"}
    log = spec.get("log")
    if log:
        with open(log, "a") as file:
            file.write(json.dumps([spec["device"], texts]) + "\n")
    print(json.dumps(answer), flush=True)
