#!/bin/bash -l
#SBATCH --job-name=hansa.euro.train-0001-leonardo-1.1
#SBATCH --partition=boost_usr_prod
#SBATCH --account=PROJ
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --time=1:00:00
#SBATCH --chdir=/leonardo_work/PROJ/hansa/mailbox/euro/jobs/train-0001-leonardo-1.1
#SBATCH --output=/leonardo_work/PROJ/hansa/mailbox/euro/jobs/train-0001-leonardo-1.1/log.txt
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --gres=gpu:4
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --mem=0
# Left over, perhaps, from a launch that this job was submitted from:
unset SLURM_STEP_ID SLURM_STEPID SLURM_STEP_NUM_TASKS PMIX_RANK
unset PALS_RANKID PALS_LOCAL_RANKID PMI_RANK PMI_SIZE PMI_LOCAL_RANK
unset OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE OMPI_COMM_WORLD_LOCAL_RANK
unset MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MV2_COMM_WORLD_LOCAL_RANK
unset RANK WORLD_SIZE LOCAL_RANK MPI_LOCALRANKID
export SLURM_WAIT=0
export OMP_NUM_THREADS=8
export PYTHONUNBUFFERED=1
export PYTHONSAFEPATH=1
export HANSA_ATTEMPT="$(date +%s)-$$"
exec srun -N 2 -n 8 --ntasks-per-node=4 -c 8 --cpu-bind=cores --kill-on-bad-exit=1 bash -c 'export CUDA_VISIBLE_DEVICES=$SLURM_LOCALID; exec "$@"' rank /leonardo_work/PROJ/hansa/venv/bin/python -P -m hansa.worker run /leonardo_work/PROJ/hansa/state/euro/jobs/train-0001-leonardo-1.1/job.json --sha256 DIGEST --attempt "$HANSA_ATTEMPT"
