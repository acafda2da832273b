"""Video in and out, on real files made by the encoder itself."""

from fractions import Fraction

import av
import numpy as np
import pytest

from models import video
from models.errors import BadInput


def make(path, frames, rate=25, size=(64, 48)):
    with video.Writer(path, *size, Fraction(rate)) as writer:
        for k in range(frames):
            writer.write(np.full((size[1], size[0], 3), (10 + 20 * k) % 250, np.uint8))
    return path


def test_round_trip(tmp_path):
    path = make(tmp_path / "a.mp4", 8)
    info = video.probe(path)
    assert (info.width, info.height, info.rate, info.frames) == (64, 48, 25, 8)
    levels = [round(float(frame.mean())) for frame in video.read_frames(path)]
    assert np.abs(np.array(levels) - (10 + 20 * np.arange(8))).max() <= 3


def test_odd_sizes_are_padded_not_refused(tmp_path):
    path = make(tmp_path / "odd.mp4", 3, size=(63, 47))
    info = video.probe(path)
    assert (info.width, info.height) == (64, 48)


def test_phone_video_is_turned_upright(tmp_path):
    path = tmp_path / "turned.mp4"
    with av.open(str(make(tmp_path / "flat.mp4", 4))) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    raw = bytearray(path.read_bytes())
    # Rotation lives in the track header's matrix: 90 degrees is (0, 1, -1, 0) in 16.16 fixed point.
    at = raw.index(b"tkhd") + 4 + 40
    matrix = (0, 0x10000, 0, -0x10000, 0, 0, 48 * 0x10000, 0, 0x40000000)
    raw[at : at + 36] = b"".join(int(v).to_bytes(4, "big", signed=True) for v in matrix)
    path.write_bytes(raw)
    info = video.probe(path)
    assert (info.width, info.height) == (48, 64)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"plain text, not a video",
        b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n",
        b"ffconcat version 1.0\nfile /etc/passwd\n",
    ],
    ids=["empty", "text", "playlist", "concat list"],
)
def test_what_is_not_a_video_is_refused(tmp_path, content):
    path = tmp_path / "a.mp4"
    path.write_bytes(content)
    with pytest.raises(BadInput):
        video.probe(path)


def test_truncated_video_is_refused(tmp_path):
    whole = make(tmp_path / "a.mp4", 30).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 3])
    with pytest.raises(BadInput):
        list(video.read_frames(tmp_path / "cut.mp4"))
        video.probe(tmp_path / "cut.mp4")


def test_audio_without_video_is_refused(tmp_path):
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as target:
        stream = target.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
    with pytest.raises(BadInput, match="no video"):
        video.probe(path)
