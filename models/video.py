"""Reads and writes video files with PyAV: frames one at a time, upright, RGB; H.264 MP4 out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from models.errors import BadInput
from models.files import check_given

MAX_FRAME_PIXELS = 4096 * 2304
FALLBACK_RATE = Fraction(30)  # where a file names no frame rate


@dataclass(frozen=True)
class VideoInfo:
    """`frames` is the container's count, or an estimate from the duration, or `None` if it says neither."""

    width: int
    height: int
    rate: Fraction
    frames: int | None


def probe(path: str | Path) -> VideoInfo:
    """Size (upright), frame rate and length. Raises `BadInput` if the file has no video that can be read."""
    with _open(path) as container:
        stream = container.streams.video[0]
        first = next(_decoded(container), None)
        if first is None:
            raise BadInput("The video has no frames. Record it again, or choose another file.")
        rate = stream.average_rate or stream.guessed_rate or FALLBACK_RATE
        frames = stream.frames or None
        if frames is None and stream.duration is not None and stream.time_base is not None:
            frames = max(1, round(stream.duration * stream.time_base * rate))
        return VideoInfo(first.shape[1], first.shape[0], Fraction(rate), frames)


def read_frames(path: str | Path) -> Iterator[np.ndarray]:
    """Yields every frame, `(H, W, 3)` uint8 RGB, upright. Raises `BadInput` on a damaged file."""
    with _open(path) as container:
        yield from _decoded(container)


class Writer:
    """Writes `(H, W, 3)` uint8 RGB frames as an H.264 MP4 that browsers play; use as a context manager."""

    def __init__(self, path: str | Path, width: int, height: int, rate: Fraction) -> None:
        self.container = av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        self.stream = self.container.add_stream("libx264", rate=rate)
        # 4:2:0 colour needs even sides: an odd one is padded by repeating its last row or column.
        self.stream.width, self.stream.height = width + width % 2, height + height % 2
        self.stream.pix_fmt = "yuv420p"
        self.stream.options = {"preset": "veryfast", "crf": "23"}

    def __enter__(self) -> Writer:
        return self

    def write(self, frame: np.ndarray) -> None:
        h, w = frame.shape[:2]
        if h % 2 or w % 2:
            frame = np.pad(frame, ((0, h % 2), (0, w % 2), (0, 0)), mode="edge")
        picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        self.container.mux(self.stream.encode(picture))

    def __exit__(self, *error: object) -> None:
        if error[0] is None:
            self.container.mux(self.stream.encode(None))
        self.container.close()


def _open(path: str | Path) -> av.container.InputContainer:
    check_given(path, "video")
    try:
        # A demuxer may follow references to other files or addresses (playlists): only this file is read.
        container = av.open(str(path), options={"protocol_whitelist": "file"}, metadata_errors="replace")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise BadInput("This file is not a video. Use MP4, WebM, MOV, MKV or AVI.") from error
    if container.format.name in ("hls", "concat", "concatf", "dash", "tty", "image2", "lrc"):
        container.close()
        raise BadInput("Playlists and text files are not videos. Use MP4, WebM, MOV, MKV or AVI.")
    if not container.streams.video:
        container.close()
        raise BadInput("The file has no video track. Choose a video, or use the Image tab for a picture.")
    context = container.streams.video[0].codec_context
    if context.width * context.height > MAX_FRAME_PIXELS:
        container.close()
        raise BadInput(f"The video is {context.width} x {context.height}; at most 4096 x 2304 is read. Scale it down.")
    return container


def _decoded(container: av.container.InputContainer) -> Iterator[np.ndarray]:
    try:
        for frame in container.decode(video=0):
            picture = frame.to_ndarray(format="rgb24")
            yield np.ascontiguousarray(np.rot90(picture, frame.rotation // 90)) if frame.rotation else picture
    except (av.FFmpegError, ValueError) as error:
        raise BadInput("The video is damaged or uses a format that cannot be decoded here.") from error
