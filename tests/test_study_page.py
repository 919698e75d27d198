"""The page in a real browser: it loads whole without a network, sorts, tells values, leads to records, fits a phone."""

import shutil

import pytest
from test_study_fabricated import (
    fabricate_every_measure,
    fabricate_repeats,
    fabricate_tables,
    tables_parameters,
)

from fvq.runtime.text import percent
from fvq.study.claims.verdicts import judge
from fvq.study.drawings.drawing import draw
from fvq.study.drawings.figures import study_figures
from fvq.study.page.provenance import anchor
from fvq.study.page.report import render_report
from fvq.study.results import read_study
from fvq.study.tables.build import build_tables

playwright = pytest.importorskip("playwright.sync_api", reason="needs the library playwright")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a browser: chromium, chromium-browser or google-chrome")

COMMAND = "dvc exp run -S study=tables evaluate_tokenizer@fvq"
WIDTHS = (390, 1250)


@pytest.fixture(scope="module")
def study_and_page(tmp_path_factory):
    """A study of all rows, with several seeds, and its page."""
    root = tmp_path_factory.mktemp("study")
    results = fabricate_tables(root / "results" / "smoke-photos-tables")
    changes = fabricate_repeats(results, ["fvq", "linear"], [1, 2])
    fabricate_every_measure(results)
    parameters = tables_parameters(**changes)
    commands = {"": "dvc repro", "evaluate_tokenizer@fvq": COMMAND}
    study = read_study(results, parameters, commands)
    drawings = {stem: draw(figure, stem) for stem, figure in study_figures(study).items()}
    path = root / "index.html"
    html = render_report(study, drawings, [], claims=judge(study), tables=build_tables(study), guidance=None)
    path.write_text(html, encoding="utf-8")
    return study, path


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def opened(browser, study_and_page):
    """The page at a desk's width, and all that it said and asked for while the tests used it."""
    page = browser.new_page(reduced_motion="reduce", viewport={"width": 1250, "height": 900})
    heard = []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url) if not local(request.url) else None)
    page.goto(study_and_page[1].as_uri())
    yield page, heard
    assert heard == []
    page.close()


@pytest.fixture
def page(opened):
    return opened[0]


@pytest.fixture(scope="module")
def second_page(browser, study_and_page):
    page = browser.new_page(reduced_motion="reduce")
    page.goto(study_and_page[1].as_uri())
    yield page
    page.close()


@pytest.fixture
def other(second_page):
    """The page once more, for tests that change its size, its colours or what the browser can do."""
    second_page.set_viewport_size({"width": 1250, "height": 900})
    second_page.emulate_media(color_scheme="light")
    second_page.evaluate("document.querySelectorAll('details').forEach(each => each.open = false)")
    return second_page


def local(address):
    return address.startswith(("file://", "data:"))


# --- whole, and by itself --------------------------------------------------------------------------------------------


def test_the_page_loads_without_a_word_and_without_a_network(opened):
    page, heard = opened
    assert page.evaluate("document.readyState") == "complete"
    assert (
        page.evaluate(
            "performance.getEntriesByType('resource').map(entry => entry.name).filter("
            "name => !name.startsWith('data:'))"
        )
        == []
    )
    assert heard == []


def test_every_image_is_decoded(page):
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    widths = page.evaluate(
        "Promise.all([...document.images].map(image => image.decode().then(() => image.naturalWidth)))"
    )
    assert len(widths) == 1 + 2 * 37 + 2 * 3
    assert min(widths) > 0


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_wider_than_the_page(other, width, scheme):
    other.set_viewport_size({"width": width, "height": 800})
    other.emulate_media(color_scheme=scheme)
    other.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert other.evaluate("document.scrollingElement.scrollWidth") <= width


OVERLAPS = """() => [...document.querySelectorAll(".claims li")].filter(line => {
  const [one, two] = [".verdict", "h3"].map(name => line.querySelector(name).getBoundingClientRect());
  return one.left < two.right && two.left < one.right && one.top < two.bottom && two.top < one.bottom;
}).length"""


@pytest.mark.parametrize("width", WIDTHS)
def test_no_verdict_lies_over_its_title(other, width):
    other.set_viewport_size({"width": width, "height": 800})
    other.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert other.locator(".claims .verdict.untestable").count() > 0
    assert other.evaluate(OVERLAPS) == 0


LUMINANCE = """([selector, property]) => {
  const canvas = document.createElement('canvas').getContext('2d');
  canvas.fillStyle = getComputedStyle(document.querySelector(selector))[property];
  canvas.fillRect(0, 0, 1, 1);
  const linear = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map(
    level => level / 255 <= 0.04045 ? level / 255 / 12.92 : ((level / 255 + 0.055) / 1.055) ** 2.4);
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_is_legible(other, scheme):
    other.emulate_media(color_scheme=scheme)
    ground = other.evaluate(LUMINANCE, ["body", "backgroundColor"])
    assert ground < 0.05 if scheme == "dark" else ground > 0.9
    for selector, behind in (
        ("body", "body"),
        (".note", "body"),
        (".counts .fails b", "body"),
        ("tr:not(.alone) td.measured", "tr:not(.alone) td.measured"),
        (".verdict.holds", ".verdict.holds"),
    ):
        text, under = (
            other.evaluate(LUMINANCE, [name, kind]) for name, kind in ((selector, "color"), (behind, "backgroundColor"))
        )
        assert (max(text, under) + 0.05) / (min(text, under) + 0.05) >= 4.5, selector


# --- tables that sort ------------------------------------------------------------------------------------------------


def heading(page, table, name):
    """A heading of one of the paper's tables, by what it says."""
    return page.locator(f"#{table} + .scroll thead tr:last-child th").filter(has_text=name)


def column(page, table, position):
    """Numbers of a column from top to bottom, None where a cell has none."""
    values = page.locator(f"#{table} + .scroll tbody tr:not(.across)").evaluate_all(
        "(lines, position) => lines.map(line => line.cells[position].dataset.value ?? null)", position
    )
    return [None if value is None else float(value) for value in values]


def in_order(values, descending):
    """By Python's own sorting, with the empty ones last."""
    return [
        *sorted((value for value in values if value is not None), reverse=descending),
        *(None for value in values if value is None),
    ]


@pytest.mark.parametrize(("table", "side"), [("table_1", "paper"), ("table_1", "measured"), ("table_3", "measured")])
def test_headings_sort_by_the_numbers_and_restore_what_was_printed(page, study_and_page, table, side):
    built = next(each for each in build_tables(study_and_page[0]) if each.name == table)
    figures = [each.key for each in built.paper.columns] + [f"measured {each.figure}" for each in built.columns]
    position = figures.index("rfid" if side == "paper" else "measured rfd_photos")
    one = page.locator(f"#{table} + .scroll thead tr:last-child th").nth(position)
    printed = column(page, table, position)
    assert len({value for value in printed if value is not None}) > 3
    one.locator("button").click()
    assert one.get_attribute("aria-sort") == "ascending"
    assert column(page, table, position) == in_order(printed, descending=False) != printed
    one.locator("button").click()
    assert one.get_attribute("aria-sort") == "descending"
    assert column(page, table, position) == in_order(printed, descending=True)
    one.locator("button").click()
    assert one.get_attribute("aria-sort") is None
    assert column(page, table, position) == printed


def test_measured_cells_are_sorted_by_unrounded_numbers(page, study_and_page):
    values = [
        line.measured[position].value
        for table in build_tables(study_and_page[0])
        if table.name == "table_1"
        for line in table.lines
        for position, each in enumerate(table.columns)
        if each.figure == "rfd_photos" and line.row
    ]
    position = next(
        len(table.paper.columns) + index
        for table in build_tables(study_and_page[0])
        if table.name == "table_1"
        for index, each in enumerate(table.columns)
        if each.figure == "rfd_photos"
    )
    assert [value for value in column(page, "table_1", position) if value is not None] == values
    assert values != [round(value, 2) for value in values]


def test_the_keyboard_sorts_and_texts_sort_as_texts(page):
    one = page.locator("#rows thead th").first
    names = page.locator("#rows tbody th")
    printed = names.evaluate_all("cells => cells.map(cell => cell.dataset.text)")
    one.locator("button").focus()
    page.keyboard.press("Enter")
    assert one.get_attribute("aria-sort") == "ascending"
    found = names.evaluate_all("cells => cells.map(cell => cell.dataset.text)")
    assert sorted(found) == sorted(printed)
    assert found != printed
    assert found.index("fvq depth 1") < found.index("fvq depth 4") < found.index("linear") < found.index("var vq")
    page.keyboard.press("Space")
    assert one.get_attribute("aria-sort") == "descending"
    assert names.evaluate_all("cells => cells.map(cell => cell.dataset.text)") == found[::-1]
    page.keyboard.press("Space")
    assert names.evaluate_all("cells => cells.map(cell => cell.dataset.text)") == printed


def test_what_stands_across_a_table_is_not_sorted_with_its_lines(page):
    table = page.locator("table.sortable", has=page.locator("tr.across")).first
    texts = "table => [...table.tBodies[0].rows].filter(line => !line.hidden).map(line => line.textContent)"
    printed, across = table.evaluate(texts), table.locator("tr.across")
    button = table.locator("thead tr:last-child th").nth(2).locator("button")
    button.evaluate("button => button.click()")
    assert not any(line.is_visible() for line in across.all())
    assert len(table.evaluate(texts)) == len(printed) - across.count()
    for _ in range(2):
        button.evaluate("button => button.click()")
    assert table.evaluate(texts) == printed


def test_one_column_is_sorted_at_a_time(page):
    headings = page.locator("#rows thead th")
    headings.nth(1).locator("button").click()
    headings.nth(2).locator("button").click()
    assert page.locator("#rows [aria-sort]").count() == 1
    assert headings.nth(2).get_attribute("aria-sort") == "ascending"
    for _ in range(2):
        headings.nth(2).locator("button").click()
    assert page.locator("#rows [aria-sort]").count() == 0


# --- plots that tell their values ------------------------------------------------------------------------------------


PLOT = "#curves .plot >> nth=0"


def place(page, index):
    """A point of the first plot: its place on the screen and its text."""
    page.locator(PLOT).scroll_into_view_if_needed()
    return page.locator(PLOT).evaluate(
        """(plot, index) => {
          const [x, y, text] = JSON.parse(plot.parentElement.querySelector("script.points").textContent).at(index);
          const at = new DOMPoint(x, y).matrixTransform(plot.querySelector("svg").getScreenCTM());
          return [at.x, at.y, text];
        }""",
        index,
    )


def test_a_plot_tells_the_value_under_the_pointer(page, study_and_page):
    row = study_and_page[0].rows[0]
    last = len(row.history.usage_steps) - 1
    x, y, text = place(page, last)
    assert text == f"{row.label}\nstep 1,000\n{percent(row.history.usage[-1])}"
    tip = page.locator("#tip")
    page.mouse.move(x, y)
    assert tip.text_content() == text
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= 1250 and box["y"] + box["height"] <= 900
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_far_from_any_point_a_plot_says_nothing(page):
    x, y, _ = place(page, 0)
    box = page.locator(PLOT).bounding_box()
    page.mouse.move(x, y)
    assert page.locator("#tip").is_visible()
    page.mouse.move(box["x"] + box["width"] - 3, box["y"] + 3)
    assert page.locator("#tip").is_hidden()


def test_a_plot_is_read_with_the_keyboard(page):
    plot, tip = page.locator(PLOT), page.locator("#tip")
    _, _, first = place(page, 0)
    _, _, second = place(page, 1)
    plot.focus()
    page.keyboard.press("ArrowRight")
    assert tip.text_content() == first
    page.keyboard.press("ArrowRight")
    assert tip.text_content() == second
    page.keyboard.press("ArrowLeft")
    assert tip.text_content() == first
    page.keyboard.press("ArrowDown")
    assert tip.text_content().split("\n")[0] != first.split("\n")[0]
    page.keyboard.press("Escape")
    assert tip.is_hidden()
    # It goes on from there.
    page.keyboard.press("ArrowRight")
    assert tip.text_content().split("\n")[0] != first.split("\n")[0]


def test_what_the_keyboard_asks_for_is_said_aloud(page):
    said = page.locator("[role=status]")
    assert said.count() == 1
    page.locator("h1").click()
    assert said.text_content() == ""
    page.locator(PLOT).focus()
    page.keyboard.press("Home")
    assert said.text_content() == page.locator("#tip").text_content() != ""
    page.keyboard.press("Escape")
    assert said.text_content() == ""


def test_a_plot_taller_than_the_window_is_read_with_the_keyboard(other):
    plot, tip = other.locator(PLOT), other.locator("#tip")
    other.set_viewport_size({"width": 1250, "height": 240})
    assert plot.bounding_box()["height"] > 240
    plot.focus()
    lines = set()
    for _ in range(60):
        other.keyboard.press("ArrowDown")
        assert tip.is_visible()
        box = tip.bounding_box()
        assert box["y"] >= 0 and box["y"] + box["height"] <= 240
        lines.add(tip.text_content().split("\n")[0])
    assert len(lines) > 20
    # Scrolled away it hides, and is not forgotten.
    text = tip.text_content()
    other.evaluate("window.scrollTo({top: 0, behavior: 'instant'})")
    tip.wait_for(state="hidden")
    other.keyboard.press("ArrowUp")
    assert tip.is_visible() and tip.text_content() != text
    other.keyboard.press("ArrowDown")
    assert tip.text_content() == text


def test_only_plots_with_points_promise_the_keys(page, study_and_page):
    promising = page.locator(".plot[aria-label$='The arrow keys read out its points.']")
    assert promising.count() == page.locator("script.points").count() < page.locator(".plot").count()


def test_a_finger_reads_a_plot_on_a_phone(browser, study_and_page):
    context = browser.new_context(
        reduced_motion="reduce", viewport={"width": 390, "height": 800}, has_touch=True, is_mobile=True
    )
    page = context.new_page()
    page.goto(study_and_page[1].as_uri())
    x, y, text = place(page, 19)
    page.touchscreen.tap(x, y)
    tip = page.locator("#tip")
    assert tip.text_content() == text
    box = tip.bounding_box()
    assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    context.close()


# --- where figures come from -----------------------------------------------------------------------------------------


def test_measured_cells_lead_to_the_record_of_their_run(page, study_and_page):
    study = study_and_page[0]
    runs = {f"#{anchor(run)}": run for run in study.runs}
    assert len(runs) == len(study.runs)
    links = page.locator("#tables a.source").evaluate_all("links => links.map(link => link.getAttribute('href'))")
    expected = [
        f"#{anchor(run)}"
        for table in sorted(build_tables(study), key=lambda table: not table.measured)
        for line in table.lines
        if line.row
        for cell in line.measured
        if cell.run
        for run in (cell.run, *cell.further_runs)
    ]
    assert links == expected
    assert {"evaluate_tokenizer", "evaluate_generator"} <= {runs[link].stage for link in links}
    for link, run in runs.items():
        line = page.locator(link)
        assert line.locator("th").first.text_content() == run.stage
        assert line.locator("td").first.text_content() == (run.row or "")


def test_a_link_opens_what_is_folded(other):
    target = other.locator("#run-evaluate_tokenizer-fvq")
    assert not target.is_visible()
    other.locator("#rows a.source[href='#run-evaluate_tokenizer-fvq']").first.click()
    target.wait_for(state="visible")


def test_an_address_that_is_no_code_stops_nothing(other):
    errors = []
    other.on("pageerror", lambda error: errors.append(str(error)))
    other.evaluate("location.hash = '#%'")
    other.wait_for_function("location.hash === '#%'")
    other.evaluate("location.hash = '#run-evaluate_tokenizer-vq'")
    other.locator("#run-evaluate_tokenizer-vq").wait_for(state="visible")
    assert errors == []


def test_commands_are_copied_and_the_button_keeps_the_focus(other):
    # Where the browser's clipboard refuses, the older way is taken.
    other.evaluate(
        """() => {
          navigator.clipboard.writeText = () => Promise.reject(new Error("refused"));
          document.addEventListener("copy", () => { window.copied = document.activeElement.value; });
        }"""
    )
    entry = other.locator("#commands dd").nth(1)
    assert entry.locator("code").text_content() == COMMAND
    button = entry.locator("button")
    button.focus()
    other.keyboard.press("Enter")
    other.wait_for_function("window.copied !== undefined")
    assert other.evaluate("window.copied") == COMMAND
    assert (button.text_content(), other.locator("#said").text_content()) == ("copied", "copied")
    assert button.evaluate("button => button === document.activeElement")
    other.evaluate("document.execCommand = () => false")
    other.keyboard.press("Enter")
    other.wait_for_function("document.activeElement.textContent === 'not copied'")


def test_verdicts_on_top_are_in_words_too(page, study_and_page):
    texts = page.locator(".outcomes li").evaluate_all("""lines => lines.map(line => [...line.children].filter(
        each => !each.matches("[aria-hidden=true]")).map(each => each.textContent).join(""))""")
    assert texts == [f"{claim.verdict}: {claim.title}" for claim in judge(study_and_page[0])]
