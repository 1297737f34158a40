"""`logitcask view`: the viewer alone, which listens to this machine only and changes nothing."""

import pytest
from starlette.testclient import TestClient

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.errors import CaskNotFoundError, IdentityMismatchError
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.identity import tokenizer_fingerprint
from logitcask_services.http.pages.viewer.application import ViewError, create_viewer, listen
from logitcask_services.http.pages.viewer.runs import RunFolder
from logitcask_services.http.pages.viewer.shelf import FolderShelf
from tests.support.schemas.cask_samples import make_document, make_teacher
from tests.support.services.chat_templates import tokenizer_for

HOST = {"Host": "127.0.0.1"}
TOKENIZER = tokenizer_for("<|im_start|>")


def make_cask(folder, **teacher):
    with CaskWriter.create(folder, teacher=make_teacher(300, **teacher), capture=CaptureSpec(tau=0.05)) as writer:
        writer.publish([make_document(20, seed, vocab_size=300) for seed in range(3)])


@pytest.fixture
def casks(tmp_path):
    make_cask(tmp_path / "casks" / "a b#x", tokenizer_fingerprint=tokenizer_fingerprint(TOKENIZER))
    make_cask(tmp_path / "casks" / "other")
    return tmp_path / "casks"


def client(shelf, **options):
    return TestClient(create_viewer(shelf, **options), base_url="http://127.0.0.1", follow_redirects=False)


def test_a_folder_of_casks_is_shown(casks):
    viewer = client(FolderShelf([str(casks)]))
    assert viewer.get("/").headers["Location"] == "/ui/casks"
    assert [row["name"] for row in viewer.get("/ui/api/casks").json()["data"]] == ["a b#x", "other"]
    page = viewer.get("/ui/casks/a%20b%23x/documents/0")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert viewer.get("/ui/runs").status_code == 404


def test_texts_are_shown_where_the_tokenizer_fits(casks):
    viewer = client(FolderShelf([str(casks)], TOKENIZER))
    assert viewer.get("/ui/api/casks/a%20b%23x/documents/0").json()["has_texts"] is True
    assert viewer.get("/ui/api/casks/other/documents/0").json()["has_texts"] is False


def test_a_tokenizer_of_no_cask_is_refused(casks):
    with pytest.raises(IdentityMismatchError, match="the tokenizer has fingerprint"):
        FolderShelf([str(casks / "other")], TOKENIZER)


def test_single_casks_are_shown_side_by_side(casks):
    viewer = client(FolderShelf([str(casks / "other"), str(casks / "a b#x")]))
    document = viewer.get("/ui/api/casks/other/documents/0").json()
    page = viewer.get("/ui/compare", params={"left": "other", "right": "a b#x", "id": document["id"]})
    assert page.status_code == 200
    assert page.text.count('role="listbox"') == 2


def test_two_casks_of_one_name_are_refused(casks, tmp_path):
    make_cask(tmp_path / "elsewhere" / "other")
    with pytest.raises(CaskNotFoundError, match="are both called 'other'"):
        FolderShelf([str(casks), str(tmp_path / "elsewhere" / "other")])


@pytest.mark.parametrize("place", ["missing", "empty"])
def test_places_without_casks_are_refused(tmp_path, place):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CaskNotFoundError):
        FolderShelf([str(tmp_path / place)])


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "0.0.0.0"])
def test_other_names_do_not_lead_here(casks, host):
    viewer = client(FolderShelf([str(casks)]))
    assert viewer.get("/ui/casks", headers={"Host": host}).status_code == 400


def test_nothing_can_be_changed(casks):
    viewer = client(FolderShelf([str(casks)]), runs=RunFolder(casks))
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        for path in ("/", "/ui/casks", "/ui/casks/other", "/ui/runs", "/ui/static/page.css"):
            assert viewer.request(method, path).status_code == 405


def test_it_listens_on_the_loopback_address_only():
    with listen(0) as listener:
        address, port = listener.getsockname()
        assert address == "127.0.0.1"
        listener.listen()
        with pytest.raises(ViewError, match=f"cannot listen on 127.0.0.1 port {port}"):
            listen(port)
