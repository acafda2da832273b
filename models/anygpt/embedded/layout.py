"""What the miniature's stream looks like: how many codes each medium has, and the runs it may generate."""

from __future__ import annotations

from models.anygpt.grammar import Rule
from models.anygpt.vocabulary import Codes, Layout, Medium
from models.weights import ASSETS

SHIPPED = ASSETS / "anygpt"
MUSIC_CODES = 256  # a layer, of what sounds
MUSIC_LEAD = 32  # a layer, of a clip's first frame, which tells of the whole: its beat, and its colour
NO_BEAT = MUSIC_LEAD - 1  # the last of those for the beat
LAYOUT = Layout(image=Codes(512), speech=Codes(256), music=Codes(MUSIC_CODES + MUSIC_LEAD, layers=2), audio=None)
IMAGE_CODES = 16  # 4 x 4, row by row
MUSIC_FRAMES = 50  # 4 s at 12.5 frames a second
SPEECH_CODES = 250  # a cap; about 12 a second, since repeated codes are merged
PHONES = 56  # of the 256 speech codes only these are used; the trained vocabulary has room for more
RULES: dict[Medium, Rule] = {
    "image": Rule(IMAGE_CODES, IMAGE_CODES, 2),
    "speech": Rule(1, SPEECH_CODES, 2, codes=PHONES),
    "music": Rule(2 * (1 + MUSIC_FRAMES), 2 * (1 + MUSIC_FRAMES), 1, MUSIC_CODES, MUSIC_LEAD, MUSIC_CODES + NO_BEAT),
}
