"""What can be wrong with a panoptic data set: every kind of defect, how bad it is, and what to do about it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from panoptic_detr.segment_maps import MAX_ID

Severity = Literal["error", "note"]
ImageId = int | str


@dataclass(frozen=True)
class Defect:
    """One thing that is wrong at one place."""

    kind: str  # key of KINDS
    what: str  # what was found there
    split: str = ""  # name of the part of the data set
    image_id: ImageId | None = None  # as in the JSON; None where no image is meant
    file: str = ""  # the file that is wrong or is wrong about
    segment_id: ImageId | None = None  # as in the JSON or the PNG
    repairable: bool = False  # `--fix` repairs it
    place: str = ""  # of the entry in the JSON, such as "images[3]", where no usable id tells it
    in_png: bool = False  # the PNG is wrong, not the JSON

    @property
    def severity(self) -> Severity:
        """Of its kind: "error": something stops or reads wrong values; "note": legal, but worth knowing."""
        return "error" if self.kind in ERRORS else "note"

    @property
    def remedy(self) -> str:
        """Of its kind."""
        return KINDS[self.kind].remedy

    def line(self) -> str:
        """One line of text."""
        image = "" if self.image_id is None else f"image {show(self.image_id)}"
        segment = "" if self.segment_id is None else f"segment {show(self.segment_id)}"
        place = ", ".join(part for part in (self.split, image, self.file, self.place, segment) if part)
        fix = " (--fix can)" if self.repairable else ""
        return printable(f"{self.severity} {self.kind}: {place}: {self.what}; {self.remedy}{fix}")

    def as_dict(self) -> dict[str, object]:
        """Plain values for a JSON."""
        place = {"split": self.split, "image_id": self.image_id, "file": self.file, "segment_id": self.segment_id}
        what = f"{self.place}: {self.what}" if self.place else self.what
        advice = {"what": what, "remedy": self.remedy, "repairable": self.repairable}
        return {"kind": self.kind, "severity": self.severity, **place, **advice}


Report = Callable[[Defect], None]


def show(value: object) -> str:
    """A value from a JSON for a message: quoted, at most 80 letters."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def printable(text: str) -> str:
    """Text without letters that a terminal obeys or that no encoding has."""
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


@dataclass(frozen=True)
class Kind:
    """A kind of defect: its title for the summary, and what to do."""

    title: str
    remedy: str


ERRORS = {
    "json_unreadable": Kind("JSON missing or unreadable", "write or copy the JSON again"),
    "json_structure": Kind("JSON is no COCO-panoptic one", "convert it with `panoptic-detr data convert`"),
    "category_invalid": Kind("unusable category", "give it an integer id, a name, and isthing 0 or 1"),
    "category_duplicate": Kind("category id used twice", "give every category an id of its own"),
    "categories_differ": Kind("categories differ between splits", "use one category list in all splits"),
    "image_invalid": Kind("unusable image entry", "give it an id, a file_name, and its width and height"),
    "image_duplicate": Kind("image id used twice", "give every image an id of its own, or remove one entry"),
    "image_file_duplicate": Kind("two image entries with one file", "remove one of the entries"),
    "annotation_invalid": Kind(
        "unusable annotation entry",
        "give it image_id, file_name and a list segments_info, or convert the JSON with `panoptic-detr data convert`",
    ),
    "annotation_duplicate": Kind("image with several annotations", "keep one annotation for each image"),
    "annotation_missing": Kind(
        "image without annotation",
        "annotate them (with an empty segments_info if nothing is there), or remove them from 'images'",
    ),
    "annotation_without_image": Kind("annotation of an image that is not listed", "list the image, or remove the annotation"),
    "png_shared": Kind("two annotations with one PNG", "write a PNG for each image"),
    "file_name_unsafe": Kind("file name leaves its folder", "use names relative to the folder, without '..'"),
    "image_missing": Kind("image missing", "add the file, or remove the entry"),
    "image_unreadable": Kind("image unreadable or truncated", "copy or download it again, or remove the entry"),
    "image_size": Kind("JSON and image differ in size", "correct width and height in the JSON"),
    "image_in_two_splits": Kind("same picture in two splits", "remove it from one; scores on it mean nothing"),
    "png_missing": Kind("annotation PNG missing", "add the file, or remove the annotation"),
    "png_unreadable": Kind("annotation PNG unreadable or truncated", "write or copy it again"),
    "png_format": Kind("annotation is no 8-bit RGB PNG", "write ids as R + 256 G + 65536 B, or use `data convert`"),
    "png_size": Kind("image and PNG differ in size", "write the PNG at the size of the stored image"),
    "segment_invalid": Kind("unusable segment entry", f"give it an id from 1 to {MAX_ID}, a category_id, iscrowd 0 or 1"),
    "segment_duplicate": Kind("segment id used twice in an image", "give every segment of an image an id of its own"),
    "segment_only_in_json": Kind("segment without a pixel", "remove it from segments_info, or draw it"),
    "segment_only_in_png": Kind("pixels of no listed segment", "add the id to segments_info, or make the pixels 0"),
    "category_unknown": Kind("segment of an unknown category", "add the category, or correct category_id"),
    "area_wrong": Kind("area is not the number of pixels", "count the pixels"),
    "bbox_wrong": Kind("bbox is not the box of the pixels", "measure [left, top, width, height] on the pixels"),
    "stuff_repeated": Kind(
        "stuff category twice in an image", "give all pixels of a stuff category one id, or set isthing to 1"
    ),
}
NOTES = {
    "category_name_repeated": Kind("two categories with one name", "rename one, or merge the two"),
    "annotation_empty": Kind("image without any segment", "nothing, if there is nothing to see in it"),
    "file_name_unusual": Kind("file name with blanks or letters outside ASCII", "rename the file if a tool trips over it"),
    "file_name_backslash": Kind("file name with a backslash", "write / between folders; other tools find no such file"),
    "no_things": Kind(
        "no category is a thing", "set isthing to 1 for what can be counted (`--things NAME` does), unless all is stuff indeed"
    ),
    "category_all_crowds": Kind(
        "all annotations of a category are crowds",
        "a labelling tool's brush export does that: nothing is learnt or scored for it; set iscrowd to 0 for single objects",
    ),
    "image_ending": Kind("image has another ending than the JSON says", "correct the file_name in the JSON"),
    "image_repeated": Kind("same picture twice in a split", "remove one, unless it is meant"),
    "exif_rotation": Kind(
        "EXIF asks viewers to turn the image",
        "annotations must be those of the stored pixels, which training and evaluation use (`predict` turns pictures upright); "
        "re-save it upright, before annotating it, to be safe",
    ),
    "iscrowd_missing": Kind("segments without iscrowd", "write 0 for single segments, 1 for groups"),
    "segment_tiny": Kind("degenerate segment", "remove it if it is a slip; the merger drops up to 4 pixels"),
    "void_share": Kind("mostly void", "annotate the rest, or expect no learning there"),
    "file_unlisted": Kind("files that the JSON does not list", "list them, or move them away"),
}
KINDS = {**ERRORS, **NOTES}
