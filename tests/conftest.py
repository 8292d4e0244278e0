import os

import torch
from hypothesis import settings

torch.set_num_threads(1)

# no deadline: times on a shared machine say nothing; the same examples on every run, more of them on request
settings.register_profile("isthmus", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "isthmus"))
