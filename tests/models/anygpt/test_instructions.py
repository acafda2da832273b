"""The miniature's sentences, lessons and conversations: by seed, on one side of the split, and fit for the grammar."""

import json
import random
import re

import numpy as np
import pytest

from models.anygpt import templates
from models.anygpt.embedded import instructions, language, lessons, library
from models.anygpt.embedded.instructions import Author, Wish, wish
from models.anygpt.embedded.language import COLOURS, FAMILIES, MOODS, OBJECTS, TEMPI
from models.anygpt.embedded.layout import LAYOUT, MUSIC_CODES, MUSIC_FRAMES, MUSIC_LEAD, RULES
from models.anygpt.embedded.speech_judge import distance
from models.anygpt.grammar import Grammar
from models.anygpt.vocabulary import END_OF_BOT, Words, extend
from models.errors import WeightsNotFound
from tests.models.anygpt.tiny import llama_tokenizer


def spell(text: str) -> list[list[int]]:
    return [[ord(letter) % 56 for letter in word] for word in text.split()]


def flat(text: str) -> list[int]:
    return [code for word in spell(text) for code in word]


@pytest.fixture(scope="module")
def words() -> Words:
    tokenizer = llama_tokenizer(400)
    return Words(tokenizer, extend(tokenizer, layout=LAYOUT))


@pytest.fixture(scope="module")
def books() -> library.Library:
    rng = np.random.default_rng(0)
    pictures = {(o, c): [rng.integers(0, 512, (1, 16))] for o in OBJECTS for c in ("", *COLOURS)}
    lead = rng.integers(MUSIC_CODES, MUSIC_CODES + MUSIC_LEAD, (2, 1))
    music = {
        (f, t, m): [np.concatenate([lead, rng.integers(0, MUSIC_CODES, (2, MUSIC_FRAMES))], 1)]
        for f in FAMILIES for t in TEMPI for m in MOODS
    }  # fmt: skip
    heard = {s.text: [np.array([flat(s.text)])] for s in language.sentences(300) if s.split == "train"}
    said = {text: codes[0] for text, codes in heard.items()}
    return library.Library(pictures, music, music, heard, said, spell)


@pytest.fixture
def author(books, words) -> Author:
    return Author(books, words.vocabulary, "train", 3)


def every(author: Author, times: int):
    for table in author.ready:
        for write in table.values():
            for _ in range(times):
                yield from write()


def test_sentences_are_different_short_and_the_same_for_a_seed():
    found = language.sentences(1500)
    assert found == language.sentences(1500) != language.sentences(1500, seed=1)
    texts = [sentence.text for sentence in found]
    assert len(set(texts)) == 1500
    assert max(len(text.split()) for text in texts) <= 12
    counts = {}
    for text in texts:
        for word in text.split():
            counts[word] = counts.get(word, 0) + 1
    assert 250 <= len(counts) <= 320
    assert min(counts[word] for words in (OBJECTS, COLOURS, FAMILIES, TEMPI, MOODS) for word in words) >= 20
    share = sum(sentence.split == "held_out" for sentence in found) / 1500
    assert 0.07 < share < 0.14


def test_the_split_goes_by_what_is_said_not_how_it_is_written():
    for sentence in language.sentences(200):
        assert language.split_of(language.written(sentence.text)) == sentence.split
        assert language.plain(language.written(sentence.text)) == sentence.text


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("draw a red apple and play something calm", Wish(("apple", "red"), ("calm",))),
        ("Please draw an umbrella.", Wish(("umbrella", ""))),
        ("i want to hear slow calm piano music", Wish(None, ("slow", "calm", "piano"))),
        ("play fast violin music and draw a key", Wish(("key", ""), ("fast", "violin"))),
        ("say good night and draw a pink cat", Wish(("cat", "pink"), None, "good night")),
        ("what is in this picture", Wish()),
        ("play music that goes with this picture", Wish()),
        ("my mother has a red apple", Wish()),
    ],
)
def test_requests_are_understood(text, wanted):
    assert wish(text) == wanted


def test_every_reply_is_one_the_grammar_allows(author, words):
    stop = (words.vocabulary.id(END_OF_BOT),)
    grammar = Grammar(words.vocabulary, RULES, stop, 2000)
    for exchange in every(author, 6):
        state = grammar.begin([0])
        for token in (*templates.encode(exchange.bot, words), *stop):
            state = grammar.advance(state, token)  # raises for one that is not allowed
        assert state.done


def test_media_are_few_and_utterances_short(author, words):
    for table in author.ready:
        for write in table.values():
            for _ in range(6):
                exchanges = write()
                parts = [p for e in exchanges for p in (*e.user, *e.bot) if isinstance(p, templates.Part)]
                kinds = [part.kind for part in parts if part.kind != "text"]
                assert kinds.count("music") <= 1
                assert kinds.count("image") <= 3  # two to look at, or one and its changed version
                for part in parts:
                    if part.kind == "music":
                        assert len(part.token_ids) == RULES["music"].most + 2
                assert len(lessons.conversation(exchanges, words)) < 1000


def test_what_comes_back_follows_the_request(books, words):
    """Every picture and piece of music of a library is different, so the codes say what was taken."""
    author = Author(books, words.vocabulary, "train", 5)
    names = {codes[0].tobytes(): key for key, codes in (*books.pictures.items(), *books.composed.items())}

    def taken(part):
        from models.anygpt.streams import unflatten

        return names[unflatten(words.vocabulary, part.kind, part.token_ids)[0].tobytes()]

    seen = 0
    for _ in range(60):
        first = author.ask()[0]
        wanted = wish("".join(p if isinstance(p, str) else p.value for p in first.user))
        for part in (p for p in first.bot if isinstance(p, templates.Part)):
            if part.kind == "image":
                assert taken(part) == wanted.thing
                seen += 1
            if part.kind == "music":
                assert set(wanted.music) <= set(taken(part))
                seen += 1
    assert seen > 40


def test_spoken_replies_have_the_published_form_and_say_what_is_written(author, words, books):
    for _ in range(30):
        (exchange,) = author.speak()
        spelled = templates.spell(exchange.bot, words.vocabulary)
        found = re.match(r"<-Ins-> (.+)\n <-Res-> (.+?) <sosp>", spelled)
        assert found, spelled
        (speech,) = (p for p in exchange.bot if isinstance(p, templates.Part) and p.kind == "speech")
        codes = [words.vocabulary.unit(token)[1] for token in speech.token_ids[1:-1]]
        assert codes == books.speech(found[2]).ravel().tolist()


def test_nothing_that_is_held_out_is_spoken_in_training(books, words):
    author = Author(books, words.vocabulary, "train", 9)
    texts: list[str] = []
    books_speech, books_utterance = books.speech, books.utterance

    class Listening(library.Library):
        def speech(self, text):
            texts.append(text)
            return books_speech(text)

        def utterance(self, rng, text):
            texts.append(text)
            return books_utterance(rng, text)

    author.library = Listening(books.pictures, books.composed, books.listened, books.heard, books.said, spell)
    list(every(author, 25))
    assert len(texts) > 100
    assert {language.split_of(text) for text in texts} == {"train"}


def test_a_library_keeps_the_sides_apart_and_leaves_the_held_out_voice_out(tmp_path):
    train = next(s.text for s in language.sentences(50) if s.split == "train")
    other = next(s.text for s in language.sentences(50) if s.split == "held_out")
    rows = [
        {"text": train, "voice": "hibari", "use": "out", "codes": [1], "split": "train"},
        {"text": train, "voice": "hibari", "use": "in", "codes": [2], "split": "train"},
        {"text": train, "voice": library.HELD_OUT_VOICE, "use": "in", "codes": [3], "split": "train"},
        {"text": other, "voice": "hibari", "use": "in", "codes": [4], "split": "held_out"},
    ]
    (tmp_path / "speech.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = library.read(tmp_path, "train")
    assert {text: [c.tolist() for c in codes] for text, codes in found.heard.items()} == {train: [[[2]]]}
    assert found.speech(train).tolist() == [[1]]
    assert list(library.read(tmp_path, "held_out").heard) == [other]
    with pytest.raises(WeightsNotFound, match="recipes of the three codecs"):
        library.read(tmp_path / "nowhere", "train")


def test_lessons_are_packed_whole_each_once(author, words):
    made = [lessons.conversation([exchange], words) for exchange in every(author, 4)]
    begin = lessons.system(words)
    length = 2000
    packed = list(lessons.pack(made, begin, length))
    assert all(len(sequence) <= length for sequence in packed)
    left = sorted((lesson.ids for lesson in made), key=len, reverse=True)
    for sequence in packed:
        assert sequence.ids[: len(begin)] == begin.ids
        rest = sequence.ids[len(begin) :]
        while rest:
            whole = next(ids for ids in left if rest[: len(ids)] == ids)
            left.remove(whole)
            rest = rest[len(whole) :]
    assert left == []
    with pytest.raises(ValueError, match="does not fit"):
        list(lessons.pack(made, begin, len(begin) + 5))


def test_only_replies_are_learnt(author, words):
    (task,) = author.transcribe()
    lesson = lessons.conversation([task], words)
    learnt = [token for token, learn in zip(lesson.ids, lesson.learn, strict=True) if learn]
    assert words.decode(learnt).strip() == task.bot[0] + END_OF_BOT
    (drawn,) = author.draw()
    lesson = lessons.conversation([drawn], words)
    learnt = [token for token, learn in zip(lesson.ids, lesson.learn, strict=True) if learn]
    (picture,) = (p for p in drawn.bot if isinstance(p, templates.Part))
    assert set(picture.token_ids) <= set(learnt)
    assert words.decode([t for t in learnt if t not in picture.token_ids]).strip() == END_OF_BOT


@pytest.mark.parametrize("text_first", [True, False])
def test_a_page_has_pairs_and_what_follows_from_the_first_is_learnt(author, words, text_first, books):
    pairs = [author._spelled_words(heard=False) for _ in range(30)]
    page = lessons.document(pairs, words, text_first, 300)
    assert 200 < len(page) <= 300
    for text, part in pairs[:5]:
        spelled = templates.encode([text], words)
        first, second = (spelled, part.token_ids) if text_first else (part.token_ids, spelled)
        start = next(i for i in range(len(page)) if page.ids[i : i + len(first) + len(second)] == (*first, *second))
        middle, end = start + len(first), start + len(first) + len(second)
        assert not any(page.learn[start:middle])
        assert all(page.learn[middle:end])
        codes = [words.vocabulary.unit(token)[1] for token in part.token_ids[1:-1]]
        assert codes == flat(language.plain(str(text)))


@pytest.mark.parametrize("heard", [False, True])
@pytest.mark.parametrize("tokens", [None, instructions.OPENING, instructions.BEATS])
def test_captioned_music_is_whole_or_only_begun(author, words, tokens, heard):
    music = words.vocabulary.units("music")
    pairs = author.captioned_music(12, tokens, heard)
    assert len(pairs) == 12
    for caption, part in pairs:
        assert any(family in str(caption).split() for family in language.FAMILIES)
        assert part.token_ids[0] == music.start
        assert (part.token_ids[-1] == music.end) is (tokens is None or heard)
        assert len(part.token_ids) == (RULES["music"].most + 2 if tokens is None else 1 + tokens + heard)


def test_batches_are_padded_with_what_is_not_learnt():
    ids, learn = lessons.batch([lessons.Lesson((5, 6), (True, True)), lessons.Lesson((7,), (True,))], 3)
    assert ids.tolist() == [[5, 6, 0], [7, 0, 0]]
    assert learn.tolist() == [[True, True, False], [True, False, False]]


def test_the_sample_is_by_seed_and_in_the_published_spelling(books, words):
    rows = [list(instructions.sample(Author(books, words.vocabulary, "train", 0), 8)) for _ in range(2)]
    assert rows[0] == rows[1]
    text = json.dumps(rows[0], ensure_ascii=False)
    assert "<soim><👀" in text and "<sosp><🗣️" in text and "<somu><🎶" in text


def test_utterances_nobody_recorded_are_spelled_with_few_slips(books):
    rng, text = random.Random(0), "a sentence of no recording"
    heard = [books.utterance(rng, text)[0].tolist() for _ in range(200)]
    shares = [distance(codes, flat(text)) / len(flat(text)) for codes in heard]
    assert 0 < np.mean(shares) < 2 * library.SLIPS
    assert heard.count(flat(text)) > 20
