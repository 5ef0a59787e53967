"""A real torch.distributed gloo all-reduce over the TCPStore that the engine relays."""

import datetime

import talk
import torch
import torch.distributed as dist

talk.emit("ready")
timeout = datetime.timedelta(seconds=60)
own = None
if talk.RANK == 0:
    own = dist.TCPStore("0.0.0.0", 0, talk.WORLD, is_master=True, wait_for_workers=False)
    talk.emit("store", port=own.port)
address = talk.read_store()
talk.end_with_the_worker()
store = dist.TCPStore(address["store_host"], address["store_port"], talk.WORLD, timeout=timeout)
dist.init_process_group("gloo", store=store, rank=talk.RANK, world_size=talk.WORLD, timeout=timeout)
total = torch.tensor([talk.RANK + 1.0])
dist.all_reduce(total)
dist.barrier()
dist.destroy_process_group()
talk.emit("result", value=total.item())
