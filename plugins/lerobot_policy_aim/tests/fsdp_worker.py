"""Run by `test_fsdp.py` in each of two processes: `lerobot-train`, under FSDP if the first argument is `fsdp`.

FSDP is for accelerators. Here Accelerate's state says that two processes on CPUs shard. What LeRobot gathers for a
checkpoint is on the CPU already: weights aren't moved there, because PyTorch frees them then, and the optimizer's
tensors are copied, as moving them would. The rest is `lerobot-train` as it is, with the variables of
`accelerate launch --use_fsdp`, under which transformers gives weights to the first process alone.
"""

import os
import sys

import torch
import torch.distributed.fsdp
from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin, PartialState
from lerobot.scripts import lerobot_train
from lerobot.utils.import_utils import register_third_party_plugins
from torch.distributed.fsdp import FullStateDictConfig
from torch.utils._pytree import tree_map_only


def copied(gather):
    def gather_fsdp_state_dicts(policy, optimizer):
        weights, state = gather(policy, optimizer)
        return weights, tree_map_only(torch.Tensor, torch.clone, state)

    return gather_fsdp_state_dicts


register_third_party_plugins()
accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
if sys.argv.pop(1) == "fsdp":
    torch.distributed.fsdp.FullStateDictConfig = lambda rank0_only, **_: FullStateDictConfig(rank0_only=rank0_only)
    lerobot_train.gather_fsdp_state_dicts = copied(lerobot_train.gather_fsdp_state_dicts)
    for state in (accelerator.state, PartialState()):
        state.distributed_type = DistributedType.FSDP
        state.device = torch.device("cpu")  # to FSDP, cpu:0 is another device
    accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(
        auto_wrap_policy="transformer_based_wrap", use_orig_params=True
    )
    os.environ.update({"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"})
lerobot_train.train(accelerator=accelerator)
