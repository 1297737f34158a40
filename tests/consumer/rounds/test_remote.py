"""Rounds whose casks lie in an object store: a local server that speaks S3, on loopback."""

from collections.abc import Iterator
from typing import Any

import pytest

from logitcask_consumer.rounds.phases import EmptyRoundError
from logitcask_schemas.cask import Cask
from logitcask_schemas.cask.transfer.export import export_cask, target_of
from tests.support.consumer.rounds_runs import run, weights

pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:botocore.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:moto.*"),
]


@pytest.fixture
def bucket(monkeypatch) -> Iterator[str]:
    """A bucket; address and credentials in the environment, as users give them."""
    moto: Any = pytest.importorskip("moto.server", reason="moto is the S3 server of these tests; install the dev extra")
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs: Any = pytest.importorskip("s3fs", reason="object stores need the extra `remote`")
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir("rounds")
    yield "s3://rounds"
    server.stop()


@pytest.fixture
def exported(service, bucket):
    """The service puts each cask there when it is made."""
    made = service._run

    def made_and_sent(extraction):
        done = made(extraction)
        source = Cask.open(service.casks / extraction["cask"])
        assert [step.skipped for step in export_cask(source, target_of(f"{bucket}/{extraction['cask']}"), "arrow")]
        return done

    service._run = made_and_sent
    return bucket


def test_casks_are_read_from_a_url_as_from_a_folder(settings, exported, tmp_path):
    near = {**settings, "output": tmp_path / "near", "name": "near", "rounds": 1}
    run(near)
    far = {**settings, "cache": tmp_path / "cache", "rounds": 1}
    with pytest.raises(EmptyRoundError, match=r"cannot be read at s3://rounds/elsewhere/run\.r0001.*--cask-root"):
        run(far, cask_root=f"{exported}/elsewhere")
    result, _ = run(far, cask_root=f"{exported}/")
    assert result.state.status == "finished"
    assert result.state.rounds[0].cask == "s3://rounds/run.r0001"
    one, other = weights(near["output"]), weights(far["output"])
    assert all((one[name] == other[name]).all() for name in one)
