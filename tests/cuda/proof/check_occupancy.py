"""prove.py's occupancy beside NVIDIA's own calculation, cuda_occupancy.h of the CUDA Toolkit, over threads, registers and shared
memory, for every architecture of the table.

    python3 check_occupancy.py CXX CUDA_INCLUDE_DIR BUILD_DIR
"""

import pathlib
import subprocess
import sys

import prove

PROGRAM = r"""
#include <cstdio>
#include <cuda_occupancy.h>
int main() {
  int sm, warps, shared, shared_block, reserved, threads, registers, dynamic;
  while (std::scanf("%d %d %d %d %d %d %d %d", &sm, &warps, &shared, &shared_block, &reserved, &threads, &registers, &dynamic) == 8) {
    cudaOccDeviceProp device;
    device.computeMajor = sm / 10;
    device.computeMinor = sm % 10;
    device.maxThreadsPerBlock = 1024;
    device.maxThreadsPerMultiprocessor = warps * 32;
    device.regsPerBlock = device.regsPerMultiprocessor = 65536;
    device.warpSize = 32;
    device.numSms = 1;
    device.sharedMemPerBlock = 48 * 1024;
    device.sharedMemPerBlockOptin = static_cast<size_t>(shared_block);
    device.sharedMemPerMultiprocessor = static_cast<size_t>(shared);
    device.reservedSharedMemPerBlock = static_cast<size_t>(reserved);
    cudaOccFuncAttributes kernel;
    kernel.maxThreadsPerBlock = 1024;
    kernel.numRegs = registers;
    kernel.sharedSizeBytes = 0;
    kernel.maxDynamicSharedSizeBytes = static_cast<size_t>(shared_block);
    kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
    kernel.numBlockBarriers = 1;
    cudaOccDeviceState state;
    state.carveoutConfig = SHAREDMEM_CARVEOUT_MAX_SHARED;
    cudaOccResult result;
    const int status = cudaOccMaxActiveBlocksPerMultiprocessor(&result, &device, &kernel, &state, threads, static_cast<size_t>(dynamic));
    std::printf("%d\n", status == 0 ? result.activeBlocksPerMultiprocessor : -status);
  }
}
"""


def main(cxx, include, build):
    folder = pathlib.Path(build)
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "occupancy.cpp"
    source.write_text(PROGRAM, encoding="utf-8")
    subprocess.run([cxx, "-std=c++20", "-O1", f"-isystem{include}", source, "-o", folder / "occupancy"], check=True)
    cases = [(sm, threads, registers, shared) for sm in prove.ARCHS for threads in (32, 96, 128, 160, 256, 512, 1024)
             for registers in (16, 32, 40, 63, 64, 72, 96, 128, 168, 255) for shared in (0, 1, 1024, 5000, 16384, 33000, 49152, 65536, 99 * 1024)
             if shared <= prove.ARCHS[sm].shared_block and registers * threads <= 65536]
    rows = []
    for sm, threads, registers, shared in cases:
        arch = prove.ARCHS[sm]
        rows.append(f"{sm} {arch.warps} {arch.shared} {arch.shared_block} {arch.reserved} {threads} {registers} {shared}")
    done = subprocess.run([folder / "occupancy"], input="\n".join(rows), capture_output=True, text=True, check=True)
    wrong = 0
    for case, line in zip(cases, done.stdout.split(), strict=True):
        ours = prove.occupancy(*case)[0]
        if ours != int(line):
            wrong += 1
            print(f"sm_{case[0]}, {case[1]} threads, {case[2]} registers, {case[3]} bytes: {ours} blocks; NVIDIA's header says {line}")
    print(f"{len(cases)} cases, {wrong} wrong")
    return 1 if wrong or len(cases) < 1000 else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
