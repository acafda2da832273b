"""The evolutionary search over factors (LongRoPE, section 3.2 and algorithm 1; specification section 2).

    for event in search(fitness, SearchSettings(pairs=32, scale=8.0), log="runs/longrope/8x.jsonl"):
        print(event.evaluated, event.total, event.best.fitness)

Everything random comes from one seeded generator and every evaluation is in the log, so a run that was killed is
replayed from its log without evaluating anything twice and goes on to the same result. Ours: seeds are rounded to the
grid, so that individuals are whole numbers and "unique" is exact; every iteration evaluates children only.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from models.errors import BadInput
from models.longrope.rope import ntk_factors, yarn_factors

Genes = tuple[int, ...]
Key = tuple[Genes, int]
Fitness = Callable[[Sequence[float], int], float]
Candidate = tuple[tuple[float, ...], int]  # factors and n-hat
Measure = Callable[[Iterable[Candidate]], Iterator[float]]
Phase = Literal["start", "mutation", "crossover", "n-hat"]

N_HAT_OPTIONS = (1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 48, 64)  # the research code's (section 0)
FRUITLESS_TRIES = 20_000
LOG_VERSION = 1


@dataclass(frozen=True)
class SearchSettings:
    """What is searched and how hard; the defaults are the paper's (section 2.1).

    pairs: genes. scale: s, how far the window is stretched. Factors lie on the grid 1, 1 + step, ... upper.
    upper: None is the paper's 1.25 s; the repository's is 1 + s (`repository_upper`).
    population, mutations, crossovers, parents, iterations: P, N1, N2, k, T. probability: of a gene to mutate.
    crossover_tries: passes over the genes before a crossover becomes a mutation.
    critical: None is monotone factors; a pair c is LongRoPE2's shape: searched at s or above from c on, the NTK curve
        factor_c^(i/c) below.
    n_hat_options: tried on the best `n_hat_best` after the factor search; () searches no n-hat.
    patience, improvement: stop when the best falls by less than `improvement` over `patience` iterations; 0 is never.
    """

    pairs: int
    scale: float
    step: float = 0.01
    upper: float | None = None
    population: int = 64
    mutations: int = 16
    crossovers: int = 16
    parents: int = 32
    iterations: int = 40
    probability: float = 0.3
    crossover_tries: int = 20
    critical: int | None = None
    n_hat_options: tuple[int, ...] = ()
    n_hat_best: int = 5
    patience: int = 0
    improvement: float = 0.001
    seed: int = 42

    @property
    def total(self) -> int:
        """Evaluations of a run without early stop: P + T (N1 + N2), and the n-hat stage."""
        count = self.population + self.iterations * (self.mutations + self.crossovers)
        return count + self.n_hat_best * len(self.n_hat_options)


def paper(pairs: int, scale: float, seed: int = 42) -> SearchSettings:
    """The paper's preset up to 256k: 64 individuals, 40 iterations, 1344 evaluations."""
    return SearchSettings(pairs, scale, seed=seed)


def demo(pairs: int, scale: float, seed: int = 42) -> SearchSettings:
    """The preset of section 10.3 for two cores: 24 individuals, 8 iterations, 152 evaluations."""
    return SearchSettings(pairs, scale, population=24, mutations=8, crossovers=8, parents=8, iterations=8, seed=seed)


def repository_upper(scale: float) -> float:
    """The largest factor of the released code, 1 + s."""
    return 1 + scale


@dataclass(frozen=True)
class Seed:
    """A starting individual. factors: one for each pair; rounded to the grid and put inside the bounds."""

    name: str
    factors: tuple[float, ...]


@dataclass(frozen=True)
class Individual:
    """factors: one for each pair. n_hat: first positions with original angles. fitness: lower is better, or inf."""

    factors: tuple[float, ...]
    n_hat: int
    fitness: float


@dataclass(frozen=True)
class Event:
    """One evaluation: which phase and iteration (0 is the start), how many of how many, and the best so far."""

    phase: Phase
    iteration: int
    evaluated: int
    total: int
    latest: Individual
    best: Individual
    replayed: bool


def default_seeds(rotary_dim: int, base: float, original_length: int, scale: float) -> list[Seed]:
    """PI, NTK and YaRN (the true blend of frequencies, not the released code's blend of factors)."""
    rows = {
        "PI": np.full(rotary_dim // 2, scale),
        "NTK": ntk_factors(rotary_dim, scale),
        "YaRN": yarn_factors(rotary_dim, base, original_length, scale),
    }
    return [Seed(name, tuple(map(float, row))) for name, row in rows.items()]


def search(
    fitness: Fitness,
    settings: SearchSettings,
    seeds: Sequence[Seed] | None = None,
    log: str | Path | None = None,
    measure: Measure | None = None,
) -> Iterator[Event]:
    """Searches, one event for every evaluation; closing the generator stops it.

    Args:
        fitness: `(factors, n_hat) -> float`, lower is better (perplexity); NaN counts as infinitely bad.
        seeds: starting individuals; None starts from PI alone (it needs no model), `default_seeds` has all three.
        log: JSON lines, appended to; an existing log of the same search is gone through first. None keeps none.
        measure: the fitness of many candidates, in their order, for those who can find it side by side (a generation's
            are known before the first is measured; `models.tasks`). None takes `fitness` for one after another.

    Raises:
        BadInput: settings out of range, seeds of another length, or a log of another search.
    """
    check_settings(settings)
    if seeds is None:
        seeds = [Seed("PI", (settings.scale,) * settings.pairs)]
    for seed in seeds:
        if len(seed.factors) != settings.pairs or not all(map(math.isfinite, seed.factors)):
            raise BadInput(
                f"The seed {seed.name} has {len(seed.factors)} factors; give {settings.pairs} finite numbers."
            )
    if measure is None:
        measure = functools.partial(itertools.starmap, fitness)
    return _Search(measure, settings, tuple(seeds), Path(log) if log is not None else None).run()


def check_settings(settings: SearchSettings) -> None:
    """Raises `BadInput` for settings no search can run with."""
    s = settings
    counts = {
        "population": s.population,
        "parents": s.parents,
        "pairs": s.pairs,
        "crossover tries": s.crossover_tries,
    }
    for name, value in counts.items():
        if value < 1:
            raise BadInput(f"The number of {name} is {value}. Give a whole number from 1.")
    if min(s.mutations, s.crossovers, s.iterations, s.patience, s.n_hat_best) < 0:
        raise BadInput("Mutations, crossovers, iterations, patience and the n-hat count are 0 or more.")
    if not math.isfinite(s.scale) or not 1 <= s.scale <= 1024:
        raise BadInput(f"The scale is {s.scale}. Give the target length over the trained window, from 1 to 1024.")
    if not 1e-4 <= s.step <= 1:
        raise BadInput(f"The step is {s.step}. Give a number from 0.0001 to 1; the paper's is 0.01.")
    if not 0 < s.probability <= 1:
        raise BadInput(f"The mutation probability is {s.probability}. Give a number above 0 and at most 1.")
    if s.upper is not None and (not math.isfinite(s.upper) or s.upper < s.scale):
        raise BadInput(f"The largest factor is {s.upper}. Give at least the scale, {s.scale:g}.")
    if s.critical is not None and not 1 <= s.critical < s.pairs:
        raise BadInput(f"The critical pair is {s.critical}. Give a whole number from 1 to {s.pairs - 1}.")
    if any(option < 1 for option in s.n_hat_options) or len(set(s.n_hat_options)) < len(s.n_hat_options):
        raise BadInput("The n-hat options are different whole numbers from 1.")


def read_log(path: str | Path) -> tuple[SearchSettings, list[Individual]]:
    """The settings and all evaluations of a log, in order; a cut-off last line is left out.

    Raises:
        BadInput: not a log of this search, or damaged before its last line.
    """
    log = _Log(Path(path))
    if log.header is None:
        raise BadInput(f"{Path(path).name} is not the log of a search. Choose the .jsonl file a search wrote.")
    try:
        row = dict(log.header["settings"])
        settings = SearchSettings(**row | {"n_hat_options": tuple(row["n_hat_options"])})
    except (KeyError, TypeError, ValueError):
        raise BadInput(f"{Path(path).name} was written by another version of this search. Choose another.") from None
    return settings, [_individual((tuple(g), n), f, settings.step) for g, n, f in log.evaluations]


class Space:
    """The grid of allowed individuals: gene g is the factor 1 + g * step."""

    def __init__(self, settings: SearchSettings) -> None:
        self.step, self.critical, self.pairs = settings.step, settings.critical, settings.pairs
        upper = 1.25 * settings.scale if settings.upper is None else settings.upper
        self.top = max(math.floor((upper - 1) / self.step + 1e-9), 0)
        stretched = min(math.ceil((settings.scale - 1) / self.step - 1e-9), self.top)
        self.first = settings.critical or 0  # the first gene that is searched
        self.floor = stretched if settings.critical is not None else 0  # the least value of a searched gene

    def snap(self, factors: Sequence[float]) -> Genes:
        """The nearest individual of the grid that rises."""
        genes = np.clip(np.round((np.asarray(factors) - 1) / self.step), self.floor if self.critical else 0, self.top)
        return self.finish([int(gene) for gene in np.maximum.accumulate(genes)])

    def finish(self, genes: list[int]) -> Genes:
        """Lays the NTK curve below the critical pair; without one, the genes as they are."""
        c = self.critical
        if c is not None:
            value = 1 + genes[c] * self.step
            for i in range(c):
                genes[i] = min(round((value ** (i / c) - 1) / self.step), genes[c])
        return tuple(genes)

    def mutate(self, genes: Genes, rng: np.random.Generator, probability: float) -> Genes:
        """Redraws some genes between their neighbours, first to last, so that they still rise (section 2.4)."""
        child = list(genes)
        for i in range(self.first, self.pairs):
            if rng.random() < probability:
                low = child[i - 1] if i > self.first else self.floor
                high = child[i + 1] if i + 1 < self.pairs else self.top
                child[i] = int(rng.integers(low, high + 1))
        return self.finish(child)

    def holds(self, genes: Sequence[int]) -> bool:
        """Whether genes rise, inside the bounds."""
        rises = all(a <= b for a, b in zip(genes, genes[1:], strict=False))
        return rises and genes[0] >= 0 and genes[-1] <= self.top and genes[self.first] >= self.floor


class _Search:
    """One run: the generator of random numbers, what was seen, and the population."""

    def __init__(self, measure: Measure, settings: SearchSettings, seeds: tuple[Seed, ...], path: Path | None) -> None:
        self.measure, self.settings, self.space = measure, settings, Space(settings)
        self.seeds, self.path = seeds, path
        self.rng = np.random.default_rng(settings.seed)
        self.seen: set[Key] = set()
        self.population: list[tuple[float, Key]] = []
        self.best: tuple[float, Key] | None = None
        self.evaluated = 0
        self.log: _Log | None = None

    def run(self) -> Iterator[Event]:
        self.log = _Log(self.path) if self.path is not None else None
        if self.log is not None:
            self.log.open({"version": LOG_VERSION, "settings": asdict(self.settings), "seeds": _rows(self.seeds)})
        try:
            yield from self._factors()
            yield from self._n_hats()
        finally:
            if self.log is not None:
                self.log.close()

    def _factors(self) -> Iterator[Event]:
        s = self.settings
        yield from self._evaluate([("start", 0, self._first_generation())])
        bests = [self.population[0][0]]
        for iteration in range(1, s.iterations + 1):
            self.population = self.population[: s.parents]
            parents = [key[0] for _, key in self.population]
            mutants = [self._mutant(parents[self.rng.integers(len(parents))]) for _ in range(s.mutations)]
            crossed = [self._crossover(parents) for _ in range(s.crossovers)]
            yield from self._evaluate([("mutation", iteration, mutants), ("crossover", iteration, crossed)])
            bests.append(self.population[0][0])
            if s.patience and iteration >= s.patience and bests[-1 - s.patience] - bests[-1] < s.improvement:
                return

    def _n_hats(self) -> Iterator[Event]:
        """Every n-hat on the best individuals; it replaces 0 only where fitness falls (section 2.3)."""
        s = self.settings
        best = self.population[: s.n_hat_best] if s.n_hat_options else []
        yield from self._evaluate(
            [
                ("n-hat", rank, [(genes, n_hat) for n_hat in s.n_hat_options])
                for rank, (_, (genes, _)) in enumerate(best, start=1)
            ]
        )

    def _first_generation(self) -> list[Key]:
        keys: list[Key] = []
        for seed in self.seeds[: self.settings.population]:
            key = (self.space.snap(seed.factors), 0)
            if key not in self.seen:
                self.seen.add(key)
                keys.append(key)
        parents = [genes for genes, _ in keys]
        while len(keys) < self.settings.population:
            keys.append(self._mutant(parents[len(keys) % len(parents)]))
        return keys

    def _mutant(self, parent: Genes) -> Key:
        """A child nobody has seen; after many failures the child itself is mutated on."""
        genes = parent
        for attempt in range(FRUITLESS_TRIES):
            child = self.space.mutate(genes, self.rng, self.settings.probability)
            if (child, 0) not in self.seen:
                self.seen.add((child, 0))
                return child, 0
            genes = child if attempt > 100 else parent
        raise BadInput(
            "The search has run out of new factor tables. Give a smaller step, a larger upper bound, or fewer "
            "individuals and iterations."
        )

    def _crossover(self, parents: list[Genes]) -> Key:
        """The better of two parents with some genes of the other; a mutant where no new child rises (section 2.4)."""
        if len(parents) < 2:
            return self._mutant(parents[0])
        first, second = sorted(int(i) for i in self.rng.choice(len(parents), 2, replace=False))  # best first
        child = list(parents[first])
        for _ in range(self.settings.crossover_tries):
            for i in range(self.space.first, self.space.pairs):
                if self.rng.random() < self.settings.probability and self.rng.random() < 0.5:
                    child[i] = parents[second][i]
                    genes = self.space.finish(list(child))
                    if self.space.holds(genes) and (genes, 0) not in self.seen:
                        self.seen.add((genes, 0))
                        return genes, 0
        return self._mutant(parents[first])

    def _evaluate(self, phases: Sequence[tuple[Phase, int, list[Key]]]) -> Iterator[Event]:
        """All phases' individuals together, as none depends on another's fitness; log and events in their order."""
        with closing(self._values([key for _, _, keys in phases for key in keys])) as values:
            for phase, iteration, keys in phases:
                # The keys first: no value is asked for after the last.
                for key, (value, replayed) in zip(keys, values, strict=False):
                    if self.log is not None and not replayed:
                        self.log.add(key, value)
                    self.evaluated += 1
                    self.seen.add(key)
                    self.population.append((value, key))
                    if self.best is None or value < self.best[0]:
                        self.best = (value, key)
                    yield self._event(phase, iteration, value, key, replayed)
                self.population.sort(key=lambda row: row[0])  # stable: the older first among equals
                if self.log is not None:
                    self.log.mark(phase, iteration, self.rng.bit_generator.state)

    def _values(self, keys: Sequence[Key]) -> Generator[tuple[float, bool], None, None]:
        """Each individual's fitness, and whether the log had it: the log has the first ones or none."""
        known: list[float] = []
        for key in keys:
            value = self.log.replay(key) if self.log is not None else None
            if value is None:
                break
            known.append(value)
        yield from ((value, True) for value in known)
        found = (_individual(key, 0.0, self.settings.step) for key in keys[len(known) :])
        measured = self.measure((one.factors, one.n_hat) for one in found)
        try:
            for value in map(float, measured):
                yield value if not math.isnan(value) else math.inf, False
        finally:
            if isinstance(measured, Generator):
                measured.close()  # what runs elsewhere is stopped

    def _event(self, phase: Phase, iteration: int, value: float, key: Key, replayed: bool) -> Event:
        assert self.best is not None
        s = self.settings
        best_value, best_key = self.best
        latest = _individual(key, value, s.step)
        best = _individual(best_key, best_value, s.step)
        return Event(phase, iteration, self.evaluated, s.total, latest, best, replayed)


class _Log:
    """Settings, then one line for every evaluation and one for every finished phase with the generator's state."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.header: dict[str, Any] | None = None
        self.evaluations: list[tuple[list[int], int, float]] = []
        self.marks: dict[str, Any] = {}
        self.position = 0
        self.file: TextIO | None = None
        self.good_bytes = 0
        if path.exists():
            self._read()

    def open(self, header: dict[str, Any]) -> None:
        header = json.loads(json.dumps(header))  # tuples become lists, as in the file
        if self.header is not None and self.header != header:
            raise BadInput(
                f"{self.path.name} is the log of a search with other settings or seeds. Choose another file name, "
                "or the settings it was started with."
            )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            os.truncate(self.path, self.good_bytes)  # without a line that was cut off
        self.file = open(self.path, "a", encoding="utf-8")  # noqa: SIM115 - open as long as the search runs
        if self.header is None:
            self._write(header)

    def close(self) -> None:
        if self.file is not None:
            self.file.close()

    def replay(self, key: Key) -> float | None:
        """The fitness of the next individual if the log has it."""
        if self.position >= len(self.evaluations):
            return None
        genes, n_hat, value = self.evaluations[self.position]
        if (tuple(genes), n_hat) != key:
            raise self._foreign()
        self.position += 1
        return value

    def add(self, key: Key, value: float) -> None:
        self.position += 1
        self.evaluations.append((list(key[0]), key[1], value))
        self._write({"genes": key[0], "n_hat": key[1], "fitness": value if math.isfinite(value) else None})

    def mark(self, phase: str, iteration: int, state: Any) -> None:
        """Writes the generator's state, or compares it with the one the log has."""
        name = f"{phase} {iteration}"
        if name in self.marks:
            if self.marks[name] != json.loads(json.dumps(state)):
                raise self._foreign()
            return
        self.marks[name] = json.loads(json.dumps(state))
        self._write({"phase": phase, "iteration": iteration, "rng": state})

    def _foreign(self) -> BadInput:
        return BadInput(
            f"{self.path.name} was written by another version of this search. Start anew with another name."
        )

    def _write(self, row: dict[str, Any]) -> None:
        assert self.file is not None
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def _read(self) -> None:
        lines = self.path.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines):
            try:
                row = json.loads(line) if line.endswith(b"\n") else None
                self._take(row)
            except (ValueError, KeyError, TypeError, AttributeError):
                if number + 1 < len(lines):
                    raise BadInput(f"Line {number + 1} of {self.path.name} is damaged. Choose another log.") from None
                return
            if row is None:
                return
            self.good_bytes += len(line)

    def _take(self, row: Any) -> None:
        if row is None:
            return
        if self.header is None:
            if row["version"] != LOG_VERSION:
                raise KeyError("version")
            self.header = {key: row[key] for key in ("version", "settings", "seeds")}
        elif "genes" in row:
            value = math.inf if row["fitness"] is None else float(row["fitness"])
            self.evaluations.append((list(map(int, row["genes"])), int(row["n_hat"]), value))
        else:
            self.marks[f"{row['phase']} {row['iteration']}"] = row["rng"]


def best_of(events: Iterator[Event]) -> Individual:
    """Runs a search to its end and returns the best individual."""
    return deque(events, 1)[0].best


def _individual(key: Key, value: float, step: float) -> Individual:
    return Individual(tuple(round(1 + gene * step, 6) for gene in key[0]), key[1], value)


def _rows(seeds: Sequence[Seed]) -> list[dict[str, Any]]:
    return [asdict(seed) for seed in seeds]
