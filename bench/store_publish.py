"""Publications a second of many writers into one cask of an object store: what the protocol costs, on a simulator.

The store is moto, a simulator of S3 in one Python process on this machine: its own work is most of the time, and its
rate is the ceiling, so the figures tell how writers get on beside each other, not what S3 does. The plain puts of as
many objects by as many threads, without any cask, stand beside them. Shards are small on purpose.
"""

import argparse
import logging
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from logitcask_schemas.cask import CaskWriter
from logitcask_schemas.cask.storage.object_store import RemoteStore
from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_schemas.record.records import DocumentRecords
from made_up_cask import made_up_teacher, make_document
from report import Report

VOCAB, TOKENS, DOCUMENTS = 49_152, 129, 8
BUCKET = "s3://bench"


def serve(ready: Any, stop: Any) -> None:
    """The simulator, in a process of its own."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    ready.put("http://{}:{}".format(*server.get_host_and_port()))
    stop.wait()
    server.stop()


def rate(work: Callable[[int], None], writers: int, publications: int) -> float:
    """Publications a second of threads that begin at the same time."""
    barrier = threading.Barrier(writers + 1)

    def begin(number: int) -> None:
        barrier.wait()
        work(number)

    with ThreadPoolExecutor(writers) as pool:
        running = [pool.submit(begin, number) for number in range(writers)]
        barrier.wait()
        start = time.perf_counter()
        for one in running:
            one.result()
        return publications / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--writers", type=int, nargs="+", default=[1, 16, 64])
    parser.add_argument("--shards", type=int, default=192, help="published by all writers together")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    ready, stop = spawn.Queue(), spawn.Event()
    simulator = spawn.Process(target=serve, args=(ready, stop))
    simulator.start()
    os.environ.update(AWS_ENDPOINT_URL=ready.get(), AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
    os.environ["AWS_DEFAULT_REGION"] = "us-east-1"
    bucket = RemoteStore(BUCKET)
    bucket._system()[0].mkdir(BUCKET)
    report = Report(__file__, "moto", "s3fs", "fsspec")
    note = f"moto, a simulator; {DOCUMENTS} documents of {TOKENS} tokens a shard"
    made = [
        [make_document(TOKENS, VOCAB, shard * DOCUMENTS + i) for i in range(DOCUMENTS)]
        for shard in range(arguments.shards)
    ]
    for writers in arguments.writers:
        published, put, closing, opening = [], [], [], []
        for repeat in range(arguments.repeats):
            url = f"{BUCKET}/{writers}-{repeat}"
            own = [
                CaskWriter.create(url, teacher=made_up_teacher(VOCAB), capture=CaptureSpec()) for _ in range(writers)
            ]

            def publish(number: int, own: list[CaskWriter] = own) -> None:
                for documents in made[number :: len(own)]:
                    assert own[number].publish(documents) is not None

            published.append(rate(publish, writers, arguments.shards))
            start = time.perf_counter()
            own[0].close()
            closing.append(time.perf_counter() - start)
            start = time.perf_counter()
            stored = CaskWriter.create(url, teacher=made_up_teacher(VOCAB), capture=CaptureSpec()).num_documents
            opening.append(time.perf_counter() - start)
            assert stored == arguments.shards * DOCUMENTS
            put.append(rate(plain_puts(f"{url}-plain", made, writers), writers, arguments.shards))
        report.add("publications", "1/s", published, note, writers=writers)
        report.add("as many plain puts of two objects", "1/s", put, note, writers=writers)
        report.add(f"one of them closes, {arguments.shards} shards", "s", closing, note, writers=writers)
        report.add(f"a further writer begins, {arguments.shards} shards", "s", opening, note, writers=writers)
    stop.set()
    simulator.join()
    report.write()


def plain_puts(url: str, made: list[list[DocumentRecords]], writers: int) -> Callable[[int], None]:
    """Two objects a shard, of about its sizes, without condition, order or proof."""
    content, entry = bytes(40_000), bytes(700)

    def put(number: int) -> None:
        store = RemoteStore(url)
        for shard in range(number, len(made), writers):
            store.write(f"{shard}.arrow", content)
            store.write(f"{shard}.json", entry)

    return put


if __name__ == "__main__":
    main()
