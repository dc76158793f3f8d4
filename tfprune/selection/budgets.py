"""As much goes as budgets ask for: bisection over a ranking, and a last look at what strip would really leave.

requires: a ranking, costs that can be predicted, and the fraction of each that may be left.
does:     takes the shortest beginning of the ranking that meets all budgets; gives back, from its end, steps of groups
          that fit into what is too much; asks what strip would leave, and corrects the predictions by it if need be.
ensures:  what strip leaves meets every budget, and one of them within 1 %; or the forecast's notes say why not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tfprune.channels.forecast import CostModel, Expected, Forecast
from tfprune.channels.plan import PruningPlan
from tfprune.errors import PlanError, Refusal
from tfprune.selection.amounts import TOLERANCE, spoken
from tfprune.selection.costs import Cost, what_strip_leaves
from tfprune.selection.ranking import Choice, Ranking

_ROUNDS = 6
_CLOSE_ENOUGH = TOLERANCE / 4  # what is worth no more steps given back


@dataclass(frozen=True)
class Budget:
    """A cost and how much of it may be left, as a fraction of the unpruned model's."""

    cost: Cost
    left: float

    @property
    def target(self) -> float:
        return self.left * self.cost.before


@dataclass(frozen=True)
class Attempt:
    """A plan and what strip would leave.

    Attributes:
        plan: the plan.
        predicted, actual: each budget's cost, as the search and as strip would find it.
        parameters, macs: what strip would leave.
        returned: channel -> why it would have to come back.
    """

    plan: PruningPlan
    predicted: tuple[float, ...]
    actual: tuple[float, ...]
    parameters: float
    macs: float
    returned: dict[int, str]

    def excess(self, budgets: Sequence[Budget]) -> float:
        """By how much it misses the budgets, as a fraction of them: too much left counts before too little."""
        parts = [actual / budget.target - 1 for actual, budget in zip(self.actual, budgets, strict=True)]
        worst = max(parts)
        return worst if worst <= 0 else 1 + worst


def within_budgets(
    ranking: Ranking,
    model: CostModel,
    budgets: Sequence[Budget],
    plan_of: Callable[[Choice], PruningPlan],
    whole: Sequence[tuple[int, str]] = (),
    refusals: Sequence[Refusal] = (),
) -> PruningPlan:
    """The plan that meets all budgets.

    Args:
        plan_of: from a choice to its plan.
        whole: (where the ranking takes it, layer), in that order.
        refusals: what stays from the start, to say why a budget cannot be met.

    Raises:
        PlanError: a budget cannot be met even if everything goes that may.
    """
    everything = np.ones(model.graph.channels, bool)
    factors = [budget.cost.before / (budget.cost.predict(everything, ()) or 1.0) for budget in budgets]
    best: Attempt | None = None
    for _ in range(_ROUNDS):
        search = _Search(ranking, budgets, factors, whole)
        choice = search.run(refusals)
        attempt = _attempt(choice, plan_of(choice), search, model, budgets)
        if best is None or _better(attempt, best, budgets):
            best = attempt
        missed = attempt.excess(budgets)
        if -TOLERANCE <= missed <= 0 or attempt.actual == attempt.predicted:
            break
        factors = [
            factor * actual / predicted if predicted else factor
            for factor, actual, predicted in zip(factors, attempt.actual, attempt.predicted, strict=True)
        ]
    assert best is not None
    return _with_forecast(best, ranking, model, budgets)


class _Search:
    """The best choice for some predictions."""

    def __init__(
        self, ranking: Ranking, budgets: Sequence[Budget], factors: Sequence[float], whole: Sequence[tuple[int, str]]
    ):
        self.ranking, self.budgets, self.factors, self.whole = ranking, budgets, factors, whole

    def run(self, refusals: Sequence[Refusal]) -> Choice:
        length = self._shortest(refusals)
        best = choice = self._given_back(self.choice(length), length)
        # One layer may be more than what is still to go: then it stays, and channels go in its place.
        while self.too_much(choice) < -TOLERANCE and (last := self._last_layer(length)) is not None:
            self.whole = [(place, layer) for place, layer in self.whole if layer != last]
            try:
                length = self._shortest(refusals)
            except PlanError:
                break
            choice = self._given_back(self.choice(length), length)
            best = max(best, choice, key=self.too_much)
        return best

    def _last_layer(self, length: int) -> str | None:
        """The layer that the last step of the ranking takes."""
        taken = self.choice(length).layers
        return taken[-1] if taken and len(self.choice(length - 1).layers) < len(taken) else None

    def choice(self, length: int) -> Choice:
        """What goes when so much of the ranking does."""
        ranking = self.ranking
        layers = tuple(layer for place, layer in self.whole if place < length)
        return Choice(ranking.counts(ranking.wanted(length)), layers)

    def predicted(self, choice: Choice) -> tuple[float, ...]:
        keep = ~self.ranking.gone(choice.counts)
        return tuple(
            budget.cost.predict(keep, choice.layers) * factor
            for budget, factor in zip(self.budgets, self.factors, strict=True)
        )

    def too_much(self, choice: Choice) -> float:
        """By how much the worst budget is missed, as a fraction of it; at most 0 where all are met."""
        predicted = self.predicted(choice)
        return max(p / b.target for p, b in zip(predicted, self.budgets, strict=True)) - 1

    def _shortest(self, refusals: Sequence[Refusal]) -> int:
        low, high = 0, self.ranking.length
        if self.too_much(self.choice(low)) <= 0:
            return low
        if self.too_much(self.choice(high)) > TOLERANCE:
            raise PlanError(self._unreachable(self.choice(high), refusals))
        while high - low > 1:
            middle = (low + high) // 2
            if self.too_much(self.choice(middle)) <= 0:
                high = middle
            else:
                low = middle
        return high

    def _given_back(self, choice: Choice, length: int) -> Choice:
        """The same with steps of some groups back, the last ones to go first, as long as the budgets stay met."""
        if self.too_much(choice) > -_CLOSE_ENOUGH or not length:
            return choice
        ranking = self.ranking
        latest = dict.fromkeys(ranking.owner[:length][::-1].tolist())
        for group in [*latest, *latest]:
            counts = choice.counts.copy()
            counts[group] -= ranking.limits.round_to
            if counts[group] < 0:
                continue
            smaller = Choice(counts, choice.layers)
            excess = self.too_much(smaller)
            if excess <= 0:
                choice = smaller
                if excess > -_CLOSE_ENOUGH:
                    break
        return choice

    def _unreachable(self, most: Choice, refusals: Sequence[Refusal]) -> str:
        parts = []
        for budget, predicted in zip(self.budgets, self.predicted(most), strict=True):
            if predicted > budget.target * (1 + TOLERANCE):
                share = predicted / budget.cost.before
                parts.append(
                    f"at most {1 - share:.2%} of {spoken(budget.cost.name)} can go: {share:.2%} are left when "
                    f"everything goes that may, and {budget.left:.2%} were to be left"
                )
        stays = [f"{refusal.layer} ({refusal.reason})" for refusal in refusals[:3]]
        stays += [f"and {len(refusals) - 3} more groups"] if len(refusals) > 3 else []
        parts.append(f"limits: {self.ranking.limits}")
        return "; ".join([*parts, f"what stays: {', '.join(stays)}"] if stays else parts)


def _attempt(
    choice: Choice, plan: PruningPlan, search: _Search, model: CostModel, budgets: Sequence[Budget]
) -> Attempt:
    left, keep, cut, returned = what_strip_leaves(plan, model)
    actual = tuple(budget.cost.confirm(plan, left, keep, cut) for budget in budgets)
    counted = left.parameters(keep, cut), left.macs(keep, cut)
    return Attempt(plan, search.predicted(choice), actual, *counted, returned)


def _better(attempt: Attempt, best: Attempt, budgets: Sequence[Budget]) -> bool:
    """Whether it meets the budgets more closely; one that misses them is worse than any that meets them."""
    new, old = attempt.excess(budgets), best.excess(budgets)
    if (new > 0) != (old > 0):
        return new <= 0
    return abs(new) < abs(old)


def _with_forecast(best: Attempt, ranking: Ranking, model: CostModel, budgets: Sequence[Budget]) -> PruningPlan:
    asked = {budget.cost.name: budget.left for budget in budgets}
    parameters, macs = model.before
    costs = [
        Expected("parameters", parameters, best.parameters, asked.get("params")),
        Expected("MACs", macs, best.macs, asked.get("macs")),
    ]
    for budget, actual in zip(budgets, best.actual, strict=True):
        if budget.cost.name not in ("params", "macs"):
            what = "latency" if budget.cost.name == "latency" else f".{budget.cost.name} bytes"
            costs.append(Expected(what, budget.cost.before, actual, budget.left))
    return replace(best.plan, forecast=Forecast(tuple(costs), _notes(best, ranking, budgets)))


def _notes(best: Attempt, ranking: Ranking, budgets: Sequence[Budget]) -> tuple[str, ...]:
    """Why no budget is met within 1 %, or one is missed."""
    shares = [actual / budget.target for budget, actual in zip(budgets, best.actual, strict=True)]
    if max(shares) > 1 + TOLERANCE:
        why = next(iter(best.returned.values()), "what may go depends on what else goes")
        return tuple(
            f"{spoken(budget.cost.name)}: {share * budget.left:.2%} are left of the {budget.left:.2%} asked for: {why}"
            for budget, share in zip(budgets, shares, strict=True)
            if share > 1 + TOLERANCE
        )
    if max(shares) >= 1 - TOLERANCE or not (best.plan or best.returned):
        return ()
    tightest = int(np.argmax(shares))
    what, left = spoken(budgets[tightest].cost.name), budgets[tightest].left
    why = f"the next smaller step ({ranking.limits}) would leave too much"
    why += "; a smaller round_to comes closer" if ranking.limits.round_to > 1 else ""
    return (f"{what}: {shares[tightest] * left:.2%} are left, less than the {left:.2%} asked for: {why}",)
