"""What capture hands over for codec u8: values that nothing has rounded yet."""

import torch

from logitcask_schemas.record.capture_spec import CaptureSpec
from logitcask_services.capture import RecordCapture


def test_the_cask_rounds_not_capture() -> None:
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1)) * 4
    next_ids, keys, positions = torch.arange(6), torch.full((6,), 17), torch.arange(6)
    f32, u8 = (
        RecordCapture(CaptureSpec(logprob_codec=codec), 300)(logits.clone(), next_ids, keys, positions)
        for codec in ("f32", "u8")
    )
    for name in ("head_logprobs_H", "tail_ids_N"):
        assert torch.equal(getattr(f32, name), getattr(u8, name))
    assert u8.position_columns.keys() == {"log_tail_mass", "entropy"}
    for name, column in f32.position_columns.items():
        assert torch.equal(column, u8.position_columns[name])
    assert u8.head_logprobs_H.dtype == torch.float32
