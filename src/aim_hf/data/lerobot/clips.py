"""Compressed video, moved without decoding: clips strung together in one MP4 file, and cut out of one again.

Packets are copied as they are, so no picture loses quality and a clip costs no more than its bytes. A clip can be cut
out where its first picture is a key frame and no picture of it needs another clip's, as in every file that was made by
stringing clips together.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av

from ...utils.files import reading

LEAD = 16  # frames; decoding never runs further ahead of showing


def frame_rate(fps: float) -> Fraction:
    """The rate that a video of `fps` really has: stored numbers are rounded, 16.6667 is 50/3."""
    return Fraction(fps).limit_denominator(1000)


def parameters(stream: av.VideoStream) -> tuple:
    """What must be equal for two clips to be decoded as one."""
    context = stream.codec_context
    return context.codec.canonical_name, context.width, context.height, context.pix_fmt, context.extradata


class ClipJoiner:
    """Strings clips of one frame rate together in an MP4 file.

    with ClipJoiner(path, rate) as joiner:
        joiner.fits(clip)            # bytes of an MP4 file
        joiner.add(clip)
        joiner.frames, joiner.bytes  # what is in the file by now
    """

    def __init__(self, path: Path, rate: Fraction) -> None:
        self.rate, self.frames, self.bytes = rate, 0, 0
        self._stream = None
        path.parent.mkdir(parents=True, exist_ok=True)
        # The index at the front lets a reader over a network begin at once.
        self._output = av.open(path, "w", format="mp4", options={"movflags": "faststart"})

    def fits(self, clip: bytes) -> bool:
        """Whether the clip can be decoded as one with those before it."""
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            return self._stream is None or (
                parameters(stream) == self._parameters and self._delay_of(container, stream) <= self._delay
            )

    def _delay_of(self, container, stream) -> int:
        """How many frames decoding runs ahead of showing."""
        return -round(next(container.demux(stream)).dts * stream.time_base * self.rate)

    def add(self, clip: bytes) -> None:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            if self._stream is None:
                self._parameters, self._delay = parameters(stream), self._delay_of(container, stream)
                container.seek(0)
                self._stream = self._output.add_stream_from_template(stream, opaque=True)
                self._stream.time_base = stream.time_base
            first = self.frames
            for packet in container.demux(stream):
                if packet.dts is None:  # the end
                    continue
                packet.pts += round(first / self.rate / packet.time_base)
                # Times of decoding only count up; clips may begin at different ones.
                packet.dts = round((self.frames - self._delay) / self.rate / packet.time_base)
                packet.stream = self._stream
                self._output.mux(packet)
                self.frames += 1
        self.bytes += len(clip)

    def __enter__(self) -> "ClipJoiner":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        self._output.close()


@contextmanager
def _opened(path: Path) -> Iterator[av.container.InputContainer]:
    """A video file.

    Raises:
        UnreadableFile: for whatever goes wrong with it.
    """
    with reading(path, "download or record it again"):
        try:
            with av.open(path) as container:
                yield container
        except OSError:
            raise
        except (av.FFmpegError, IndexError, OverflowError) as error:  # some of FFmpeg's are of no other kind
            raise ValueError("it is no video file") from error


def check_clip(path: Path, first: int, count: int, rate: Fraction) -> tuple[int, int]:
    """(height, width) of the pictures. Frames `first` to `first + count` of a file of constant `rate` are there;
    nothing is decoded.

    Raises:
        UnreadableFile: if the file is missing, no video, or holds no picture at one of these times.
    """
    with _opened(path) as container:
        _packets(container, first, count, rate)
        context = container.streams.video[0].codec_context
        if context is None:
            raise ValueError("it is of no known codec")
        return context.height, context.width


def cut_clip(path: Path, first: int, count: int, rate: Fraction) -> bytes | None:
    """Frames `first` to `first + count` of a file of constant `rate` as a file of their own; None where they can't be
    cut out, since their pictures depend on others.

    Raises:
        UnreadableFile: as `check_clip`.
    """
    with _opened(path) as container:
        taken, whole = _packets(container, first, count, rate)
        start, stream = min(packet.pts for packet in taken), container.streams.video[0]
        if not (whole and taken[0].is_keyframe and taken[0].pts == start):
            return None
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4") as output:
            copy = output.add_stream_from_template(stream, opaque=True)
            copy.time_base = stream.time_base
            for packet in taken:
                packet.pts, packet.dts = packet.pts - start, packet.dts - start
                packet.stream = copy
                output.mux(packet)
        return buffer.getvalue()


def _packets(container, first: int, count: int, rate: Fraction) -> tuple[list[av.Packet], bool]:
    """The packets of frames `first` to `first + count`, and whether no other frame's lies between them."""
    stream = container.streams.video[0]
    tick = stream.time_base * rate  # frames in a unit of the file's time
    # A file's index may go by the times of decoding, which run ahead.
    container.seek(max(0, int((first - LEAD) / tick)), stream=stream)
    taken, skipped, whole = [], False, True
    for packet in container.demux(stream):
        if packet.dts is None or round(packet.dts * tick) >= first + count:
            break
        if not first <= round(packet.pts * tick) < first + count:
            skipped = bool(taken)
            continue
        if packet.is_corrupt:
            raise ValueError(f"the picture of frame {round(packet.pts * tick)} is cut off")
        whole &= not skipped  # a foreign picture comes between, which one of these may need
        taken.append(packet)
    if sorted(round(packet.pts * tick) for packet in taken) != list(range(first, first + count)):
        raise ValueError(
            f"it has {len(taken)} pictures where frames {first} to {first + count - 1} at {float(rate):g} a second "
            f"should be, expected {count}: the video and the table of frames don't fit together"
        )
    return taken, whole
