import base64
import json
import re
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest

from panoptic_detr.categories import CategoryTable
from panoptic_detr.errors import PictureError
from panoptic_detr.panoptic import PanopticSegmentation, Segment
from panoptic_detr.quality import CAUSES
from panoptic_detr.visualization.errors import Entry, ErrorKind, compare, draw_entry
from panoptic_detr.visualization.report.images import Confusion
from panoptic_detr.visualization.report.page import class_rows, plot, read_curves, write_report

EVIL = "<script>document.title='hacked'</script>"
TABLE = CategoryTable.from_coco(
    [
        {"id": 1, "name": "cat", "isthing": 1},
        {"id": 2, "name": EVIL, "isthing": 1},
        {"id": 3, "name": "трава", "isthing": 0},
    ]
)
SCORES = {
    "All": {"pq": 0.612, "sq": 0.8, "rq": 0.7, "n": 3},
    "Things": {"pq": 0.5, "sq": 0.7, "rq": 0.6, "n": 2},
    "Stuff": {"pq": 0.9, "sq": 0.9, "rq": 1.0, "n": 1},
    "per_class": {
        1: {"pq": 0.25, "sq": 0.5, "rq": 0.5, "tp": 1, "fp": 1, "fn": 1},
        2: {"pq": 0.1, "sq": 0.5, "rq": 0.2, "tp": 1, "fp": 4, "fn": 4},
        3: {"pq": 0.9, "sq": 0.9, "rq": 1.0, "tp": 9, "fp": 0, "fn": 0},
    },
    "points_lost": {
        group: dict.fromkeys(CAUSES, 0.0) | {"wrong_class": share, "void": 0.1}
        for group, share in (("All", 0.288), ("Things", 0.4), ("Stuff", 0.0))
    },
}


def make(blocks, *, query=None):
    """A 60 x 80 map from (id, category, top, bottom, left, right) blocks."""
    segment_map = np.zeros((60, 80), np.int32)
    segments = []
    for segment_id, _, top, bottom, left, right in blocks:
        segment_map[top:bottom, left:right] = segment_id
    for segment_id, category, *_ in blocks:
        area = int((segment_map == segment_id).sum())
        score = 1.0 if query is None else 0.75
        number = None if query is None else query + segment_id
        segments.append(Segment(segment_id, category, category != 3, score, area, (0, 0, 1, 1), query=number))
    return PanopticSegmentation(segment_map, segments, TABLE)


TRUTH = make([(1, 3, 30, 60, 0, 80), (2, 1, 5, 25, 5, 25), (3, 2, 5, 25, 50, 70)])
PREDICTION = make([(4, 3, 30, 60, 0, 80), (5, 1, 5, 25, 5, 25), (6, 1, 5, 25, 50, 70)], query=20)
IMAGE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)
ENTRIES = [
    Entry("bad.png", IMAGE, TRUTH, PREDICTION),
    Entry(f"good {EVIL}.png", IMAGE, TRUTH, replace(TRUTH, segments=[replace(s, query=7, score=0.5) for s in TRUTH.segments])),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    curves = {"loss": [(step, 3 / (step + 1)) for step in range(0, 2000, 10)], "single": [(0, 1.0)]}
    path = tmp_path_factory.mktemp("report") / "report.html"
    return write_report(path, ENTRIES, SCORES, categories=TABLE, curves=curves, facts={"model": "<b>tiny</b>", "模型": "草"})


def gallery_of(page):
    return json.loads(re.search(r'id="gallery-data">(.*?)</script>', page).group(1))


def test_report_is_one_file_that_asks_for_nothing_else(report):
    page = report.read_text(encoding="utf-8")
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!data:|#)""", page)
    assert "default-src 'none'" in page
    assert "61.2" in page
    assert "трава" in page
    assert "草" in page


def test_names_are_text_never_markup(report):
    page = report.read_text(encoding="utf-8")
    assert "<script>document" not in page
    assert "<b>tiny</b>" not in page
    assert gallery_of(page)[0]["truth"][2]["name"] == EVIL


def test_gallery_carries_what_is_known_of_each_segment(report):
    bad = gallery_of(report.read_text(encoding="utf-8"))[0]
    by_status = {row["status"]: row for row in bad["prediction"]}
    assert by_status["wrong class"]["iou"] == 1.0
    correct = bad["prediction"][1]
    assert (correct["name"], correct["status"], correct["score"], correct["query"], correct["pixels"]) == (
        "cat",
        "correct",
        0.75,
        25,
        400,
    )
    assert [row["status"] for row in bad["truth"]] == ["found", "found", "missed"]
    png = cv2.imdecode(np.frombuffer(base64.b64decode(bad["map"]), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert png[10, 10].tolist() == [2, 2, ErrorKind.CORRECT]
    assert png[10, 60].tolist() == [3, 3, ErrorKind.WRONG_CLASS]
    assert png[0, 0].tolist() == [0, 0, ErrorKind.IGNORED]


def test_many_images_stay_below_ten_megabytes(tmp_path):
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 255, (120, 160, 3), dtype=np.uint8), (640, 480))
    big = [replace(s, segment_map=np.kron(s.segment_map, np.ones((8, 8), np.int32))) for s in (TRUTH, PREDICTION)]
    entries = (Entry(f"{i}.jpg", image, *big) for i in range(3))
    path = write_report(tmp_path / "r.html", entries, SCORES, categories=TABLE, count=200)
    per_image = (path.stat().st_size - 25_000) / 3
    assert per_image * 200 < 10_000_000


def test_more_than_255_segments_show_the_largest(tmp_path):
    segment_map = np.arange(1, 301, dtype=np.int32).repeat(16).reshape(60, 80)
    segment_map[segment_map == 300] = 299
    segments = [Segment(i, 1, True, 1.0, 32 if i == 299 else 16, (0, 0, 1, 1)) for i in range(1, 300)]
    many = PanopticSegmentation(segment_map, segments, TABLE)
    path = write_report(tmp_path / "r.html", [Entry("many", IMAGE, many, many)], SCORES, categories=TABLE)
    row = gallery_of(path.read_text(encoding="utf-8"))[0]
    assert len(row["truth"]) == 255
    assert row["truth"][-1]["pixels"] == 32


def test_report_without_images_or_curves(tmp_path):
    page = write_report(tmp_path / "r.html", [], {"All": SCORES["All"]}, categories=TABLE).read_text(encoding="utf-8")
    assert 'id="gallery"' not in page
    assert 'id="training"' not in page


def test_bad_input_is_named(tmp_path):
    with pytest.raises(PictureError, match=r"lonely: a report needs ground truth and a prediction"):
        write_report(tmp_path / "r.html", [Entry("lonely", IMAGE, TRUTH)], SCORES, categories=TABLE)
    with pytest.raises(PictureError, match=r"small: the image is \(30, 80\), its truth \(60, 80\)"):
        write_report(tmp_path / "r.html", [Entry("small", IMAGE[:30], TRUTH, PREDICTION)], SCORES, categories=TABLE)
    with pytest.raises(PictureError, match=r"the report cannot be written .* choose a folder"):
        write_report(tmp_path / "none" / "r.html", [], SCORES, categories=TABLE)


def test_image_quality_by_hand():
    assert compare(PREDICTION, TRUTH).matching.quality == pytest.approx(2 / (2 + 0.5 + 0.5))
    nothing = PanopticSegmentation(np.zeros((60, 80), np.int32), [], TABLE)
    assert compare(nothing, nothing).matching.quality == 1.0
    assert compare(nothing, TRUTH).matching.quality == 0.0


def test_confusion_matrix_counts():
    confusion = Confusion()
    for pair in [("cat", "cat"), ("cat", "dog"), ("cat", "dog"), ("", "dog"), ("dog", "")]:
        confusion.add(*pair)
    assert confusion.worst() == [("cat", "dog", 2)]
    matrix = confusion.matrix()
    assert matrix["names"] == ["cat", "dog"]
    assert [[cell["count"] for cell in row["cells"]] for row in matrix["rows"]] == [[1, 2, 0], [0, 0, 1], [0, 1, 0]]
    assert matrix["rows"][0]["cells"][1]["share"] == pytest.approx(2 / 3)
    assert confusion.names(1) == ["dog"]


def test_class_rows_leave_out_what_never_occurs_and_sort():
    per_class = {**SCORES["per_class"], "1": {"pq": 0.0, "sq": 0.0, "rq": 0.0, "tp": 0, "fp": 0, "fn": 0}}
    del per_class[1]
    assert [row["name"] for row in class_rows(per_class, TABLE, "distinct")] == ["трава", EVIL]


def test_curves_come_from_the_log(tmp_path):
    (tmp_path / "log.csv").write_text("step,epoch,loss,PQ\n1,0,4.0,\n2,0,3.0,0.5\n3,0,nan,0.6\n")
    curves = read_curves(tmp_path / "log.csv", tmp_path / "missing.csv")
    assert curves == {"loss": [(1, 4.0), (2, 3.0)], "PQ": [(2, 0.5), (3, 0.6)]}
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(PictureError, match=r"other.csv: a run's log has a 'step' column"):
        read_curves(tmp_path / "other.csv")


def test_curves_that_people_know_come_first_and_scores_are_in_per_cent(tmp_path):
    names = ["wait", "lr", "mask_dice", "class_layer0", "loss", "gradient_norm", "class"]
    curves = {name: [(1, 3.0), (2, 0.5)] for name in names} | {"box AP": [(1, 0.1), (2, 0.7131)], "PQ": [(1, 0.2), (2, 0.8377)]}
    page = write_report(tmp_path / "r.html", [], SCORES, categories=TABLE, curves=curves).read_text(encoding="utf-8")
    shown = re.findall(r"<figcaption><b>([^<]+)</b> <span class=\"soft\">[^<]*last ([^<]+)</span>", page)
    known, more = shown[:6], shown[6:]
    assert [name for name, _ in known] == ["loss", "class", "mask_dice", "PQ (%)", "box AP (%)", "learning rate"]
    assert dict(known)["PQ (%)"] == "83.8"
    assert dict(known)["box AP (%)"] == "71.3"
    assert "0.8377" not in page
    assert page.index("3 more curves") > page.index("<b>learning rate</b>")
    assert {name for name, _ in more} == {"wait", "class_layer0", "gradient_norm"}


def test_the_page_explains_what_it_shows(report):
    page = report.read_text(encoding="utf-8")
    assert "Grey hatching is void" in page
    assert "in per cent" in page


def test_points_lost_lead_to_the_images_where_they_went(report):
    text = report.read_text()
    table = text[text.index('<table class="points">') : text.index("</table>")]
    # In bad.png a segment is called a cat: a missed and an extra one for one cause. Void cost nothing in these images.
    wrong, void = table.split("<tr><td>")[1:]
    assert wrong.startswith("wrong class<small>found under the name of another class")
    assert re.findall(r"#image-(\d)", wrong) == ["0"]
    assert 'width:100.0%"></i><span>28.8</span>' in wrong  # the dearest cause fills its bar
    assert '<a href="#points">Points lost</a>' in text
    assert '<td class="n">40.0</td>' in wrong
    assert void.startswith("void<")
    assert "#image-" not in void
    assert compare(PREDICTION, TRUTH).lost["wrong_class"] == 1.0


def test_a_plot_spans_its_box():
    drawn = plot("loss", [(0, 2.0), (5, 1.0), (10, 4.0)])
    assert drawn["path"] == f"0.0,{120 * 2 / 3:.1f} 130.0,120.0 260.0,0.0"
    assert (drawn["low"], drawn["high"], drawn["last"]) == ("1", "4", "4")
    assert len(plot("long", [(i, i) for i in range(10_000)])["path"].split()) == 300
    assert "nan" not in plot("flat", [(0, 1.0), (1, 1.0)])["path"]


def test_an_entry_is_drawn_with_what_it_has():
    both = draw_entry(ENTRIES[0])
    assert both.shape[1] > 3 * 80
    assert draw_entry(Entry("a", IMAGE, TRUTH)).shape == IMAGE.shape
    assert draw_entry(ENTRIES[0], show="prediction").shape == IMAGE.shape
    with pytest.raises(PictureError, match="a: drawing 'errors' needs both ground truth and a prediction"):
        draw_entry(Entry("a", IMAGE, TRUTH), show="errors")


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="browser tests need selenium: pip install selenium")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    driver = shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("browser tests need chromium and chromedriver: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    flags = "headless no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update"
    for flag in [
        *flags.split(),
        "disable-sync",
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
        "window-size=1100,1400",
    ]:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    found.set_script_timeout(20)
    yield found
    found.quit()


@pytest.fixture
def page(browser, report):
    browser.get(report.as_uri())
    waiting = "const done = arguments[0]; Promise.all(cards.map(card => card.load())).then(() => done(cards.length))"
    assert browser.execute_async_script(waiting) == 2
    return browser


def card(page, number=0):
    return page.find_element("id", f"image-{number}")


def point_at(page, element, x, y):
    """Move the mouse to pixel (x, y) of an image of 80 x 60."""
    from selenium.webdriver import ActionChains

    stage = element.find_element("class name", "stage")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
    box = stage.rect
    offset = round((x / 80 - 0.5) * box["width"]), round((y / 60 - 0.5) * box["height"])
    ActionChains(page, duration=10).move_to_element_with_offset(stage, *offset).perform()
    return element.find_element("class name", "info").text


def pixel(page, element, x, y):
    script = (
        "return [...arguments[0].querySelector('canvas').getContext('2d').getImageData(arguments[1], arguments[2], 1, 1).data]"
    )
    return page.execute_script(script, element, x, y)


def test_opens_without_console_errors_and_runs_no_foreign_script(page):
    assert page.get_log("browser") == []
    assert page.title == "Panoptic segmentation report"
    assert EVIL in page.find_element("id", "classes").text
    assert EVIL in card(page, 1).find_element("tag name", "h3").text


def test_hovering_names_class_score_iou_and_query(page):
    text = point_at(page, card(page), 15, 15)
    for part in ("cat", "correct", "score 0.75", "IoU 1.00", "query 25", "400 px"):
        assert part in text
    text = point_at(page, card(page), 60, 15)
    assert "wrong class" in text
    assert f"ground truth: {EVIL}" in text
    assert point_at(page, card(page), 40, 3) == "", "void with void under it says nothing"
    assert page.get_log("browser") == []


def test_toggles_switch_what_is_drawn(page):
    element = card(page)
    buttons = {b.get_attribute("data-view"): b for b in element.find_elements("css selector", "[data-view]")}
    seen = {}
    for view in ("truth", "errors", "image", "prediction"):
        buttons[view].click()
        assert [v for v, b in buttons.items() if b.get_attribute("aria-pressed") == "true"] == [view]
        seen[view] = pixel(page, element, 60, 15)
    assert seen["image"][3] == 0
    assert seen["truth"][:3] != seen["prediction"][:3]
    assert seen["errors"][:3] == pytest.approx([204, 90, 180], abs=3)


def test_one_switch_for_all_images(page):
    page.find_element("css selector", "#all-views [data-view=truth]").click()
    pressed = page.find_elements("css selector", ".card [aria-pressed=true]")
    assert [button.get_attribute("data-view") for button in pressed] == ["truth", "truth"]


def test_keyboard_walks_through_segments_and_changes_the_view(page):
    from selenium.webdriver import Keys

    stage = card(page).find_element("class name", "stage")
    stage.send_keys(Keys.ARROW_RIGHT)
    assert "трава" in card(page).find_element("class name", "info").text
    stage.send_keys(Keys.ARROW_RIGHT)
    assert "cat" in card(page).find_element("class name", "info").text
    stage.send_keys(Keys.ARROW_LEFT, "g")
    pressed = card(page).find_element("css selector", "[aria-pressed=true]")
    assert pressed.get_attribute("data-view") == "truth"


def test_columns_sort_and_images_are_ordered_and_filtered(page):
    def first_class():
        return page.find_element("css selector", "#classes tbody td").text

    headers = page.find_elements("css selector", "#classes th button")
    assert first_class() == "трава"
    headers[2].click()
    assert first_class() == EVIL
    headers[2].click()
    assert first_class() == "трава"
    assert page.find_element("css selector", "#classes th[aria-sort=descending]").text.startswith("PQ")
    order = page.find_element("id", "order")
    first = "return document.querySelector('.gallery > .card').dataset.id"
    assert page.execute_script(first) == "0", "the worst image comes first"
    order.find_element("css selector", "[value=best]").click()
    assert page.execute_script(first) == "1"
    assert len(page.find_elements("css selector", "#filter option")) == 4


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_schemes_are_legible_and_nothing_sticks_out_on_a_phone(page, scheme):
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        overflow = page.execute_script("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        style = "const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]"
        ink, paper = (np.mean([int(v) for v in re.findall(r"\d+", c)[:3]]) for c in page.execute_script(style))
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    assert overflow <= 0
    assert abs(ink - paper) > 150
    assert (ink < paper) == (scheme == "light")


def test_a_log_that_is_no_text_is_named(tmp_path):
    (tmp_path / "log.csv").write_bytes(b"step,loss\n\xff\x00\x93")
    with pytest.raises(PictureError, match=r"log\.csv: not a CSV file of text"):
        read_curves(tmp_path / "log.csv")
