"""The tables of docs/CAPACITY.md, from what was recorded: `python -m tests.load.capacity` writes them into the page.

A tab's heavy jobs run one at a time in a replica, so a tab is one server with visitors who think and come back: a
visitor among n waits s * (1 + those found there) on average, by mean value analysis with service time s and think time
z. The processor is the other limit. Users and replicas are estimates; what is measured is said to be.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
PAGE, RECORDS = ROOT / "docs" / "CAPACITY.md", ROOT / "assets" / "hosting"
CORES = 2  # of the machine that was measured
BUSY = 0.7  # share of the processor that is planned for; the rest is for peaks
CAMERA_RATE = 5.0  # frames a second that a webcam visitor is promised
CROWDS = (100, 10_000)
WITHIN = {  # seconds to a result, on average, that visitors are promised
    "picture": 2.0, "networks": 30.0, "passkey": 60.0, "pictures": 10.0, "typing": 10.0, "chat": 30.0, "drawing": 45.0,
}  # fmt: skip
WORDS = {
    "webcam": ("YOLOv9", f"webcam, {CAMERA_RATE:g} frames a second"),
    "picture": ("YOLOv9", "boxes in a picture"),
    "networks": ("P-diff", "100 networks, one tried and saved"),
    "passkey": ("LongRoPE", "a key in 4 096 tokens, exact"),
    "pictures": ("SDXL-Lightning", "a picture in 1 or 4 steps"),
    "typing": ("SDXL-Lightning", "a prompt typed live"),
    "chat": ("AnyGPT", "a text turn"),
    "drawing": ("AnyGPT", "a drawn turn"),
}
TOGETHER = {"yolov9": ("webcam", "picture"), "pdiff": ("networks",), "longrope": ("passkey",),
            "sdxl_lightning": ("pictures", "typing"), "anygpt": ("chat", "drawing")}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """Of one kind of visitor. seconds: that an action takes of one core; of a webcam, a frame."""

    kind: str
    seconds: float
    think: float

    @property
    def cores(self) -> float:
        """That one visitor keeps busy on average."""
        return CAMERA_RATE * self.seconds if self.kind == "webcam" else self.seconds / (self.think + self.seconds)

    @property
    def users(self) -> int:
        """Visitors of this kind that a replica serves, when nobody does anything else."""
        by_processor = math.floor(BUSY * CORES / self.cores)
        if self.kind == "webcam":
            return by_processor
        return min(by_processor, most_within(self.seconds, self.think, WITHIN[self.kind]))


def most_within(seconds: float, think: float, bound: float) -> int:
    """The largest number of visitors of one lane whose mean time to a result is within `bound`, or 0."""
    users, response = 0, seconds
    waiting = 0.0
    while True:
        response = seconds * (1 + waiting)
        if response > bound:
            return users
        users += 1
        waiting = users * response / (response + think)


def loads(result: dict[str, Any]) -> dict[str, Load]:
    """From a recorded measurement."""
    actions, think = result["actions"], result["think_s"]
    return {kind: Load(kind, actions[kind]["core_seconds"], think[kind]) for kind in WORDS}


def by_replica(result: dict[str, Any]) -> str:
    """Users of each kind that one replica serves. Markdown, as all that follow."""
    lines = [
        "| tab | what a visitor does | seconds of one core, measured | pause | promised | users a replica, estimated |",
        "|---|---|---|---|---|---|",
    ]
    for kind, load in loads(result).items():
        tab, what = WORDS[kind]
        pause, bound = (f"{load.think:g} s", f"{WITHIN[kind]:g} s") if kind in WITHIN else ("none", "the rate")
        lines.append(f"| {tab} | {what} | {_seconds(load.seconds)} | {pause} | {bound} | **{load.users}** |")
    return "\n".join(lines)


def cores(result: dict[str, Any]) -> dict[str, float]:
    """Cores that one visitor of each tab keeps busy."""
    each = loads(result)
    return {tab: sum(each[kind].cores for kind in kinds) / len(kinds) for tab, kinds in TOGETHER.items()}


def replicas(busy: float, crowd: int) -> int:
    """Of a tab's models, for a crowd of which a fifth is on that tab."""
    return math.ceil(crowd / len(TOGETHER) * busy / (BUSY * CORES))


def by_crowd(result: dict[str, Any]) -> str:
    """Cores and replicas of each model for the mix of visitors."""
    idle, new, busy = result["actions"]["open page"]["cores"], result["actions"]["new visitor"], cores(result)
    mixed = sum(busy.values()) / len(busy) + idle
    users = math.floor(BUSY * CORES / mixed)
    lines = [
        f"A visitor of the mix keeps {mixed:.3f} cores busy, {idle:.4f} of them by the open page alone (measured). "
        f"{100 * BUSY:.0f} % of {CORES} cores are enough for **{users} users of the mix a replica**. A new visitor "
        f"costs {new['core_seconds']:.2f} core-seconds and {new['megabytes']:.1f} MB that are kept (measured).",
        "",
        "| model | cores a visitor | " + " | ".join(f"cores for {n:,} | two-core replicas for {n:,}" for n in CROWDS)
        + " |",
        "|---|---|" + "---|" * (2 * len(CROWDS)),
    ]  # fmt: skip
    for tab, each in busy.items():
        cells = " | ".join(f"{crowd / len(busy) * each:.1f} | {replicas(each, crowd):,}" for crowd in CROWDS)
        lines.append(f"| {tab} | {each:.3f} | {cells} |")
    lines.append(f"| the open pages | {idle:.4f} | " + " | ".join(f"{n * idle:.1f} | " for n in CROWDS) + " |")
    return "\n".join(lines)


def settings(result: dict[str, Any]) -> str:
    """The smaller crowd's replicas, as deploy/ray_app.py reads them."""
    lines = [f"{tab}:\n  num_replicas: {replicas(each, CROWDS[0])}\n  ray_actor_options: {{num_cpus: {CORES}}}"
             for tab, each in cores(result).items()]  # fmt: skip
    return "\n".join(("```yaml", *lines, "```"))


def under_load(result: dict[str, Any]) -> str:
    """What visitors waited for, tab by tab, and what became of the promises."""
    lines = [*(f"- {line}" for line in _day(result)), ""]
    lines += [
        "| tab | asked | done | queue full | errors | unfinished | action | median | 95 % |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for tab, told in result["tabs"].items():
        counts = (told[name] for name in ("asked", "done", "queue_full", "error", "unfinished"))
        head = f"| {tab} | {' | '.join(map(str, counts))} |"
        times = {name: action["seconds"] for name, action in told["actions"].items()}
        if tab == "yolov9":
            times["webcam, a frame"] = result["webcam"]["delay_s"]
        for name, seconds in times.items():
            if seconds is not None:
                lines.append(f"{head} {name} | {_seconds(seconds['p50'])} | {_seconds(seconds['p95'])} |")
                head = "| | | | | | |"
        if head.startswith(f"| {tab}"):
            lines.append(f"{head} no result after the warm-up | | |")
    return "\n".join(lines)


def _day(result: dict[str, Any]) -> list[str]:
    """The measurement in sentences."""
    webcam, memory, run = result["webcam"], result["memory"], result["long_run"]
    said = [
        f"{result['users']} visitors for {result['seconds'] / 60:g} minutes. The app used {result['app_cores']:.2f} of "
        f"{CORES} cores, the load generator {result['load_generator_cores']:.2f}.",
        f"Webcams: {webcam['answered']:,} of {webcam['sent']:,} frames sent were answered, "
        f"{webcam['answers_to_an_older_frame']} of the answers were to an older frame; {webcam['dropped']:,} of "
        f"{webcam['shots']:,} shots were dropped.",
    ]
    if run:
        said.append(f"The long run read {run['tokens_read']:,} of {run['tokens']:,} tokens.")
    beside, without = webcam.get("beside_the_long_run"), webcam.get("without_it")
    if beside and without:
        said.append(f"A webcam frame took {_seconds(beside['p50'])} beside the long run, {_seconds(without['p50'])} "
                    "without it (medians).")  # fmt: skip
    if (slope := memory["slope_mb_per_minute"]) is not None:
        interval = f"{slope['low']:+.1f} to {slope['high']:+.1f}"
        said.append(f"Memory: at most {memory['most_mb']:,.0f} MB; after the warm-up {slope['slope']:+.1f} MB a "
                    f"minute, 95 % interval {interval}.")  # fmt: skip
    return [*said, f"Promises that were broken: {'; '.join(result['broken']) or 'none'}."]


def cold(result: dict[str, Any]) -> str:
    """The first result of a fresh process, tab by tab."""
    lines = ["| tab | what is asked | page after | first result, from asking | second |", "|---|---|---|---|---|"]
    for tab, told in result["tabs"].items():
        times = " | ".join(_seconds(told[name]) for name in ("page_s", "first_s", "second_s"))
        lines.append(f"| {tab} | {told['asked']} | {times} |")
    return "\n".join(lines)


TABLES = {"by replica": (by_replica, "alone"), "by crowd": (by_crowd, "alone"),
          "settings": (settings, "alone"), "under load": (under_load, "load"),
          "cold start": (cold, "cold_start")}  # fmt: skip


def written(page: str, records: Path) -> str:
    """The page with its tables made anew from the records in a folder."""
    for name, (table, source) in TABLES.items():
        start, end = f"<!-- table: {name} -->", "<!-- end -->"
        record = records / f"{source}.json"
        content = table(json.loads(record.read_text())["result"]) if record.exists() else "Not recorded yet."
        made = f"{start}\n{content}\n{end}"
        page = re.sub(f"{start}.*?{end}", lambda _, made=made: made, page, flags=re.DOTALL)
    return page


def _seconds(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def main() -> None:
    PAGE.write_text(written(PAGE.read_text(), RECORDS))


if __name__ == "__main__":
    main()
