"""What can be wrong with a panoptic data set: every kind of defect, how bad it is, and what to do about it."""

from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["error", "note"]


@dataclass(frozen=True)
class Kind:
    """A kind of defect.

    Attributes:
        severity: "error": something stops or reads wrong values; "note": legal, but worth knowing.
        title: for the summary.
        remedy: what to do.
    """

    severity: Severity
    title: str
    remedy: str


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong at one place.

    Attributes:
        kind: key of KINDS.
        what: what was found there.
        split: name of the part of the data set.
        image_id: as in the JSON; None where no image is meant.
        file: the file that is wrong or is wrong about.
        segment_id: as in the JSON or the PNG.
        repairable: `--fix` repairs it.
    """

    kind: str
    what: str
    split: str = ""
    image_id: int | str | None = None
    file: str = ""
    segment_id: int | str | None = None
    repairable: bool = False

    @property
    def severity(self) -> Severity:
        """Of its kind."""
        return KINDS[self.kind].severity

    def line(self) -> str:
        """One line of text."""
        place = [self.split, "" if self.image_id is None else f"image {show(self.image_id)}", self.file]
        place.append("" if self.segment_id is None else f"segment {show(self.segment_id)}")
        where = ", ".join(part for part in place if part)
        fix = " (--fix can)" if self.repairable else ""
        return printable(f"{self.severity} {self.kind}: {where}: {self.what}; {KINDS[self.kind].remedy}{fix}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a JSON."""
        place = {"split": self.split, "image_id": self.image_id, "file": self.file, "segment_id": self.segment_id}
        kind = KINDS[self.kind]
        advice = {"what": self.what, "remedy": kind.remedy, "repairable": self.repairable}
        return {"kind": self.kind, "severity": kind.severity, **place, **advice}


def show(value: object) -> str:
    """A value from a JSON for a message: quoted, at most 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """Text without letters that a terminal obeys or that no encoding has."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _error(title: str, remedy: str) -> Kind:
    return Kind("error", title, remedy)


def _note(title: str, remedy: str) -> Kind:
    return Kind("note", title, remedy)


KINDS: dict[str, Kind] = {
    "json_unreadable": _error("JSON missing or unreadable", "write or copy the JSON again"),
    "json_structure": _error("JSON is no COCO-panoptic one", "convert it with `data convert`"),
    "category_invalid": _error("unusable category", "give it an integer id, a name, and isthing 0 or 1"),
    "category_duplicate": _error("category id used twice", "give every category an id of its own"),
    "category_name_repeated": _note("two categories with one name", "rename one, or merge the two"),
    "categories_differ": _error("categories differ between splits", "use one category list in all splits"),
    "image_invalid": _error("unusable image entry", "give it an id, a file_name, and its width and height"),
    "image_duplicate": _error("image id used twice", "give every image an id of its own, or remove one entry"),
    "image_file_duplicate": _error("two image entries with one file", "remove one of the entries"),
    "annotation_invalid": _error("unusable annotation entry", "give it image_id, file_name and a list segments_info"),
    "annotation_duplicate": _error("image with several annotations", "keep one annotation for each image"),
    "annotation_missing": _error("image without annotation", "annotate it, or remove it from 'images'"),
    "annotation_without_image": _error("annotation of an image that is not listed", "list the image, or remove the annotation"),
    "annotation_empty": _note("image without any segment", "nothing, if there is nothing to see in it"),
    "png_shared": _error("two annotations with one PNG", "write a PNG for each image"),
    "file_name_unsafe": _error("file name leaves its folder", "use names relative to the folder, without '..'"),
    "file_name_unusual": _note("file name with blanks or letters outside ASCII", "rename the file if a tool trips over it"),
    "image_ending": _note("image has another ending than the JSON says", "correct the file_name in the JSON"),
    "image_missing": _error("image missing", "add the file, or remove the entry"),
    "image_unreadable": _error("image unreadable or truncated", "copy or download it again, or remove the entry"),
    "image_size": _error("JSON and image differ in size", "correct width and height in the JSON"),
    "image_repeated": _note("same picture twice in a split", "remove one, unless it is meant"),
    "image_in_two_splits": _error("same picture in two splits", "remove it from one; scores on it mean nothing"),
    "exif_rotation": _note(
        "EXIF asks viewers to turn the image",
        "annotations must be those of the stored pixels, which training and evaluation use (`predict` turns pictures upright); "
        "re-save it upright, before annotating it, to be safe",
    ),
    "png_missing": _error("annotation PNG missing", "add the file, or remove the annotation"),
    "png_unreadable": _error("annotation PNG unreadable or truncated", "write or copy it again"),
    "png_format": _error("annotation is no 8-bit RGB PNG", "write ids as R + 256 G + 65536 B, or use `data convert`"),
    "png_size": _error("image and PNG differ in size", "write the PNG at the size of the stored image"),
    "segment_invalid": _error("unusable segment entry", "give it an id from 1 to 16777215, a category_id, iscrowd 0 or 1"),
    "segment_duplicate": _error("segment id used twice in an image", "give every segment of an image an id of its own"),
    "segment_only_in_json": _error("segment without a pixel", "remove it from segments_info, or draw it"),
    "segment_only_in_png": _error("pixels of no listed segment", "add the id to segments_info, or make the pixels 0"),
    "category_unknown": _error("segment of an unknown category", "add the category, or correct category_id"),
    "area_wrong": _error("area is not the number of pixels", "count the pixels"),
    "bbox_wrong": _error("bbox is not the box of the pixels", "measure [left, top, width, height] on the pixels"),
    "stuff_repeated": _error("stuff category twice in an image", "give all pixels of a stuff category one id"),
    "iscrowd_missing": _note("segments without iscrowd", "write 0 for single segments, 1 for groups"),
    "segment_tiny": _note("degenerate segment", "remove it if it is a slip; the merger drops up to 4 pixels"),
    "void_share": _note("mostly void", "annotate the rest, or expect no learning there"),
    "file_unlisted": _note("files that the JSON does not list", "list them, or move them away"),
}
