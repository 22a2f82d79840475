#!/bin/bash
# Starts a Ray cluster on the nodes of a SLURM job and generates on all of their GPUs: sbatch examples/cluster/slurm.sh
# From the checkout, with its environment in .venv; both, and the store, on a disk that every node sees. A job that is
# sent again (--requeue) continues: what is stored is not computed again.
#SBATCH --job-name=lgclip
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=12:00:00
#SBATCH --requeue
set -euo pipefail

STORE=${STORE:-$SCRATCH/lgclip}
NAMES=${NAMES:-examples/names.txt}
DIFFUSER=${DIFFUSER:-sd_turbo}

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# Starts Ray on every node, runs the command on the first one when all are there, and stops Ray after it.
srun --kill-on-bad-exit=1 .venv/bin/ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_JOB_NUM_NODES" -- \
  .venv/bin/python generate.py executor=ray precision=bf16 paths.images=tar "paths.store=$STORE" \
  dataset=names "dataset.names=$NAMES" "diffuser=$DIFFUSER" prompts_per_class=10 images_per_prompt=5
