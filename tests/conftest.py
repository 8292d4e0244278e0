import os
from typing import Any

import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)

# no deadline: times on a shared machine say nothing; the same examples on every run, more of them on request
settings.register_profile("isthmus", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "isthmus"))


class _Together(LoadScopeScheduling):
    """Tests that share what is made once go to one worker: a paper's smoke run, what a method makes of a problem."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if "tests/papers/" in file or file.endswith("experiments/test_experiments.py"):
            return file
        if file.endswith(("laws/test_methods.py", "certify/test_forms.py")):
            return nodeid.split("[")[-1]
        return nodeid


def pytest_xdist_make_scheduler(config: Any, log: Any) -> LoadScopeScheduling:
    return _Together(config, log)


# registering a device changes all of torch, for good: tests/test_device.py runs these in a process of its own
collect_ignore = [] if "ISTHMUS_PRETENDED_DEVICE" in os.environ else ["on_a_device.py", "pretended_device.py"]
