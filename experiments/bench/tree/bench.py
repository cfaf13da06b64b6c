"""What a decision of TOA costs: its incremental tree, a scan of the whole tree, and TreeQuest, in one run.

A sample's reward is half its draft's plus normal noise, the same for all. `scan` is TOA again, written
straight from the rules: it walks the whole tree to count a layer and sums lists for means. Its
decisions must be those of `toa_exp.methods.toa`. TreeQuest's StandardMCTS is another search with the
same number of samples and agents; it shows what a search costs in a library for it. Times are process
CPU time, the contenders take turns, and the result is their ratio to TOA in the same run.
"""

from __future__ import annotations

import argparse
import gc
import math
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from random import Random

from treequest import StandardMCTS

from toa_exp import __version__
from toa_exp.core import Problem, Reply, Request, Search, Usage
from toa_exp.methods.toa import toa
from toa_exp.tree import normalise

Method = Callable[[Problem, Sequence[str], int, Random], Search]
PROBLEM = Problem("bench", "")
USAGE = Usage(1, 1)
INHERITED = 0.5  # share of its draft's reward that a refinement starts from
NOISE = 0.1  # standard deviation


@dataclass(slots=True)
class Node:
    """A node of `scan`: the root, a response (`reply` set) or an agent node (`agent` set)."""

    parent: Node | None = None
    agent: str = ""
    draft: Reply | None = None
    reply: Reply | None = None
    reward: float = -math.inf
    layer: int = 0
    visits: int = 1
    rewards: list[float] = field(default_factory=list)
    children: list[Node] = field(default_factory=list)


def scan(
    problem: Problem, agents: Sequence[str], budget: int, rng: Random, *, alpha: float, tau: float
) -> Search:
    """TOA from its rules, nothing kept incrementally; the width is a third of the budget."""
    root = Node()
    root.children = [Node(root, agent, layer=1) for agent in agents]
    for play in range(1, budget + 1):
        arm = _select(root, play, alpha, budget // 3)
        draft = arm.draft
        request = Request(arm.agent, "refine", (draft,)) if draft else Request(arm.agent)
        (reply,) = yield [request]
        value = normalise(reply.reward, tau)
        response = Node(arm, reply=reply, reward=value, layer=arm.layer + 1)
        response.children = [Node(response, agent, reply, layer=arm.layer + 2) for agent in agents]
        arm.children.append(response)
        node: Node | None = arm
        while node is not None:
            node.visits += 1
            node.rewards.append(value)
            node = node.parent


def _select(root: Node, play: int, alpha: float, width: int) -> Node:
    node = root
    while True:
        if node is not root and node.visits == 1:
            node.children += [_fresh(arm, node) for arm in root.children]
        arm = max(node.children, key=lambda child: _bound(child, play, alpha))
        best = max(arm.children, key=lambda child: child.reward, default=None)
        if best is None or _responses(root, arm.layer + 1) < width or best.reward <= node.reward:
            return arm
        node = best


def _fresh(arm: Node, above: Node) -> Node:
    return Node(above, arm.agent, layer=above.layer + 1, visits=arm.visits, rewards=list(arm.rewards))


def _bound(arm: Node, play: int, alpha: float) -> float:
    if not arm.rewards:
        return math.inf
    mean = sum(arm.rewards) / len(arm.rewards)
    return mean + alpha * math.sqrt(2.0 * math.log(play) / arm.visits)


def _responses(root: Node, layer: int) -> int:
    """How many responses a layer of the whole tree holds, counted by walking all of it."""
    count, stack = 0, [root]
    while stack:
        node = stack.pop()
        count += node.layer == layer
        stack.extend(node.children)
    return count


def echo(problem: Problem, agents: Sequence[str], budget: int, rng: Random) -> Search:
    """A method that decides nothing: driving it costs what driving any costs."""
    requests = [Request(agents[0])]
    for _ in range(budget):
        yield requests


def drive(method: Method, agents: Sequence[str], noise: Sequence[float]) -> list[Reply]:
    """Run a method, giving the i-th request the i-th noise on top of what it inherits."""
    search = method(PROBLEM, agents, len(noise), Random(0))
    (request,) = next(search)
    replies = []
    try:
        for reward in noise:
            if request.parents:
                reward += INHERITED * request.parents[0].reward
            reply = Reply(request, "", reward, USAGE)
            replies.append(reply)
            (request,) = search.send([reply])
    except StopIteration:
        pass
    return replies


def drive_treequest(agents: Sequence[str], noise: Sequence[float], tau: float) -> None:
    """Run StandardMCTS one `step` a sample, in place; it needs scores between 0 and 1, as TOA's tree does."""
    following = iter(noise).__next__

    def generate(draft: float | None) -> tuple[float, float]:
        reward = following() + INHERITED * (draft or 0.0)
        return reward, normalise(reward, tau)

    algorithm: StandardMCTS[float] = StandardMCTS()
    state = algorithm.init_tree()
    actions = dict.fromkeys(agents, generate)
    for _ in noise:
        state = algorithm.step(state, actions, inplace=True)


def decisions(replies: Sequence[Reply]) -> list[tuple[str, str, list[int]]]:
    """Agent, template and the parents' indices of every request."""
    index = {id(reply): number for number, reply in enumerate(replies)}
    asked = [reply.request for reply in replies]
    return [(one.agent, one.template, [index[id(parent)] for parent in one.parents]) for one in asked]


def measure(budget: int, options: argparse.Namespace) -> tuple[dict[str, list[float]], int]:
    """CPU microseconds a sample of every contender in every round, and how many samples a round has."""
    agents = [f"agent{number}" for number in range(options.agents)]
    draws = Random(f"{options.seed}/{budget}")
    searches = math.ceil(options.samples / budget)
    worlds = [[draws.gauss(0.0, NOISE) for _ in range(budget)] for _ in range(searches)]
    ours = partial(toa, alpha=options.alpha, tau=options.tau)
    reference = partial(scan, alpha=options.alpha, tau=options.tau)
    for world in worlds:
        if decisions(drive(ours, agents, world)) != decisions(drive(reference, agents, world)):
            raise SystemExit(f"toa and scan decide differently at N={budget}, seed={options.seed}")
    contenders: dict[str, Callable[[int], object]] = {
        "driver": lambda number: drive(echo, agents, worlds[number]),
        "toa": lambda number: drive(ours, agents, worlds[number]),
        "treequest": lambda number: drive_treequest(agents, worlds[number], options.tau),
        "scan": lambda number: drive(reference, agents, worlds[number]),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            gc.collect()
            started = time.process_time()
            for number in range(searches):
                run(number)
            times[name].append((time.process_time() - started) / searches / budget * 1e6)
    return times, searches * budget


def report(budget: int, times: dict[str, list[float]]) -> None:
    """One line a contender: microseconds, and ratios to TOA with and without the driver."""
    least = {name: min(rounds) for name, rounds in times.items()}
    for name in ("toa", "treequest", "scan"):
        ratio = least[name] / least["toa"]
        rounds = [theirs / ours for theirs, ours in zip(times[name], times["toa"], strict=True)]
        alone, alone_ratio = "-", "-"
        if name != "treequest":
            method = least[name] - least["driver"]
            alone, alone_ratio = f"{method:.2f}", f"{method / (least['toa'] - least['driver']):.1f}"
        print(
            f"{budget:5} {name:10} {least[name]:9.2f} {ratio:7.1f} {min(rounds):7.1f} {max(rounds):7.1f} "
            f"{alone:>12} {alone_ratio:>12}"
        )


def main() -> None:
    options = _options()
    gc.freeze()
    print("    N contender  us/sample   ratio   least    most  method only        ratio")
    samples = []
    for budget in options.budgets:
        times, count = measure(budget, options)
        report(budget, times)
        samples.append(count)
    parts = {
        "bench": "tree",
        "unit": "process CPU microseconds a sample, minimum of rounds; ratios to toa",
        "rewards": f"{INHERITED}*draft+normal(0,{NOISE})",
        "seed": options.seed,
        "agents": options.agents,
        "N": options.budgets,
        "samples": samples,
        "rounds": options.rounds,
        "alpha": options.alpha,
        "tau": options.tau,
        "width": "N/3",
        "same decisions": "toa=scan",
        "toa-exp": __version__,
        "treequest": version("treequest"),
        "python": platform.python_version(),
    }
    print("|".join(f"{key}:{value}" for key, value in parts.items()))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budgets", type=int, nargs="+", default=[32, 160, 640], help="samples a search, N")
    parser.add_argument("--agents", type=int, default=4)
    parser.add_argument("--samples", type=int, default=2560, help="of a contender a round, at least")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--tau", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
