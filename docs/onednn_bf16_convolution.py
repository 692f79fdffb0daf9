"""torch 2.13.0: a bf16 convolution reads memory that is not its own on processors with AMX.

oneDNN 3.12.0, `brg_conv_fwd:avx10_1_512_amx`, input (480, 128, 4, 2), kernel (256, 128, 3, 3),
stride 2, padding 1, channels last, no gradient: results differ from call to call, hold NaN or
infinities, and are wrong where they are stable. Input of 8 x 2 fails too; 2 x 2, 4 x 4 and stride 1
do not. Expected: one result, 0.3 % off float32. ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16 cures it.
"""

from pathlib import Path

import torch

torch.set_num_threads(1)
torch.manual_seed(0)
maps = torch.randn(480, 128, 4, 2).to(memory_format=torch.channels_last)
kernel = torch.randn(256, 128, 3, 3).to(memory_format=torch.channels_last)
exact, results = torch.nn.functional.conv2d(maps, kernel, stride=2, padding=1), []
maps, kernel = maps.bfloat16(), kernel.bfloat16()
for value in 10 * [float("nan"), 1e30, 3e30, 5e30, 7e30, 9e30]:
    blocks = [
        torch.full((size,), value, dtype=torch.bfloat16)
        for size in (maps.numel(), kernel.numel(), exact.numel(), 2**20)
        for _ in range(2)
    ]
    del blocks  # what is freed holds these values, and is taken again
    results.append(torch.nn.functional.conv2d(maps, kernel, stride=2, padding=1))
flags = {
    flag
    for flag in Path("/proc/cpuinfo").read_text().split()
    if flag.startswith(("amx", "avx512_bf16"))
}
differ = sum(not result.view(torch.int16).equal(results[0].view(torch.int16)) for result in results)
finite = [result.double() for result in results if result.isfinite().all()]
errors = [float((result - exact).norm() / exact.norm()) for result in finite]
print(f"torch {torch.__version__}, processor flags {sorted(flags)}")
print(
    f"of 60 results {differ} differ from the first, {60 - len(finite)} are not finite; "
    f"largest relative error of the others {max(errors, default=0):.3g}"
)
