"""One of two processes that evaluate a student; writes the loss it got. Arguments: CASK HELD OUTPUT."""

import os
import sys
from pathlib import Path

from logitcask_consumer.data import CaskDataset, open_casks
from logitcask_consumer.processes import leave_processes
from logitcask_consumer.training.arguments import DistillConfig
from logitcask_consumer.training.trainer import DistillTrainer
from tests.support.consumer.cask_builder import tiny_model


def main() -> None:
    output = Path(sys.argv[3])
    train, held = (CaskDataset(open_casks(path, tokenizer_fingerprint=None), seq_len=64) for path in sys.argv[1:3])
    args = DistillConfig(output_dir=str(output / "run"), report_to="none", use_cpu=True, per_device_eval_batch_size=2)
    trainer = DistillTrainer(tiny_model(layers=2, seed=1), args, train, held)
    loss = trainer.evaluate()["eval_loss"]
    (output / f"{os.environ['RANK']}.txt").write_text(str(loss))
    leave_processes()


if __name__ == "__main__":
    main()
