"""A task file of lm-evaluation-harness, read so that it neither runs code nor asks the network unless told to.

`!function` imports and runs Python beside the file; metrics of Hugging Face's `evaluate` are scripts of the Hub. Both
are refused. Data come from files beside the task (`dataset_path: json`, or csv, parquet, text), or from the Hub.
"""

import difflib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import datasets
import yaml
from datasets.exceptions import DatasetGenerationError
from datasets.packaged_modules import _PACKAGED_DATASETS_MODULES
from lm_eval.api import metrics  # fills the registry
from lm_eval.api.registry import metric_registry
from lm_eval.config.task import TaskConfig
from lm_eval.tasks._yaml_loader import load_yaml

from logitcask_consumer.student.layer_proof import first_line
from logitcask_consumer.tasks.perturbations import Fields, require_columns
from logitcask_consumer.tasks.questions import LEAST_QUESTIONS, TaskError

del metrics
LOCAL: Final = ("json", "csv", "parquet", "text", "arrow")
"""Values of `dataset_path` for files that `data_files` names, counted from the task's folder."""
ACCURACIES: Final = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics by which each answer is right or wrong."""
_KINDS: Final = ("multiple_choice", "generate_until", "loglikelihood")
_REFUSED: Final = {
    "use_prompt": "prompts of promptsource are not read",
    "unsafe_code": "tasks that run what a model writes are not run",
    "doc_to_image": "models of text alone are asked",
    "doc_to_audio": "models of text alone are asked",
}
_STRUCTURE: Final = ("tag", "include")
"""Keys of a file that are none of a task."""
_TYPES: Final[dict[str, tuple[type, str]]] = {
    "task": (str, "a name (in quotes where it is a number)"),
    **dict.fromkeys(("test_split", "validation_split", "fewshot_split"), (str, "the name of a split")),
    **dict.fromkeys(("dataset_kwargs", "generation_kwargs", "fewshot_config"), (dict, "a mapping")),
    "num_fewshot": (int, "a number"),
}
"""Of what is read here before lm-evaluation-harness looks at it."""
_NEEDED: Final = ("task", "dataset_path", "output_type", "doc_to_text", "doc_to_target")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFile:
    """A task with its data, before lm-evaluation-harness has seen them."""

    path: Path
    config: dict[str, Any]
    """Keys of lm-evaluation-harness' TaskConfig."""
    splits: dict[str, Any]
    """Name -> datasets.Dataset."""
    metric: str
    """The first of its metrics by which an answer is right or wrong."""
    fields: Fields | None
    """What perturbations change; None where the file does not say."""

    @property
    def name(self) -> str:
        """Of the task."""
        return str(self.config["task"])

    @property
    def asked(self) -> str:
        """Name of the split with the questions that are asked."""
        return str(self.config.get("test_split") or self.config["validation_split"])


def read_task(path: Path, *, run_code: bool = False) -> TaskFile:
    """Read a task file and its data.

    Args:
        path: of the YAML file.
        run_code: follow `!function`, which runs Python of the task's author.

    Raises:
        TaskError: the file, or what it names, cannot be read, has keys that lm-evaluation-harness does not know, lacks
            some, or has fewer questions than tell anything.
    """
    config = _read_config(path, run_code=run_code)
    _check_keys(path, config)
    metric = _metric(path, config)
    fields = _fields(path, config)
    splits = _data(path, config)
    asked = next((config[key] for key in ("test_split", "validation_split") if config.get(key)), None)
    if asked not in splits:
        raise TaskError(
            f"{path}: its questions are in the split {asked!r} (test_split or validation_split), but its data have "
            f"{', '.join(splits)}"
        )
    if len(splits[asked]) < LEAST_QUESTIONS:
        raise TaskError(
            f"{path}: there are {len(splits[asked])} questions; at least {LEAST_QUESTIONS} are needed to tell an "
            "accuracy"
        )
    if fields is not None:
        require_columns(splits[asked][0], fields, where=str(path))
    return TaskFile(path=path, config=config, splits=splits, metric=metric, fields=fields)


def _read_config(path: Path, *, run_code: bool) -> dict[str, Any]:
    """The file and those that it includes, as one mapping."""
    try:
        if not run_code and (function := next(_functions(path, set()), None)):
            raise TaskError(
                f"{function} names a !function, which would run Python of the task's author. Read it, and give "
                "--task-code to run it"
            )
        config: dict[str, Any] = load_yaml(path, resolve_func=run_code)
    except OSError as error:
        raise TaskError(f"{path} cannot be read as a task: {error}") from error
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        if isinstance(error, TaskError):
            raise
        raise TaskError(f"{path} cannot be read as a task, a mapping in YAML: {first_line(error)}") from error
    except (ImportError, AttributeError) as error:  # of a !function that is to be run
        raise TaskError(f"{path} names a !function that cannot be loaded: {first_line(error)}") from error
    return config


def _functions(path: Path, seen: set[Path]) -> Iterator[str]:
    """File and line of each `!function` of a task file and of those that it includes."""
    if path.resolve() in seen:
        return
    seen.add(path.resolve())
    text = path.read_text(encoding="utf-8")
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if str(getattr(event, "tag", None)).startswith(("!function", "tag:yaml.org,2002:python/")):
            yield f"{path}, line {event.start_mark.line + 1}"
    included = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
    for other in included if isinstance(included, list) else [included]:
        if not isinstance(other, str):
            raise TaskError(f"{path}: include must be the name of a file, or a list of some, got {other!r}")
        yield from _functions(path.parent / other, seen)


def _check_keys(path: Path, config: dict[str, Any]) -> None:
    if "group" in config or isinstance(config.get("task"), list):
        raise TaskError(f"{path} is a group of tasks; name the files of its tasks")
    for key in _STRUCTURE:
        config.pop(key, None)
    known_keys = {field.name for field in fields(TaskConfig)} - {"custom_dataset"}
    for key in config:
        if key not in known_keys:
            near = difflib.get_close_matches(str(key), known_keys, n=1)
            meant = f"; did you mean {near[0]}?" if near else ""
            raise TaskError(f"{path}: lm-evaluation-harness knows no key {key!r}{meant}")
        if key in _REFUSED and config[key]:
            raise TaskError(f"{path}: {key}: {_REFUSED[key]}")
    for key, (kind, what) in _TYPES.items():
        if config.get(key) is not None and not isinstance(config[key], kind):
            raise TaskError(f"{path}: {key} must be {what}, got {config[key]!r}")
    if (config.get("num_fewshot") or 0) < 0:
        raise TaskError(f"{path}: num_fewshot must be at least 0, got {config['num_fewshot']}")
    _check_generation(path, config.get("generation_kwargs") or {})
    needed = [*_NEEDED, *(["doc_to_choice"] if config.get("output_type") == "multiple_choice" else [])]
    # An answer may be the first of the choices, 0.
    if missing := [key for key in needed if config.get(key) in (None, "")]:
        raise TaskError(f"{path}: a task needs {', '.join(missing)}")
    if config["output_type"] not in _KINDS:
        raise TaskError(
            f"{path}: output_type is {config['output_type']!r}; answers are right or wrong only of {', '.join(_KINDS)}"
        )
    if config.get("repeats", 1) != 1:
        raise TaskError(f"{path}: repeats: every question is asked once; leave it out")


def _check_generation(path: Path, settings: dict[str, Any]) -> None:
    """Refuse lengths and ends that are none, and answers that would differ from call to call."""
    longest, until = settings.get("max_gen_toks", 1), settings.get("until", [])
    if type(longest) is not int or longest < 1:
        raise TaskError(f"{path}: generation_kwargs: max_gen_toks must be a number of at least 1, got {longest!r}")
    if not all(isinstance(end, str) for end in (until if isinstance(until, list) else [until])):
        raise TaskError(f"{path}: generation_kwargs: until must be a text, or a list of some, got {until!r}")
    if drawn := [name for name in ("do_sample", "temperature") if settings.get(name)]:
        raise TaskError(
            f"{path}: generation_kwargs: {drawn[0]}: answers would be drawn, and differ from call to call; leave it out"
        )


def _metric(path: Path, config: dict[str, Any]) -> str:
    """The first metric by which an answer is right or wrong."""
    if config.get("metric_list") is None:
        return "exact_match" if config["output_type"] == "generate_until" else "acc"
    listed = config["metric_list"]
    if not isinstance(listed, list) or not all(isinstance(each, dict) and "metric" in each for each in listed):
        raise TaskError(f"{path}: metric_list must be a list of mappings with `metric`")
    if any(each.get("hf_evaluate") for each in listed):
        raise TaskError(f"{path}: hf_evaluate: metrics of the Hub are code that would be downloaded; leave it out")
    names = [each["metric"] for each in listed]
    computed = config.get("process_results") is not None  # by a !function that was allowed
    for name in names:
        is_known = isinstance(name, str) and (computed or name in metric_registry)
        if not callable(name) and not is_known:
            raise TaskError(
                f"{path}: lm-evaluation-harness has no metric {name!r}; accuracies: {', '.join(ACCURACIES)}"
            )
    metric = next((str(name) for name in names if name in ACCURACIES), None)
    if metric is None:
        raise TaskError(
            f"{path}: by none of its metrics ({', '.join(map(str, names))}) is an answer right or wrong; add one of "
            f"{', '.join(ACCURACIES)}"
        )
    return metric


def _fields(path: Path, config: dict[str, Any]) -> Fields | None:
    """`fields` of the metadata, which lm-evaluation-harness leaves alone."""
    metadata = config.get("metadata")
    named = metadata.get("fields") if isinstance(metadata, dict) else None
    if named is None:
        return None
    known_names = {field.name for field in fields(Fields)}
    if not isinstance(named, dict) or "question" not in named or not set(named) <= known_names:
        raise TaskError(f"{path}: `metadata: fields` names the columns of question, and perhaps choices and answer")
    return Fields(**{key: str(value) for key, value in named.items()})


def _data(path: Path, config: dict[str, Any]) -> dict[str, Any]:
    """Splits of the task's data, in memory."""
    place, more = str(config["dataset_path"]), dict(config.get("dataset_kwargs") or {})
    if more.pop("trust_remote_code", False):
        raise TaskError(f"{path}: trust_remote_code: code of the Hub is not run; leave it out")
    local = place in LOCAL
    if local:
        if "data_files" not in more:
            raise TaskError(f"{path}: dataset_path: {place} needs dataset_kwargs: data_files")
        more["data_files"] = _beside(path, more["data_files"])
    elif (path.parent / place).is_dir():
        place = str(path.parent / place)
    elif place in _PACKAGED_DATASETS_MODULES:
        raise TaskError(
            f"{path}: dataset_path: {place} may run code, or reach for other machines; take {', '.join(sorted(LOCAL))}"
        )
    datasets.disable_progress_bars()
    try:
        with tempfile.TemporaryDirectory(prefix="logitcask-tasks-") as cache:
            # What comes from the Hub stays in its own cache.
            kept = {"cache_dir": cache} if local else {}
            loaded = datasets.load_dataset(place, config.get("dataset_name"), keep_in_memory=True, **kept, **more)
    except (OSError, ValueError, TypeError, RuntimeError, DatasetGenerationError) as error:
        cause = first_line(error.__cause__ or error)
        if local:
            raise TaskError(f"{path}: its data cannot be read: {cause}") from error
        raise TaskError(
            f"{path}: its data, {place}, cannot be had from the Hub: {cause}. Without a network put them beside the "
            "task as JSON, and name them with dataset_path: json and dataset_kwargs: data_files"
        ) from error
    return dict(loaded) if isinstance(loaded, dict) else {"train": loaded}


def _beside(path: Path, files: Any) -> Any:
    """Names of data files, counted from the task's folder."""
    if isinstance(files, dict):
        return {split: _beside(path, each) for split, each in files.items()}
    if isinstance(files, list):
        return [_beside(path, each) for each in files]
    if "://" in str(files):
        raise TaskError(f"{path}: data_files: {files} is not on this machine; fetch it, and name the file")
    place = path.parent / str(files)
    if "*" not in str(files) and not place.is_file():
        raise TaskError(f"{path}: its data file {place} is not there")
    return str(place)
