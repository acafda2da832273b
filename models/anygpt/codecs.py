"""Between media and codes: which codec does which medium, and why one is missing.

A codec is two functions, each there or not: a picture may be read by a machine that cannot draw. What a missing one
needs is said in a sentence, and everything else goes on working.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Generic, Literal, TypeVar

import numpy as np

from models.anygpt.audio import Audio
from models.anygpt.vocabulary import Medium
from models.errors import BadInput, WeightsNotFound

T = TypeVar("T")
Direction = Literal["read", "make"]


@dataclass(frozen=True)
class Rendering:
    """How codes become media, where a codec has a choice.

    seed: of everything random. voice: whose voice speaks; None lets the codec choose. speech_steps: passes of the
    first acoustic level. image_steps, guidance: of the diffusion (specification 5.2, 5.4).
    """

    seed: int = 0
    voice: Audio | None = None
    speech_steps: int = 3
    image_steps: int = 20
    guidance: float = 10.0

    def __post_init__(self) -> None:
        if not 1 <= self.speech_steps <= 64 or not 1 <= self.image_steps <= 100:
            raise BadInput("Speech takes 1 to 64 steps, a picture 1 to 100.")
        if not 1 <= self.guidance <= 50:
            raise BadInput(f"The guidance is {self.guidance}; it can be 1 to 50.")


@dataclass(frozen=True)
class Encoded:
    """codes: int64 (layers, n). value: the picture or `Audio` as it was read. note: what the reader should know."""

    codes: np.ndarray
    value: Any
    note: str = ""


Read = Callable[[Any], Encoded]  # from anything `models.images` or `models.anygpt.audio` takes
Make = Callable[[np.ndarray, Rendering], Any]  # codes (layers, n) -> a picture or `Audio`
Judge = Callable[[np.ndarray], float]  # codes (layers, n) -> how well they hold together, 0 to 1


@dataclass(frozen=True)
class Missing:
    """Why there is no codec: a sentence that says which file it needs."""

    reason: str


class Codecs:
    """All codecs of one tier. readers, makers: by medium; one that is not named is missing, too.

    judges: of the codecs that can tell how well codes hold together.
    """

    def __init__(
        self,
        readers: Mapping[Medium, Read | Missing],
        makers: Mapping[Medium, Make | Missing],
        judges: Mapping[Medium, Judge] = MappingProxyType({}),
    ) -> None:
        self._readers, self._makers, self._judges = dict(readers), dict(makers), dict(judges)

    def reason(self, direction: Direction, medium: Medium) -> str | None:
        """Why a medium cannot be read or made; None if it can."""
        known = self._readers if direction == "read" else self._makers
        codec = known.get(medium, Missing(f"This tier cannot {direction} {medium}."))
        return codec.reason if isinstance(codec, Missing) else None

    def read(self, medium: Medium, value: Any) -> Encoded:
        """The codes of a picture or a sound. Raises `WeightsNotFound` with the reason if there is no codec."""
        codec = self._readers.get(medium)
        if codec is None or isinstance(codec, Missing):
            raise WeightsNotFound(str(self.reason("read", medium)))
        return codec(value)

    def make(self, medium: Medium, codes: np.ndarray, rendering: Rendering) -> Any:
        """A picture or a sound of codes. Raises `WeightsNotFound` with the reason if there is no codec."""
        codec = self._makers.get(medium)
        if codec is None or isinstance(codec, Missing):
            raise WeightsNotFound(str(self.reason("make", medium)))
        return codec(codes, rendering)

    def fit(self, medium: Medium, codes: np.ndarray) -> float:
        """How well codes hold together, 0 to 1; 1 where no codec can tell."""
        judge = self._judges.get(medium)
        return 1.0 if judge is None else judge(codes)


class Lazy(Generic[T]):
    """Something big that is loaded at its first use, once, however many threads ask."""

    def __init__(self, load: Callable[[], T]) -> None:
        self._load, self._lock = load, threading.Lock()
        self._made: tuple[T] | None = None

    def __call__(self) -> T:
        with self._lock:
            if self._made is None:
                self._made = (self._load(),)
            return self._made[0]
