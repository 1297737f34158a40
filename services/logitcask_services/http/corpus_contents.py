"""Routes into a corpus: rows, statistics, deletion."""

from pathlib import Path
from typing import Annotated

from fastapi import APIRouter, Query

from logitcask_schemas.api.corpus_rows import CorpusRowList, CorpusStatistics
from logitcask_schemas.api.uploads import Deleted
from logitcask_services.corpora.statistics import rows_of, statistics_of
from logitcask_services.http.access import Caller
from logitcask_services.http.corpora import content_path
from logitcask_services.http.dependencies import ServiceDep
from logitcask_services.http.problems import documented
from logitcask_services.jobs.housekeeper import delete_corpus
from logitcask_services.service import Service

router = APIRouter(prefix="/v1/corpora", tags=["corpora"], responses=documented(401, 422))
Offset = Annotated[int, Query(ge=0, le=2**53, description="So many rows are passed over.")]
Length = Annotated[int, Query(ge=1, le=100, description="Most rows of the page.")]


@router.get("/{corpus_id}/rows", responses=documented(404, 415))
def corpus_rows(
    corpus_id: str, service: ServiceDep, _: Caller, offset: Offset = 0, length: Length = 20
) -> CorpusRowList:
    """Lines of a corpus as they came, those that are wrong with what is wrong."""
    rows, has_more = rows_of(
        _content(service, corpus_id), service.settings.max_line_bytes, offset=offset, length=length
    )
    return CorpusRowList(data=rows, offset=offset, has_more=has_more)


@router.get("/{corpus_id}/statistics", responses=documented(404, 415))
def corpus_statistics(corpus_id: str, service: ServiceDep, _: Caller) -> CorpusStatistics:
    """What the lines of a corpus are; of a long one, the first 100,000 lines and 64 MiB."""
    return statistics_of(_content(service, corpus_id), service.settings.max_line_bytes)


@router.delete("/{corpus_id}", responses=documented(404, 409))
def remove_corpus(corpus_id: str, service: ServiceDep, _: Caller) -> Deleted:
    """Delete a corpus with its content. What was made of it stays; a job that may still need it is a conflict."""
    delete_corpus(service, corpus_id)
    return Deleted(id=corpus_id, object="corpus")


def _content(service: Service, corpus_id: str) -> Path:
    return content_path(service, service.corpora.get(corpus_id))
