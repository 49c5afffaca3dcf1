"""Ctrl-C in the middle of a training, in a process of its own."""

import subprocess
import sys

SCRIPT = """
import os, signal, sys, numpy as np, pandas as pd
from lightning.pytorch import Callback
from tsgdn2 import GDN2Estimator

class Interrupt(Callback):
    def on_train_batch_start(self, *_):
        os.kill(os.getpid(), signal.SIGINT)

data = [{"start": pd.Period("2024-01-01", freq="h"), "target": np.arange(400.0), "item_id": "a"}]
small = {"width": 8, "heads": 1, "key_dim": 4, "value_dim": 4, "mlp": 8, "context_length": 64, "batch_size": 4}
try:
    GDN2Estimator("h", 12, trainer_kwargs={"callbacks": [Interrupt()]}, **small).train(data)
except KeyboardInterrupt:
    handler = signal.getsignal(signal.SIGINT)
    sys.exit(130 if handler is signal.default_int_handler else 3)
"""


def test_an_interrupted_training_raises_keyboard_interrupt_and_leaves_the_signal_alone():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 130, done.stderr
