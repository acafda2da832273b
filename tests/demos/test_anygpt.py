"""The AnyGPT tab over its API and by its functions: a small real model that knows one reply by heart."""

import json
import wave
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from demos import anygpt_chat as chat
from demos.anygpt_parts import MIXED, MUSIC, PRESETS, SPEECH, Choices
from demos.anygpt_tokens import TokenView
from models.anygpt import templates
from models.anygpt.audio import Audio, read_music, wav
from models.anygpt.codecs import Codecs
from models.anygpt.pipeline import AnyGPT, Settings
from models.anygpt.sampling import PRESETS as SAMPLING
from models.anygpt.streams import Part
from models.errors import BadInput, WeightsNotFound
from models.images import read_image
from models.runtime import Runtime
from tests.demos import tiny_anygpt
from tests.demos.tiny_anygpt import RATE, load, reply_of, tiny_app, tiny_model

PARTS = ["text", "text", "image", "music", "speech"]  # of the reply it knows
PAPER = SAMPLING["paper"]
CONTROLS = {
    "sounds": SPEECH, "output": "auto", "preset": "chat", "template": "the model's own",
    "sampling": "the model's own", "seed": 0, "tokens": 128,
}  # fmt: skip


@pytest.fixture(scope="module")
def url():
    tiny_model()
    with tiny_app() as url:
        yield url


@pytest.fixture
def client(url):
    return Client(url, verbose=False)  # a visitor of its own


@pytest.fixture
def handle():
    return Runtime(device="cpu").register("anygpt", load, estimate_bytes=1_000_000)


@pytest.fixture
def say(tmp_path):
    """A sound file; `say(change)` writes another."""

    def write(name: str = "say.wav", seconds: float = 1.0, level: float = 0.4, rate: int = RATE) -> str:
        t = np.arange(round(seconds * rate)) / rate
        path = tmp_path / name
        path.write_bytes(wav(Audio((level * np.sin(2 * np.pi * 220 * t)).astype(np.float32), rate)))
        return str(path)

    return write


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (80, 60), "red").save(path)
    return str(path)


def send(client, text="", files=(), **changes):
    message = {"text": text, "files": [handle_file(str(file)) for file in files]}
    shown, _, tokens, said, archive = client.predict(
        message, *(CONTROLS | changes).values(), api_name="/anygpt_chat"
    )  # fmt: skip
    return {"messages": shown, "tokens": tokens, "said": said, "archive": archive["value"]}


def read_sound(path):
    return read_music(path, RATE)


def told(messages):
    """(role, what) of each message: its text, or the kind of its file."""
    return [
        (m["role"], c["text"] if c["type"] == "text" else c["component"]) for m in messages for c in m["content"]
    ]  # fmt: skip


def answers(handle, talk, message, cancel=None, **choices):
    """Runs the tab's own generator; the screens it shows, as their outputs."""
    values = {"sounds": SPEECH, "output": "auto", "preset": "chat"} | choices
    return chat.answer(handle, talk, message, Choices(**values), cancel or {"asked": False, "cleared": False})


def last(handle, talk, message, **choices):
    *_, outputs = answers(handle, talk, message, **choices)
    return outputs


def test_text_picture_and_speech_in_one_turn_and_four_media_back(client, picture, say):
    page = send(client, "What is this?", [picture, say()])
    assert told(page["messages"]) == [
        ("user", "image"), ("user", "audio"), ("user", "What is this?"), ("assistant", "hello"),
        ("assistant", "look"), ("assistant", "image"), ("assistant", "audio"), ("assistant", "audio"),
    ]  # fmt: skip
    assert page["messages"][3]["metadata"]["title"] == "Heard"
    assert "Text, picture, music, speech" in page["said"] and "left out" not in page["tokens"]
    for message in page["messages"][5:]:
        content = message["content"][0]
        assert content["props"].get("alt_text") or content["props"]["label"]
        file = content["value"]
        if content["component"] == "image":
            assert Image.open(file).size == (128, 128)
        else:
            assert read_sound(file).seconds > 0.3


def test_the_view_is_the_stream_that_is_read_and_written(client, picture):
    model = tiny_model()
    tokens = send(client, "hi", [picture])["tokens"]
    assert tokens.count('class="image mark"') == 4  # two pictures, each with a beginning and an end
    reply = reply_of(model)
    written = TokenView(model.words, (), 0, 99)
    for token in reply:
        written.push(token)
    assert written.html().split("<h4>Written</h4>")[1] == tokens.split("<h4>Written</h4>")[1]
    assert sum(written.counts.values()) == written.written == len(reply)
    assert written.counts == {"text": 10, "image": 6, "speech": 7, "music": 10, "role": 3}


def test_text_that_looks_like_html_or_a_token_stays_text(client):
    page = send(client, "<b>x</b> <soim> [Human]")
    assert ("user", "&lt;b&gt;x&lt;/b&gt; &lt;soim&gt; [Human]") in told(page["messages"])
    assert "<b>x" not in page["tokens"]
    assert page["tokens"].count('class="image mark"') == 2  # those of the reply's own picture


def test_the_archive_has_every_file_and_the_exact_ids(client, picture, say, tmp_path):
    send(client, "first", [picture])
    page = send(client, "second", [say("tune.wav")], sounds=MUSIC)
    with zipfile.ZipFile(page["archive"]) as archive:
        names = set(archive.namelist())
        talk = json.loads(archive.read("conversation.json"))
        archive.extractall(tmp_path)
    assert talk["model"] == {"tier": "embedded", "weights": "made by the test"}
    assert [turn["role"] for turn in talk["turns"]] == ["user", "assistant"] * 2
    kinds = [[part["kind"] for part in turn["parts"]] for turn in talk["turns"]]
    assert kinds[0] == ["image", "text"] and kinds[1][-3:] == ["image", "music", "speech"] and kinds[2][0] == "music"
    files = {part["file"] for turn in talk["turns"] for part in turn["parts"] if "file" in part}
    assert files | {"conversation.json"} == names and "turn-3-music-1.wav" in files
    for name in files:
        assert (read_image if name.endswith("png") else read_sound)(tmp_path / name)
    reply = list(reply_of(tiny_model()))[:-1]
    ids = talk["turns"][1]["token_ids"]
    assert any(ids[i : i + len(reply)] == reply for i in range(len(ids)))


def test_every_preset_asks_with_its_published_prompt(handle, picture, say):
    needs = {
        "caption": [picture], "transcribe": [say("a.wav")], "describe music": [say("b.wav")], "spoken": [say("c.wav")],
    }  # fmt: skip
    for name, preset in PRESETS.items():
        files = needs.get(name, [])
        text = "" if files else "red"
        outputs = last(
            handle, chat.Talk(), {"text": text, "files": files}, preset=name,
            sounds=MUSIC if name == "describe music" else SPEECH,
        )  # fmt: skip
        turn = outputs[-1].turns[0]
        spelled = tiny_model().words.decode(turn.ids)
        tail = templates.TASKS[preset.task].split("}")[-1].strip() if "{" in templates.TASKS[preset.task] else ""
        assert tail.replace(" ", "") in spelled.replace(" ", ""), name
        made = [part.kind for part in outputs[-1].turns[1].parts]
        assert set(made) == {"text"} if preset.output == "text" else preset.output in ("auto", made[0]), name
    with_picture = last(handle, chat.Talk(), {"text": "bigger", "files": [picture]}, preset="draw")
    assert with_picture[-1].turns[0].parts[0].kind == "image"


@pytest.mark.parametrize("output", ["text", "image", "speech", "music"])
def test_a_forced_output_comes_first(handle, output):
    talk = last(handle, chat.Talk(), {"text": "hi", "files": []}, output=output)[-1]
    kinds = [part.kind for part in talk.turns[1].parts]
    assert kinds[0] == output and (output != "text" or set(kinds) == {"text"})


def test_sounds_are_speech_music_or_first_one_then_the_other(say):
    one, two, recorded = say("one.wav"), say("two.wav"), say(chat.MICROPHONE)

    def kinds(sounds, *files):
        return [part.kind for part in chat._parts({"text": "", "files": files}, sounds)]

    assert kinds(SPEECH, one, two) == ["speech", "speech"]
    assert kinds(MUSIC, one, two) == ["music", "music"]
    assert kinds(MIXED, one, two) == ["speech", "music"]
    assert kinds(MUSIC, recorded, one) == ["speech", "music"]


def test_a_part_is_shown_as_it_closes(handle):
    seen = []
    for messages, *_ in answers(handle, chat.Talk(), {"text": "hi", "files": []}):
        if isinstance(messages, list):
            count = len(messages)
            assert not seen or count >= seen[-1]
            seen.append(count)
    assert len(set(seen)) >= len(PARTS)


def test_candidates_that_are_not_kept_leave_the_page_again(monkeypatch):
    """A codec that likes no music: three are written, and the first is kept."""
    monkeypatch.setattr(chat, "OFTEN", 0.0)
    model = tiny_model()
    codecs = Codecs({}, {"image": tiny_anygpt.draw, "speech": tiny_anygpt.sound, "music": tiny_anygpt.sound},
                    {"music": lambda codes: 0.0})  # fmt: skip
    settings = replace(model.settings, sampling=PAPER | {"music": replace(PAPER["music"], candidates=3)})
    choosy = AnyGPT(model.lm, model.words, codecs, tiny_anygpt.RULES, settings)

    def load_choosy(report, device):
        return replace(load(report, device), model=choosy)

    handle = Runtime(device="cpu").register("anygpt", load_choosy, estimate_bytes=1_000_000)
    screens = list(answers(handle, chat.Talk(), {"text": "hi", "files": []}))
    said = " ".join(str(outputs[3]) for outputs in screens)
    assert "Candidate 2, writing music: 1 tokens" in said and "Candidate 3, writing music" in said
    assert "Candidate 4" not in said and "Candidate 2, writing picture" not in said
    *_, tokens, _, _, talk = screens[-1]
    reply = talk.turns[1]
    assert [part.kind for part in reply.parts] == PARTS
    written = TokenView(model.words, (), 0, 99)
    for token in (*(token for part in reply.parts for token in part.token_ids), *model.stop):
        written.push(token)
    assert tokens.count('class="music') - 1 == written.html().count('class="music') - 1 == written.counts["music"]


def test_stopping_in_the_middle_of_music_keeps_what_was_whole_and_the_talk_goes_on(handle, monkeypatch):
    monkeypatch.setattr(chat, "OFTEN", 0.0)
    cancel = {"asked": False, "cleared": False}
    for outputs in answers(handle, chat.Talk(), {"text": "hi", "files": []}, cancel):
        if "Writing music" in str(outputs[3]):
            cancel["asked"] = True
    talk = outputs[-1]
    assert [part.kind for part in talk.turns[1].parts] == ["text", "text", "image"]
    assert "Stopped" in outputs[3]
    follow = last(handle, talk, {"text": "again", "files": []}, output="music")[-1]
    assert len(follow.turns) == 4 and follow.turns[3].parts[0].kind == "music"


def test_a_new_conversation_while_one_is_written_ends_it(handle, monkeypatch):
    monkeypatch.setattr(chat, "OFTEN", 0.0)
    cancel = {"asked": False, "cleared": False}
    for outputs in answers(handle, chat.Talk(), {"text": "hi", "files": []}, cancel):
        if "Writing" in str(outputs[3]):
            cancel |= {"asked": True, "cleared": True}
    assert outputs[0] == [] and outputs[-1] == chat.Talk()


def test_stopping_before_the_reply_begins_leaves_the_turn_in_the_box(handle):
    message, cancel = {"text": "hi", "files": []}, {"asked": False, "cleared": False}
    screens = answers(handle, chat.Talk(), message, cancel)
    next(screens)
    cancel["asked"] = True  # while the turn is read
    *_, outputs = screens
    assert outputs[0] == [] and outputs[1] == message and "Stopped" in outputs[3]


def test_two_visitors_never_see_one_another(url, picture):
    visitors = [Client(url, verbose=False) for _ in range(2)]
    jobs = [
        visitor.submit({"text": f"visitor {number}", "files": []}, *CONTROLS.values(), api_name="/anygpt_chat")
        for number, visitor in enumerate(visitors)
    ]
    for job in jobs:
        job.result(timeout=120)
    for number, visitor in enumerate(visitors):
        page = send(visitor, "again")
        users = [what for role, what in told(page["messages"]) if role == "user"]
        assert users == [f"visitor {number}", "again"]
    assert send(Client(url, verbose=False), "new")["tokens"].count("[Human]") == 1


def test_clearing_forgets(client):
    send(client, "remember me")
    shown, *_ = client.predict(api_name="/anygpt_clear")
    assert shown == []
    assert "remember" not in str(told(send(client, "hello")["messages"]))


def test_fifty_turns_and_the_page_says_what_is_no_longer_read(handle, monkeypatch):
    monkeypatch.setattr(tiny_model(), "settings", Settings(sampling="paper", tokens=128))
    talk = chat.Talk()
    for number in range(25):
        outputs = last(handle, talk, {"text": f"turn {number} of a long talk", "files": []}, output="text", tokens=64)
        talk = outputs[-1]
    assert len(talk.turns) == 50
    assert "left out" in outputs[2] and "no longer fit" in outputs[3]
    window = tiny_anygpt.WINDOW
    read = int(outputs[2].split(" read,")[0].rsplit(">", 1)[1].replace(",", ""))
    assert read <= window - 64


def _sound(path, samples, rate=RATE, width=2, channels=1):
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        values = np.asarray(samples, float)
        file.writeframes(
            ((values * 127 + 128).astype(np.uint8) if width == 1 else (values * 32767).astype(np.int16)).tobytes()
        )


def _hour(path):
    _sound(path, np.tile(np.sin(np.arange(8000) * 0.1) * 0.3, 3600), 8000, width=1)


def _truncated(path):
    whole = path.with_name("whole.png")
    Image.effect_noise((200, 200), 50).save(whole)
    path.write_bytes(whole.read_bytes()[:2000])


BAD = {
    "silent": (lambda p: _sound(p, np.zeros(RATE)), "The sound is silent"),
    "too short": (lambda p: _sound(p, np.full(100, 0.3)), "at least 0.1"),
    "an hour": (_hour, "longer than 20 seconds"),
    "corrupt": (lambda p: p.write_bytes(b"RIFF\x10\x00\x00\x00WAVEjunkjunk"), "damaged"),
    "empty": (lambda p: p.write_bytes(b""), "empty"),
    "truncated picture": (_truncated, "damaged or cut off"),
    "bomb": (lambda p: Image.new("1", (20_000, 5_000)).save(p), "100 million pixels"),
    "no picture": (lambda p: p.write_text("hello"), "not a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_said_and_changes_nothing(client, tmp_path, name):
    make, message = BAD[name]
    path = tmp_path / ("bad.png" if "picture" in name or name == "bomb" else "bad.wav")
    make(path)
    send(client, "before")
    with pytest.raises(AppError, match=message):
        send(client, "look", [path])
    users = [what for role, what in told(send(client, "after")["messages"]) if role == "user"]
    assert users == ["before", "after"]


@pytest.mark.parametrize(
    ("name", "rate", "width", "channels", "level"),
    [
        ("clipped", RATE, 2, 1, 3.0),
        ("stereo", 44_100, 2, 2, 0.3),
        ("8-bit", 8_000, 1, 1, 0.3),
        ("96 kHz", 96_000, 2, 1, 0.3),
    ],
)
def test_sounds_of_every_kind_are_read_and_a_clipped_one_says_so(client, tmp_path, name, rate, width, channels, level):
    samples = np.clip(level * np.sin(np.arange(rate) * 2 * np.pi * 200 / rate), -1, 1)
    _sound(tmp_path / "x.wav", np.repeat(samples, channels), rate, width, channels)
    page = send(client, "", [tmp_path / "x.wav"])
    assert told(page["messages"])[0] == ("user", "audio")
    assert ("recorded too loudly" in str(told(page["messages"]))) == (name == "clipped")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": " "}, "The turn is empty"),
        ({"text": "x" * 20_001}, "20,001 characters"),
        ({"text": "many words " * 1500}, "This turn takes"),
        ({"text": "hi", "preset": "transcribe"}, "needs speech"),
        ({"text": "hi", "preset": "dance"}, None),
        ({"text": "hi", "seed": -1}, "The seed must be"),
        ({"text": "hi", "tokens": 1}, "minimum value 16"),
        ({"text": "hi", "template": "Vicuna"}, None),
    ],
)
def test_what_no_control_offers_is_refused(client, changes, message):
    with pytest.raises((AppError, ValueError), match=message):
        send(client, **changes)


def test_controls_are_checked_behind_the_page_too(handle):
    for wrong in ({"preset": "dance"}, {"output": "smell"}, {"sounds": None}, {"template": 3}, {"sampling": "wild"}):
        with pytest.raises(BadInput, match="can be"):
            last(handle, chat.Talk(), {"text": "hi", "files": []}, **wrong)
    with pytest.raises(BadInput, match="longest reply must be"):
        last(handle, chat.Talk(), {"text": "hi", "files": []}, tokens=1)
    with pytest.raises(BadInput, match="neither a picture nor a sound"):
        last(handle, chat.Talk(), {"text": "", "files": ["notes.txt"]})
    with pytest.raises(BadInput, match="at most 6"):
        last(handle, chat.Talk(), {"text": "", "files": ["a.png"] * 7})


@pytest.mark.parametrize(
    "text", ["Zeichne einen roten Apfel", "赤いりんごを描いて", "ارسم تفاحة حمراء", "🍎🎵", "e\u0301"]
)
def test_other_languages_are_read_as_they_are(client, text):
    page = send(client, text)
    assert told(page["messages"])[0] == ("user", text)
    assert len(page["messages"]) > 1


def test_without_weights_the_tab_says_what_to_do():
    def missing(report, device):
        raise WeightsNotFound("The embedded AnyGPT is not trained yet. Start with --tier official.")

    absent = Runtime(device="cpu").register("anygpt", missing, estimate_bytes=1)
    screens = answers(absent, chat.Talk(), {"text": "hi", "files": []})
    with pytest.raises(WeightsNotFound, match="--tier official"):
        list(screens)
    assert absent.status().state == "failed"


def test_a_turn_that_failed_stays_in_the_box(handle):
    message = {"text": "hi", "files": []}
    shown = []
    with pytest.raises(BadInput):
        for outputs in answers(handle, chat.Talk(), message, preset="transcribe"):
            shown.append(outputs)
    assert shown[-1][1] == message and shown[-1][0] == []


def test_a_large_picture_is_kept_small_and_its_codes_stay(handle, tmp_path):
    Image.new("RGB", (3000, 2000), "blue").save(tmp_path / "big.png")
    turn = last(handle, chat.Talk(), {"text": "", "files": [str(tmp_path / "big.png")]})[-1].turns[0]
    assert turn.parts[0].value.size == (1024, 683)
    whole = tiny_model().encode(Part("image", str(tmp_path / "big.png")))
    assert turn.parts[0].token_ids == whole.token_ids


def test_leaving_removes_the_files(handle):
    talk = last(handle, chat.Talk(), {"text": "hi", "files": []})[-1]
    assert any(Path(talk.folder).iterdir())
    chat.forget(talk)
    assert not Path(talk.folder).exists()


def test_the_real_app_has_the_tab_and_every_event_a_name(app_server):
    client = Client(app_server.url, verbose=False)
    names = set(client.view_api(return_format="dict")["named_endpoints"])
    assert {"/anygpt_chat", "/anygpt_clear", "/anygpt_cancel", "/anygpt_evidence", "/anygpt_status"} <= names
