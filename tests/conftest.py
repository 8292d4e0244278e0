import os
from typing import Any

import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

torch.set_num_threads(1)
os.environ.setdefault("RAY_worker_niceness", "0")  # else Ray's workers starve beside the other tests

# no deadline: times on a shared machine say nothing; the same examples on every run, more of them on request
settings.register_profile("isthmus", deadline=None, derandomize=True)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "isthmus"))


# the dear files: their tests are shared out, by what they are about or one by one
_BY_PARAMETER = (
    *("laws/test_methods.py", "certify/test_forms.py", "certify/test_soundness.py"),
    *("structure/test_derive.py", "structure/test_units.py", "program/test_export.py"),
)
_APART = ("laws/test_memory.py", "laws/test_generated_modules.py", "structure/test_architectures.py")
# to import transformers takes seconds, in each worker that does
_TRANSFORMERS = ("test_hugging_face.py", "storage/test_adapters.py", "certify/test_modern.py")


class _Together(LoadScopeScheduling):
    """Tests that share what is made once go to one worker: a file, a network, what a method makes of a problem."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        if file.endswith(_BY_PARAMETER):
            return nodeid.split("[")[-1]
        if file.endswith(_TRANSFORMERS):
            return "transformers"
        return nodeid if file.endswith(_APART) else file


def pytest_xdist_make_scheduler(config: Any, log: Any) -> LoadScopeScheduling:
    return _Together(config, log)


# registering a device changes all of torch, for good: tests/test_device.py runs these in a process of its own
collect_ignore = [] if "ISTHMUS_PRETENDED_DEVICE" in os.environ else ["on_a_device.py", "pretended_device.py"]
