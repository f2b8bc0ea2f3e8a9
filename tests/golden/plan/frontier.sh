#!/bin/bash -l
#SBATCH --job-name=hansa.doe.train-0001-frontier-1.1
#SBATCH --partition=batch
#SBATCH --account=PROJ
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --time=1:00:00
#SBATCH --chdir=/lustre/orion/PROJ/proj-shared/hansa/mailbox/doe/jobs/train-0001-frontier-1.1
#SBATCH --output=/lustre/orion/PROJ/proj-shared/hansa/mailbox/doe/jobs/train-0001-frontier-1.1/log.txt
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
# Left over, perhaps, from a launch that this job was submitted from:
unset SLURM_STEP_ID SLURM_STEPID SLURM_STEP_NUM_TASKS PMIX_RANK
unset PALS_RANKID PALS_LOCAL_RANKID PMI_RANK PMI_SIZE PMI_LOCAL_RANK
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK
unset MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK
unset RANK WORLD_SIZE LOCAL_RANK MPI_LOCALRANKID
module load PrgEnv-gnu/8.7.0
module load cpe/26.03
module load rocm/7.1.1
module load craype-accel-amd-gfx90a
module load rccl-net-plugin
export LD_LIBRARY_PATH=$CRAY_LD_LIBRARY_PATH:$LD_LIBRARY_PATH
export SLURM_WAIT=0
export OMP_NUM_THREADS=7
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export NCCL_SOCKET_IFNAME=hsn0,hsn1,hsn2,hsn3
export HANSA_ATTEMPT="$(date +%s)-$$"
exec srun -N 2 -n 16 --ntasks-per-node=8 -c 7 --gpus-per-task=1 --gpu-bind=closest --kill-on-bad-exit=1 /lustre/orion/PROJ/proj-shared/hansa/env/bin/python -P -m hansa.worker run /lustre/orion/PROJ/proj-shared/hansa/state/doe/jobs/train-0001-frontier-1.1/job.json --sha256 DIGEST --attempt "$HANSA_ATTEMPT"
