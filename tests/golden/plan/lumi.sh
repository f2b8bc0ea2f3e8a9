#!/bin/bash -l
#SBATCH --job-name=hansa.euro.train-0001-lumi-1.1
#SBATCH --partition=standard-g
#SBATCH --account=PROJ
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --time=1:00:00
#SBATCH --chdir=/scratch/PROJ/hansa/mailbox/euro/jobs/train-0001-lumi-1.1
#SBATCH --output=/scratch/PROJ/hansa/mailbox/euro/jobs/train-0001-lumi-1.1/log.txt
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --gpus-per-node=8
#SBATCH --mem-per-gpu=60G
# Left over, perhaps, from a launch that this job was submitted from:
unset SLURM_STEP_ID SLURM_STEPID SLURM_STEP_NUM_TASKS PMIX_RANK
unset PALS_RANKID PALS_LOCAL_RANKID PMI_RANK PMI_SIZE PMI_LOCAL_RANK
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK
unset MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK
unset RANK WORLD_SIZE LOCAL_RANK MPI_LOCALRANKID
export SLURM_WAIT=0
export OMP_NUM_THREADS=7
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export NCCL_SOCKET_IFNAME=hsn
export NCCL_NET_GDR_LEVEL=3
export HANSA_ATTEMPT="$(date +%s)-$$"
exec srun -N 2 -n 16 --ntasks-per-node=8 --cpu-bind=mask_cpu:0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000 --kill-on-bad-exit=1 bash -c 'export ROCR_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"' rank /project/PROJ/hansa/venv/bin/python -P -m hansa.worker run /scratch/PROJ/hansa/state/euro/jobs/train-0001-lumi-1.1/job.json --sha256 DIGEST --attempt "$HANSA_ATTEMPT"
