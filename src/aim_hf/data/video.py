"""Short MP4 clips in memory: frames to the bytes that a `datasets.Video` column embeds, and back.

Notable choices: H.264 with full colour resolution (yuv444p), since a value map or a small red block must keep its
pixel where a subsampled chroma plane would smear it (at 320 x 240 it costs no more bytes, and 6 dB less error); gray
pictures have no colour to lose, so they are yuv420p, which every player knows. A key frame every `KEY_FRAME_EVERY`
frames, so that a random window costs few decoded frames. One encoder thread and no macroblock tree, so that the same
frames always give the same bytes.
"""

import io
from fractions import Fraction

import numpy as np

from ..utils.extras import extra

with extra("data"):
    import av
    from torchcodec.decoders import VideoDecoder

CONSTANT_RATE_FACTOR = 20  # 44 to 49 dB at 320 x 240
KEY_FRAME_EVERY = 8
# ITU-T H.273 codes of what swscale converts RGB to by default, written into the file so that no player has to guess.
BT601, LIMITED_RANGE = 6, 1


def encode_video(frames: np.ndarray, fps: float, gray: bool = False) -> bytes:
    """Encode `frames` (num_frames, height, width, 3) uint8 RGB at `fps` frames a second into the bytes of an MP4 file.
    `gray` says that the channels are equal.

    Raises:
        ValueError: if `frames` has another shape or dtype, or holds no frame.
    """
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or len(frames) == 0:
        raise ValueError(
            f"expected frames as uint8 (num_frames >= 1, height, width, 3), got {frames.dtype} {frames.shape}"
        )
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1000))
        stream.height, stream.width = frames.shape[1:3]
        is_even = frames.shape[1] % 2 == frames.shape[2] % 2 == 0  # as yuv420p must be
        stream.pix_fmt = "yuv420p" if gray and is_even else "yuv444p"
        # x264's macroblock tree reads memory that it never wrote when a picture is small, so that the same frames give
        # other bytes from one call to the next: off.
        options = {"crf": CONSTANT_RATE_FACTOR, "preset": "medium", "g": KEY_FRAME_EVERY, "mbtree": 0}
        stream.options = {name: str(value) for name, value in options.items()}
        stream.codec_context.thread_count = 1
        stream.codec_context.colorspace = BT601
        stream.codec_context.color_range = LIMITED_RANGE
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()


def decode_video(video: bytes | dict | VideoDecoder, frames: list[int] | None = None) -> np.ndarray:
    """Decode the frames with the given indices (all of them without) to uint8 RGB (num_frames, height, width, 3).

    `video` is the bytes of a file, or what a row of a `datasets.Video` column holds: a dict with them, or a decoder.

    Raises:
        IndexError: if a frame lies outside the video.
        ValueError: if the bytes are no video, or a picture is damaged.
    """
    if isinstance(video, dict):
        video = video["bytes"]
    if isinstance(video, bytes):
        try:
            video = VideoDecoder(video)
        except RuntimeError as error:
            raise ValueError(f"expected the bytes of a video file, got {len(video)} bytes that do not open") from error
    indices = range(video.metadata.num_frames) if frames is None else frames
    for index in indices:
        if not 0 <= index < video.metadata.num_frames:
            raise IndexError(f"frame {index} of a video of {video.metadata.num_frames} frames")
    try:
        pixels = video.get_frames_at(indices=list(indices)).data
    except RuntimeError as error:
        raise ValueError(f"the video's pictures can't be decoded: {str(error).splitlines()[0]}") from error
    if pixels.shape[1] == 3:  # the decoder of a `datasets.Video` column gives NCHW
        pixels = pixels.permute(0, 2, 3, 1)
    return pixels.numpy()


def count_frames(video: bytes) -> int:
    """Number of frames that the header of an MP4 file states; nothing is decoded.

    Raises:
        ValueError: if the bytes are no video.
    """
    try:
        with av.open(io.BytesIO(video)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError) as error:
        raise ValueError(f"expected the bytes of a video file, got {len(video)} bytes that do not open") from error
