"""The page in a headless Chromium: numbers, keyboard, dark mode, small screens, accessibility, and hostile texts."""

import json
from pathlib import Path

import pytest

from tests.services.http.pages.test_pages import pages_of
from tests.support.services.browser import chromium, chromium_path, watched_page
from tests.support.services.service_harness import wait_for

WIDE = {"viewport": {"width": 1280, "height": 900}}
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True}
SERIOUS = ("serious", "critical")
VENDOR = Path(__file__).parents[4] / "services/logitcask_services/http/pages/static/vendor"
expect = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: run `make install`").expect
pytestmark = pytest.mark.skipif(
    not (VENDOR / "fetched.json").exists(), reason="the page's assets are missing: python scripts/fetch_assets.py"
)


@pytest.fixture(scope="module")
def browser():
    chromium_path()
    with chromium() as opened:
        yield opened


def serious(tab):
    """What axe finds, as sentences."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(tab).response["violations"]
    return [
        f"{each['id']}: {each['help']}: {[node['html'][:200] for node in each['nodes'][:3]]}"
        for each in violations
        if each["impact"] in SERIOUS
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_quiet_accessible_and_run_nothing(shown, browser, scheme):
    """No console error, nothing serious for axe, no hostile text that ran, and the scheme's own background."""
    with watched_page(browser, shown.url, color_scheme=scheme, **WIDE) as tab:
        for path in pages_of(shown):
            tab.goto(path, wait_until="load")
            expect(tab.locator(".plot:not(:has(canvas))")).to_have_count(0)
            assert serious(tab) == [], path
            assert tab.title() != "ran", path
            assert tab.evaluate("document.querySelectorAll('script:not([src]), img').length") == 0, path
            shade = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (shade == "rgb(20, 23, 26)") == (scheme == "dark"), path


def test_axe_would_notice(shown, browser):
    """Negative control."""
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks")
        tab.evaluate("document.querySelector('h1').insertAdjacentHTML('afterend', '<button></button>')")
        assert [each.partition(":")[0] for each in serious(tab)] == ["button-name"]


def test_no_page_is_wider_than_a_phone(shown, browser):
    with watched_page(browser, shown.url, **PHONE) as tab:
        for path in pages_of(shown):
            tab.goto(path, wait_until="load")
            assert tab.evaluate("document.documentElement.scrollWidth") == 360, path


def middle(element):
    """Of an element, in pixels from the top of the page."""
    box = element.bounding_box()
    return box["y"] + box["height"] / 2


def test_what_stands_beside_a_button_is_level_with_it(shown, browser):
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/")
        words, button = tab.locator("#controls p"), tab.locator("#controls button").first
        assert middle(words) == pytest.approx(middle(button), abs=1.0)
        tab.evaluate("document.querySelector('#controls').style.alignItems = 'end'")
        assert middle(words) != pytest.approx(middle(button), abs=1.0)  # the test would see it


def test_plots_are_drawn_from_the_numbers_of_the_interface(shown, browser):
    job = next(each for each in shown.client.get("/v1/extractions").json()["data"] if each["cask"] == "stories")
    content = shown.client.get(f"/ui/api/jobs/{job['id']}").json()
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto(f"/ui/jobs/{job['id']}")
        tab.wait_for_selector("#plot-mass canvas")
        drawn = tab.evaluate(
            "Object.fromEntries([...document.querySelectorAll('.plot')].map((plot) => [plot.id, plot.uplot.data]))"
        )
    mass = content["cask"]["mass_at_k"]
    assert drawn["plot-mass"] == [[row[name] for row in mass] for name in ("k", "median", "mean", "p5")]
    bins = content["cask"]["entropy_bins"]
    assert drawn["plot-entropy"] == [[each["low"] for each in bins], [each["positions"] for each in bins]]
    shards = content["cask"]["shards"]
    assert drawn["plot-bytes"] == [list(range(len(shards))), [each["bytes_per_token"] for each in shards]]
    pace = content["pace"]
    assert drawn["plot-pace"] == [[each["seconds"] for each in pace], [each["tokens_per_second"] for each in pace]]


def test_the_keyboard_walks_from_token_to_token(shown, browser):
    content = shown.client.get("/ui/api/casks/stories/documents/1").json()
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks/stories/documents/1")
        for _ in range(40):
            tab.keyboard.press("Tab")
            if tab.evaluate("document.activeElement.getAttribute('role')") == "option":
                break

        def at():
            return int(tab.evaluate("document.activeElement.dataset.at"))

        assert at() == 0
        for _ in range(3):
            tab.keyboard.press("ArrowRight")
        assert at() == 3
        tab.keyboard.press("ArrowLeft")
        assert at() == 2
        tab.keyboard.press("ArrowDown")
        assert at() > 40
        tab.keyboard.press("ArrowUp")
        assert at() == 2
        tab.keyboard.press("End")
        assert at() == content["tokens"] - 1
        tab.keyboard.press("ArrowRight")
        assert at() == content["tokens"] - 1
        tab.keyboard.press("Home")
        assert at() == 0
        # One stop of the tab key: the next one leaves the strip.
        tab.keyboard.press("Tab")
        assert tab.evaluate("document.activeElement.closest('.strip')") is None
        assert tab.locator(".tok[tabindex='0']").count() == 1


def test_a_token_shows_head_tail_and_draws(shown, browser):
    content = shown.client.get("/ui/api/casks/stories/documents/1").json()
    row = next(each for each in content["rows"] if len(each["draws"]) > 1 and len(each["head"]) > 2)
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks/stories/documents/1")
        tab.locator(f".tok[data-at='{row['at']}']").hover()
        panel = tab.locator(".inspector")
        panel.locator("table.head").wait_for()
        numbers = panel.locator("table.head td.n").all_inner_texts()
        expected = [*(entry["probability"] for entry in row["head"]), row["tail_mass"]]
        assert numbers == [f"{100 * value:.2f} %" for value in expected]
        assert panel.locator("table.draws td.n").all_inner_texts() == [
            f"{draw['count']} \N{MULTIPLICATION SIGN}" for draw in row["draws"]
        ]
        widths = panel.locator("table.head .amount span").evaluate_all(
            "spans => spans.map((span) => parseFloat(span.style.width))"
        )
        largest = max(expected)
        assert widths == [pytest.approx(100 * value / largest, abs=0.1) for value in expected]
        figures = dict(zip(panel.locator("dt").all_inner_texts(), panel.locator("dd").all_inner_texts(), strict=True))
        assert figures["entropy"] == f"{row['entropy']:.2f}"
        assert figures["probability"] == f"{100 * row['probability']:.2f} %"


def test_a_tap_opens_the_panel_and_close_ends_it(shown, browser):
    with watched_page(browser, shown.url, **PHONE) as tab:
        tab.goto("/ui/casks/stories/documents/1")
        assert not tab.locator(".inspector").is_visible()
        tab.locator(".tok").nth(5).tap()
        tab.locator(".inspector table.head").wait_for()
        box, panel = tab.locator(".tok").nth(5).bounding_box(), tab.locator(".inspector").bounding_box()
        assert box is not None
        assert panel is not None
        assert box["y"] + box["height"] <= panel["y"]
        assert serious(tab) == []
        tab.locator(".close").tap()
        assert not tab.locator(".inspector").is_visible()


def test_colours_follow_the_measure_and_have_a_legend(shown, browser):
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks/stories/documents/1")
        shade = "token => getComputedStyle(token).backgroundColor"
        token = tab.locator(".tok.e6, .tok.e5").first
        classes = token.get_attribute("class").split()
        entropy_step, probability_step = classes[1][1], classes[2][1]
        legend = "step => getComputedStyle(step).backgroundColor"
        assert token.evaluate(shade) == tab.locator(f".scale.for-entropy .step{entropy_step}").evaluate(legend)
        tab.get_by_label("Probability", exact=True).check()
        assert token.evaluate(shade) == tab.locator(f".scale.for-probability .step{probability_step}").evaluate(legend)
        assert tab.locator(".scale.for-probability").is_visible()
        assert not tab.locator(".scale.for-entropy").is_visible()
        assert tab.url.endswith("measure=probability")


def test_two_casks_side_by_side_walk_together(shown, browser):
    document = shown.client.get("/ui/api/casks/stories/documents/3").json()
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto(f"/ui/compare?left=stories&right=again&id={document['id']}")
        tab.locator(".strip").first.locator(".tok").nth(8).focus()
        tab.locator(".inspector table.head").nth(1).wait_for()
        assert tab.locator(".tok[aria-selected=true]").count() == 2
        for panel, name in enumerate(("stories", "again")):
            content = shown.client.get("/ui/api/casks/" + name + "/documents", params={"q": document["id"]}).json()
            row = shown.client.get(f"/ui/api/casks/{name}/documents/{content['documents'][0]['number']}").json()[
                "rows"
            ][8]
            shown_entropy = tab.locator(".inspector").nth(panel).locator("dd").nth(1).inner_text()
            assert shown_entropy == f"{row['entropy']:.2f}"


def test_search_and_pages_of_documents_without_a_new_page(shown, browser):
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks/stories")
        tab.evaluate("window.same = true")
        tab.get_by_role("searchbox").fill("story 7")
        tab.keyboard.press("Enter")
        expect(tab.locator("#documents tbody tr")).to_have_count(1)
        assert "story 7" in tab.locator("#documents tbody").inner_text()
        assert tab.evaluate("window.same") is True
        assert "q=story+7" in tab.url or "q=story%207" in tab.url
        assert serious(tab) == []


def test_a_job_moves_before_ones_eyes(serve, browser, documents):
    server = serve(fake={"seconds_per_document": 0.05})
    with watched_page(browser, server.url, **WIDE) as tab:
        wait_for(lambda: server.client.get("/health/ready").status_code == 200)
        tab.goto("/")
        assert tab.locator("progress").count() == 0
        job = server.submit(server.upload(documents))
        cell = tab.locator(f"[data-field='{job['id']}.status']")
        cell.wait_for()
        expect(cell).to_have_text("completed", timeout=30_000)
        done = server.finish(job["id"])
        total = f"{done['usage']['tokens_total']:,}"
        expect(tab.locator(f"[data-field='{job['id']}.tokens']")).to_have_text(f"{total} of {total}")
        assert tab.locator("progress").evaluate("bar => bar.value") == 1
        assert cell.get_attribute("class") == "state completed"


def test_a_key_opens_the_page_and_scripts_cannot_read_the_cookie(serve, browser):
    server = serve(api_key="a-key-of-the-server")
    wait_for(lambda: server.client.get("/health/ready").status_code == 200)
    with watched_page(browser, server.url, **WIDE) as tab:
        tab.goto("/ui/casks")
        assert serious(tab) == []
        tab.get_by_label("Key").fill("a-key-of-the-server")
        tab.get_by_role("button", name="Sign in").click()
        tab.wait_for_url("**/ui/casks")
        assert tab.evaluate("document.cookie") == ""
        tab.get_by_role("button", name="Log out").click()
        tab.wait_for_url("**/ui/login")


def test_without_the_fetched_files_numbers_are_still_there(shown, browser, monkeypatch):
    from logitcask_services.http.pages.viewer import rendering

    monkeypatch.setattr(rendering, "missing_assets", lambda: True)
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/casks/stories")
        assert tab.get_by_role("status").inner_text().count("fetch_assets.py") == 1
        assert tab.locator("#table-mass").is_visible()
        assert not tab.locator("#plot-mass").is_visible()


def test_curves_of_a_run_are_the_logged_numbers(shown, browser, runs_folder):
    logged = [json.loads(line) for line in (runs_folder / "student" / "metrics.jsonl").read_text().splitlines()]
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/runs/student")
        tab.wait_for_selector("#plot-curve0 canvas")
        assert tab.evaluate("document.getElementById('plot-curve0').uplot.data") == [
            [line["step"] for line in logged],
            [line["kl"] for line in logged],
        ]


def test_held_out_figures_stand_beside_those_of_training(shown, browser):
    since = [sum(2 / step for step in steps) / 13 for steps in (range(1, 14), range(14, 27), range(27, 40))]
    with watched_page(browser, shown.url, **WIDE) as tab:
        tab.goto("/ui/runs/student")
        tab.wait_for_selector("#plot-held0 canvas")
        steps, held_out, trained = tab.evaluate("document.getElementById('plot-held0').uplot.data")
        assert (steps, held_out) == ([0, 13, 26, 39], [3 / (step + 1) for step in (0, 13, 26, 39)])
        assert trained == [None, *map(pytest.approx, since)]
        assert "Lowest KL to the teacher: 0.0750 nats per token, after step 39" in tab.locator("#run").inner_text()


def test_a_run_that_is_going_on_is_drawn_anew_unless_its_numbers_are_read(shown_once, browser, runs_folder_once):
    folder = runs_folder_once / "student"
    (folder / "logitcask.json").write_text('{"status": "running"}')

    def add(step):
        with (folder / "held_out.jsonl").open("a") as file:
            file.write(json.dumps({"step": step, "kl": 0.01}) + "\n")

    with watched_page(browser, shown_once.url, **WIDE) as tab:
        tab.clock.install()
        tab.goto("/ui/runs/student")
        tab.wait_for_selector("#plot-held0 canvas")
        add(52)
        tab.clock.fast_forward(16_000)
        expect(tab.locator("#table-held0 tbody tr")).to_have_count(5)
        tab.wait_for_selector("#plot-held0 canvas")
        assert tab.evaluate("document.getElementById('plot-held0').uplot.data[0]") == [0, 13, 26, 39, 52]
        tab.locator("details").first.evaluate("each => { each.open = true; }")
        add(65)
        tab.clock.fast_forward(16_000)
        assert tab.evaluate("document.querySelectorAll('#table-held0 tbody tr').length") == 5
        tab.locator("details").first.evaluate("each => { each.open = false; }")
        tab.clock.fast_forward(16_000)
        expect(tab.locator("#table-held0 tbody tr")).to_have_count(6)
