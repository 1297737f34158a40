"""Training data over casks: windows, packing, order, dataset, collation.

Read in this order: `windows` (documents into pieces), `packing` (pieces into sequences), `dataset` (batches of
sequences out of the mapped shards), `slots` and `collate` (sequences into tensors), `sampler` (the order in which
sequences come).
"""

from logitcask_consumer.data.bin_packing import Packs, pack, pack_best_fit, pack_fullest
from logitcask_consumer.data.cask_source import CaskGroup, CaskSource, CaskSourceError, open_groups
from logitcask_consumer.data.collate import Batch, Collator, target_of
from logitcask_consumer.data.dataset import CaskDataset, EmptyCaskError, TrainedShare, open_casks
from logitcask_consumer.data.mixed_dataset import MixedDataset
from logitcask_consumer.data.packed_dataset import PackedDataset, SequenceDataset
from logitcask_consumer.data.packing import Packing, pack_alone
from logitcask_consumer.data.phase_sampler import Phase, PhaseSampler
from logitcask_consumer.data.sampled_dataset import SampledDataset, SampledTexts
from logitcask_consumer.data.sampler import EMPTY, ShardBlockSampler, StepSampler
from logitcask_consumer.data.sequence_records import SequenceRecords
from logitcask_consumer.data.trained_share import NothingTrainedError, share_note, trained_share
from logitcask_consumer.data.windows import WindowError, Windows

__all__ = [
    "EMPTY",
    "Batch",
    "CaskDataset",
    "CaskGroup",
    "CaskSource",
    "CaskSourceError",
    "Collator",
    "EmptyCaskError",
    "MixedDataset",
    "NothingTrainedError",
    "PackedDataset",
    "Packing",
    "Packs",
    "Phase",
    "PhaseSampler",
    "SampledDataset",
    "SampledTexts",
    "SequenceDataset",
    "SequenceRecords",
    "ShardBlockSampler",
    "StepSampler",
    "TrainedShare",
    "WindowError",
    "Windows",
    "open_casks",
    "open_groups",
    "pack",
    "pack_alone",
    "pack_best_fit",
    "pack_fullest",
    "share_note",
    "target_of",
    "trained_share",
]
