import struct
import zlib

import numpy as np
import pytest

from panoptic_detr.errors import PictureError
from panoptic_detr.images import as_rgb, encode_picture


def test_a_header_that_claims_too_many_pixels_is_named(tmp_path):
    png = encode_picture(np.zeros((4, 4, 3), np.uint8))
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + png[24:29]
    path = tmp_path / "huge.png"
    path.write_bytes(png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:])
    with pytest.raises(PictureError, match=r"huge\.png: not a readable image"):
        as_rgb(path)
