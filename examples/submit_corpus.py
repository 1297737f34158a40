"""Have a teacher service capture a JSONL file: `python submit_corpus.py FILE CASK [--server URL]`."""

import argparse
from pathlib import Path

from logitcask import ExtractionRequest, ServiceClient, capture_spec


def main() -> None:
    """Upload, ask for the capture, follow it to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help='a line each: {"text": ...} or {"messages": [...]}')
    parser.add_argument("cask", help="name of the cask")
    parser.add_argument("--server", default="http://localhost:8000")
    options = parser.parse_args()

    spec = capture_spec(mode="threshold", tau=1 / 20)
    with ServiceClient(options.server) as client:
        corpus = client.upload(options.file)
        job = client.submit(ExtractionRequest(corpus_id=corpus.id, cask=options.cask, capture=spec))
        for event in client.follow(job.id):
            print(event.model_dump_json())
        print(client.extraction(job.id).status)


if __name__ == "__main__":
    main()
