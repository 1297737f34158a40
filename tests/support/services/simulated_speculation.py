"""Speculative decoding done slowly and plainly, a token at a time, with counters named as vLLM's."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from prometheus_client.core import Metric

from logitcask_services.engines.generator import GenerationResult, GenerationTask, TeacherResult, TeacherTask
from logitcask_services.engines.metrics import EngineMetrics

NextToken = Callable[[list[int]], int]
"""The token after some others."""


class SimulatedSpeculation:
    """A `Generator` with a draft model. `teacher` and `draft` give the token that each would write next."""

    def __init__(self, teacher: NextToken, draft: NextToken, drafted: int) -> None:
        self._teacher, self._draft, self._drafted = teacher, draft, drafted
        self.steps = 0
        self.accepted = [0] * drafted
        self.closed = False

    def generate(self, tasks: Iterable[TeacherTask]) -> Iterator[TeacherResult]:
        """Texts of exactly `max_tokens` tokens; nothing ends them before."""
        for task in tasks:
            assert isinstance(task, GenerationTask)
            yield self._write(task)

    def _write(self, task: GenerationTask) -> GenerationResult:
        prompt: list[int] = task.prompt_ids_C.tolist()
        end = len(prompt) + task.sampling.max_tokens
        text = [*prompt, self._teacher(prompt)]
        while len(text) < end:
            drafts = list(text)
            for _ in range(self._drafted):
                drafts.append(self._draft(drafts))
            self.steps += 1
            for place in range(self._drafted):
                token = self._teacher(text)
                text.append(token)
                if token != drafts[len(text) - 1]:
                    break
                self.accepted[place] += 1
            else:
                text.append(self._teacher(text))
        written = np.array(text[len(prompt) : end], np.uint32)
        return GenerationResult(key=task.key, token_ids_N=written, text="", finish="length", logprob=0.0)

    def own_metrics(self) -> EngineMetrics:
        """The counters."""
        drafts = Metric("vllm:spec_decode_num_drafts", "", "counter")
        drafts.add_sample("vllm:spec_decode_num_drafts_total", {"engine": "0"}, float(self.steps))
        places = Metric("vllm:spec_decode_num_accepted_tokens_per_pos", "", "counter")
        for place, count in enumerate(self.accepted):
            labels = {"engine": "0", "position": str(place)}
            places.add_sample("vllm:spec_decode_num_accepted_tokens_per_pos_total", labels, float(count))
        return EngineMetrics(families=(drafts, places), left_out=0)

    def interrupt(self) -> bool:
        """Nothing runs elsewhere."""
        return False

    def close(self) -> None:
        """Remember it."""
        self.closed = True

    identity: Any = None
    max_model_len = 10_000
