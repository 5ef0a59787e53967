"""Many trainings as one piece of work: folds, and the settings of a search.

Which are trained (choose/):
space.py         what a search's space means; sampler.py: which settings come next
halving.py       which trials go on; table.py: what was found; importance.py: what mattered

How they are trained, fused into one batched program where that is faster (fused/):
task.py          what an engine's worker is given; held_out.py: out-of-fold predictions
member.py        what is trained, and what comes of it
run.py           to their ends, from a checkpoint if there is one; solo.py: one trained apart
standing.py      where a member stands
fused/plan.py    which members may share a stack (feasible.py: and why not)
fused/size.py    how many make a stack; stack.py: a stack's epochs
fused/streams.py rows in each fold's and seed's order; feed.py: cut into batches
fused/dense.py   linear and mlp by hand (dense_pass.py); vmapped.py: any model that vmap takes
fused/head.py    losses and their gradients at the outputs; dropout.py: each member's own draws
fused/update.py  penalties, clipping, schedules; optimizers.py: all of torch's that we have
fused/scoring.py validation metrics of many members
"""
