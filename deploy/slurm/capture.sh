#!/bin/bash
# A corpus into one cask by many jobs that know nothing of each other: sbatch deploy/slurm/capture.sh
# Whatever was killed or timed out: submit it again, all of it or the tasks that failed (sbatch --array=3,5 ...).
#SBATCH --job-name=logitcask
#SBATCH --array=0-7
#SBATCH --ntasks=1
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --output=logitcask-%A-%a.log
set -euo pipefail

# Said here, not taken from SLURM_ARRAY_TASK_COUNT: a part must mean the same when a few tasks are submitted again.
PARTS=8

# A file system that all nodes see, whose mount supports flock (NFS 4; Lustre with -o flock).
SHARED="${SHARED:-/shared/logitcask}"

# srun does not take the processors over from sbatch since Slurm 22.05.
srun --cpus-per-task="$SLURM_CPUS_PER_TASK" logitcask capture "$SHARED/corpus.jsonl" \
  --teacher "$SHARED/models/teacher" \
  --cask "$SHARED/casks/mine" \
  --part "$SLURM_ARRAY_TASK_ID/$PARTS"
