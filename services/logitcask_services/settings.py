"""Settings of the service and of its client, from arguments and `LOGITCASK_*` variables. Read only at the edge."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, JsonValue, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from logitcask_schemas.api.key_file import KeyFileError, key_to_send
from logitcask_schemas.api.scoring import MAX_TIMEOUT
from logitcask_schemas.api.server_url import DEFAULT_PORT
from logitcask_schemas.errors import LogitcaskError
from logitcask_schemas.local_paths import url_in
from logitcask_schemas.record.identity import Accept
from logitcask_services.keys import ApiKey, read_key_file

Origin = Annotated[str, Field(pattern=r"^https?://[^/\s?#@]+$")]
"""Scheme, host and port, as browsers send it."""


class SettingsError(LogitcaskError, ValueError):
    """The settings do not make a service that may start."""


class ServiceSettings(BaseSettings):
    """What `logitcask serve` runs with. Arguments win over the environment."""

    model_config = SettingsConfigDict(env_prefix="LOGITCASK_", frozen=True, use_attribute_docstrings=True)

    teacher: Path | None = None
    """Folder of the teacher (configuration, tokenizer, weights), or a Hugging Face Hub id: ORG/NAME or
    ORG/NAME@REVISION. With --engine openai only its tokenizer is read."""
    teachers: Path | None = None
    """File (TOML) that lists several teachers by name, instead of --teacher."""
    students: Path | None = None
    """Folder whose sub-folders are students that generations may name."""
    engine_options: dict[str, JsonValue] = {}
    """KEY=VALUE of vLLM's EngineArgs, such as tensor_parallel_size=2 (JSON or text); may be repeated. All together as
    JSON: LOGITCASK_ENGINE_OPTIONS. With --teachers each has its own."""
    cask_root: Path | str
    """Folder under which each cask is a folder of its own; or its URL in an object store, such as s3://BUCKET/casks
    (extra `remote`), with --data-dir."""
    data_dir: Path | None = None
    """Folder of the job database, corpora and tokens, on this machine; `.logitcask-service` in the cask root."""
    single_writer: bool = False
    """Of a cask root in a store without conditional puts (not S3's kind): nothing else writes there, seen to by you."""
    host: str = "127.0.0.1"
    """Address to listen on; 127.0.0.1. Another machine's needs an API key."""
    port: Annotated[int, Field(ge=0, le=65_535)] = DEFAULT_PORT
    """Port to listen on; 8000."""
    templates: Path | None = None
    """Folder with templates (*.md) and recipes (*.yaml) of your own."""
    runs: Path | None = None
    """Folder of training runs and reports, whose curves the page shows."""
    sandbox: str | None = None
    """Command that runs programs which teachers write and that are more than arithmetic, given on its standard input;
    what it prints is the answer. Without one they are refused."""
    resident: Literal["one", "both"] = "one"
    """`one` (default): the teacher is loaded to capture or to write; `both`, where there is room."""
    engine: Literal["vllm", "transformers", "openai"] = "vllm"
    """vllm (default), transformers, or openai: served elsewhere, at --remote-url."""
    engines: Annotated[int, Field(ge=1)] = 1
    """Engines of one teacher that capture at once, each in a process and on GPUs of its own; 1."""
    executor: Literal["local", "ray"] = "local"
    """Where extractions are captured: `local` (default), on this machine; `ray`, by --engines actors of a Ray cluster,
    besides the teacher here, which does all else."""
    ray_address: str | None = None
    """With --executor ray: of the cluster, such as HOST:6379; RAY_ADDRESS, one on this machine, or a new one."""
    gpus_per_engine: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """With --executor ray: what Ray reserves for each; what an engine is parallel over, where the cluster has GPUs."""
    cpus_per_engine: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """With --executor ray: what Ray reserves for each; 1."""
    engine_process: bool = True
    """Whether vLLM or transformers run in a process of their own, whose end is not the service's; not so to debug."""
    engine_metrics: bool = False
    """Whether /metrics tells vLLM's own metrics (vllm:...), too; no, as its statistics cost time in each step."""
    dtype: str = "auto"
    """Compute dtype; `auto` fits the machine."""
    accept_teacher: tuple[Accept, ...] = ()
    """Go on with casks of this teacher by another version of the engine (engine_version), or made before its
    configuration was recorded (unrecorded); may be repeated."""
    max_model_len: Annotated[int | None, Field(ge=2)] = None
    """Most tokens of a document; the teacher's own context."""
    api_key: SecretStr | None = None
    api_key_file: Path | None = None
    """File with keys: names, scopes and limits (TOML; `logitcask keys new` makes entries), or one Bearer key per line.
    Read anew when it changes."""
    allowed_origins: tuple[Origin, ...] = ()
    """Origin whose pages may use the service through a browser, such as https://tools.example; may be repeated."""
    log_format: Literal["text", "json"] = "text"
    """`text` (default) for people, or `json`: an object a line."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 64 << 30
    """Most bytes of one uploaded corpus, as it is sent; 64 GiB."""
    max_uploads: Annotated[int, Field(ge=1)] = 8
    """Most bodies of corpora, or parts of uploads, that come at once; 8."""
    max_waiting_jobs: Annotated[int, Field(ge=1)] = 10_000
    """Most jobs that have not ended; 10,000."""
    max_unpacked_bytes: Annotated[int, Field(ge=1)] = 64 << 30
    """Most bytes of the lines in a compressed upload or a Parquet file; 64 GiB."""
    retain_jobs_days: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """Days after its end that a job is kept; its shards stay. Without: for ever."""
    retain_corpora_days: Annotated[float | None, Field(ge=0, allow_inf_nan=False)] = None
    """Days that a corpus is kept after it came and its last job ended. Without: for ever."""
    upload_expiry_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 86_400.0
    """How long an upload in parts may take, then what came of it is deleted; a day."""
    max_unpack_ratio: Annotated[float, Field(ge=1, allow_inf_nan=False)] = 250.0
    """Most bytes that a byte of a packed upload may become, beyond the first 64 MiB of lines; 250."""
    max_line_bytes: Annotated[int, Field(ge=2)] = 8 << 20
    """Most bytes of one line, a longer one is a bad line; 8 MiB."""
    max_demonstration_bytes: Annotated[int, Field(ge=1)] = 64 << 20
    """Most bytes of a corpus that demonstrations are chosen from, as its rows are in memory while a generation runs;
    64 MiB."""
    disk_floor_bytes: Annotated[int, Field(ge=0)] = 1 << 30
    """Free bytes below which nothing is accepted and work pauses; 1 GiB."""
    chunk_positions: Annotated[int | None, Field(ge=1)] = None
    """Positions in one chunk, which is one shard; 1/64 of the corpus, between 4,096 and 8,388,608."""
    engine_restarts: Annotated[int, Field(ge=0)] = 5
    """Restarts of a dead teacher, without progress between them, before the process ends with exit code 4; 5."""
    engine_backoff_seconds: Annotated[float, Field(ge=0)] = 1.0
    """Pause before the first restart, which doubles up to one minute; 1."""
    engine_hang_seconds: Annotated[float | None, Field(ge=0)] = None
    """Silence of the teacher (no result, no step), with documents in hand, after which it counts as dead; 300 where its
    steps can be seen, else 1,800; 0: never."""
    cancel_grace_seconds: Annotated[float, Field(ge=0)] = 5.0
    """Silence of the teacher after which a cancelled extraction ends without waiting for it; 5; 0: it waits."""
    load_deadline_seconds: Annotated[float, Field(ge=0)] = 3600.0
    """Longest time that the teacher may take to load; 3,600; 0: any."""
    pause_poll_seconds: Annotated[float, Field(gt=0)] = 2.0
    """First pause of an extraction that waits for disk, cask or database, which doubles up to half a minute; 2."""
    keepalive_seconds: Annotated[float, Field(gt=0)] = 15.0
    """Silence after which an event stream sends a comment; 15."""

    score_request_sequences: Annotated[int, Field(ge=1)] = 1024
    """Most sequences of a request to score; 1,024."""
    score_request_tokens: Annotated[int, Field(ge=2)] = 1 << 17
    """Most tokens of a request to score, contexts included; 131,072."""
    score_waiting_tokens: Annotated[int, Field(ge=2)] = 1 << 19
    """Most tokens that wait to be scored, of all callers together; 524,288."""
    score_deadline_seconds: Annotated[float, Field(gt=0, le=MAX_TIMEOUT, allow_inf_nan=False)] = MAX_TIMEOUT
    """Longest time that a request to score waits for the teacher, whatever `timeout` it gives; 600."""

    remote_url: str | None = None
    """With --engine openai: where the teacher is served, such as http://HOST:8000."""
    remote_model: str | None = None
    """Its name there, if more than one is served."""
    remote_key: SecretStr | None = None
    remote_key_file: Path | None = None
    """File with the key for that server, on the first line that is not empty; or LOGITCASK_REMOTE_KEY."""
    remote_dialect: Literal["vllm", "sglang"] = "vllm"
    """What serves it: vllm (default) or sglang."""
    remote_concurrency: Annotated[int, Field(ge=1, le=1024)] = 16
    """Requests in flight at most; 16."""
    remote_requests_per_minute: Annotated[float | None, Field(gt=0, allow_inf_nan=False)] = None
    """Rate limit; none."""
    remote_timeout_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 600.0
    """Longest time that one answer may take; 600."""
    remote_patience_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 600.0
    """Longest time without any useful answer, after which the teacher counts as dead; 600."""

    @model_validator(mode="before")
    @classmethod
    def _has_what_all_need(cls, fields: Any) -> Any:
        """Whoever gives neither is told of both at once; one that is missing is told of below."""
        if isinstance(fields, dict) and not fields.keys() & {"teacher", "teachers", "cask_root"}:
            raise ValueError(
                "--teacher and --cask-root: are needed, here or as LOGITCASK_TEACHER and LOGITCASK_CASK_ROOT: the "
                "folder or Hub id of the teacher, and the folder where casks appear; `logitcask serve --help` lists "
                "all options"
            )
        return fields

    @field_validator("cask_root", mode="before")
    @classmethod
    def _is_a_place(cls, value: Any) -> Any:
        return (url_in(value) or Path(value)) if isinstance(value, str | Path) else value

    @field_validator("data_dir", mode="before")
    @classmethod
    def _is_a_folder(cls, value: Any) -> Any:
        if (url := url_in(value)) is not None:
            raise ValueError(
                f"expected a folder of this machine, got {url}: the job database, its locks and the tokens of running "
                "jobs need a file system. Name a folder; only --cask-root may be a URL"
            )
        return value

    @model_validator(mode="after")
    def _has_a_folder(self) -> Self:
        if self.data_dir is None and url_in(self.cask_root):
            raise ValueError(
                f"--data-dir: is needed, here or as LOGITCASK_DATA_DIR, as --cask-root is {self.cask_root}: a folder "
                "of this machine for the job database, corpora and tokens"
            )
        return self

    @model_validator(mode="after")
    def _who_is_served(self) -> Self:
        if self.teacher is None and self.teachers is None:
            raise ValueError(
                "--teacher: is needed, here or as LOGITCASK_TEACHER, or --teachers, a file that lists several; "
                "`logitcask serve --help` lists all options"
            )
        if self.teacher is not None and self.teachers is not None:
            raise ValueError("teacher and teachers are both set; keep one: the file may list a single teacher, too")
        if self.teachers is not None:
            fixed = {"engine", "dtype", "max_model_len", "engine_options"} & self.model_fields_set
            if fixed:
                raise ValueError(
                    f"{', '.join(sorted(fixed))}: with --teachers each teacher has its own, in the file; leave it out"
                )
        return self

    @field_validator("teachers")
    @classmethod
    def _is_a_file(cls, value: Path | None) -> Path | None:
        if value is not None and str(value).isdecimal() and not value.exists():
            raise ValueError(
                f"expected a file that lists teachers, got {value}; for {value} engines of one teacher say --engines "
                f"{value}"
            )
        return value

    @model_validator(mode="after")
    def _engines_fit(self) -> Self:
        on_ray = ("ray_address", "gpus_per_engine", "cpus_per_engine")
        only_on_ray = [name for name in on_ray if getattr(self, name) is not None]
        if self.executor == "local" and only_on_ray:
            raise ValueError(f"{', '.join(only_on_ray)}: for a Ray cluster; add --executor ray, or leave it out")
        if self.executor == "local" and self.engines == 1:
            return self
        if self.engine == "openai":
            raise ValueError(
                "engines and executor are for teachers that are loaded here; with engine openai leave them out: "
                "--remote-concurrency says how much goes on at once"
            )
        if not self.engine_process:
            raise ValueError("several engines are in processes of their own; leave --no-engine-process out")
        return self

    @model_validator(mode="after")
    def _metrics_can_be_told(self) -> Self:
        if self.engine_metrics and not self.engine_process:
            raise ValueError(
                "engine_metrics come from the engine's own process; leave --engine-metrics out, or --no-engine-process"
            )
        if self.engine_metrics and self.teachers is None and self.engine != "vllm":
            raise ValueError(f"engine_metrics are vLLM's, and the engine is {self.engine}; leave --engine-metrics out")
        return self

    @model_validator(mode="after")
    def _remote_fits(self) -> Self:
        remote = sorted(name for name in self.model_fields_set if name.startswith("remote_"))
        if self.engine != "openai":
            if remote:
                raise ValueError(
                    f"{', '.join(remote)}: for a teacher that is served elsewhere; add --engine openai, or leave it out"
                )
            return self
        if self.remote_url is None:
            raise ValueError("engine openai needs remote_url: where the teacher is served (--remote-url)")
        if self.students is not None:
            raise ValueError("students are for teachers that are loaded here; with engine openai leave them out")
        if self.engine_options:
            raise ValueError("engine_options are for teachers that are loaded here; with engine openai leave them out")
        if self.dtype != "auto":
            raise ValueError("dtype is for teachers that are loaded here; with engine openai leave it out")
        if self.remote_key is not None and self.remote_key_file is not None:
            raise ValueError("remote_key and remote_key_file are both set; keep one")
        return self

    @model_validator(mode="after")
    def _one_source_of_keys(self) -> Self:
        if self.api_key is not None and self.api_key_file is not None:
            raise ValueError("api_key and api_key_file are both set; keep one")
        return self

    @property
    def state_dir(self) -> Path:
        """Folder of everything the service writes besides casks."""
        return self.data_dir or Path(self.cask_root) / ".logitcask-service"

    def api_keys(self) -> tuple[ApiKey, ...]:
        """The accepted keys; empty when the service runs without. Raises SettingsError on unusable ones."""
        try:
            if self.api_key is not None:
                return (ApiKey.nameless(self.api_key.get_secret_value()),)
            return () if self.api_key_file is None else read_key_file(self.api_key_file)
        except KeyFileError as error:
            raise SettingsError(str(error)) from error

    def key_of_remote(self) -> str | None:
        """The Bearer key to send to a teacher that is served elsewhere. Raises SettingsError on an unusable one."""
        if self.remote_key is not None:
            key = self.remote_key.get_secret_value()
        elif self.remote_key_file is not None:
            key = _first_key(self.remote_key_file)
        else:
            return None
        if not key.isascii() or not key.isprintable() or not key or " " in key:
            raise SettingsError("the remote teacher's key must be printable ASCII characters without spaces")
        return key


class ClientSettings(BaseSettings):
    """Where `logitcask submit` and `logitcask jobs` find the service, and how they identify themselves."""

    model_config = SettingsConfigDict(env_prefix="LOGITCASK_", frozen=True)

    server: str = f"http://127.0.0.1:{DEFAULT_PORT}"
    api_key: SecretStr | None = None
    api_key_file: Path | None = None

    def key(self) -> str | None:
        """The Bearer key to send, or None."""
        if self.api_key is not None:
            return self.api_key.get_secret_value()
        return _first_key(self.api_key_file) if self.api_key_file is not None else None


def _first_key(path: Path) -> str:
    try:
        return key_to_send(path)
    except KeyFileError as error:
        raise SettingsError(str(error)) from error
