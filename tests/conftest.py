"""One thread a test process: on tensors this small a second thread costs more than it brings, and tests run in parallel."""

import torch

torch.set_num_threads(1)
