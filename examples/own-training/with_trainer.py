"""The same model in a Hugging Face `Trainer`, by one callback of Hansa."""

import tempfile

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from hansa.worker.huggingface import HansaCallback


class Net(nn.Sequential):
    """The model of train.py, with the loss that a `Trainer` wants."""

    def forward(self, pixels, labels):
        """Return loss and scores."""
        scores = super().forward(pixels)
        return {"loss": cross_entropy(scores, labels), "logits": scores}


class Digits(Dataset):
    """Images with some labels, for training or for the test."""

    def __init__(self, wanted, test):
        images, labels = map(torch.tensor, load_digits(return_X_y=True))
        chosen = torch.isin(labels, torch.tensor(list(wanted)))
        chosen &= (torch.arange(len(labels)) % 5 == 0) == test
        self.images, self.labels = images[chosen].float() / 16, labels[chosen]

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"pixels": self.images[index], "labels": self.labels[index]}


callback = HansaCallback(lambda: {"own": trainer.evaluate()["eval_loss"]})
job = callback.job
arguments = TrainingArguments(
    tempfile.mkdtemp(),
    max_steps=callback.max_steps,
    per_device_train_batch_size=job.batch,
    learning_rate=job.options["lr"] / 10,
    seed=job.seed % 2**32,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    use_cpu=not torch.cuda.is_available(),
)
trainer = Trainer(
    model=Net(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)),
    args=arguments,
    train_dataset=Digits(job.options["labels"], test=False),
    eval_dataset=Digits(range(10), test=True),
    callbacks=[callback],
)
trainer.train()
