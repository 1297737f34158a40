"""One process of distributed runs, one after the other; started by torchrun with the settings of each as JSON."""

import json
import sys
from pathlib import Path

from logitcask_consumer.config import TrainConfig
from logitcask_consumer.processes import leave_processes
from logitcask_consumer.training.run import train

if __name__ == "__main__":
    for argument in sys.argv[1:]:
        settings = json.loads(argument)
        for name in ("output", "teacher"):
            settings[name] = Path(settings[name])
        settings["casks"] = tuple(map(Path, settings["casks"]))
        settings["report_to"] = tuple(settings["report_to"])
        train(TrainConfig(**settings))
    leave_processes()
