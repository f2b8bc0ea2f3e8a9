"""A training program of one's own in a federation, by three calls of Hansa."""

import sys

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

import hansa.worker

torch.manual_seed(1)
model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
if sys.argv[1:]:  # python train.py first.safetensors: what version 0 is made of
    save_file(model.state_dict(), sys.argv[1])
    sys.exit()

job = hansa.worker.load()
images, labels = map(torch.tensor, load_digits(return_X_y=True))
images, test = images.float() / 16, torch.arange(len(labels)) % 5 == 0
mine = (~test & torch.isin(labels, torch.tensor(job.options["labels"]))).nonzero()[:, 0]
optimizer = torch.optim.SGD(model.parameters(), lr=job.options["lr"], momentum=0.9)
job.into(model, optimizer)

while job.going:
    generator = torch.Generator().manual_seed(job.seed + job.done)
    chosen = mine[torch.randint(len(mine), (job.batch,), generator=generator)]
    loss = cross_entropy(model(images[chosen]), labels[chosen])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    hansa.worker.step(loss, samples=len(chosen))

with torch.no_grad():
    test_loss = cross_entropy(model(images[test]), labels[test])
hansa.worker.submit(model, losses={"own": float(test_loss)})
