"""Chemistry instruction data: the task `chem-instruct`."""

from hansa.worker.tasks.chem.task import ChemInstruct

__all__ = ["ChemInstruct"]
