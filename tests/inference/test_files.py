"""Which pictures are predicted, under which names, and what is written about them."""

import io
import json
import os
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from panoptic_detr.errors import DataError, PictureError
from panoptic_detr.inference.files import PictureFile, check_apart, find_pictures
from panoptic_detr.inference.stream import PredictionFolder
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.segment_maps import read_id_png


def touch(*paths):
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_files_and_folders_in_order(tmp_path):
    touch(tmp_path / "b" / "z.PNG", tmp_path / "b" / "a.jpg", tmp_path / "b" / "notes.txt", tmp_path / "b" / "in" / "c.jpg")
    touch(tmp_path / "one.webp")
    found = find_pictures([tmp_path / "one.webp", str(tmp_path / "b"), tmp_path / "gone.jpg"])
    assert [(f.path.name, f.image_id, f.name) for f in found] == [
        ("one.webp", 1, "one"),
        ("a.jpg", 2, "a"),
        ("z.PNG", 3, "z"),
        ("gone.jpg", 4, "gone"),
    ]


def test_names_are_unique_even_where_case_is_ignored():
    places = [Path("a/x.jpg"), Path("b/x.jpg"), Path("c/X.png"), Path("x_2.jpg")]
    assert [f.name for f in find_pictures(places)] == ["x", "x_2", "X_3", "x_2_2"]


def test_numbers_in_coco_names_are_the_image_ids():
    assert [f.image_id for f in find_pictures([Path("000000039769.jpg"), Path("000000000007.jpg")])] == [39769, 7]
    assert [f.image_id for f in find_pictures([Path("39.jpg"), Path("x/039.jpg")])] == [1, 2]
    assert [f.image_id for f in find_pictures([Path("39.jpg"), Path("x.jpg")])] == [1, 2]


def test_a_folder_without_pictures(tmp_path):
    with pytest.raises(DataError, match=r"no pictures in this folder \(looked for \.jpg.*\)$"):
        find_pictures([tmp_path])
    touch(tmp_path / "b" / "1.png", tmp_path / "a" / "1.png")
    with pytest.raises(
        DataError, match=r"\); there are some in its a and b: name such a folder; predict takes all with --recurs"
    ):
        find_pictures([tmp_path])


def test_what_is_written_is_coco_panoptic(tmp_path, table):
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[2:6, 3:10] = 1
    segments = [Segment(1, 5, True, 0.75, 28, (3, 2, 7, 4), query=4)]
    folder = PredictionFolder(tmp_path / "out", table)
    file = PictureFile(Path("photos/cats.jpg"), 12, "cats")
    folder.add(file, np.zeros((20, 30, 3), np.uint8), PanopticSegmentation(segment_map, segments, table))
    written = json.loads(folder.finish().read_text())
    assert written["images"] == [{"id": 12, "file_name": "cats.jpg", "height": 20, "width": 30}]
    assert written["annotations"] == [
        {
            "image_id": 12,
            "file_name": "cats.png",
            "segments_info": [
                {
                    "id": 1,
                    "category_id": 5,
                    "isthing": 1,
                    "area": 28,
                    "bbox": [3, 2, 7, 4],
                    "iscrowd": 0,
                    "score": 0.75,
                    "query": 4,
                }
            ],
        }
    ]
    assert written["categories"] == table.to_coco()
    assert np.array_equal(read_id_png(tmp_path / "out" / "panoptic" / "cats.png"), segment_map)
    drawn = cv2.imread(str(tmp_path / "out" / "overlays" / "cats.jpg"))
    assert drawn.shape == (320, 480, 3)  # enlarged, so that labels fit
    assert drawn[32:96, 48:160].max() > 50
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["overlays", "panoptic", "predictions.json"]


def test_no_overlays(tmp_path, table):
    folder = PredictionFolder(tmp_path, table, overlays=False)
    empty = PanopticSegmentation(np.zeros((4, 4), np.int32), [], table)
    folder.add(PictureFile(Path("x.jpg"), 1, "x"), np.zeros((4, 4, 3), np.uint8), empty)
    assert not (tmp_path / "overlays").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, table):
    (tmp_path / "out").touch()
    with pytest.raises(DataError, match="out: the folder cannot be made"):
        PredictionFolder(tmp_path / "out", table)


@pytest.mark.parametrize(
    ("picture", "output"),
    [
        ("data/panoptic/a.png", "link"),  # the output is named through a link
        ("link/panoptic/a.png", "data"),  # the picture is
        ("photos/a.png", "data"),  # a picture in another folder that is a link to one there
        ("data/panoptic/b.png", "data"),  # a link there to a picture elsewhere would be lost
        ("photos/b.png", "other"),  # a folder of the output is a link
        ("data/panoptic/s.tar/x.png", "data"),
    ],
)
def test_pictures_where_predictions_are_written_are_found_through_links(tmp_path, monkeypatch, picture, output):
    monkeypatch.chdir(tmp_path)
    touch(Path("data/c.png"), Path("data/panoptic/a.png"), Path("photos/b.png"), Path("other/x"))
    for link, target in {
        "link": "data",
        "photos/a.png": "../data/panoptic/a.png",
        "data/panoptic/b.png": "../../photos/b.png",
    }.items():
        Path(link).symlink_to(target)
    Path("other/panoptic").symlink_to("../photos")
    files = [PictureFile(Path("data/fine.png"), 1, "fine"), PictureFile(Path(picture), 2, "x")]
    with pytest.raises(
        DataError, match=f"^{picture}: predictions are written there; choose another output folder than {output}$"
    ):
        check_apart(files, Path(output))
    check_apart(files[:1], Path(output))
    found = find_pictures(["data", "photos"], recursive=True, without=[Path("link/panoptic"), Path("data/overlays")])
    assert [str(file.path) for file in found] == ["data/c.png", "photos/b.png"]


def test_what_is_named_is_searched_and_what_is_left_out_around_it_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    touch(Path("out/panoptic/a.png"), Path("out/panoptic/b.png"))
    written = [Path("out/panoptic"), Path("out/overlays")]
    for place in ("out/panoptic", "out/panoptic/*.png"):
        assert [file.name for file in find_pictures([place], without=written)] == ["a", "b"]
    but = r" but 2 that lie where predictions are written, as out/panoptic/a\.png"
    with pytest.raises(DataError, match=rf"^out: no pictures in this folder \(.*\){but}$"):
        find_pictures(["out"], recursive=True, without=written)
    with pytest.raises(DataError, match=rf"no file has such a name{but}; quote patterns"):
        find_pictures(["out/pan*/*.png"], without=written)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_only_regular_files_are_listed(tmp_path):
    touch(tmp_path / "a.jpg", tmp_path / "in" / "a.jpg", tmp_path / "in" / "scan.1.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    assert [f.path.name for f in find_pictures([tmp_path])] == ["a.jpg"]
    found = find_pictures([tmp_path], recursive=True)
    assert [(f.name, f.file_name) for f in found] == [("a", "a.jpg"), ("in/a", "in/a.jpg"), ("in/scan.1", "in/scan.1.jpg")]


def write_picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((4, 6, 3), 90, np.uint8))
    return path.read_bytes()


def write_shard(path, members):
    with tarfile.open(path, "w") as shard:
        for name, data in members.items():
            row = tarfile.TarInfo(name)
            row.size = len(data)
            shard.addfile(row, io.BytesIO(data))


def test_patterns_lists_and_the_standard_input(tmp_path, monkeypatch):
    touch(tmp_path / "p" / "a.jpg", tmp_path / "p" / "q" / "b.jpg", tmp_path / "p" / "q" / "c.png", tmp_path / "p" / "[x].jpg")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/p/q \n\n{tmp_path}/gone.jpg\r\n", encoding="utf-8-sig")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{tmp_path}/p/a.jpg\n"))
    places = [tmp_path / "p" / "**" / "*.jpg", tmp_path / "list.txt", "-", tmp_path / "p" / "[x].jpg"]
    found = [find_pictures([place]) for place in places]
    names = [[file.name for file in files] for files in found]
    assert names == [["[x]", "a", "q/b"], ["b", "c", "gone"], ["a"], ["[x]"]]
    assert [file.source for file in found[1]] == [f"{tmp_path}/p/q/b.jpg", f"{tmp_path}/p/q/c.png", f"{tmp_path}/gone.jpg"]
    both = find_pictures(places[:2])
    assert [file.name for file in both] == ["[x]", "a", "q/b", "b", "c", "gone"]


def test_lists_and_patterns_that_name_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    (tmp_path / "list.txt").write_text("other.txt\n")
    (tmp_path / "bytes.txt").write_bytes(b"\xff\xfe\n")
    for place, message in {
        "-": "the standard input: no line names a picture",
        "list.txt": "'other.txt' is another list",
        "bytes.txt": "must be text in UTF-8",
        "gone.txt": "the list of pictures cannot be read: No such file",
        "*.jpg": "no file has such a name",
    }.items():
        with pytest.raises(DataError, match=message):
            find_pictures([place if place == "-" else tmp_path / place])


def test_pictures_in_shards_are_read_where_they_lie(tmp_path):
    picture = write_picture(tmp_path / "x.png")
    write_shard(
        tmp_path / "s-0.tar", {"0001.png": picture, "0001.json": b"{}", "in/0002.png": picture, "0003.png": picture[:40]}
    )
    files = find_pictures([tmp_path / "s-0.tar"])
    assert [(file.image_id, file.name) for file in files] == [(1, "s-0/0001"), (2, "s-0/in/0002"), (3, "s-0/0003")]
    assert files[1].source == f"{tmp_path}/s-0.tar/in/0002.png"
    assert np.array_equal(files[1].read(), files[0].read())
    assert files[0].read().shape == (4, 6, 3)
    with pytest.raises(PictureError, match=r"s-0\.tar/0003\.png: not a readable image"):
        files[2].read()
    (tmp_path / "s-0.tar").unlink()
    with pytest.raises(PictureError, match="the shard cannot be read: No such file"):
        files[0].read()


def test_shards_that_cannot_be_used(tmp_path):
    write_shard(tmp_path / "empty.tar", {"a.json": b"{}"})
    write_shard(tmp_path / "outside.tar", {"../a.png": b""})
    (tmp_path / "broken.tar").write_bytes(b"no tar" * 200)
    for name, message in {
        "empty": "no pictures in this shard",
        "outside": "leaves its folder",
        "broken": "not a readable tar file",
        "gone": "the shard cannot be read",
    }.items():
        with pytest.raises(DataError, match=message):
            find_pictures([tmp_path / f"{name}.tar"])


def test_a_prediction_is_recalled_as_it_was_written(tmp_path, table):
    segment_map = np.zeros((20, 30), np.int32)
    segment_map[2:6, 3:10] = 1
    result = PanopticSegmentation(segment_map, [Segment(1, 5, True, 0.75, 28, (3, 2, 7, 4), query=4)], table)
    file = PictureFile(Path("cats.jpg"), 12, "cats")
    with PredictionFolder(tmp_path, table, overlays=False, part="2-of-2") as second:
        second.add(file, np.zeros((20, 30, 3), np.uint8), result)
    with PredictionFolder(tmp_path, table, overlays=False) as first:
        again = first.recall(file)
        assert first.found == {5: 1}
    assert np.array_equal(again.segment_map, segment_map)
    assert again.segments == result.segments


def test_a_finished_folder_goes_on_and_stays_whole_until_it_is_finished_again(tmp_path, table):
    empty = PanopticSegmentation(np.zeros((4, 4), np.int32), [], table)
    files = [PictureFile(Path(f"{name}.jpg"), number, name) for number, name in enumerate("abc", start=1)]

    def opened(**given):
        return PredictionFolder(tmp_path, table, overlays=False, **{"made_by": {"model": "m"}, **given})

    def listed():
        content = json.loads((tmp_path / "predictions.json").read_text())
        return [image["id"] for image in content["images"]], [row["file_name"] for row in content["annotations"]]

    for count, added in enumerate(((files[2], files[1]), (), (files[0],))):
        with opened() as folder:
            assert folder.finished == (count > 0)
            for file in added:
                folder.add(file, np.zeros((4, 4, 3), np.uint8), empty)
            if count < 2:
                folder.finish(files)
        assert listed() == ([2, 3], ["b.png", "c.png"])
    with opened() as folder, opened(part="2-of-2") as other:  # after a kill
        assert (folder.finished, len(folder), len(other)) == (False, 3, 3)
        assert folder.recall(files[0]).segment_map.shape == folder.recall(files[2]).segment_map.shape == (4, 4)
        folder.finish(files)
    assert listed() == ([1, 2, 3], ["a.png", "b.png", "c.png"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["panoptic", "predictions.json"]
    for name in ("a", "new"):
        with pytest.raises(DataError, match="predictions are finished here"):  # nobody has looked at the folder
            opened().add(PictureFile(Path("x"), 9, name), np.zeros((4, 4, 3), np.uint8), empty)
    assert not (tmp_path / "panoptic" / "new.png").exists()
