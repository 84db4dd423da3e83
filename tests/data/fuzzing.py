"""Damage to JSON values and files, for tests that nothing but the package's own errors comes out of reading them."""

import copy
from typing import Any

from hypothesis import strategies as st

from panoptic_detr.errors import CategoryError, DataError, SegmentMapError

OWN_ERRORS = (DataError, SegmentMapError, CategoryError)
DAMAGE = {"position": st.floats(0, 1, exclude_max=True), "byte": st.integers(0, 255), "cut": st.booleans()}
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(["../x", "../../x.png", "/tmp/x", "a/../../x", "\ud800", "\0", ".", 2, 5, 7, 300, 10**400, -1, 0.5])
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=4
)


def places(value: Any, path: tuple = ()) -> list[tuple]:
    """The path of every value inside a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, inner in items for place in places(inner, (*path, key)))]


def damaged(original: Any, data: st.DataObject) -> Any:
    """A JSON value with one or two of its values replaced or removed."""
    content = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(content)[1:] or [()]))
        if not path:
            return content
        place = content
        for key in path[:-1]:
            place = place[key]
        if data.draw(st.booleans()):
            place[path[-1]] = data.draw(VALUES)
        else:
            del place[path[-1]]
    return content


def damaged_bytes(original: bytes, position: float, byte: int, cut: bool) -> bytes:
    """A file that is cut off at a position, a fraction of its length, or has another byte there."""
    place = int(position * len(original))
    return original[:place] if cut else original[:place] + bytes([byte]) + original[place + 1 :]
