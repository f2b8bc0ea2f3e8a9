"""The built-in trainers and tasks as entry points; imports nothing heavy."""

from __future__ import annotations

from hansa.worker.base import TaskPlugin, TrainerPlugin
from hansa.worker.llm_options import (
    CausalLMModelOptions,
    CausalLMWorkOptions,
    ChemOptions,
    language_impure,
    rank_misfit,
)
from hansa.worker.options import (
    DigitsOptions,
    InstructOptions,
    OwnDataOptions,
    ProgramModelOptions,
    ProgramWorkOptions,
    SoftmaxModelOptions,
    SoftmaxWorkOptions,
    TorchModuleModelOptions,
    TorchModuleWorkOptions,
    program_impure,
    softmax_impure,
    torch_module_impure,
)

CAUSAL_LM = TrainerPlugin(
    model_options=CausalLMModelOptions,
    work_options=CausalLMWorkOptions,
    target="hansa.worker.trainers.causal_lm:CausalLM",
    assets="hansa.worker.trainers.causal_lm:write_assets",
    first="hansa.worker.trainers.models:FirstModel",
    misfit=rank_misfit,
    impure=language_impure,
    parallel=True,
    generates=True,
)
SOFTMAX = TrainerPlugin(
    model_options=SoftmaxModelOptions,
    work_options=SoftmaxWorkOptions,
    target="hansa.worker.trainers.softmax:Softmax",
    impure=softmax_impure,
)
PROGRAM = TrainerPlugin(
    model_options=ProgramModelOptions,
    work_options=ProgramWorkOptions,
    target="hansa.worker.trainers.program:Program",
    assets="hansa.worker.trainers.program:write_assets",
    first="hansa.worker.trainers.program:FirstVersion",
    impure=program_impure,
    parallel=True,
)
TORCH_MODULE = TrainerPlugin(
    model_options=TorchModuleModelOptions,
    work_options=TorchModuleWorkOptions,
    target="hansa.worker.trainers.torch_module:TorchModule",
    impure=torch_module_impure,
    parallel=True,
)

CHEM_INSTRUCT = TaskPlugin(
    options=ChemOptions,
    target="hansa.worker.tasks.chem:ChemInstruct",
    scores="hansa.worker.tasks.chem.score:score",
)
DIGITS = TaskPlugin(options=DigitsOptions, target="hansa.worker.tasks.digits:Digits")
INSTRUCT = TaskPlugin(
    options=InstructOptions, target="hansa.worker.tasks.instruct:Instruct"
)
OWN_DATA = TaskPlugin(options=OwnDataOptions, target="hansa.worker.tasks.own:OwnData")
