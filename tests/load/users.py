"""What visitors do, tab by tab: one routine a kind of visitor, each with times to look and think.

`CROWD` is the order in which visitors arrive, a fifth of them on each tab; more than it has start over.
"""

from __future__ import annotations

import asyncio
import base64
import io
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

from tests.load.visitor import Answer, Outcome, Shots, Visitor

ROOT = Path(__file__).resolve().parent.parent.parent
EXAMPLES = ROOT / "assets" / "yolov9" / "examples"
TABS = ("yolov9", "pdiff", "longrope", "sdxl_lightning", "anygpt")
THINK = {  # seconds between a result and the next action, on average
    "webcam": 10.0, "picture": 10.0, "networks": 20.0, "passkey": 20.0, "pictures": 15.0, "typing": 15.0,
    "chat": 15.0, "drawing": 20.0,
}  # fmt: skip
WATCHED = 60.0  # seconds a camera stays on
KEYSTROKE = 0.2  # seconds
PASSKEY_POWER = 12  # 2^12 tokens
LONG_WORDS = 50_000  # of the long run's own text: no block of it repeats another, so all are read
LONG_POWERS = (21, 20, 19, 18)  # of two: tokens, the next one where there is no memory for the one before
NO_ROOM = "GB are available"
PROMPTS = ("a blue apple", "cat with sunglasses", "two pears", "fox on a pink background", "car and tree")
TOPICS = ("What is the capital of France?", "Tell me something about the sea.", "What can I do with an apple?")
WISHES = ("Draw a red apple.", "Draw a blue car.", "Draw a green tree.")
TURNS = 4  # then a new conversation


@dataclass(frozen=True)
class Done:
    """One action. at: the clock's second when it began."""

    action: str
    at: float
    seconds: float
    first: float
    outcome: Outcome
    why: str


@dataclass
class Tally:
    """Everything that the visitors saw. started: `time.monotonic()` of second 0. stop: set when they are to go home."""

    started: float
    stop: asyncio.Event
    done: list[Done] = field(default_factory=list)
    shots: Shots = field(default_factory=Shots)
    long_run: dict[str, Any] = field(default_factory=dict)
    long_until: float = 0.0  # the clock's second at which the long run is cancelled; 0: there is none
    without_result: tuple[float, int] = (0.0, 0)  # after so many seconds' patience, so many visitors still waited

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def add(self, action: str, at: float, answer: Answer) -> Answer:
        self.done.append(Done(action, at, answer.seconds, answer.first, answer.outcome, answer.why))
        return answer

    async def pause(self, seconds: float) -> None:
        """So long, or until everybody goes home."""
        try:
            await asyncio.wait_for(self.stop.wait(), max(seconds, 0.0))
        except TimeoutError:
            return


@dataclass(frozen=True)
class Kind:
    """A kind of visitor: its tab, what it does once, and how it thinks in between."""

    name: str
    tab: str
    act: Callable[[Visitor, Tally, random.Random], Awaitable[None]]

    async def live(self, visitor: Visitor, tally: Tally, chance: random.Random) -> None:
        """Acts until everybody goes home."""
        while not tally.stop.is_set():
            at = tally.now
            try:
                await self.act(visitor, tally, chance)
            except httpx.HTTPError as error:
                tally.add(self.name, at, Answer("error", tally.now - at, 0.0, repr(error)))
            mean = THINK.get(self.name, 0.0)
            await tally.pause(min(chance.expovariate(1 / mean), 3 * mean) if mean else 0.0)


async def ask(
    visitor: Visitor, tally: Tally, action: str, event: str, changed: dict[str, Any] | None = None,
    on_output: Callable[[str], None] | None = None,
) -> Answer:  # fmt: skip
    """One job, tallied, also when it has no end."""
    at = tally.now
    try:
        return tally.add(action, at, await visitor.ask(event, changed, on_output))
    except asyncio.CancelledError:
        tally.add(action, at, Answer("unfinished", tally.now - at, 0.0))
        raise


# ---- YOLOv9 -----------------------------------------------------------------------------------------------


def _frames() -> list[tuple[Any, tuple[int, int]]]:
    """Camera frames of the card examples, JPEG as the page sends them. Each has a size of its own, which its answer
    repeats: so it is known which frame was answered."""
    pictures = [Image.open(path).convert("RGB") for path in sorted(EXAMPLES.glob("*.jpg"))]
    frames = []
    for number in range(32):
        size = 640 - 2 * number, 480
        stream = io.BytesIO()
        pictures[number % len(pictures)].resize(size).save(stream, "JPEG", quality=85)
        url = "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
        frames.append(({"url": url}, size))
    return frames


_CAMERA: list[tuple[Any, tuple[int, int]]] = []


def camera(number: int) -> tuple[Any, tuple[int, int]]:
    """Shot of that number: the input's value, and its size."""
    if not _CAMERA:
        _CAMERA.extend(_frames())
    return _CAMERA[number % len(_CAMERA)]


def answered_size(data: Any) -> tuple[int, int] | None:
    """None while the model loads."""
    return (data[0]["width"], data[0]["height"]) if data[0] else None


async def webcam(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    at, seconds = tally.now, WATCHED * (0.5 + chance.random())
    film = visitor.film("yolov9_webcam", camera, answered_size, seconds, tally.shots, tally.started, tally.stop)
    tally.add("webcam", at, await film)


async def picture(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    path = chance.choice(sorted(EXAMPLES.glob("*.jpg")))
    file = await visitor.upload(path.name, path.read_bytes())
    await ask(visitor, tally, "picture", "yolov9_image", {"Picture: drop, paste or take one": file})


# ---- P-diff and LongRoPE ----------------------------------------------------------------------------------


async def networks(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    """Generates, tries one of the networks on a test picture, and saves it."""
    made = await ask(visitor, tally, "networks", "pdiff_generate", {"Seed": chance.randrange(1000)})
    if made.outcome != "done":
        return
    await tally.pause(2.0)
    number = {"Network": chance.randrange(100)}
    await ask(visitor, tally, "network: test picture", "pdiff_example", number)
    await ask(visitor, tally, "network: file", "pdiff_file", number)


async def passkey(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    asked = {
        "Context length, as a power of two": PASSKEY_POWER,
        "Depth of the key": chance.randrange(20) / 20,
        "Seed": chance.randrange(1000),
    }
    await ask(visitor, tally, "passkey", "longrope_passkey", asked)


async def long_run(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    """Reads two million tokens of a text without repeated blocks, blockwise, until `long_until`; then presses Cancel.
    Where the app says that the machine has no memory for so many, half of them."""
    if tally.long_run or not tally.long_until:
        await tally.stop.wait()
        return
    tally.long_run = {"tokens": 0, "refused": [], "asked_at_s": tally.now, "reading_from_s": None,
                      "cancelled_at_s": None, "ended_at_s": tally.long_until, "tokens_read": 0,
                      "ended_by_cancel": False}  # until it is known  # fmt: skip
    seen: list[tuple[float, int]] = []

    def read(line: str) -> None:
        if found := re.findall(r"([\d,]+) read, ", line):
            seen.append((tally.now, int(found[-1].replace(",", ""))))

    async def cancel() -> None:
        await tally.pause(tally.long_until - tally.now)
        while not seen:  # it waits for its turn still
            await asyncio.sleep(0.5)
        await visitor.run("longrope_cancel")
        tally.long_run["cancelled_at_s"] = tally.now

    button = asyncio.create_task(cancel())
    refused = []
    words = ("the", "sea", "was", "calm", "and", "nobody", "had", "seen", "a", "ship", "for", "days", "but", "him")
    text = " ".join(chance.choice(words) for _ in range(LONG_WORDS))
    for power in LONG_POWERS:
        asked = {"Context length, as a power of two": power, "Attention": "blockwise", "Cache format": "int4",
                 "Haystack": text}  # fmt: skip
        at = tally.now
        answer = await visitor.ask("longrope_passkey", asked, read)
        if answer.outcome != "error" or NO_ROOM not in answer.why:
            break
        refused.append(answer.why)
    if not seen:
        button.cancel()
    await asyncio.gather(button, return_exceptions=True)
    tally.add("long run, cancelled", at, answer)
    tally.long_run |= {
        "tokens": 2**power,
        "refused": refused,
        "reading_from_s": seen[0][0] if seen else None,
        "ended_at_s": tally.now,
        "tokens_read": seen[-1][1] if seen else 0,
        "ended_by_cancel": answer.outcome == "done" and bool(seen) and tally.now >= tally.long_until,
    }


# ---- SDXL-Lightning and AnyGPT ----------------------------------------------------------------------------


async def pictures(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    """Words to a picture, in 4 steps or in one."""
    steps = chance.choice((1, 4))
    asked = {"Prompt": chance.choice(PROMPTS), "Network": steps, "Seed": chance.randrange(1000)}
    await ask(visitor, tally, f"picture in {steps} step{'s' * (steps > 1)}", "sdxl_lightning_generate", asked)


async def typing(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    """Types a prompt; as on the page a picture is asked for when the one before is there, of what is typed by then."""
    words = chance.choice(PROMPTS)
    typed, drawn = 0, 0

    async def type_on() -> None:
        nonlocal typed
        while typed < len(words):
            await asyncio.sleep(KEYSTROKE)
            typed += 1

    fingers = asyncio.create_task(type_on())
    try:
        while drawn < len(words):
            if typed == drawn:
                await asyncio.sleep(KEYSTROKE / 4)
                continue
            drawn = typed
            changed = {"Type: the picture follows": words[:drawn]}
            last = "live picture of the last word" if drawn == len(words) else "live picture"
            await ask(visitor, tally, last, "sdxl_lightning_live", changed)
    finally:
        fingers.cancel()


async def chat(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    await _converse(visitor, tally, chance, "text turn", TOPICS, {"The reply is": "text"})


async def drawing(visitor: Visitor, tally: Tally, chance: random.Random) -> None:
    await _converse(visitor, tally, chance, "drawn turn", WISHES, {"Task": "draw"})


async def _converse(
    visitor: Visitor, tally: Tally, chance: random.Random, action: str, lines: tuple[str, ...], more: dict[str, Any]
) -> None:
    """A conversation of a few turns, then a new one."""
    for _ in range(TURNS):
        turn = {"text": chance.choice(lines), "files": []}
        changed = {"Your turn": turn, "Seed": chance.randrange(1000), **more}
        await ask(visitor, tally, action, "anygpt_chat", changed)
        await tally.pause(chance.expovariate(1 / THINK["chat"]))
        if tally.stop.is_set():
            return
    await visitor.run("anygpt_clear")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("webcam", "yolov9", webcam),
        Kind("picture", "yolov9", picture),
        Kind("networks", "pdiff", networks),
        Kind("passkey", "longrope", passkey),
        Kind("long run", "longrope", long_run),
        Kind("pictures", "sdxl_lightning", pictures),
        Kind("typing", "sdxl_lightning", typing),
        Kind("chat", "anygpt", chat),
        Kind("drawing", "anygpt", drawing),
    )
}
CROWD = (
    "webcam", "networks", "passkey", "typing", "drawing", "long run", "picture", "networks", "pictures", "chat",
    "webcam", "networks", "passkey", "typing", "drawing", "passkey", "webcam", "networks", "pictures", "chat",
)  # fmt: skip


def crowd(users: int, long: bool) -> list[Kind]:
    """So many visitors in the order in which they arrive. long: whether one of them has the long run."""
    names = [CROWD[number % len(CROWD)] for number in range(users)]
    one = names.index("long run") if long and "long run" in names else None
    return [KINDS["picture" if name == "long run" and number != one else name] for number, name in enumerate(names)]


def tab_of(action: str) -> str:
    """The tab that an action belongs to."""
    return KINDS[action].tab if action in KINDS else _ACTIONS[action]


_ACTIONS = {
    "network: test picture": "pdiff",
    "network: file": "pdiff",
    "long run, cancelled": "longrope",
    "picture in 1 step": "sdxl_lightning",
    "picture in 4 steps": "sdxl_lightning",
    "live picture": "sdxl_lightning",
    "live picture of the last word": "sdxl_lightning",
    "text turn": "anygpt",
    "drawn turn": "anygpt",
}
