"""What is asked of glibc's allocator, and when nothing is."""

import subprocess
import sys

import pytest

from depthscope import allocator

pytestmark = pytest.mark.skipif(allocator._glibc() is None, reason="the C library is not glibc")

FIFTY_TENSORS = """
import resource
import torch
from depthscope import allocator
allocator.WAY()
for _ in range(3):
    torch.ones(2**22)
begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    torch.ones(2**22)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
"""


def faults(way: str, **environment: str) -> int:
    """Pages that the system had to provide in a process that allocates and frees fifty tensors."""
    code = FIFTY_TENSORS.replace("WAY", way)
    return int(subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True).stdout)


def test_kept_memory_is_used_again_and_a_server_gives_it_back():
    assert 5 * faults("keep_freed") < faults("keep_compact")


MEANWHILE = """
import resource
from pathlib import Path
import torch
from depthscope import allocator
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
allocator.keep_compact()
before = resident()
for _ in range(2):
    with allocator.kept_meanwhile():
        [torch.ones(2**18) for _ in range(200)]
        begun = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        [torch.ones(2**18) for _ in range(200)]
        print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - begun)
    print(resident() - before)
"""


def test_a_server_keeps_freed_memory_while_it_computes_and_then_gives_it_back():
    done = subprocess.run([sys.executable, "-c", MEANWHILE], capture_output=True, check=True, text=True)
    faulted, left, again, left_again = map(int, done.stdout.split())
    assert max(faulted, again) < 200 * 2**20 // 4096 / 5, "the pages of the first tensors serve the second ones"
    assert max(left, left_again) < 20e6


def test_limits_set_in_the_environment_stand():
    assert 5 * faults("keep_freed") < faults("keep_freed", MALLOC_MMAP_THRESHOLD_="131072")
