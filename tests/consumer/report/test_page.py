"""The report's page: what names and models bring into its Markdown asks nobody for anything."""

from logitcask_consumer.report.page import to_page

PLOT = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 1 1"><g id="a"></g></svg>'


def test_plots_are_inside_and_other_images_are_words():
    markdown = "# Report\n\nrecorded from **![seen](https://example.org/p.png)<img src=x>**\n\n![Loss](loss.svg)\n"
    page = to_page(markdown, {"loss.svg": PLOT})
    assert "example.org" not in page
    assert "<strong>seen&lt;img src=x&gt;</strong>" in page
    assert 'aria-label="Loss"' in page
    assert "<svg" in page
    assert "<img" not in page
